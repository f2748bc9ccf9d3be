"""What a person sees while pieces of work are done: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINE_S = 20.0  # a line this often where there is no terminal


class Bar:
    """A labelled bar over `total` pieces of work, on stderr. Context manager."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self._label, self._total = label, total
        self._console = Console(stderr=True)
        self._bar = Progress(
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
        self._next_line = time.monotonic() + PLAIN_LINE_S

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def update(self, done: int, detail: str = "") -> None:
        """`done` pieces are finished."""
        self._bar.update(self._task, completed=done, detail=detail)
        if not self._console.is_terminal and (time.monotonic() >= self._next_line or done == self._total):
            self._next_line = time.monotonic() + PLAIN_LINE_S
            self._console.print(f"{self._label}: {done}/{self._total} {detail}".rstrip(), highlight=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
