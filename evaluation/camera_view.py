"""The six cameras of a frame as a mosaic on a matplotlib figure: 3-D box edges, filled front faces, class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import Polygon

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import Camera, Frame
from evaluation.layers import (
    CLASS_COLOURS,
    GROUND,
    INK,
    BoxLayer,
    layer_colour,
    layer_handle,
    paint_legend,
)
from evaluation.projection import (
    EDGES,
    FRONT_FACE,
    clip_polygon,
    clip_segments,
    corners,
    to_camera,
    to_pixels,
    visible_boxes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Both rows run from the driver's left to their right.
_MOSAIC = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")


def paint_cameras(
    figure: Figure,
    place: tuple[float, float, float, float],
    images: Sequence[np.ndarray],
    frame: Frame,
    layers: Sequence[BoxLayer],
) -> None:
    """Fills a part of the figure; place: left, bottom, width, height of the mosaic as fractions of the figure."""
    if len(images) != len(frame.cameras):
        raise DataError(f"{len(images)} images, expected {len(frame.cameras)}, one a camera in the frame's order")
    left, bottom, width, height = place
    for position, channel in enumerate(_MOSAIC):
        number = [camera.channel for camera in frame.cameras].index(channel)
        row, column = divmod(position, 3)
        box = (left + column * width / 3, bottom + (1 - row) * height / 2, width / 3, height / 2)
        axes = figure.add_axes(box)
        _paint_camera(axes, images[number], frame.cameras[number], layers)
        if position == 0 and len(layers) > 1:
            paint_legend(axes, [layer_handle(layer, i) for i, layer in enumerate(layers)])


def _paint_camera(axes: Axes, image: np.ndarray, camera: Camera, layers: Sequence[BoxLayer]) -> None:
    shape = image.shape[:2]
    if image.ndim != 3 or abs(shape[1] / shape[0] - camera.width / camera.height) > 0.02:
        raise DataError(
            f"{camera.channel}: image of shape {image.shape}, the calibration is for {camera.width}x{camera.height}"
        )
    # Pixel i covers i..i+1 in the calibration's coordinates up to half a pixel, whatever the image's scale.
    axes.imshow(image, extent=(0, camera.width, camera.height, 0), interpolation="bilinear", aspect="auto")
    axes.set(xlim=(0, camera.width), ylim=(camera.height, 0))
    axes.axis("off")
    tags: list[_Tag] = []
    for position, layer in enumerate(layers):
        colour = None if len(layers) == 1 else layer_colour(layer.name, position)
        numbers = visible_boxes(layer.boxes_lidar, camera).tolist()
        tags += [_paint_box(axes, layer, number, camera, colour) for number in numbers]
    _paint_tags(axes, tags[::-1], camera)  # nearest first
    name = camera.channel.removeprefix("CAM_").replace("_", " ").lower()
    chip = {"facecolor": GROUND, "edgecolor": "none", "alpha": 0.7, "boxstyle": "round,pad=0.3"}
    axes.text(0.012, 0.022, name, transform=axes.transAxes, fontsize=10, color=INK, bbox=chip, zorder=20)


@dataclass(frozen=True)
class _Tag:
    """A class name to write over a box: its colour, the box's middle and top (px), its height as a fraction."""

    text: str
    colour: str
    x: float
    y: float
    tall: float


def _paint_box(axes: Axes, layer: BoxLayer, number: int, camera: Camera, colour: str | None) -> _Tag:
    name = DETECTION_CLASSES[int(layer.labels[number])]
    colour = colour or CLASS_COLOURS[name]
    points = to_camera(corners(layer.boxes_lidar[number : number + 1])[0], camera)  # (8, 3)
    segments, _ = clip_segments(points[EDGES])
    lines = to_pixels(segments, camera)
    axes.add_collection(LineCollection(list(lines), colors=[colour], linewidths=1.3, capstyle="round"))
    front = clip_polygon(points[list(FRONT_FACE)])
    if len(front) >= 3:
        axes.add_patch(Polygon(to_pixels(front, camera), facecolor=to_rgba(colour, 0.28), edgecolor=colour, lw=2.0))
    low, high = lines.min(axis=(0, 1)), lines.max(axis=(0, 1))
    score = "" if layer.scores is None else f" {layer.scores[number]:.2f}"
    middle = np.clip((max(low[0], 0) + min(high[0], camera.width)) / 2, 0, camera.width)
    return _Tag(
        name.replace("_", " ") + score, colour, float(middle), float(low[1]), float((high[1] - low[1]) / camera.height)
    )


def _paint_tags(axes: Axes, tags: Sequence[_Tag], camera: Camera) -> None:
    """Writes names where there is room, in the given order: a row of barriers gets a few, not twenty on each other."""
    taken: list[tuple[float, float, float, float]] = []
    pixel = camera.width / axes.get_window_extent().width  # image pixels per canvas pixel
    for tag in tags:
        if tag.tall < 0.035:  # too far to read anything into
            continue
        half, height = (3.3 * len(tag.text) + 4) * pixel, 15 * pixel
        x = min(max(tag.x, half), camera.width - half)
        y = max(tag.y - 3 * pixel, height)
        room = (x - half, y - height, x + half, y)
        if any(room[0] < b[2] and b[0] < room[2] and room[1] < b[3] and b[1] < room[3] for b in taken):
            continue
        taken.append(room)
        chip = {"facecolor": GROUND, "edgecolor": "none", "alpha": 0.65, "boxstyle": "round,pad=0.15"}
        text = axes.text(x, y, tag.text, color=tag.colour, fontsize=7.5, ha="center", va="bottom", bbox=chip, zorder=15)
        text.set_clip_on(True)
