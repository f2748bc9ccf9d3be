"""Small charts as inline SVG: lines over recall, and differences with their intervals. Colours are the style sheet's.

No script and no fetched font; every chart says in words what it shows to those who don't see it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_WIDTH, _HEIGHT = 220, 140
_LEFT, _RIGHT, _TOP, _BOTTOM = 26, 6, 8, 20


@dataclass(frozen=True)
class Line:
    """kind: a class of the style (its colour and dashes); xs, ys: points; NaN interrupts the line."""

    kind: str
    xs: np.ndarray
    ys: np.ndarray


def small_chart(title: str, note: str, lines: Sequence[Line], about: str, *, y_max: float = 1.0) -> str:
    """A panel of several: x from 0 to 1, y from 0 to y_max, lines above that at the edge."""
    x_of = _scale(0.0, 1.0, _LEFT, _WIDTH - _RIGHT)
    y_of = _scale(0.0, y_max, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for value in _ticks(y_max):
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in (0.0, 0.5, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(value, "middle")
        parts.append(f'<text x="{x_of(value):.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{value:g}</text>')
    for line in lines:
        for run in _runs(line.xs, np.minimum(line.ys, y_max)):
            points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in run)
            parts.append(f'<polyline class="{line.kind}" points="{points}"/>')
    label = html.escape(about, quote=True)
    return (
        f'<figure class="small"><figcaption><b>{html.escape(title)}</b> {html.escape(note)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(kind, name) of every line that the charts under it share."""
    shown = "".join(
        '<span><svg class="key" viewBox="0 0 26 8" aria-hidden="true">'
        f'<polyline class="{kind}" points="1,4 25,4"/></svg>'
        f"{html.escape(name)}</span>"
        for kind, name in entries
    )
    return f'<p class="legend">{shown}</p>'


@dataclass(frozen=True)
class Difference:
    """A row of an interval chart: its value, more being better, and its interval, NaN where there is none."""

    name: str
    value: float
    low: float
    high: float


def interval_chart(rows: Sequence[Difference], about: str) -> str:
    """Differences as dots on a common axis through 0, their intervals as bars; those beside 0 are filled."""
    ends = [abs(v) for row in rows for v in (row.value, row.low, row.high) if math.isfinite(v)]
    most = max([*ends, 1e-3]) * 1.05
    width, left, step = 420, 136, 22
    height = step * len(rows) + 30
    x_of = _scale(-most, most, left, width - 30)
    parts = []
    for value in (-_nice(most), 0.0, _nice(most)):
        x = x_of(value)
        kind = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 24}"/>')
        shown = f"{value:+.3g}".replace("-", "−") if value else "0"
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{shown}</text>')
    for number, row in enumerate(rows):
        y = step * number + 16
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{html.escape(row.name)}</text>')
        if not math.isfinite(row.value):
            continue
        known = math.isfinite(row.low)
        clear = known and (row.low > 0 or row.high < 0)
        kind = ("better" if row.value > 0 else "worse") if clear else "unclear"
        if known:
            parts.append(f'<line class="{kind}" x1="{x_of(row.low):.1f}" x2="{x_of(row.high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{x_of(row.value):.1f}" cy="{y}" r="4.5"/>')
    label = html.escape(about, quote=True)
    return (
        f'<figure class="chart intervals"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _ticks(most: float) -> list[float]:
    step = _nice(most / 2)
    return [step * n for n in range(int(most / step + 1e-9) + 1)]


def _nice(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(m for m in (1, 2, 5) if power * m <= value * (1 + 1e-9))


def _runs(xs: np.ndarray, ys: np.ndarray) -> list[list[tuple[float, float]]]:
    """The stretches of points without a NaN."""
    out: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if math.isfinite(y):
            out[-1].append((x, y))
        elif out[-1]:
            out.append([])
    return [run for run in out if run]
