"""`./bevcask inspect`: what a cache holds, and one frame drawn: six cameras, bird's-eye view, masks, truth, teacher."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from cache.box_points import box_points
from cache.cells import scatter_cells
from cache.errors import StoreError
from cache.grid import BevGrid
from cache.index import KIND_UNLABELLED
from cache.layout import frames_place, teacher_names, teacher_place
from cache.manifest import Manifest
from cache.store import FrameStore, Store, TeacherStore
from evaluation.draw import (
    BoxLayer,
    MapLayer,
    MaskLayer,
    decode_jpeg,
    detection_layer,
    draw_frame,
    truth_layer,
    write_png,
)

SHOWN_QUARANTINED = 10


def describe(cache: str | Path) -> list[RenderableType]:
    """Tables of every store under `cache`. Raises StoreError where there is no frame store."""
    frames = FrameStore(frames_place(cache))
    out: list[RenderableType] = [_summary(frames, "frame store")]
    splits = Counter(frames.manifest.scenes[int(scene)].split for scene in frames.index.scene)
    out.append("splits: " + ", ".join(f"{name} {count} frames" for name, count in sorted(splits.items())))
    unlabelled = int((frames.index.kind == KIND_UNLABELLED).sum())
    if unlabelled:
        out.append(f"kinds: {len(frames) - unlabelled} labelled, {unlabelled} unlabelled")
    counts = np.asarray(frames.index.class_counts).sum(axis=0)
    out.append("boxes: " + ", ".join(f"{name} {int(n)}" for name, n in zip(frames.classes, counts, strict=True)))
    out.append(f"first token: {frames.token(0)}" if len(frames) else "no frames")
    for name in teacher_names(cache):
        teacher = TeacherStore(teacher_place(cache, name))
        out.append(_summary(teacher, f"teacher store {name}"))
        bev = teacher.bev
        out.append(
            f"grid {teacher.grid}; {bev.channels} channels, {bev.layout} in {bev.dtype}; coverage {teacher.coverage}; "
            f"weights {teacher.manifest.header['weights_sha256'][:16]}"
        )
        if teacher.further.asked.items:
            out.append(f"further fields: {teacher.further.asked}")
    return out


def _summary(store: Store, title: str) -> Table:
    table = Table(title=f"{title}: {store.root}", title_justify="left")
    for column in ("field", "type", "shape", "unit", "frames", "MB", "about"):
        table.add_column(column, justify="right" if column in ("frames", "MB") else "left")
    for position, spec in enumerate(store.manifest.fields):
        length = np.asarray(store.index.length[:, position])
        table.add_row(
            spec.name,
            f"{spec.dtype} {spec.ext}".strip(),
            " x ".join(spec.shape),
            spec.unit,
            str(int((length > 0).sum())),
            f"{length.sum() / 1e6:.1f}",
            spec.about,
        )
    table.caption = (
        f"{len(store)} frames, {len(store.manifest.shards)} shards, {len(store.manifest.quarantined)} quarantined, "
        f"{store.manifest.format.name}, data set {store.manifest.identity['dataset_version']}, "
        f"digest {store.manifest.digest}"
    )
    return table


def closing_summary(manifest: Manifest) -> dict[str, Any]:
    """What a caching run wrote, as plain values."""
    return {
        "frames": sum(shard.frames for shard in manifest.shards),
        "bytes": sum(file.size for shard in manifest.shards for file in shard.files),
        "shards": len(manifest.shards),
        "quarantined": len(manifest.quarantined),
        "digest": manifest.digest,
    }


def closing_lines(kind: str, manifest: Manifest, root: str | Path) -> list[str]:
    """The same for a person, with the first quarantined frames and why."""
    summary = closing_summary(manifest)
    return [
        f"{kind}: {summary['frames']} frames in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB, in {root}",
        f"manifest digest {summary['digest']}",
        *(f"quarantined {entry['token']}: {entry['reason']}" for entry in manifest.quarantined[:SHOWN_QUARANTINED]),
    ]


def draw_token(cache: str | Path, token: str, teacher: str | None, out: Path | None) -> Path:
    """Draws one frame to a PNG and returns its path; the only teacher store is drawn too where none is named."""
    frames = FrameStore(frames_place(cache))
    row = frames.row_of(token)
    names = teacher_names(cache)
    if teacher is not None and teacher not in names:
        raise StoreError(f"{cache}: no teacher store {teacher!r}; it has {names or 'none'}")
    if teacher is None and len(names) == 1:
        teacher = names[0]
    path = out or Path(f"{token}.png")
    write_png(path, frame_picture(frames, row, TeacherStore(teacher_place(cache, teacher)) if teacher else None))
    return path


def frame_picture(
    frames: FrameStore, row: int, teacher: TeacherStore | None, more: tuple[BoxLayer, ...] = ()
) -> np.ndarray:
    """RGB picture of one frame with whatever the stores hold of it; `more` layers are drawn last."""
    frame = frames.frame(row)
    images = [decode_jpeg(frames.image(row, camera.channel)) for camera in frame.cameras]
    layers: list[BoxLayer] = [truth_layer(frame, frames.truth(row))] if frames.is_labelled(row) else []
    grid: BevGrid | None = None
    masks: tuple[MaskLayer, ...] = ()
    maps: list[MapLayer] = []
    if teacher is not None:
        grid, masks = teacher.grid, mask_layers(teacher, frame.token)
        at = teacher.row_of(frame.token)
        layers.append(detection_layer("teacher", teacher.detections(at)))
        maps = map_layers(teacher, at, frames.boxes_lidar(row) if frames.is_labelled(row) else None)
    points = frames.points(row) if frames.has(row, "points") else None
    return draw_frame(points, images, frame, [*layers, *more], grid=grid, masks=masks, maps=maps)


def mask_layers(teacher: TeacherStore, token: str) -> tuple[MaskLayer, ...]:
    """Every column of a frame's weights, to be drawn, in the store's order."""
    weights = scatter_cells(teacher.cells(teacher.row_of(token)), teacher.grid.shape)[1]
    return tuple(MaskLayer(name, column) for name, column in zip(teacher.selectors, weights, strict=True))


def map_layers(teacher: TeacherStore, row: int, truth: np.ndarray | None) -> list[MapLayer]:
    """What a frame's further fields look like from above: the heat of each class, the mean size of each level's values,
    and the points of samples; truth: (N, 9) annotated boxes, None where there are none."""
    further, out = teacher.further, []
    if "logits" in further.asked:
        heat = 1 / (1 + np.exp(-teacher.logits(row).astype(np.float32)))
        for name, column in zip(teacher.classes, heat.T, strict=True):
            out.append(
                MapLayer(f"heat: {name}", teacher.grid, _on_grid(teacher.cells(row).index, column, teacher.grid))
            )
    for level in further.levels:
        cells = teacher.level_cells(row, level.name)
        size = np.abs(cells.values.astype(np.float32)).mean(axis=1)
        out.append(MapLayer(f"level {level.name}: mean |value|", level.grid, _on_grid(cells.index, size, level.grid)))
    for item in further.asked.of("samples"):
        inside = teacher.samples(row, str(item)).inside
        boxes = teacher.detections(row).boxes_lidar if item["boxes"] == "teacher" else truth
        if boxes is not None:
            points = box_points(boxes[: len(inside)], item["points"], item["enlarge"])
            out.append(MapLayer(item.name.replace("_", " "), teacher.grid, points=points[inside]))
    return out


def _on_grid(index: np.ndarray, values: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(H, W) float32 of values (K,) at cells, 0 elsewhere."""
    out = np.zeros(grid.height * grid.width, np.float32)
    out[index] = values
    return out.reshape(grid.shape)


def foreground_of(teacher: TeacherStore, token: str) -> np.ndarray:
    """(H, W) float32 mask of a frame on the teacher's grid: the selectors' weights, the largest where they overlap.

    Without `dense`, which would hide the others, unless there is nothing else.
    """
    weights = scatter_cells(teacher.cells(teacher.row_of(token)), teacher.grid.shape)[1]
    shown = [column for column, name in enumerate(teacher.selectors) if name != "dense"]
    return weights[shown or slice(None)].max(axis=0)
