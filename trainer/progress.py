"""What a person sees while a run goes on: a rich bar with loss, rate, frames/s and time left; plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.observer import StepReport

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


class StepBar:
    """A `StepListener` that shows a `Bar`. Context manager."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self._bar = Bar(label, total, done)

    def __enter__(self) -> StepBar:
        self._bar.__enter__()
        return self

    def __call__(self, report: StepReport) -> None:
        stall = f"  waiting {report.stall_share:.0%}" if report.stall_share > 0.05 else ""
        detail = f"loss {report.loss:.3f}  lr {report.lr:.1e}  {report.frames_per_s:.1f} frames/s{stall}"
        self._bar.update(report.done, detail)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
