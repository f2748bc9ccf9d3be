"""The table of results: models x mAP, NDS and the five errors, for the terminal and (through `evaluation.report`) HTML.

Both print the same strings: what a row is, which way is better, and a difference that never comes without its caveat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from cache.errors import ConfigError
from evaluation.metrics import SUMMARY_KEYS, Metrics

NO_CLAIM = "one seed, no claim"
UNITS = {"mATE": "m", "mASE": "1-IoU", "mAOE": "rad", "mAVE": "m/s", "mAAE": "1-acc"}
HIGHER_IS_BETTER = ("mAP", "NDS")
_VISIBLE = 0.0005  # a difference that rounds to 0.000 is neither better nor worse


@dataclass(frozen=True)
class MetricsRow:
    """One model's line in the table."""

    name: str
    metrics: Metrics


@dataclass(frozen=True)
class Difference:
    """One figure of `row - base`: its text with sign, and whether it is better, worse or the same."""

    text: str
    verdict: str


def heading(key: str) -> str:
    """Column title with the direction that is better and the unit."""
    unit = f" ({UNITS[key]})" if key in UNITS else ""
    return f"{key} {'↑' if key in HIGHER_IS_BETTER else '↓'}{unit}"


def figure(value: float) -> str:
    """A metric with three decimals; a dash where the metric defines none."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def difference(key: str, value: float, base: float) -> Difference:
    """How `value` compares with `base` for the metric `key`."""
    change = value - base
    if math.isnan(change) or abs(change) < _VISIBLE:
        return Difference("–" if math.isnan(change) else "±0.000", "same")
    better = (change > 0) == (key in HIGHER_IS_BETTER)
    return Difference(f"{change:+.3f}".replace("-", "−"), "better" if better else "worse")


def row_named(rows: Sequence[MetricsRow], name: str) -> MetricsRow:
    """The row of that name; ConfigError naming those there are."""
    for row in rows:
        if row.name == name:
            return row
    raise ConfigError(f"no row {name!r} to compare in the table; it has {', '.join(row.name for row in rows)}")


def metrics_table(
    rows: Sequence[MetricsRow], *, title: str = "", compared: tuple[str, str] | None = None, caveat: str = NO_CLAIM
) -> Table:
    """The table for the terminal. compared: (row, base) names; adds the line of differences, with the caveat in it."""
    # narrow enough for a terminal of 80 columns, where a cropped column would be a lost figure
    table = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("model", min_width=len(NO_CLAIM))
    for key in SUMMARY_KEYS:
        table.add_column(heading(key).replace(" (", "\n("), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.name), *(figure(getattr(row.metrics, key)) for key in SUMMARY_KEYS))
    if compared is not None:
        one, base = (row_named(rows, name).metrics for name in compared)
        colour = {"better": "green", "worse": "red", "same": "dim"}
        cells = [difference(key, getattr(one, key), getattr(base, key)) for key in SUMMARY_KEYS]
        table.add_section()
        table.add_row(
            f"{escape(compared[0])} − {escape(compared[1])}\n[dim]{escape(caveat)}[/dim]",
            *(f"[{colour[cell.verdict]}]{cell.text}[/]" for cell in cells),
        )
    return table
