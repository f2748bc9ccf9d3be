"""What is drawn in one way: a layer of boxes (ground truth, teacher, student) or a mask, and the shared colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D

from cache.classes import DETECTION_CLASSES
from cache.frame import Detections, Frame, GroundTruth
from cache.grid import BevGrid
from evaluation.boxes import truth_to_canonical

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUND = "#10151c"
INK = "#e6edf3"
FAINT = "#3b4654"
SOFT = "#8b98a8"
CLASS_COLOURS = dict(
    zip(
        DETECTION_CLASSES,
        ("#4cc9f0", "#f9844a", "#f9c74f", "#b388eb", "#e0a458", "#ff5d8f", "#f15bb5", "#43d9ad", "#ff7b00", "#90be6d"),
        strict=True,
    )
)
LAYER_COLOURS = {"ground truth": "#7bea4f", "teacher": "#3fa7ff", "student": "#ffb703", "distilled": "#ff5d8f"}
_SPARE_COLOURS = ("#b388eb", "#f9844a", "#90be6d", "#f15bb5")
_MASK_COLOURS = (
    *("#d94ee6", "#43d9ad", "#f9c74f", "#4cc9f0", "#f9844a", "#a0d468"),
    *("#ff5d8f", "#9d8cff", "#c9a227", "#2f9e9e", "#ff9ecd", "#8fb3ff"),
)
DPI = 100


@dataclass(frozen=True)
class BoxLayer:
    """Boxes drawn in one way: whose they are, boxes_lidar (N, 9) canonical, labels (N,), scores (N,) or None."""

    name: str
    boxes_lidar: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes_lidar)


@dataclass(frozen=True)
class MaskLayer:
    """A mask drawn in one way: its column's name, and weights (H, W) of 0 or more on a grid."""

    name: str
    weights: np.ndarray

    @property
    def cells(self) -> int:
        """Cells that it keeps."""
        return int((self.weights > 0).sum())


@dataclass(frozen=True)
class MapLayer:
    """A map drawn by itself: its name, values (H, W) of 0 or more on `grid`, or None where there are points alone;
    points (M, 2) x, y in metres."""

    name: str
    grid: BevGrid
    values: np.ndarray | None = None
    points: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))


def truth_layer(frame: Frame, truth: GroundTruth) -> BoxLayer:
    """The ground truth of a frame, to be drawn."""
    return BoxLayer("ground truth", *truth_to_canonical(frame, truth))


def detection_layer(name: str, detections: Detections, min_score: float = 0.2) -> BoxLayer:
    """A model's boxes of at least `min_score`, to be drawn; name: "teacher", "student", "distilled", or any other."""
    kept = detections.above(min_score)
    return BoxLayer(name, kept.boxes_lidar, kept.labels, kept.scores)


def layer_colour(name: str, position: int = 0) -> str:
    """The colour of a layer: fixed for the known names, so that pictures compare; else one of four by position."""
    for known, colour in sorted(LAYER_COLOURS.items(), key=lambda item: -len(item[0])):
        if name.startswith(known):
            return colour
    return _SPARE_COLOURS[position % len(_SPARE_COLOURS)]


def mask_colour(position: int) -> str:
    """The colour of the mask at this position among those drawn."""
    return _MASK_COLOURS[position % len(_MASK_COLOURS)]


def layer_handle(layer: BoxLayer, position: int) -> Artist:
    """The layer's entry in a legend."""
    return Line2D([], [], color=layer_colour(layer.name, position), lw=2, label=f"{layer.name} ({len(layer)})")


def paint_legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """A legend in the upper left corner."""
    style = {"fontsize": 11, "labelcolor": INK, "facecolor": GROUND, "framealpha": 0.85}
    legend = axes.legend(handles=handles, loc="upper left", **style)
    legend.set_zorder(20)
    legend.get_frame().set_edgecolor(FAINT)
