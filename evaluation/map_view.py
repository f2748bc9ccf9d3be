"""A teacher's further fields from above, each in a small panel: heat of a class, size of a level, sample points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from cache.errors import DataError
from evaluation.layers import GROUND, BoxLayer, MapLayer, mask_colour
from evaluation.panels import Panels, Place, outline_boxes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WARM = LinearSegmentedColormap.from_list("warm", [GROUND, "#5a3d8a", "#d94ee6", "#ffd166"])


def paint_map_panels(figure: Figure, place: Place, maps: Sequence[MapLayer], layer: BoxLayer | None) -> None:
    """Fills `place` with a panel a map: its values from 0 to its largest, its points, and the layer's boxes.

    Raises DataError for values that are not on the map's grid.
    """
    panels = Panels(figure, place, len(maps))
    for position, one in enumerate(maps):
        grid = one.grid
        if one.values is not None and one.values.shape != grid.shape:
            raise DataError(f"map {one.name} of shape {one.values.shape}, expected {grid.shape}")
        most = 0.0 if one.values is None or not one.values.size else float(one.values.max())
        says = f"{len(one.points)} points" if one.values is None else f"up to {most:.3g}, cells of {grid.cell_m:g} m"
        axes = panels.panel(position, grid, one.name, says)
        if one.values is not None:
            extent = (grid.x_min, grid.x_max, grid.y_min, grid.y_max)
            shown = np.asarray(one.values, np.float32)
            axes.imshow(
                shown, cmap=_WARM, vmin=0, vmax=most or 1, extent=extent, origin="lower", interpolation="nearest"
            )
        outline_boxes(axes, layer)
        if len(one.points):
            axes.scatter(one.points[:, 0], one.points[:, 1], color=mask_colour(position), s=2.5, lw=0, zorder=4)
