"""Loss curves as inline SVG: no script, no network, colours from the page's style sheet, for light and dark alike.

Long runs are averaged into at most 240 points, so that a page stays small; the legend gives the last of them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 38
_POINTS = 240
_LOG_RATIO = 30.0  # beyond this ratio of largest to smallest a linear axis would show the first steps only


@dataclass(frozen=True)
class LossCurve:
    """One line of a chart: its name in the legend, the chart (panel) it belongs to, its steps and their values."""

    name: str
    panel: str
    steps: Sequence[float] | np.ndarray
    values: Sequence[float] | np.ndarray


def thinned(steps: np.ndarray, values: np.ndarray, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Finite values averaged over equal runs of steps, at most `points` of them."""
    finite = np.isfinite(steps) & np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(values) <= points:
        return steps, values
    parts = np.array_split(np.arange(len(values)), points)
    means = [np.array([array[part].mean() for part in parts]) for array in (steps, values)]
    return means[0], means[1]


def chart(panel: str, curves: Sequence[LossCurve], colours: Sequence[int] | None = None) -> str:
    """One <figure> with the curves of a panel. A curve without a finite value is named as such in the legend.

    colours: for every curve its number among the style sheet's six; by position where None.
    """
    classes = [f"c{number % 6}" for number in (colours if colours is not None else range(len(curves)))]
    lines = [thinned(np.asarray(c.steps, np.float64), np.asarray(c.values, np.float64)) for c in curves]
    legend = "".join(
        f'<span><i class="{colour}"></i>{html.escape(curve.name)}{_last(values)}</span>'
        for colour, curve, (_, values) in zip(classes, curves, lines, strict=True)
    )
    caption = f'<figcaption><b>{html.escape(panel)}</b><span class="legend">{legend}</span></figcaption>'
    drawn = [(steps, values) for steps, values in lines if len(values)]
    if not drawn:
        return f'<figure class="chart">{caption}</figure>'
    x_axis = _Axis(min(s.min() for s, _ in drawn), max(s.max() for s, _ in drawn), _LEFT, _WIDTH - _RIGHT, False)
    y_axis = _y_axis(np.concatenate([values for _, values in drawn]))
    parts = [_grid(x_axis, y_axis)]
    for colour, (steps, values) in zip(classes, lines, strict=True):
        if len(values):
            points = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in zip(steps, values, strict=True))
            parts.append(f'<polyline class="{colour}" points="{points}"/>')
    label = html.escape(f"{panel}: {', '.join(curve.name for curve in curves)}", quote=True)
    body = "".join(parts)
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
        f"{caption}</figure>"
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = math.log(max(value, self.low)) if self.log else value
        return self.start + (self.end - self.start) * ((place - low) / (high - low) if high > low else 0.5)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
            ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if self.low <= m * 10.0**p <= self.high]
            return ticks[:: max(1, math.ceil(len(ticks) / 6))]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _y_axis(values: np.ndarray) -> _Axis:
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > _LOG_RATIO:
        return _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, True)
    low = min(low, 0.0)
    return _Axis(low, high if high > low else low + 1.0, _HEIGHT - _BOTTOM, _TOP, False)


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    out = []
    for value in y_axis.ticks():
        y = y_axis.at(value)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for value in x_axis.ticks():
        x = x_axis.at(value)
        out.append(f'<text x="{x:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{value:.6g}</text>')
    note = "step" + (" (loss on a logarithmic axis)" if y_axis.log else "")
    out.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{note}</text>')
    return "".join(out)


def _last(values: np.ndarray) -> str:
    return f" {values[-1]:.4g}" if len(values) else " (no finite value)"
