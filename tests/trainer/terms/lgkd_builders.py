"""A tiny world for tests of terms: a student's maps, and what a teacher said of the same frames, frame by frame.

Frame EMPTY has no object, so no cell of `gaussian`; frame BARE has no stored cell at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from models.center_head import BRANCHES
from models.detector import Batch, BevLevel, DetectorOutput, LossPart
from models.gaussian import foreground_mask
from tests.trainer.synthetic import make_camera
from tests.trainer.terms.slow_pieces import AUGMENTS, gradients, total
from trainer.augment import BevAugment, move_boxes
from trainer.said import DepthSaid, TeacherCells, TeacherSaid

GRID = BevGrid(-8.0, 8.0, -6.0, 6.0, 1.0)  # 16 x 12 cells
COARSE = BevGrid(-8.0, 8.0, -6.0, 6.0, 2.0)
GROUPS = (("car",), ("truck", "pedestrian"))
TEACHER_GROUPS = (("pedestrian", "truck"), ("car",))  # the same groups, otherwise ordered
STUDENT, TEACHER, SPLAT = 3, 4, 2  # channels
EMPTY, BARE, FRAMES = 2, 3, 4
CAMERAS, PICTURE = 2, (32, 16)  # cameras; (width, height) of the student's pictures
SELECTORS = ("lidar", "gaussian", "footprint", "random")
IDENTITY = [BevAugment()] * FRAMES
EDGES = (1.0, 3.0, 5.0, 8.0, 12.0)
POINTS = 9
ITEMS = ("samples", "samples(points=3x3,enlarge=1.6)")  # canonical texts of items with that many points


class World:
    """Leaves of the student (float64) and the teacher's arrays of FRAMES frames; any of them make a batch."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        rng = np.random.default_rng(seed)
        self.bev, self.splat = leaf(FRAMES, STUDENT, *GRID.shape), leaf(FRAMES, SPLAT, *COARSE.shape)
        self.heads = [
            {
                name: leaf(FRAMES, channels, *GRID.shape)
                for name, channels in {**BRANCHES, "heatmap": len(names)}.items()
            }
            for names in GROUPS
        ]
        self.depth_logits = leaf(FRAMES, CAMERAS, len(EDGES) - 1, 4, 8)  # stride 4
        self.boxes = [a_few_boxes(rng, 0 if b == EMPTY else 3) for b in range(FRAMES)]
        self.labels = [torch.from_numpy(rng.integers(0, 3, len(boxes))) for boxes in self.boxes]
        self.cells = [one_frames_cells(rng, boxes, GRID, TEACHER, b == BARE) for b, boxes in enumerate(self.boxes)]
        self.level = [one_frames_cells(rng, boxes, COARSE, SPLAT, b == BARE) for b, boxes in enumerate(self.boxes)]
        self.logits = [torch.from_numpy(rng.normal(-1, 2, (len(c["index"]), 10))) for c in self.cells]
        self.columns, width = [], 0
        for _ in TEACHER_GROUPS:
            ends = np.cumsum([width, *BRANCHES.values()]).tolist()
            self.columns.append({n: slice(a, b) for n, a, b in zip(BRANCHES, ends, ends[1:], strict=False)})
            width = ends[-1]
        self.regression = [torch.from_numpy(rng.normal(0, 1, (len(c["index"]), width))) for c in self.cells]
        self.samples = [torch.from_numpy(rng.normal(0, 1, (len(boxes), POINTS, TEACHER))) for boxes in self.boxes]
        self.inside = [torch.from_numpy(rng.random((len(boxes), POINTS)) < 0.9) for boxes in self.boxes]
        self.depth = torch.from_numpy(rng.dirichlet(np.ones(len(EDGES) - 1), (FRAMES, CAMERAS, 4, 8))).movedim(-1, 2)
        self.returns = depth_returns(rng)

    def leaves(self) -> list[Tensor]:
        return [self.bev, self.splat, *(m for maps in self.heads for m in maps.values()), self.depth_logits]

    def output(self, frames: Sequence[int]) -> DetectorOutput:
        pick = list(frames)
        heads = [{name: value[pick] for name, value in maps.items()} for maps in self.heads]
        depth = self.depth_logits[pick].flatten(0, 1)
        return DetectorOutput(self.bev[pick], heads, depth, levels={"splat": self.splat[pick]})

    def batch(self, frames: Sequence[int], augments: Sequence[BevAugment], **changes: Any) -> Batch:
        matrices = np.stack([augments[b].matrix() for b in frames])
        cameras = [make_camera("CAM_FRONT", yaw, PICTURE) for yaw in (90.0, -60.0)]
        to_lidar = np.stack([np.linalg.inv(camera.lidar_to_camera) for camera in cameras])
        returns = [np.concatenate([p[:, :1] + i * CAMERAS, p[:, 1:]], axis=1) for i, p in self._returns(frames)]
        values: dict[str, Any] = {
            "images": torch.zeros(len(frames), CAMERAS, 3, PICTURE[1], PICTURE[0]),
            "intrinsics": torch.from_numpy(np.stack([c.intrinsic for c in cameras])).repeat(len(frames), 1, 1, 1),
            "camera_to_lidar": torch.from_numpy(matrices[:, None] @ to_lidar),
            "boxes": [torch.from_numpy(move_boxes(self.boxes[b], augments[b].matrix())).double() for b in frames],
            "labels": [self.labels[b] for b in frames],
            "depth_points": torch.from_numpy(np.concatenate(returns)).float(),
            "tokens": [str(b) for b in frames],
            "bev_augmentation": torch.from_numpy(matrices),
            "image_affine": identity_affine(len(frames)),
        }
        return Batch(**{**values, **changes})

    def _returns(self, frames: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        return [(i, self.returns[b]) for i, b in enumerate(frames)]

    def said(self, frames: Sequence[int], **changes: Any) -> TeacherSaid:
        def cat(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([parts[b] for b in frames])

        values: dict[str, Any] = {
            "grid": GRID,
            "cells": joined([self.cells[b] for b in frames]),
            "logits": cat(self.logits),
            "regression": cat(self.regression),
            "regression_columns": tuple(self.columns),
            "groups": TEACHER_GROUPS,
            "levels": {"splat": joined([self.level[b] for b in frames])},
            "level_grids": {"splat": COARSE},
            "samples": {item: [self.samples[b] for b in frames] for item in ITEMS},
            "sample_inside": {item: [self.inside[b] for b in frames] for item in ITEMS},
            "depth": DepthSaid(self.depth[list(frames)], EDGES, 4, PICTURE, identity_affine(len(frames))),
        }
        return TeacherSaid(**{**values, **changes})

    def parts(self, term: Any, frames: Sequence[int], augments: Sequence[BevAugment]) -> dict[str, LossPart]:
        return term(self.output(frames), self.batch(frames, augments), self.said(frames))


def a_model(**changes: Any) -> Any:
    """What terms read of a student when they are built."""
    values: dict[str, Any] = {
        "grid": GRID,
        "bev_channels": STUDENT,
        "levels": {"splat": BevLevel(SPLAT, COARSE)},
        "modality": "camera",
        "heat_classes": tuple(name for names in GROUPS for name in names),
        "config": {"head": {"tasks": [list(names) for names in GROUPS]}},
        "depth_edges": torch.tensor(EDGES),
    }
    return SimpleNamespace(**{**values, **changes})


def a_store(world: World, **changes: Any) -> Any:
    """A teacher store as terms read it when they are built, over the frames of a world."""

    def cells_of(frames: list[dict[str, Tensor]]) -> Any:
        def read(row: int, level: str = "") -> Any:
            frame = frames[row]
            arrays = {name: frame[name].numpy() for name in ("index", "values", "weights")}
            return SimpleNamespace(**arrays)

        return read

    further = SimpleNamespace(
        level=lambda name: SimpleNamespace(encoding=SimpleNamespace(channels=SPLAT, dtype="float16"), grid=COARSE),
        groups=TEACHER_GROUPS,
        depth=SimpleNamespace(edges_m=EDGES),
        channels={"samples_truth_9": TEACHER},
    )
    values: dict[str, Any] = {
        "root": "memory://teacher",
        "grid": GRID,
        "bev": SimpleNamespace(channels=TEACHER, dtype="float16"),
        "selectors": list(SELECTORS),
        "cells": cells_of(world.cells),
        "level_cells": cells_of(world.level),
        "further": further,
        "require": lambda asked: SimpleNamespace(name="samples_truth_9"),
    }
    return SimpleNamespace(**{**values, **changes})


def a_few_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 9) well inside the grid, so that no augmentation of AUGMENTS moves all of one off it."""
    boxes = np.zeros((count, 9), np.float32)
    boxes[:, 0], boxes[:, 1] = rng.uniform(-4, 4, count), rng.uniform(-3, 3, count)
    boxes[:, 3:6], boxes[:, 6] = rng.uniform(1.0, 3.0, (count, 3)), rng.uniform(-math.pi, math.pi, count)
    boxes[:, 7:9] = rng.normal(0, 2, (count, 2))
    return boxes


def one_frames_cells(
    rng: np.random.Generator, boxes: np.ndarray, grid: BevGrid, channels: int, bare: bool
) -> dict[str, Tensor]:
    """index, values, weights by SELECTORS of the cells that any of them keeps. A third of the values are 0, and so is
    all of every fifth cell."""
    masks = np.zeros((len(SELECTORS), *grid.shape), np.float32)
    if not bare:
        masks[0] = rng.random(grid.shape) < 0.4
        masks[1] = foreground_mask(boxes, grid)
        masks[2] = np.where(masks[1] > 0.2, rng.uniform(0.3, 1, grid.shape), 0)
        masks[3] = (masks[1] == 0) & (rng.random(grid.shape) < 0.2)
    weights = masks.reshape(len(SELECTORS), -1).T
    index = np.flatnonzero((weights > 0).any(axis=1))
    values = rng.normal(0, 2, (len(index), channels)) * (rng.random((len(index), channels)) > 0.33)
    values[::5] = 0
    return {
        "index": torch.from_numpy(index.astype(np.int64)),
        "values": torch.from_numpy(values),
        "weights": torch.from_numpy(weights[index]),
    }


def joined(frames: Sequence[Mapping[str, Tensor]]) -> TeacherCells:
    counts = [len(frame["index"]) for frame in frames]
    arrays = [torch.cat([frame[name] for frame in frames]) for name in ("index", "values", "weights")]
    return TeacherCells(*arrays, torch.from_numpy(np.cumsum([0, *counts])), SELECTORS)


def depth_returns(rng: np.random.Generator) -> list[np.ndarray]:
    """Per frame (N, 4) camera, u, v, depth_m: some out of the bins' range; none in frame BARE."""
    out = []
    for b in range(FRAMES):
        count = 0 if b == BARE else 25
        columns = (
            rng.integers(0, CAMERAS, count),
            rng.uniform(0, PICTURE[0], count),
            rng.uniform(0, PICTURE[1], count),
        )
        out.append(np.stack([*columns, rng.uniform(0.2, 16, count)], axis=1).astype(np.float64))
    return out


def identity_affine(frames: int) -> Tensor:
    """Stored pixels (centres at whole numbers) -> the same picture with edges at whole numbers."""
    return torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], dtype=torch.float64).repeat(frames, CAMERAS, 1, 1)


def class_id(name: str) -> int:
    return DETECTION_CLASSES.index(name)


# --- claims that every term is held to ---


def batches_add_up(world: World, term: Any) -> None:
    """Numerators and normalisers of single frames sum to those of the batch, also under augmentation, and the batch
    twice over has the same value."""
    whole = world.parts(term, range(FRAMES), AUGMENTS)
    single = [world.parts(term, [b], AUGMENTS) for b in range(FRAMES)]
    for name, part in whole.items():
        for side in ("numerator", "normaliser"):
            summed = torch.stack([getattr(parts[name], side) for parts in single]).sum(dim=0)
            assert torch.allclose(getattr(part, side), summed, rtol=1e-10, atol=1e-12), (name, side)
    twice = world.parts(term, [*range(FRAMES), *range(FRAMES)], AUGMENTS)
    for name, part in whole.items():
        if float(part.normaliser.min()) >= 1:
            assert torch.allclose(part.value(), twice[name].value(), rtol=1e-10), name


def gradients_are_right(world: World, term: Any, tensors: Sequence[Tensor], seed: int = 0) -> None:
    """Central differences along three random directions, in float64."""
    generator = torch.Generator().manual_seed(seed)
    value = total(world.parts(term, range(FRAMES), AUGMENTS))
    grads = gradients(value, tensors)
    assert any(float(g.abs().sum()) > 0 for g in grads)
    for _ in range(3):
        directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for t, d in zip(tensors, directions, strict=True):
                    t.add_(d, alpha=sign * 1e-6)
                ends.append(float(total(world.parts(term, range(FRAMES), AUGMENTS))))
                for t, d in zip(tensors, directions, strict=True):
                    t.sub_(d, alpha=sign * 1e-6)
        slope = float(sum((g * d).sum() for g, d in zip(grads, directions, strict=True)))
        assert abs((ends[0] - ends[1]) / 2e-6 - slope) <= 1e-5 * max(1.0, abs(slope))


def falls(
    world: World, term: Any, tensors: Sequence[Tensor], *, to: float, floor: float = 0.0, steps: int = 60
) -> None:
    """Adam on the student's maps and the term's own parameters brings the value, above its floor, to this share."""
    optimiser = torch.optim.Adam([*tensors, *term.parameters()], lr=0.1)
    values = []
    for _ in range(steps):
        value = total(world.parts(term, range(FRAMES), AUGMENTS))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] - floor < to * (values[0] - floor), (values[0], values[-1])


def nothing_gives_zero(world: World, term: Any, frame: int) -> None:
    """A batch of that frame alone: zero, and finite zero gradients."""
    value = total(world.parts(term, [frame], AUGMENTS))
    assert value.item() == 0.0
    for gradient in gradients(value, [*world.leaves(), *term.parameters()]):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() == 0
