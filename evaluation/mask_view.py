"""Masks from above: all of them as layers of one bird's-eye view, and each by itself in a small panel.

A weight is drawn as opacity. In the shared view a mask has an outline too, and one that covers much of the grid has
nothing else, so that it does not veil what is below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from cache.errors import DataError
from cache.grid import BevGrid
from evaluation.layers import FAINT, BoxLayer, MaskLayer, mask_colour
from evaluation.panels import Panels, Place, outline_boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE = 0.25  # of the grid's cells: only outlined in the shared view
_FAINTEST = 0.12  # opacity of the smallest weight: it is in the store all the same
_MAX_POINTS = 12_000


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
    place: Place,
    masks: Sequence[MaskLayer],
    grid: BevGrid,
    points: np.ndarray | None,
    layer: BoxLayer | None,
) -> None:
    """Fills `place` with a panel a mask: its cells, the points and the layer's boxes."""
    panels = Panels(figure, place, len(masks))
    for position, mask in enumerate(masks):
        share = 100 * mask.cells / mask.weights.size
        axes = panels.panel(position, grid, mask.name, f"{mask.cells} cells, {share:.1f} %")
        if points is not None and len(points):
            shown = points[np.linspace(0, len(points) - 1, min(len(points), _MAX_POINTS)).astype(np.int64)]
            axes.scatter(shown[:, 0], shown[:, 1], color=FAINT, s=0.6, lw=0, zorder=1)
        _paint_weights(axes, mask, grid, mask_colour(position), opacity=1.0, zorder=2)
        outline_boxes(axes, layer)


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
