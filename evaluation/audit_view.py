"""The audit as a picture: heat maps by class and distance, of the objects that the teacher supports and of those that
have stored cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from cache.classes import DETECTION_CLASSES
from evaluation.audit import BANDS, MATCH_M, Audit
from evaluation.audit_table import percent
from evaluation.layers import FAINT, GROUND, INK, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (1500, 860)
_COLOURS = LinearSegmentedColormap.from_list("share", ["#6b1d2b", "#94491f", "#7f6a14", "#2f7a52", "#2470ad"])
_SHOWN = BANDS[:-1]  # nothing beyond 50 m counts
_LEFT, _BOTTOM, _WIDTH, _HEIGHT, _GAP = 0.135, 0.09, 0.415, 0.75, 0.015


def paint_audit(figure: Figure, audit: Audit, name: str) -> None:
    """Fills a figure of SIZE pixels: two panels with a row a class and a column a band, each field with its share and
    the number of objects that it is a share of; empty where there is no object."""
    totals = audit.totals()
    figure.text(0.02, 0.965, name, fontsize=19, color=INK, va="center")
    figure.text(
        0.02,
        0.92,
        f"{totals['counted']:,} objects in {int(audit.frames[0]):,} frames; {totals['without_support']:,} without "
        f"support, {totals['outside_grid']:,} off the grid; {totals['unmatched']:,} of {totals['detections']:,} "
        "detections match no object",
        fontsize=11,
        color=SOFT,
        va="center",
    )
    note = "distance from the car; empty where there is no object that the metric counts"
    figure.text(_LEFT + _WIDTH, 0.03, note, fontsize=11, color=SOFT, ha="center", va="center")
    titles = (
        ("supported", f"found by the teacher: score {audit.setting.score:g} or more, within {MATCH_M:g} m"),
        ("with_cells", "with a stored cell in the footprint"),
    )
    for position, (measure, title) in enumerate(titles):
        axes = figure.add_axes((_LEFT + position * (_WIDTH + _GAP), _BOTTOM, _WIDTH, _HEIGHT))
        _paint_panel(axes, audit.of(measure), audit.of("counted"), title, named=position == 0)


def _paint_panel(axes: Axes, part: np.ndarray, whole: np.ndarray, title: str, *, named: bool) -> None:
    for row in range(len(DETECTION_CLASSES)):
        for col in range(len(_SHOWN)):
            some, count = int(part[row, col]), int(whole[row, col])
            face = _COLOURS(some / count) if count else GROUND
            axes.add_patch(Rectangle((col, row), 1, 1, facecolor=face, edgecolor=GROUND if count else FAINT, lw=1.5))
            if count:
                axes.text(col + 0.5, row + 0.4, percent(some, count), fontsize=13, color=INK, ha="center", va="center")
                axes.text(col + 0.5, row + 0.75, f"of {count:,}", fontsize=8.5, color=INK, ha="center", va="center")
    axes.set(xlim=(0, len(_SHOWN)), ylim=(len(DETECTION_CLASSES), 0), facecolor=GROUND)
    axes.set_title(title, color=INK, fontsize=13, pad=10)
    axes.set_xticks(np.arange(len(_SHOWN)) + 0.5, [f"{band} m" for band in _SHOWN])
    names = [label.replace("_", " ") for label in DETECTION_CLASSES] if named else []
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.tick_params(length=0, colors=INK, labelsize=11)
    for spine in axes.spines.values():
        spine.set_visible(False)
