"""Masks from above: all of them as layers of one bird's-eye view, and each by itself in a small panel.

A weight is drawn as opacity. In the shared view a mask has an outline too, and one that covers much of the grid has
nothing else, so that it does not veil what is below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb

from cache.errors import DataError
from cache.grid import BevGrid
from evaluation.layers import DPI, FAINT, GROUND, INK, BoxLayer, MaskLayer, mask_colour
from evaluation.projection import footprints

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 6
TITLE_SHARE = 0.16  # of a panel's height, for its name
_WIDE = 0.25  # of the grid's cells: only outlined in the shared view
_FAINTEST = 0.12  # opacity of the smallest weight: it is in the store all the same
_MAX_POINTS = 12_000
_LETTER_PIXELS = 8.4  # the width of most letters of a title


def paint_masks(axes: Axes, masks: Sequence[MaskLayer], grid: BevGrid) -> None:
    """All masks on one bird's-eye view. DataError for a mask that is not on `grid`."""
    for position, mask in enumerate(masks):
        colour = mask_colour(position)
        if mask.cells <= _WIDE * mask.weights.size:
            _paint_weights(axes, mask, grid, colour, opacity=0.45, zorder=2)
        sides = list(_outline(mask.weights > 0, grid))
        axes.add_collection(LineCollection(sides, colors=colour, linewidths=0.8, zorder=2.4))


def paint_mask_panels(
    figure: Figure,
    place: tuple[float, float, float, float],
    masks: Sequence[MaskLayer],
    grid: BevGrid,
    points: np.ndarray | None,
    layer: BoxLayer | None,
) -> None:
    """Fills `place` (left, bottom, width, height, shares of the figure) with a panel a mask, PANELS_A_ROW in a row:
    its cells, the points and the layer's boxes."""
    left, bottom, width, height = place
    rows = -(-len(masks) // PANELS_A_ROW)
    across, down = width / PANELS_A_ROW, height / rows
    letters = int(across * figure.get_size_inches()[0] * DPI / _LETTER_PIXELS)
    for position, mask in enumerate(masks):
        row, col = divmod(position, PANELS_A_ROW)
        x, y = left + col * across, bottom + (rows - 1 - row) * down
        gap = 0.02 * across
        axes = figure.add_axes((x + gap, y, across - 2 * gap, down * (1 - TITLE_SHARE)))
        axes.set(xlim=(grid.x_min, grid.x_max), ylim=(grid.y_min, grid.y_max), aspect="equal", facecolor=GROUND)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_edgecolor(FAINT)
        if points is not None and len(points):
            shown = points[np.linspace(0, len(points) - 1, min(len(points), _MAX_POINTS)).astype(np.int64)]
            axes.scatter(shown[:, 0], shown[:, 1], color=FAINT, s=0.6, lw=0, zorder=1)
        _paint_weights(axes, mask, grid, mask_colour(position), opacity=1.0, zorder=2)
        if layer is not None and len(layer):
            outline = PolyCollection(list(footprints(layer.boxes_lidar)), facecolors="none", edgecolors=INK)
            outline.set(linewidth=0.6, zorder=3)
            axes.add_collection(outline)
        title = f"{_wrapped(mask.name, letters)}\n{mask.cells} cells, {100 * mask.cells / mask.weights.size:.1f} %"
        figure.text(x + gap, y + down * (1 - TITLE_SHARE) + 0.01 * down, title, fontsize=9, color=INK, va="bottom")


def _wrapped(name: str, letters: int) -> str:
    """Up to two lines, cut at a product's signs where there are any."""
    return "\n".join(line.replace("* ", "*") for line in textwrap.wrap(name.replace("*", "* "), letters)[:2])


def _paint_weights(axes: Axes, mask: MaskLayer, grid: BevGrid, colour: str, *, opacity: float, zorder: float) -> None:
    if mask.weights.shape != grid.shape:
        raise DataError(f"mask {mask.name} of shape {mask.weights.shape}, expected {grid.shape}")
    picture = np.zeros((*grid.shape, 4), np.float32)
    picture[..., :3] = to_rgb(colour)
    weights = np.clip(mask.weights, 0, 1)
    picture[..., 3] = np.where(weights > 0, opacity * (_FAINTEST + (1 - _FAINTEST) * weights), 0)
    extent = (grid.x_min, grid.x_max, grid.y_min, grid.y_max)
    axes.imshow(picture, extent=extent, origin="lower", interpolation="nearest", zorder=zorder)


def _outline(inside: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(E, 2, 2) the cells' sides, in metres, between cells that are inside and cells that are not."""
    ring = np.pad(inside, 1)
    x = grid.x_min + np.arange(grid.width + 1) * grid.cell_m
    y = grid.y_min + np.arange(grid.height + 1) * grid.cell_m
    row, col = np.nonzero(ring[1:-1, 1:] != ring[1:-1, :-1])  # upright sides, left of cell (row, col)
    upright = np.stack([np.stack([x[col], y[row]], 1), np.stack([x[col], y[row + 1]], 1)], 1)
    row, col = np.nonzero(ring[1:, 1:-1] != ring[:-1, 1:-1])
    level = np.stack([np.stack([x[col], y[row]], 1), np.stack([x[col + 1], y[row]], 1)], 1)
    return np.concatenate([upright, level])
