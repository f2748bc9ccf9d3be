"""A tiny world for SparseKD's terms: boxes, a teacher's dense maps on one grid, a student's raw maps on another; and
the claims that every term is held to. References read the dense maps; terms read the cells made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from models.center_head import BRANCHES
from models.detector import Batch, DetectorOutput
from models.gaussian import foreground_mask
from tests.trainer.terms.slow_pieces import AUGMENTS, total
from trainer.augment import BevAugment, move_boxes
from trainer.said import TeacherCells, TeacherSaid

FINE = BevGrid(-8.0, 8.0, -6.4, 6.4, 0.8)  # 16 rows, 20 columns
COARSE = BevGrid(-8.0, 8.0, -6.4, 6.4, 1.6)
NARROW = BevGrid(-6.4, 6.4, -6.4, 4.8, 0.8)  # a student that sees less
TEACHER_GROUPS = (("truck", "car"), ("pedestrian", "bus", "barrier"))
STUDENT_GROUPS = (("car",), ("barrier", "pedestrian", "truck"))  # no bus, and other groups than the teacher's
CHANNELS, STUDENT_CHANNELS = 3, 2
SELECTORS = ("gaussian*confident", "gaussian", "dense")
LABELS = [DETECTION_CLASSES.index(name) for group in TEACHER_GROUPS for name in group]


def a_student(grid: BevGrid = FINE, channels: int = STUDENT_CHANNELS) -> Any:
    """What a term asks of a student."""
    head = {"tasks": [list(group) for group in STUDENT_GROUPS], "headless": ["barrier"]}
    return SimpleNamespace(
        grid=grid,
        bev_channels=channels,
        heat_classes=tuple(name for group in STUDENT_GROUPS for name in group),
        config={"head": head},
    )


@dataclass
class World:
    """B frames. boxes: canonical (N, 9); the teacher's maps: logits (B, 10, H, W), regression (B, R, H, W), bev (B, C,
    H, W), weights (B, S, H, W) on `grid`; found: its decoded boxes, scores and labels; stored: which cells are kept."""

    seed: int = 0
    frames: int = 4
    grid: BevGrid = FINE
    student_grid: BevGrid = FINE
    augments: Sequence[BevAugment] = tuple(AUGMENTS)
    objects: Sequence[int] = (4, 3, 0, 5)
    labelled: Sequence[bool] = (True, True, True, True)
    empty: Sequence[int] = ()  # frames of which no cell is stored
    channels: int = CHANNELS
    boxes: list[np.ndarray] = field(default_factory=list)
    student: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.rng = np.random.default_rng(self.seed)
        n, (h, w) = self.frames, self.grid.shape
        self.boxes, self.labels, self.found = [], [], []
        for b in range(n):
            self.boxes.append(self._boxes(self.objects[b]))
            self.labels.append(rng.choice(LABELS, self.objects[b]))
            near = self.boxes[b].copy()
            near[:, :7] += rng.normal(0, 0.1, (len(near), 7)).astype(np.float32)
            theirs = np.concatenate([near, self._boxes(2)])
            scores = np.sort(rng.uniform(0.2, 0.95, len(theirs)))[::-1].astype(np.float32)
            self.found.append((theirs, scores, np.concatenate([self.labels[b], rng.choice(LABELS, 2)])))
        self.logits = rng.normal(-1, 1.5, (n, len(DETECTION_CLASSES), h, w))
        columns = len(TEACHER_GROUPS) * sum(BRANCHES.values())
        self.regression = rng.normal(0, 0.6, (n, columns, h, w))
        self.bev = rng.normal(0, 1.5, (n, self.channels, h, w))
        gaussian = np.stack([foreground_mask(boxes, self.grid, dilate=1) for boxes in self.boxes])
        heat = 1 / (1 + np.exp(-self.logits.max(axis=1)))
        self.weights = np.stack([gaussian * heat, gaussian, rng.random((n, h, w)) < 0.15], axis=1).astype(np.float32)
        self.weights[list(self.empty)] = 0
        for b in range(n):
            if not self.labelled[b]:
                self.weights[b, :2] = 0  # an unlabelled frame has no annotated selector's weight
        generator = torch.Generator().manual_seed(self.seed)
        height, width = self.student_grid.shape
        shapes = {"bev": STUDENT_CHANNELS}
        for group, names in enumerate(STUDENT_GROUPS):
            shapes |= {f"heatmap{group}": len(names), **{f"{name}{group}": c for name, c in BRANCHES.items()}}
        for name, size in shapes.items():
            values = torch.randn(n, size, height, width, generator=generator, dtype=torch.float64)
            self.student[name] = values.requires_grad_()

    def _boxes(self, count: int) -> np.ndarray:
        out = np.zeros((count, 9), np.float32)
        rng = self.rng
        out[:, 0], out[:, 1] = rng.uniform(-7, 7, count), rng.uniform(-5.4, 5.4, count)
        out[:, 2], out[:, 3:6] = rng.normal(0, 1, count), rng.uniform(1, 3, (count, 3))
        out[:, 6], out[:, 7:] = rng.uniform(-3, 3, count), rng.normal(0, 2, (count, 2))
        return out

    def kept(self, b: int) -> np.ndarray:
        """Flat cells that are stored of frame b."""
        return np.flatnonzero((self.weights[b] > 0).any(axis=0))

    def said(self, picked: Sequence[int] | None = None) -> TeacherSaid:
        frames = list(range(self.frames)) if picked is None else list(picked)
        index = [self.kept(b) for b in frames]

        def rows(maps: np.ndarray) -> Tensor:
            flat = maps.reshape(*maps.shape[:2], -1)
            return torch.from_numpy(np.concatenate([flat[b][:, i].T for b, i in zip(frames, index, strict=True)]))

        cells = TeacherCells(
            torch.from_numpy(np.concatenate(index).astype(np.int64)),
            rows(self.bev),
            rows(self.weights),
            torch.from_numpy(np.cumsum([0, *map(len, index)])),
            SELECTORS,
        )
        columns, first = [], 0
        for _ in TEACHER_GROUPS:
            places = {}
            for name, size in BRANCHES.items():
                places[name] = slice(first, first + size)
                first += size
            columns.append(places)
        return TeacherSaid(
            self.grid,
            cells,
            logits=rows(self.logits),
            regression=rows(self.regression),
            regression_columns=tuple(columns),
            groups=TEACHER_GROUPS,
            boxes=[torch.from_numpy(self.found[b][0]) for b in frames],
            scores=[torch.from_numpy(self.found[b][1].copy()) for b in frames],
            labels=[torch.from_numpy(self.found[b][2].astype(np.int64)) for b in frames],
            samples=getattr(self, "samples", {}),
            sample_inside=getattr(self, "sample_inside", {}),
        )

    def batch(self, picked: Sequence[int] | None = None) -> Batch:
        frames = list(range(self.frames)) if picked is None else list(picked)
        matrices = [self.augments[b].matrix() for b in frames]
        moved = [
            torch.from_numpy(move_boxes(self.boxes[b], a)) if self.labelled[b] else torch.zeros(0, 9)
            for b, a in zip(frames, matrices, strict=True)
        ]
        labels = [torch.from_numpy(self.labels[b]).long()[: len(m)] for b, m in zip(frames, moved, strict=True)]
        return Batch(
            boxes=moved,
            labels=labels,
            labelled=None if all(self.labelled) else torch.tensor([self.labelled[b] for b in frames]),
            tokens=[str(b) for b in frames],
            bev_augmentation=torch.from_numpy(np.stack(matrices)),
        )

    def output(self, picked: Sequence[int] | None = None) -> DetectorOutput:
        frames = list(range(self.frames)) if picked is None else list(picked)
        heads = [
            {name: self.student[f"{name}{group}"][frames] for name in ("heatmap", *BRANCHES)}
            for group in range(len(STUDENT_GROUPS))
        ]
        return DetectorOutput(self.student["bev"][frames], heads)

    def slow_row_column(self, b: int, x: float, y: float, grid: BevGrid | None = None) -> tuple[float, float] | None:
        """Where a canonical place lies on the student's map under the frame's augmentation; None outside."""
        grid = grid or self.student_grid
        px, py = (self.augments[b].matrix() @ [x, y, 0.0, 1.0])[:2]
        c, r = (px - grid.x_min) / grid.cell_m - 0.5, (py - grid.y_min) / grid.cell_m - 0.5
        c, r = (round(v) if abs(v - round(v)) < 1e-6 else v for v in (c, r))
        inside = -0.5 <= r < grid.height - 0.5 and -0.5 <= c < grid.width - 0.5
        return (r, c) if inside else None

    def centre(self, k: int) -> tuple[float, float]:
        """Of flat cell k of the teacher."""
        grid = self.grid
        return grid.x_min + (k % grid.width + 0.5) * grid.cell_m, grid.y_min + (k // grid.width + 0.5) * grid.cell_m


def value_of(term: Any, world: World, picked: Sequence[int] | None = None) -> Tensor:
    return total(term(world.output(picked), world.batch(picked), world.said(picked)))


def leaves(term: Any, world: World) -> list[Tensor]:
    return [*world.student.values(), *(p for p in term.parameters() if p.requires_grad)]


def require_reference(term: Any, world: World, reference: Callable[[Any, World], Tensor], rel: float = 1e-9) -> None:
    """Value and all gradients equal those of the slow formula. rel: 1e-5 where places come of the batch's float32
    boxes."""
    term = term.double()
    found, wanted = value_of(term, world), reference(term, world)
    assert wanted.item() > 1e-3  # something is compared
    assert found.item() == pytest.approx(wanted.item(), rel=rel)
    grads = torch.autograd.grad(found, leaves(term, world), allow_unused=True)
    wanted_grads = torch.autograd.grad(wanted, leaves(term, world), allow_unused=True)
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)
    for one, other in zip(grads, wanted_grads, strict=True):
        zero = (one is None and (other is None or not other.any())) or (other is None and not one.any())
        assert zero or torch.allclose(one, other, rtol=10 * rel, atol=rel / 100)


def require_gradcheck(term: Any, world: World, names: Sequence[str]) -> None:
    term = term.double()
    inputs = [world.student[name] for name in names]

    def value(*tensors: Tensor) -> Tensor:
        other = dataclasses.replace(world, student=dict(world.student))
        other.__dict__.update(world.__dict__)
        other.student = world.student | dict(zip(names, tensors, strict=True))
        return value_of(term, other)

    assert torch.autograd.gradcheck(value, inputs, fast_mode=True, eps=1e-7, atol=1e-4, rtol=1e-3)


def require_batch_invariant(term: Any, world: World) -> None:
    """Numerators and normalisers of single frames sum to the batch's, and a doubled batch has the same loss."""
    term = term.double()
    whole = term(world.output(), world.batch(), world.said())
    single = [term(world.output([b]), world.batch([b]), world.said([b])) for b in range(world.frames)]
    assert sum(float(part.numerator.detach().sum()) for part in whole.values()) > 0
    for name, part in whole.items():
        assert torch.allclose(part.numerator, sum(one[name].numerator for one in single), rtol=1e-9)
        assert torch.allclose(part.normaliser, sum(one[name].normaliser for one in single), rtol=1e-9)
    frames = [*range(world.frames), *range(world.frames)]
    twice = term(world.output(frames), world.batch(frames), world.said(frames))
    for name, part in whole.items():
        if float(part.normaliser.min()) >= 1:
            assert twice[name].value().item() == pytest.approx(part.value().item(), rel=1e-9)


def require_nothing(term: Any, world: World, picked: Sequence[int] | None = None) -> None:
    """Zero, with finite gradients."""
    loss = value_of(term, world, picked)
    assert loss.item() == 0.0
    if loss.requires_grad:
        for grad in torch.autograd.grad(loss, leaves(term, world), allow_unused=True):
            assert grad is None or (torch.isfinite(grad).all() and not grad.any())


def require_falls(term: Any, world: World, share: float = 0.2, steps: int = 24, lr: float = 0.3) -> None:
    term = term.double()
    optimiser = torch.optim.Adam(leaves(term, world), lr=lr)
    losses = []
    for _ in range(steps):
        loss = value_of(term, world)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < share * losses[0], losses[:: steps // 6]
