"""Pictures a person would want to look at: a frame from above and through its six cameras, with masks and boxes.

Takes canonical points and boxes, images and the frame's calibration; gives RGB arrays (H, W, 3) uint8. Drawn with
matplotlib's Agg canvas on a dark ground, without pyplot's global state; about a second a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from cache.files import write_bytes
from cache.frame import Frame
from cache.grid import BevGrid
from evaluation.audit import Audit
from evaluation.audit_view import SIZE as AUDIT_SIZE
from evaluation.audit_view import paint_audit
from evaluation.bev_view import paint_bev
from evaluation.camera_view import paint_cameras
from evaluation.layers import (
    DPI,
    GROUND,
    INK,
    SOFT,
    BoxLayer,
    MapLayer,
    MaskLayer,
    detection_layer,
    layer_colour,
    mask_colour,
    truth_layer,
)
from evaluation.map_view import paint_map_panels
from evaluation.mask_view import paint_mask_panels
from evaluation.panels import PANELS_A_ROW, TITLE_SHARE, rows_of

__all__ = [
    "BoxLayer",
    "MapLayer",
    "MaskLayer",
    "decode_jpeg",
    "detection_layer",
    "draw_audit",
    "draw_bev",
    "draw_cameras",
    "draw_frame",
    "draw_maps",
    "encode_jpeg",
    "encode_png",
    "truth_layer",
    "write_png",
]


def decode_jpeg(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB of JPEG or PNG bytes; DataError where they do not decode."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise DataError(f"{len(data)} bytes do not decode as a JPEG or PNG image; restore the file they came from")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def draw_bev(
    points: np.ndarray | None,
    layers: Sequence[BoxLayer],
    *,
    grid: BevGrid | None = None,
    mask: np.ndarray | None = None,
    title: str = "",
    size: int = 1000,
) -> np.ndarray:
    """(size, size, 3) uint8 RGB: the frame from above, the car's nose up, x to the right.

    points (P, 3 or more) canonical, coloured by height; mask (H, W) 0..1 on `grid`, as a translucent overlay; layers
    in drawing order. The view is the grid's range, or 51.2 m about the LiDAR. Raises DataError for a mask of another
    shape.
    """
    figure, canvas = _figure(size, size)
    paint_bev(figure.add_axes((0, 0, 1, 1)), points, layers, grid, mask, title)
    return _rgb(canvas)


def draw_cameras(
    images: Sequence[np.ndarray], frame: Frame, layers: BoxLayer | Sequence[BoxLayer], *, width: int = 1680
) -> np.ndarray:
    """RGB mosaic of 2 x 3 images, `width` pixels wide, with the boxes' 3-D edges and their front faces filled.

    images: six RGB arrays in CAMERA_CHANNELS order, of the sizes that the frame's calibration is for (any scale of it).
    One layer is coloured by class, with class names; several by layer. Raises DataError where images do not fit.
    """
    layers = [layers] if isinstance(layers, BoxLayer) else list(layers)
    heights = [round(width / 3 * camera.height / camera.width) for camera in frame.cameras]
    figure, canvas = _figure(width, 2 * max(heights))
    paint_cameras(figure, (0.0, 0.0, 1.0, 1.0), images, frame, layers)
    return _rgb(canvas)


def draw_frame(
    points: np.ndarray | None,
    images: Sequence[np.ndarray],
    frame: Frame,
    layers: Sequence[BoxLayer],
    *,
    grid: BevGrid | None = None,
    mask: np.ndarray | None = None,
    masks: Sequence[MaskLayer] = (),
    maps: Sequence[MapLayer] = (),
    width: int = 1800,
) -> np.ndarray:
    """RGB picture of a whole frame: cameras above (the first layer's boxes), below the bird's-eye view (all layers and
    `masks`) and what is known of the frame, at the bottom each of the masks and of the `maps` by itself. Arguments and
    errors as in `draw_bev` and `draw_cameras`; masks: on `grid`, in the order of the store's columns."""
    mosaic = round(2 * width / 3 * frame.cameras[0].height / frame.cameras[0].width)
    below = round(0.62 * width)
    panel = width / PANELS_A_ROW / (1 - TITLE_SHARE)
    if grid is not None:
        panel *= grid.height / grid.width
    mask_rows, map_rows = rows_of(len(masks)), rows_of(len(maps))
    panels = round((mask_rows + map_rows) * panel)
    height = mosaic + below + panels
    figure, canvas = _figure(width, height)
    paint_cameras(figure, (0.0, (below + panels) / height, 1.0, mosaic / height), images, frame, list(layers[:1]))
    view = figure.add_axes((0, panels / height, below / width, below / height))
    paint_bev(view, points, layers, grid, mask, "", masks)
    facts = _facts(points, frame, layers, masks)
    _write_facts(figure, below / width + 0.02, (below + panels) / height - 0.03, panels / height, facts)
    if masks and grid is not None:
        share = mask_rows / (mask_rows + map_rows)
        place = (0, (1 - share) * panels / height, 1, share * panels / height)
        paint_mask_panels(figure, place, masks, grid, points, next(iter(layers), None))
    if maps:
        share = map_rows / (mask_rows + map_rows)
        paint_map_panels(figure, (0, 0, 1, share * panels / height), maps, next(iter(layers), None))
    return _rgb(canvas)


def draw_maps(maps: Sequence[MapLayer], layer: BoxLayer | None = None, *, size: int = 340) -> np.ndarray:
    """RGB picture of up to six maps side by side, `size` pixels wide each, from 0 to its largest value, with the
    outlines of a layer's boxes."""
    shape = max(one.grid.height / one.grid.width for one in maps)
    figure, canvas = _figure(size * PANELS_A_ROW, round(rows_of(len(maps)) * size * shape / (1 - TITLE_SHARE)))
    paint_map_panels(figure, (0, 0, 1, 1), maps, layer)
    return _rgb(canvas)[:, : size * min(len(maps), PANELS_A_ROW)]


def draw_audit(audit: Audit, name: str) -> np.ndarray:
    """RGB picture of an audit under its `name`: heat maps by class and distance."""
    figure, canvas = _figure(*AUDIT_SIZE)
    paint_audit(figure, audit, name)
    return _rgb(canvas)


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of an RGB array."""
    return _encode(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 6])


def encode_jpeg(image: np.ndarray, quality: int = 88) -> bytes:
    """JPEG bytes of an RGB array."""
    return _encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def write_png(path: Path, image: np.ndarray) -> None:
    """An RGB array as a PNG at `path`, atomically."""
    write_bytes(path, encode_png(image))


def _encode(image: np.ndarray, ext: str, options: list[int]) -> bytes:
    done, data = cv2.imencode(ext, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise DataError(f"an image of shape {image.shape} and dtype {image.dtype} does not encode as {ext}")
    return data.tobytes()


def _figure(width: int, height: int) -> tuple[Figure, FigureCanvasAgg]:
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=GROUND)
        return figure, FigureCanvasAgg(figure)


def _rgb(canvas: FigureCanvasAgg) -> np.ndarray:
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _facts(
    points: np.ndarray | None, frame: Frame, layers: Sequence[BoxLayer], masks: Sequence[MaskLayer]
) -> list[tuple[str, int, str]]:
    """Lines of text, each with its size in points and its colour."""
    lines = [
        (frame.scene_name, 20, INK),
        (f"{frame.split}, sample {frame.token}", 10, SOFT),
        (
            f"timestamp {frame.timestamp_us} us" + (f", {len(points):,} points" if points is not None else ""),
            10,
            SOFT,
        ),
    ]
    for position, layer in enumerate(layers):
        counts = np.bincount(np.asarray(layer.labels, np.int64), minlength=len(DETECTION_CLASSES))
        lines += [("", 8, INK), (f"{layer.name}: {len(layer)} boxes", 13, layer_colour(layer.name, position))]
        lines += [
            (f"{count:4d}  {name.replace('_', ' ')}", 11, INK)
            for name, count in zip(DETECTION_CLASSES, counts, strict=True)
            if count
        ]
    if masks:
        lines += [("", 8, INK), ("masks, cells each", 13, INK)]
    lines += [(f"{mask.cells:6d}  {mask.name:.60}", 11, mask_colour(i)) for i, mask in enumerate(masks)]
    return lines


def _write_facts(figure: Figure, x: float, y: float, bottom: float, lines: Sequence[tuple[str, int, str]]) -> None:
    height = figure.get_size_inches()[1] * 72
    # many lines: tighter
    step = min(1.0, 0.92 * (y - bottom) / (sum(1.75 * size for _, size, _ in lines) / height))
    for text, size, colour in lines:
        figure.text(x, y, text, fontsize=size * min(1.0, max(0.6, step)), color=colour, va="top", family="DejaVu Sans")
        y -= 1.75 * size / height * step
