"""What a teacher said of a batch, as terms read it: read from its store, or made by a teacher in the loop.

All of it is in the canonical frame, whatever augmentation the batch has; `Batch.bev_augmentation` leads to the
student's frame. A field that no term of the run asks for is None or empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cache.grid import BevGrid


@dataclass(frozen=True)
class TeacherCells:
    """The stored cells of B frames, one after another, in the canonical frame (no augmentation applied).

    index (K,) int64: row * W + col on the teacher's grid; values (K, C) as stored; weights (K, S) float32, one column
    per name in `selectors`; offsets (B + 1,) int64: frame b holds cells offsets[b] .. offsets[b + 1].
    """

    index: Tensor
    values: Tensor
    weights: Tensor
    offsets: Tensor
    selectors: tuple[str, ...]

    def samples(self) -> Tensor:
        """(K,) int64: which frame of the batch each cell belongs to."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def to(self, device: torch.device | str) -> TeacherCells:
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("index", "values", "weights", "offsets")
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class DepthSaid:
    """A camera teacher's depth. probs: (B, cameras, D, h, w) float, softmax over D bins; edges_m: (D + 1,) of the bins;
    stride: pixels of the teacher's input image per cell; image_size: (width, height) of that image, which is the stored
    image under test-time geometry (`models.pictures`); image_affine: (B, cameras, 2, 3) of that geometry, as
    `Batch.image_affine` is of the student's."""

    probs: Tensor
    edges_m: tuple[float, ...]
    stride: int
    image_size: tuple[int, int]
    image_affine: Tensor

    def to(self, device: torch.device | str) -> DepthSaid:
        """The same with every tensor on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("probs", "image_affine")}
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class TeacherSaid:
    """B frames.

    cells: the feature at the stored cells, on `grid`.
    logits: (K, classes) at those cells, before the sigmoid, by id of DETECTION_CLASSES.
    regression: (K, R) raw maps at those cells; regression_columns: of each task group, by the branch's name (`center`,
    `height`, `dim`, `rot`, `vel`, see `models.center_head.BRANCHES`), its slice of R; groups: each group's classes.
    levels: further maps by name, each with its own cells; level_grids: their grids.
    boxes: B tensors (N, 9) float32 decoded boxes, scores descending: (N,) float32 0..1, labels: (N,) int64.
    query_logits: B tensors (Q, classes), query_boxes: B tensors (Q, 10) coded as `QueryOutput.boxes`; best first.
    samples: by the item's canonical text, B tensors (T, P, C); sample_inside: B tensors (T, P) bool; the T boxes are
    the frame's annotated boxes in order, or the teacher's.
    """

    grid: BevGrid
    cells: TeacherCells | None = None
    logits: Tensor | None = None
    regression: Tensor | None = None
    regression_columns: tuple[Mapping[str, slice], ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    levels: Mapping[str, TeacherCells] = field(default_factory=dict)
    level_grids: Mapping[str, BevGrid] = field(default_factory=dict)
    boxes: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    query_logits: list[Tensor] = field(default_factory=list)
    query_boxes: list[Tensor] = field(default_factory=list)
    samples: Mapping[str, list[Tensor]] = field(default_factory=dict)
    sample_inside: Mapping[str, list[Tensor]] = field(default_factory=dict)
    depth: DepthSaid | None = None

    def to(self, device: torch.device | str) -> TeacherSaid:
        """The same with every tensor on `device`."""

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, TeacherCells | DepthSaid):
                return value.to(device)
            if isinstance(value, list):
                return [move(item) for item in value]
            if isinstance(value, Mapping):
                return {name: move(item) for name, item in value.items()}
            return value

        moved = {f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "grid"}
        return dataclasses.replace(self, **moved)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TeachersSaid:
    """What each teacher of a run said of the same batch, by the name of its store."""

    by_name: Mapping[str, TeacherSaid]

    def __getitem__(self, name: str) -> TeacherSaid:
        return self.by_name[name]

    def to(self, device: torch.device | str) -> TeachersSaid:
        """The same with every tensor on `device`."""
        return TeachersSaid({name: said.to(device) for name, said in self.by_name.items()})
