"""How far a teacher that is fed augmented points would differ from the cached one, whose answers are moved instead.

A store holds what the teacher says of a frame as it is; under an augmentation A the trainer reads it as if the teacher
said the same at A p. A teacher in the loop would see the points moved by A, and no network turns its answer with the
world exactly. Measured on simulated frames with the demo's teacher: its map on moved points, read at A p, against its
map on the points as they are (relative difference by length), its class heat likewise, and its boxes against the plain
ones moved by A. Half a minute for eight frames and as many augmentations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cache.files import file_sha256
from cache.frame import Detections
from cache.store import FrameStore
from models.detector import Batch, Detector
from models.gaussian import foreground_mask
from pipeline.teacher import resolve_checkpoint
from pipeline.teacher_shard import load_teacher
from studies.demo import DemoWorld
from studies.simulated_cache import simulated_cache
from trainer.augment import BevAugment, move_boxes, move_points
from trainer.terms.places import augmented_cells, inside_grid
from trainer.terms.sampling import sample_bilinear

ABOUT = "how far a teacher fed augmented points differs from the cached one moved: features, class heat, boxes"
CASES = {
    "flip x": BevAugment(flip_x=True),
    "flip y": BevAugment(flip_y=True),
    "rotation 5 deg": BevAugment(rotation_rad=float(np.deg2rad(5))),
    "rotation 22.5 deg": BevAugment(rotation_rad=float(np.deg2rad(22.5))),
    "rotation 90 deg": BevAugment(rotation_rad=float(np.deg2rad(90))),
    "scale 0.95": BevAugment(scale=0.95),
    "scale 1.05": BevAugment(scale=1.05),
}
SCORE, NEAR_M = 0.3, 1.0


def run(work: Path, console: Console, *, frames: int = 8, teacher: str = "demo", seed: int = 71) -> dict[str, Any]:
    """teacher: a shipped one; seed: of the simulated world, one that it was not trained on."""
    world = DemoWorld(train_scenes=1, val_scenes=-(-frames // 2), frames=2, seed=seed)
    store = FrameStore(simulated_cache(work, world) / "frames")
    rows = store.split_rows("val")[:frames]
    weights = resolve_checkpoint(teacher, None)
    model = load_teacher(str(weights), file_sha256(weights), "cpu", teacher)
    plain = [_answer(model, store.points(row)) for row in rows]
    figures: dict[str, dict[str, float]] = {}
    for name, augment in CASES.items():
        matrix = augment.matrix()
        each = [
            _differences(model, store, row, matrix, was, _answer(model, move_points(store.points(row), matrix)))
            for row, was in zip(rows, plain, strict=True)
        ]
        figures[name] = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
    table = Table("augmentation", *next(iter(figures.values())))
    for name, row in figures.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    console.print(table)
    return {"frames": len(rows), "augmentations": figures, "teacher": teacher}


def _answer(model: Detector, points: np.ndarray) -> tuple[Tensor, Tensor, Detections]:
    """The map (1, C, H, W), class probabilities (1, classes, H, W), and boxes."""
    with torch.no_grad():
        output = model(Batch(points=[torch.from_numpy(np.array(points, np.float32))]))
        heat = torch.cat([maps["heatmap"] for maps in output.heads], dim=1).sigmoid()
        return output.bev.float(), heat.float(), model.decode(output)[0]


def _differences(
    model: Detector,
    store: FrameStore,
    row: int,
    matrix: np.ndarray,
    was: tuple[Tensor, Tensor, Detections],
    now: tuple[Tensor, Tensor, Detections],
) -> dict[str, float]:
    """Of one frame. Lengths over cells that both maps have; a box is found again where one of its class lies within
    NEAR_M of it."""
    grid = model.grid
    index = torch.arange(grid.height * grid.width)
    first = torch.zeros_like(index)
    r, c = augmented_cells(index, first, torch.from_numpy(matrix)[None], grid)
    inside = inside_grid(r, c, grid)
    objects = torch.from_numpy(foreground_mask(store.boxes_lidar(row), grid, dilate=1)).flatten() > 0
    out = {}
    for name, plain, live in (("features", was[0], now[0]), ("heat", was[1], now[1])):
        moved = sample_bilinear(live, first[inside], r[inside], c[inside])
        stored = plain[0].flatten(1).T[inside]
        for where, chosen in (("all cells", slice(None)), ("at objects", objects[inside])):
            difference = (moved[chosen] - stored[chosen]).norm() / stored[chosen].norm().clamp(min=1e-9)
            out[f"{name}, {where}"] = float(difference)
    sure = was[2].scores >= SCORE
    boxes, labels = move_boxes(was[2].boxes_lidar[sure], matrix), was[2].labels[sure]
    distance = np.linalg.norm(boxes[:, None, :2] - now[2].boxes_lidar[None, :, :2], axis=2)
    distance = np.where(labels[:, None] == now[2].labels[None], distance, np.inf)
    nearest = distance.min(axis=1, initial=np.inf)
    found = nearest < NEAR_M
    partner = distance.argmin(axis=1)[found] if found.any() else np.zeros(0, int)
    out["boxes found again"] = float(found.mean()) if len(found) else 1.0
    out["centre, m"] = float(nearest[found].mean()) if found.any() else 0.0
    out["score"] = float(np.abs(now[2].scores[partner] - was[2].scores[sure][found]).mean()) if found.any() else 0.0
    return out
