"""BEVDistill's side head: class heatmaps from the student's map, whose first convolution is the dense term's adaptor.

    heat    sum_(class, cell) focal(heat, gaussians of the annotated boxes) / max(peaks, 1)     over `over`
    dense   sum_k w_k r_c (S_feat(A p_k) - T_feat,k)^2 / max(sum_k w_k, 1),      S_feat = ReLU(BN(conv3x3(S)))

T_feat is what the teacher's own side head makes of its map: its frozen convolution, from the store's header, at the
cells that count (the store must hold every cell of the map: a convolution reads the neighbours), or a level of the
store that was cached behind it. Both sides are above 0, so nothing is standardised. As released, but for the bias of
the heat, which the released student's config has with the wrong sign (+2.19). Frames without annotations add to neither
part. over = "cells" computes what is near objects alone (`trainer.terms.some_cells`); over = "map" is the release, 153
billion multiply-adds of 256 channels on 128 x 128 cells for four frames, a tenth of a ResNet-50 student's step. Source:
Chen et al. 2022 and its released code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from cache.grid import BevGrid
from cache.serving import same_grid
from cache.store import TeacherStore
from models.center_head import focal_numerator
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from models.gaussian import draw_gaussians
from trainer.said import TeacherSaid
from trainer.terms.adaptor import FrozenAdaptor, student_adaptor
from trainer.terms.annotations import annotated_frames
from trainer.terms.masked import Reduce, distance_per_cell, weighted_part
from trainer.terms.places import CellPlaces, cell_places, column_of
from trainer.terms.sampling import corners, sample_bilinear
from trainer.terms.some_cells import SomeCells, between, layer_at, rows_of
from trainer.terms.store_facts import column_name, level_item, map_fields, said_map, teacher_map
from trainer.terms.student import map_of
from trainer.terms.term import TermNeeds


class BevDistillHeatOptions(Config):
    """selector: whose weights the dense part has; teacher: where T_feat comes from, the store's adaptor or its level
    `level`; heat_weight, dense_weight: of the parts, 0 leaves one out; reduce: of the dense part, over channels; convs,
    branch_channels: of the class branch; heat_bias: its last bias before training; min_overlap, min_radius: of the
    gaussians.

    over: where the head is computed and judged: at the cells of the gaussians and those that the dense part reads, or
    on the whole map, as released; norms take their statistics there too.
    """

    over: Literal["cells", "map"] = "cells"
    selector: str = "gaussian"
    teacher: Literal["adaptor", "level"] = "adaptor"
    level: str = "adapted"
    heat_weight: float = Field(default=1.0, ge=0)
    dense_weight: float = Field(default=0.01, ge=0)
    reduce: Reduce = "sum"
    convs: int = Field(default=3, ge=1)
    branch_channels: int = Field(default=64, ge=1)
    heat_bias: float = -2.19
    min_overlap: float = Field(default=0.1, gt=0, lt=1)
    min_radius: int = Field(default=1, ge=0)


class BevDistillHeat(nn.Module):
    """A `trainer.terms.term.Term`; parts `<name>.heat` and `<name>.dense`. frozen: the teacher's adaptor, None where a
    level is read."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: BevDistillHeatOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
        frozen: FrozenAdaptor | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.column = needs_of(options), column_name(options.selector)
        self.adaptor = student_adaptor("conv3x3", student_channels, teacher_channels)
        widths = [teacher_channels, *[options.branch_channels] * (options.convs - 1)]
        self.heat = nn.Sequential(
            *(student_adaptor("conv3x3", *pair) for pair in itertools.pairwise(widths)),
            nn.Conv2d(widths[-1], len(DETECTION_CLASSES), 3, padding=1),
        )
        nn.init.constant_(cast(Tensor, self.heat[-1].bias), options.heat_bias)
        self.frozen = frozen

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: BevDistillHeatOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> BevDistillHeat:
        """The term for a student; ConfigError where the level is not on its grid."""
        store: Any = teacher
        if not options.dense_weight:
            return cls(name, weight, options, model.bev_channels, teacher.bev.channels, model)
        if options.teacher == "adaptor":
            adaptor = store.adaptor()
            frozen = FrozenAdaptor(adaptor.weight, adaptor.bias)
            return cls(name, weight, options, model.bev_channels, len(adaptor.bias), model, frozen)
        level = teacher_map(teacher, options.level)
        if not same_grid(level.grid, model.grid):
            raise ConfigError(
                f"term {name}: {teacher.root}: level {options.level} is on {level.grid}, the student on {model.grid}; "
                "name a level on the student's grid"
            )
        return cls(name, weight, options, model.bev_channels, level.channels, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options, parts = self.options, {}
        bev = map_of(output)
        with torch.autocast(bev.device.type, enabled=False):
            annotated = annotated_frames(batch, bev.device)
            target = places = None
            if options.heat_weight:
                target = heat_targets(batch, annotated, self.grid, options.min_overlap, options.min_radius).to(bev)
            if options.dense_weight:
                cells, grid = said_map(said, "" if self.frozen is not None else options.level)
                weights = column_of(cells, self.column) * annotated[cells.samples()]
                places = cell_places(cells, weights, batch, grid, self.grid)
            answer = self._near if options.over == "cells" else self._everywhere
            logits, wanted_heat, found = answer(bev, annotated, target, places)
            if target is not None:
                peaks = (target == 1).sum()[None].to(bev.dtype)
                numerator = focal_numerator(logits, wanted_heat)
                parts[f"{self.name}.heat"] = LossPart(numerator[None], peaks, self.weight * options.heat_weight)
            if places is not None:
                wanted = (
                    cells.values[places.chosen] if self.frozen is None else self.frozen.at(cells, places.chosen, grid)
                )
                parts[f"{self.name}.dense"] = self._dense(found - wanted.to(bev.dtype), places, len(bev))
        return parts

    def _everywhere(
        self, bev: Tensor, annotated: Tensor, target: Tensor | None, places: CellPlaces | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits and their targets, both (annotated frames, classes, H, W), and the adapted map at places (K,
        C); empty where the part is off."""
        student, none = self.adaptor(bev), bev.new_zeros(0)
        heat = none if target is None else self.heat(student[annotated])
        found = none if places is None else sample_bilinear(student, places.samples, places.row, places.col)
        return heat, none if target is None else target, found

    def _near(
        self, bev: Tensor, annotated: Tensor, target: Tensor | None, places: CellPlaces | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same at the cells near objects: logits and targets (N, classes)."""
        shape, none = (bev.shape[0], bev.shape[2], bev.shape[3]), bev.new_zeros(0)
        wanted_heat, read = none, none.long()
        sets: list[SomeCells] = []  # of the class branch's layers, the last one's first
        if target is not None:
            area = shape[1] * shape[2]
            at = (target.amax(dim=1) > 0).flatten(1)  # (annotated frames, H * W)
            frame, cell = at.nonzero(as_tuple=True)
            wanted_heat = rows_of(target)[frame * area + cell]
            sets = [SomeCells(annotated.nonzero()[:, 0][frame] * area + cell, shape)]
            for _ in range(1, len(self.heat)):
                sets.append(sets[-1].grown())
            read = sets[-1].grown().index
        if places is not None:
            read = torch.cat([read, corners(places.samples, places.row, places.col, shape[1:])[0].flatten()])
        shared = SomeCells.of(read, shape)
        rows = adapted = layer_at(self.adaptor, rows_of(bev), shared.neighbours())
        below = shared
        for layer, here in zip(self.heat, reversed(sets), strict=False):
            rows, below = layer_at(layer, rows, below.positions(here.neighbours())), here
        found = none if places is None else between(adapted, shared, places.samples, places.row, places.col)
        return rows if sets else none, wanted_heat, found

    def _dense(self, difference: Tensor, places: CellPlaces, frames: int) -> LossPart:
        options = self.options
        per_cell = distance_per_cell(difference, options.reduce, "squared")
        return weighted_part(
            per_cell,
            places.weights.to(per_cell.dtype),
            places.samples,
            frames,
            "mass",
            self.grid.height * self.grid.width,
            self.weight * options.dense_weight,
        )


def heat_targets(batch: Batch, annotated: Tensor, grid: BevGrid, min_overlap: float, min_radius: int) -> Tensor:
    """(annotated frames, classes, H, W) float32: gaussians of their annotated boxes, by class id."""
    frames = torch.nonzero(annotated).flatten().tolist()
    classes = len(DETECTION_CLASSES)
    boxes = [batch.boxes[i].detach().cpu().float().numpy().reshape(-1, 9) for i in frames]
    channels = [batch.labels[i].detach().cpu().numpy() + classes * n for n, i in enumerate(frames)]
    maps = draw_gaussians(
        np.concatenate([np.zeros((0, 9), np.float32), *boxes]),
        np.concatenate([np.zeros(0, np.int64), *channels]),
        len(frames) * classes,
        grid,
        min_overlap=min_overlap,
        min_radius=min_radius,
    )
    return torch.from_numpy(maps).view(len(frames), classes, *grid.shape)


def needs_of(options: BevDistillHeatOptions) -> TermNeeds:
    """What the term reads under these options."""
    if not options.dense_weight:
        return TermNeeds((), (), ("bev",))
    if options.teacher == "adaptor":
        return TermNeeds((*map_fields(), "adaptor"), (options.selector,), ("bev",), every_cell=True)
    return TermNeeds((level_item(options.level),), (options.selector,), ("bev",))
