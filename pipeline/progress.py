"""A rich progress bar over frames: rate, bytes, time left, quarantined; plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class FrameProgress:
    """Context manager that satisfies `pipeline.engine.Progress`; `total` and `done` count frames."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self._label, self._total, self._frames, self._first = label, total, done, done
        self._bytes = self._quarantined = 0
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, detail="")

    def __enter__(self) -> FrameProgress:
        self._start = time.monotonic()
        self._bar.start()
        return self

    def advance(self, summary: dict[str, Any]) -> None:
        """Adds one finished shard."""
        self._frames += summary["frames"] + summary["quarantined"]
        self._bytes += summary["bytes"]
        self._quarantined += summary["quarantined"]
        rate = (self._frames - self._first) / max(time.monotonic() - self._start, 1e-9)
        detail = f"{rate:.1f} frames/s  {self._bytes / 1e6:.0f} MB"
        if self._quarantined:
            detail += f"  [red]{self._quarantined} quarantined"
        self._bar.update(self._task, completed=self._frames, detail=detail)
        if not self._console.is_terminal:
            self._console.print(f"{self._label}: {self._frames}/{self._total} frames, {detail}", highlight=False)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, style="dim", highlight=False, markup=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
