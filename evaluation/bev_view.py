"""The bird's-eye view of a frame on matplotlib axes: points by height, mask, boxes with headings, range rings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.patches import Circle, Patch, Polygon

from cache.errors import DataError
from cache.grid import BevGrid
from evaluation.layers import FAINT, GROUND, INK, SOFT, BoxLayer, MaskLayer, layer_colour, layer_handle, paint_legend
from evaluation.mask_view import paint_masks
from evaluation.projection import footprints

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MASK = LinearSegmentedColormap.from_list("mask", [(0.85, 0.2, 0.9, 0.0), (0.85, 0.25, 0.95, 0.6)])
_HEIGHT = LinearSegmentedColormap.from_list("height", ["#3a5378", "#6f93b8", "#b9c9d6", "#fff3d6"])
_HEIGHT_RANGE_M = (-2.0, 2.5)  # of the canonical frame: the road lies at about -1.8 m
_MAX_POINTS = 80_000


def paint_bev(
    axes: Axes,
    points: np.ndarray | None,
    layers: Sequence[BoxLayer],
    grid: BevGrid | None,
    mask: np.ndarray | None,
    title: str,
    masks: Sequence[MaskLayer] = (),
) -> None:
    """Fills the axes; arguments and errors as in `evaluation.draw.draw_bev`."""
    extent = (grid.x_min, grid.x_max, grid.y_min, grid.y_max) if grid else (-51.2, 51.2, -51.2, 51.2)
    if mask is not None and (grid is None or mask.shape != grid.shape):
        raise DataError(f"mask of shape {mask.shape}, expected {grid.shape if grid else 'a grid beside it'}")
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal", facecolor=GROUND)
    axes.axis("off")
    _paint_rings(axes, extent)
    if points is not None and len(points):
        _paint_points(axes, points)
    if mask is not None:
        axes.imshow(mask, cmap=_MASK, vmin=0, vmax=1, extent=extent, origin="lower", interpolation="nearest", zorder=2)
    if masks and grid is None:
        raise DataError("masks without the grid that they are on; give grid")
    handles: list[Artist] = []
    if grid is not None:
        paint_masks(axes, masks, grid)
    for position, layer in enumerate(layers):
        colour = layer_colour(layer.name, position)
        _paint_footprints(axes, layer, colour, zorder=3 + position)
        handles.append(layer_handle(layer, position))
    if mask is not None:
        handles.append(Patch(color=_MASK(0.999), label="mask"))
    axes.add_patch(
        Polygon([(-0.9, -2.6), (0.9, -2.6), (0.9, 1.2), (0.0, 2.2), (-0.9, 1.2)], color=INK, alpha=0.9, zorder=9)
    )
    if handles:
        paint_legend(axes, handles)
    if title:
        chip = {"facecolor": GROUND, "edgecolor": FAINT, "alpha": 0.85, "boxstyle": "round,pad=0.4"}
        axes.text(
            0.985,
            0.98,
            title,
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=11,
            color=INK,
            bbox=chip,
            zorder=20,
        )


def _paint_rings(axes: Axes, extent: tuple[float, float, float, float]) -> None:
    for radius in range(10, 1 + int(min(abs(value) for value in extent)), 10):
        axes.add_patch(Circle((0, 0), radius, fill=False, color=FAINT, lw=0.8, zorder=1))
        place = radius * np.sqrt(0.5)
        axes.text(place, -place, f"{radius} m", color=SOFT, fontsize=9, ha="center", va="center", zorder=8)


def _paint_points(axes: Axes, points: np.ndarray) -> None:
    xyz = np.asarray(points[:, :3], np.float64)
    if len(xyz) > _MAX_POINTS:  # evenly spaced in file order: the same picture every time
        xyz = xyz[np.linspace(0, len(xyz) - 1, _MAX_POINTS).astype(np.int64)]
    xyz = xyz[np.argsort(xyz[:, 2], kind="stable")]  # high points over low ones
    low, high = _HEIGHT_RANGE_M
    axes.scatter(
        xyz[:, 0], xyz[:, 1], c=xyz[:, 2], cmap=_HEIGHT, vmin=low, vmax=high, s=2.0, marker="o", lw=0, zorder=1.5
    )


def _paint_footprints(axes: Axes, layer: BoxLayer, colour: str, zorder: int) -> None:
    if not len(layer):
        return
    outline = footprints(layer.boxes_lidar)
    centre = np.asarray(layer.boxes_lidar[:, :2], np.float64)
    nose = outline[:, :2].mean(axis=1)
    tip = (
        nose + (nose - centre) * np.minimum(1.0, 1.0 / np.maximum(np.linalg.norm(nose - centre, axis=1), 0.1))[:, None]
    )
    alpha = np.ones(len(layer)) if layer.scores is None else 0.35 + 0.65 * np.clip(layer.scores, 0, 1)
    edges = np.array([to_rgba(colour, a) for a in alpha])
    solid = layer.scores is None
    fill = np.array([to_rgba(colour, 0.16 if solid else 0.0)] * len(layer))
    width = 2.2 if solid else 1.5
    axes.add_collection(
        PolyCollection(list(outline), facecolors=fill, edgecolors=edges, linewidths=width, zorder=zorder)
    )
    ticks = np.stack([centre, tip], axis=1)
    axes.add_collection(LineCollection(list(ticks), colors=edges, linewidths=width, zorder=zorder))
