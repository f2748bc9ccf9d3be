"""What the terms benchmark computes on: made-up answers of students and of a teacher, at the size of a real data set.

Nothing is read or trained: values are noise, since no cost depends on them, but boxes, cells, queries and samples are
as many as asked for, and their places are drawn once from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cache.adaptor import Adaptor
from cache.bev import BevEncoding
from cache.cells import Cells
from cache.classes import DETECTION_CLASSES
from cache.coverage import Coverage
from cache.field_list import KINDS, Asked, FieldList, asked_by_field
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.center_head import BRANCHES
from models.detector import Batch, Detector, DetectorOutput, QueryOutput
from studies.model_cost import pictures
from trainer.augment import BevAugment
from trainer.said import DepthSaid, TeacherCells, TeacherSaid
from trainer.terms import TermNeeds
from trainer.terms.store_facts import columns_of

CODE = 10  # numbers of a query's box
DEPTH_POINTS = 1_500  # LiDAR returns in an image, of a sweep
A = BevAugment(rotation_rad=0.2, scale=1.03, flip_x=True)


@dataclass(frozen=True)
class Sizes:
    """frames of a step; of each: annotated boxes, stored cells, queries; channels of the teacher's map."""

    frames: int = 4
    boxes: int = 40
    cells: int = 1_500
    channels: int = 256
    queries: int = 900


class TermWorld:
    """One student's side of the world; every answer is a leaf whose gradient the terms compute."""

    def __init__(self, model: Detector, sizes: Sizes) -> None:
        self.model, self.sizes, self.grid = model, sizes, model.grid
        self.random = torch.Generator().manual_seed(0)
        self.boxes = [self._boxes() for _ in range(sizes.frames)]
        self.batch = self._batch()
        self.output, self.leaves = self._answer()

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def said(self, needs: TermNeeds) -> TeacherSaid:
        """All that a term of these needs reads."""
        frames, sizes, names = self.sizes.frames, self.sizes, columns_of(needs.selectors)
        count = self.grid.height * self.grid.width if needs.every_cell or "dense" in names else sizes.cells
        index = torch.cat([self._cells(boxes, count) for boxes in self.boxes])
        weights = torch.rand(len(index), len(names), generator=self.random)
        if needs.every_cell:  # selectors of objects weigh no more of a whole map
            weighed = torch.zeros(frames, count, dtype=torch.bool)
            for frame, boxes in enumerate(self.boxes):
                weighed[frame, self._cells(boxes, sizes.cells)] = True
            weights *= weighed.view(-1, 1)
        cells = TeacherCells(
            index, self.noise(len(index), sizes.channels), weights, torch.arange(frames + 1) * count, names
        )
        columns, first = {}, 0
        for name, channels in BRANCHES.items():
            columns[name] = slice(first, first + channels)
            first += channels
        tasks = self._tasks() or (DETECTION_CLASSES,)
        samples, inside = {}, {}
        for item in self._items(needs):
            points = 9 if item["points"] == "9" else int(np.prod([int(n) for n in item["points"].split("x")]))
            samples[str(item)] = [self.noise(sizes.boxes, points, sizes.channels) for _ in range(frames)]
            inside[str(item)] = [torch.ones(sizes.boxes, points, dtype=torch.bool) for _ in range(frames)]
        return TeacherSaid(
            grid=self.grid,
            cells=cells,
            logits=self.noise(len(index), len(DETECTION_CLASSES)) - 3,
            regression=self.noise(len(index), first * len(tasks)),
            regression_columns=tuple(
                {name: slice(s.start + first * i, s.stop + first * i) for name, s in columns.items()}
                for i in range(len(tasks))
            ),
            groups=tasks,
            boxes=[boxes + 0.2 for boxes in self.boxes],
            scores=[torch.linspace(0.9, 0.2, sizes.boxes)] * frames,
            labels=self.batch.labels,
            query_logits=[self.noise(sizes.queries, len(DETECTION_CLASSES)) - 2 for _ in range(frames)],
            query_boxes=[self.noise(sizes.queries, CODE) * 10 for _ in range(frames)],
            samples=samples,
            sample_inside=inside,
            depth=self._depth(),
        )

    def store(self, needs: TermNeeds) -> TeacherStore:
        """A store in name: what terms ask of one when they are built."""
        names, sizes = columns_of(needs.selectors), self.sizes
        rng = np.random.default_rng(0)
        one = Cells(
            np.arange(sizes.cells, dtype=np.int32),
            rng.normal(size=(sizes.cells, sizes.channels)).astype(np.float16),
            np.ones((sizes.cells, len(names)), np.float32),
        )
        edges = getattr(self.model, "depth_edges", torch.zeros(2))
        further = SimpleNamespace(
            groups=self._tasks(),
            channels={item.name: sizes.channels for item in self._items(needs)},
            depth=SimpleNamespace(edges_m=tuple(map(float, edges))),
        )
        text = "+".join(needs.selectors) or "gaussian"
        weight = rng.normal(size=(sizes.channels, sizes.channels, 3, 3)).astype(np.float32) * 0.02
        store = SimpleNamespace(
            grid=self.grid,
            bev=BevEncoding(sizes.channels, *self.grid.shape, max(len(names), 1)),
            root="made up",
            selectors=names,
            coverage=Coverage.parse(text, self.grid),
            further=further,
            cells=lambda row: one,
            require=lambda item: FieldList.parse(item).items[0],
            adaptor=lambda: Adaptor(weight, np.zeros(sizes.channels, np.float32)),
        )
        return cast(TeacherStore, store)

    def stored_bytes(self, needs: TermNeeds, said: TeacherSaid) -> int:
        """What a step reads of the store, before compression: float16 values, float32 weights and boxes."""
        total, cells = 0, said.cells
        fields = [name.partition("(")[0] for name in needs.teacher_fields]
        maps = {"logits": said.logits, "regression": said.regression}
        if cells is not None and (needs.selectors or needs.every_cell or {"logits", "regression"} & set(fields)):
            total += 4 * len(cells.index) + 2 * cells.values.numel() + 4 * cells.weights.numel()
        total += sum(2 * values.numel() for name, values in maps.items() if name in fields and values is not None)
        if {"boxes", "samples"} & set(fields):
            total += sum(4 * (boxes.numel() + 2 * len(boxes)) for boxes in said.boxes)
        if {"queries", "query_logits"} & set(fields):
            total += sum(
                2 * x.numel() + 4 * y.numel() for x, y in zip(said.query_logits, said.query_boxes, strict=True)
            )
        total += sum(2 * rows.numel() + rows.shape[0] * rows.shape[1] for x in said.samples.values() for rows in x)
        if "depth" in fields and said.depth is not None:
            total += 2 * said.depth.probs.numel()
        return total

    def _cells(self, boxes: Tensor, count: int) -> Tensor:
        """(count,) flat cells, rising: those nearest to the boxes' centres, as selectors of objects choose them."""
        grid = self.grid
        col = ((boxes[:, 0] - grid.x_min) / grid.cell_m).long()
        row = ((boxes[:, 1] - grid.y_min) / grid.cell_m).long()
        every = torch.arange(grid.height * grid.width)
        places = torch.stack([every // grid.width, every % grid.width], dim=1).float()
        distance = torch.cdist(places, torch.stack([row, col], dim=1).float()).amin(dim=1)
        return distance.argsort(stable=True)[:count].sort().values

    def _items(self, needs: TermNeeds) -> list[Asked]:
        """The samples that are read, each once."""
        names = [(name, name.partition("(")[0] in KINDS) for name in needs.teacher_fields]
        found = [FieldList.parse(name).items[0] if listed else asked_by_field(name) for name, listed in names]
        return list({str(item): item for item in found if item is not None and item.kind == "samples"}.values())

    def _tasks(self) -> tuple[tuple[str, ...], ...]:
        """The task groups of a centre head, none for other students."""
        return tuple(map(tuple, (self.model.config.get("head") or {}).get("tasks", ())))

    def _boxes(self) -> Tensor:
        grid, count = self.grid, self.sizes.boxes
        boxes = torch.zeros(count, 9)
        boxes[:, 0] = grid.x_min + (grid.x_max - grid.x_min) * (0.2 + 0.6 * torch.rand(count, generator=self.random))
        boxes[:, 1] = grid.y_min + (grid.y_max - grid.y_min) * (0.2 + 0.6 * torch.rand(count, generator=self.random))
        boxes[:, 3:6] = torch.tensor([4.5, 1.9, 1.6])
        boxes[:, 6] = 6 * torch.rand(count, generator=self.random)
        return boxes

    def _batch(self) -> Batch:
        frames = self.sizes.frames
        one = pictures(self.model) if self.model.modality == "camera" else Batch()
        matrix = torch.from_numpy(A.matrix())
        labels = torch.randint(0, len(DETECTION_CLASSES), (frames, self.sizes.boxes), generator=self.random)
        shared: dict[str, Any] = {
            "boxes": self.boxes,
            "labels": list(labels),
            "tokens": [str(i) for i in range(frames)],
            "bev_augmentation": matrix.expand(frames, 4, 4),
        }
        if one.images is None or one.intrinsics is None or one.camera_to_lidar is None:
            return replace(one, **shared)
        cameras = one.images.shape[1]
        height, width = one.images.shape[-2:]
        points = torch.rand(frames * cameras * DEPTH_POINTS, 4, generator=self.random)
        points *= torch.tensor([1.0, width, height, 50.0])
        points[:, 0] = torch.arange(frames * cameras).repeat_interleave(DEPTH_POINTS)
        points[:, 3] += 3.0
        affine = torch.tensor([[1.0, 0, 0.5], [0, 1.0, 0.5]])
        return replace(
            one,
            images=one.images.expand(frames, -1, -1, -1, -1),
            intrinsics=one.intrinsics.expand(frames, -1, -1, -1),
            camera_to_lidar=matrix.float() @ one.camera_to_lidar.expand(frames, -1, -1, -1),
            image_affine=affine.expand(frames, cameras, 2, 3),
            depth_points=points,
            **shared,
        )

    def _answer(self) -> tuple[DetectorOutput, list[Tensor]]:
        model, frames, sizes = self.model, self.sizes.frames, self.sizes
        leaves: list[Tensor] = []

        def leaf(*shape: int, shift: float = 0.0) -> Tensor:
            made = (self.noise(*shape) + shift).requires_grad_()
            if len(shape) == 4:  # as our detectors give their maps
                made = made.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
            leaves.append(made)
            return made

        heads, queries, gives = [], None, model.gives
        for task in self._tasks():
            maps = {"heatmap": leaf(frames, len(task), *self.grid.shape, shift=-3.0)}
            heads.append(maps | {name: leaf(frames, n, *self.grid.shape) for name, n in BRANCHES.items()})
        if "queries" in gives:
            layers = int(model.config["transformer"]["decoder_layers"])
            shape = (layers, frames, sizes.queries)
            heads = [{"heatmap": leaf(frames, len(model.heat_classes), *self.grid.shape, shift=-3.0)}]
            queries = QueryOutput(
                leaf(*shape, len(DETECTION_CLASSES), shift=-2.0),
                leaf(*shape, CODE),
                _places(self.grid, torch.rand(*shape, 2, generator=self.random)),
                leaf(frames, sizes.queries, int(model.config["channels"])),
            )
        levels = {name: leaf(frames, level.channels, *level.grid.shape) for name, level in model.levels.items()}
        depth = None
        if "depth_logits" in gives:
            width, height = model.config["image_size"]
            stride = int(model.stride)  # type: ignore[attr-defined]
            bins = len(model.depth_edges) - 1  # type: ignore[attr-defined]
            depth = leaf(frames * 6, bins, height // stride, width // stride)
        bev = leaf(frames, model.bev_channels, *self.grid.shape)
        return DetectorOutput(bev, heads, depth, levels, queries), leaves

    def _depth(self) -> DepthSaid | None:
        logits, affine = self.output.depth_logits, self.batch.image_affine
        if logits is None or affine is None:
            return None
        model: Any = self.model
        width, height = model.config["image_size"]
        edges = tuple(map(float, model.depth_edges))
        probs = logits.detach().softmax(dim=1).unflatten(0, (self.sizes.frames, -1))
        return DepthSaid(probs, edges, int(model.stride), (int(width), int(height)), affine)


def _places(grid: BevGrid, share: Tensor) -> Tensor:
    """Shares 0..1 of the grid's ranges in metres."""
    low = torch.tensor([grid.x_min, grid.y_min])
    return low + share * (torch.tensor([grid.x_max, grid.y_max]) - low)
