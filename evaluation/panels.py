"""Small panels of a figure, PANELS_A_ROW in a row: a bird's-eye view each, with a title of up to a few lines."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.collections import PolyCollection

from cache.grid import BevGrid
from evaluation.layers import DPI, FAINT, GROUND, INK, BoxLayer
from evaluation.projection import footprints

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 6
TITLE_SHARE = 0.16  # of a panel's height, for its name
_LETTER_PIXELS = 8.4  # the width of most letters of a title

Place = tuple[float, float, float, float]  # left, bottom, width, height, shares of the figure


def rows_of(panels: int) -> int:
    """Rows that so many panels take."""
    return -(-panels // PANELS_A_ROW)


@dataclass(frozen=True)
class Panels:
    """Room for `count` panels in `place` of a figure."""

    figure: Figure
    place: Place
    count: int

    def panel(self, position: int, grid: BevGrid, name: str, under: str) -> Axes:
        """The axes of one panel over the range of `grid`, its name and a line `under` it written above."""
        left, bottom, width, height = self.place
        rows = rows_of(self.count)
        across, down = width / PANELS_A_ROW, height / rows
        row, col = divmod(position, PANELS_A_ROW)
        x, y = left + col * across, bottom + (rows - 1 - row) * down
        gap = 0.02 * across
        axes = self.figure.add_axes((x + gap, y, across - 2 * gap, down * (1 - TITLE_SHARE)))
        axes.set(xlim=(grid.x_min, grid.x_max), ylim=(grid.y_min, grid.y_max), aspect="equal", facecolor=GROUND)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_edgecolor(FAINT)
        letters = int(across * self.figure.get_size_inches()[0] * DPI / _LETTER_PIXELS)
        title = f"{_wrapped(name, letters)}\n{under}"
        self.figure.text(x + gap, y + down * (1 - TITLE_SHARE) + 0.01 * down, title, fontsize=9, color=INK, va="bottom")
        return axes


def outline_boxes(axes: Axes, layer: BoxLayer | None) -> None:
    """The footprints of a layer's boxes, thin."""
    if layer is not None and len(layer):
        outline = PolyCollection(list(footprints(layer.boxes_lidar)), facecolors="none", edgecolors=INK)
        outline.set(linewidth=0.6, zorder=3)
        axes.add_collection(outline)


def _wrapped(name: str, letters: int) -> str:
    """Up to two lines, cut at a product's signs where there are any."""
    return "\n".join(line.replace("* ", "*") for line in textwrap.wrap(name.replace("*", "* "), letters)[:2])
