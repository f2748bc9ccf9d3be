"""What a person sees while a run trains: a dashboard in a terminal, plain lines elsewhere, both on stderr.

The dashboard is a `RunView` drawn by `panel`, a pure function, at most once a second, which takes 9 ms; a step costs
12 us beside.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.memory import MemoryUse, memory_use
from trainer.observer import Found, RunBegin, RunEnd, StepReport
from trainer.progress import PLAIN_LINE_S

REDRAW_S = 1.0
WIDE = 100  # columns from which the parts of the loss stand beside the rest
SPARKS = "▁▂▃▄▅▆▇█"
_CURVE = 240  # logged losses that are kept
_WAITING = 0.05  # share of a run's time from which waiting for data is marked


@dataclass(frozen=True)
class RunView:
    """All that is shown of a run. losses: the logged ones, oldest first; validated, best: the last validation and the
    best one; elapsed_s: of this call; done_here: steps that it took."""

    name: str
    report: StepReport
    losses: tuple[float, ...] = ()
    memory: MemoryUse = field(default_factory=lambda: MemoryUse(0))
    validated: Found | None = None
    best: Found | None = None
    elapsed_s: float = 0.0
    done_here: int = 0
    outcome: str = ""

    @property
    def eta_s(self) -> float:
        """Seconds until the last step at the pace so far, validations and checkpoints included; NaN before a step."""
        left = self.report.total - self.report.done
        return self.elapsed_s / self.done_here * left if self.done_here else math.nan


class Dashboard:
    """A `trainer.observer.TrainObserver`. Context manager. console: stderr where None."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._view = RunView(name, StepReport(0, 0, math.nan, 0.0, 0.0, 0.0))
        self._losses: deque[float] = deque(maxlen=_CURVE)
        self._live: Live | None = None
        self._device = "cpu"
        self._begun = self._drawn = self._said = time.monotonic()
        self._first_step = 0

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, run: RunBegin) -> None:
        self._device, self._first_step = run.device.type, run.first_step
        self._begun = self._said = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()

    def step(self, report: StepReport) -> None:
        if report.logged or not self._losses:
            self._losses.append(report.loss)
        self._show(report)
        now = time.monotonic()
        if self._live is None and (now - self._said >= PLAIN_LINE_S or report.done == report.total):
            self._said = now
            self._console.print(plain_line(self._view), markup=False, highlight=False, soft_wrap=True)

    def validated(self, found: Found) -> None:
        best = found if found.figures.get("val/best") else self._view.best
        self._view = _replaced(self._view, validated=found, best=best)
        if self._live is None:
            said = f"{self._view.name}: {validation_line(found)}"
            self._console.print(said, markup=False, highlight=False, soft_wrap=True)
        else:
            self._draw()

    def checkpoint(self, step: int, path: object) -> None:
        pass

    def end(self, end: RunEnd) -> None:
        self._view = _replaced(self._view, outcome=end.outcome)
        if self._live is not None and self._view.report.total:
            self._draw()

    def _show(self, report: StepReport) -> None:
        now = time.monotonic()
        self._view = _replaced(
            self._view, report=report, elapsed_s=now - self._begun, done_here=report.done - self._first_step
        )
        if self._live is not None and (now - self._drawn >= REDRAW_S or report.done == report.total):
            self._draw()

    def _draw(self) -> None:
        assert self._live is not None
        self._drawn = time.monotonic()
        self._view = _replaced(self._view, losses=tuple(self._losses), memory=memory_use(self._device))
        self._live.update(panel(self._view, self._console.width), refresh=True)


def plain_line(view: RunView) -> str:
    """A step in one line, for logs."""
    report = view.report
    waiting = f"  waiting {report.stall_share:.0%}" if report.stall_share > _WAITING else ""
    rate = f"{report.frames_per_s:.1f} frames/s{waiting}"
    left = "" if report.done == report.total else f"  {duration(view.eta_s)} left"
    return f"{view.name}: {report.done}/{report.total}  loss {report.loss:.3f}  lr {report.lr:.1e}  {rate}{left}"


def validation_line(found: Found) -> str:
    """A validation in a few words."""
    figures = found.figures
    if "val/failed" in figures:
        return f"validation after step {found.step} could not be scored: {figures['val/failed']}"
    best = ", the best so far" if figures.get("val/best") else ""
    return f"validation after step {found.step}: {_scores(found)}{best}"


def _scores(found: Found) -> str:
    return "  ".join(f"{key} {found.figures[f'val/{key}']:.3f}" for key in ("NDS", "mAP"))


def panel(view: RunView, width: int) -> RenderableType:
    """The dashboard for a terminal of so many columns: the parts of the loss beside the rest where there is room."""
    report = view.report
    inner = width - 4
    rest = Group(_figures(view), Text(), *_loss_curve(view, inner // 2 if width >= WIDE else inner), *_validation(view))
    parts = _parts(report.parts)
    body = Table.grid(expand=True, padding=(0, 2))
    if width >= WIDE:
        body.add_column(ratio=1)
        body.add_column(ratio=1)
        body.add_row(rest, parts)
    else:
        body.add_column(ratio=1)
        body.add_row(rest)
        body.add_row(Text())
        body.add_row(parts)
    colour = {"failed": "red", "preempted": "yellow", "finished": "green"}.get(view.outcome, "cyan")
    title = Text.assemble((view.name, "bold"), " " if view.outcome else "", (view.outcome, colour))
    return Panel(Group(_progress(view), Text(), body), title=title, border_style=colour, width=width)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03, or -."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparks(values: tuple[float, ...], width: int) -> str:
    """A curve of `width` characters at most: means of equal runs of the values, from the least to the largest."""
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    if not count:
        return ""
    cuts = [i * len(finite) // count for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in means)


def _progress(view: RunView) -> RenderableType:
    report = view.report
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    left = f"{duration(view.elapsed_s)} so far, {duration(view.eta_s)} left"
    steps = f"step [bold]{report.done}[/bold]/{report.total}  epoch {report.epoch + 1}"
    row.add_row(steps, ProgressBar(report.total, report.done), left)
    return row


def _figures(view: RunView) -> RenderableType:
    report, memory = view.report, view.memory
    rows = [
        ("loss", f"[bold]{report.loss:.4f}[/bold]", "learning rate", f"{report.lr:.2e}"),
        ("frames/s", f"{report.frames_per_s:.1f}", "waiting for data", _waiting(report.stall_share)),
        ("memory", f"{memory.rss / 2**30:.2f} GiB", "GPU memory", _gpu(memory)),
    ]
    if "gradient_norm" in report.parts:
        rows.append(("step", f"{report.step_s * 1e3:.0f} ms", "gradient norm", f"{report.parts['gradient_norm']:.3g}"))
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*(f"[dim]{cell}[/dim]" if i % 2 == 0 else cell for i, cell in enumerate(row)))
    return table


def _waiting(share: float) -> str:
    return f"[yellow]{share:.0%}[/yellow]" if share > _WAITING else f"{share:.0%}"


def _gpu(memory: MemoryUse) -> str:
    return f"{memory.cuda / 2**30:.2f} GiB, peak {memory.cuda_peak / 2**30:.2f}" if memory.cuda_peak else "-"


def _loss_curve(view: RunView, width: int) -> list[RenderableType]:
    curve = sparks(view.losses, max(width - 4, 8))
    return [Text(curve, style="cyan", no_wrap=True)] if len(view.losses) > 1 else []


def _validation(view: RunView) -> list[RenderableType]:
    if view.validated is None:
        return []
    lines: list[RenderableType] = [Text(), Text(validation_line(view.validated), style="green")]
    if view.best is not None and view.best is not view.validated:
        lines.append(Text(f"best: after step {view.best.step}: {_scores(view.best)}", style="dim"))
    return lines


def _parts(parts: Mapping[str, float]) -> RenderableType:
    """Parts of the loss, each with a bar of its share of them all."""
    named = {name: value for name, value in parts.items() if name != "gradient_norm" and "/" not in name}
    whole = sum(abs(value) for value in named.values() if math.isfinite(value)) or 1.0
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=32)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in named.items():
        share = abs(value) / whole if math.isfinite(value) else 0.0
        table.add_row(f"[dim]{name}[/dim]", f"{value:.4f}", Text("█" * round(12 * share), style="cyan"))
    return table


def _replaced(view: RunView, **changes: object) -> RunView:
    return RunView(**{**vars(view), **changes})  # type: ignore[arg-type]
