"""BEVDistill's side head: class heatmaps from the student's map, whose first convolution is the dense term's adaptor.

    heat    sum_(class, cell) focal(heat, gaussians of the annotated boxes) / max(peaks, 1)
    dense   sum_k w_k r_c (S_feat(A p_k) - T_feat,k)^2 / max(sum_k w_k, 1),      S_feat = ReLU(BN(conv3x3(S)))

T_feat is what the teacher's own side head makes of its map: its frozen convolution, from the store's header, at the
cells that count (the store must hold every cell of the map: a convolution reads the neighbours), or a level of the
store that was cached behind it. Both sides are above 0, so nothing is standardised. As released, but for the bias of
the heat, which the released student's config has with the wrong sign (+2.19). Frames without annotations add to neither
part. Four frames of 1,500 cells, 256 channels, 128 x 128: 2.9 s on one core, two thirds of it the student's shared
convolution; without the class branch 2.0 s. Source: Chen et al. 2022 and its released code.
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
from cache.serving import NeededSelector, same_grid
from cache.store import TeacherStore
from models.center_head import focal_numerator
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from models.gaussian import draw_gaussians
from trainer.said import TeacherSaid
from trainer.terms.adaptor import FrozenAdaptor, student_adaptor
from trainer.terms.annotated import labelled_frames
from trainer.terms.masked import Reduce, cell_places, column_of, distance_per_cell, weighted_part
from trainer.terms.precision import at_least_fp32
from trainer.terms.sampling import sample_bilinear
from trainer.terms.term import TermNeeds


class BevDistillHeatOptions(Config):
    """selector: whose weights the dense part has; teacher: where T_feat comes from, the store's adaptor or its level
    `level`; heat_weight, dense_weight: of the parts, 0 leaves one out; reduce: of the dense part, over channels; convs,
    branch_channels: of the class branch; heat_bias: its last bias before training; min_overlap, min_radius: of the
    gaussians.
    """

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
        self.needs, self.column = needs_of(options), NeededSelector.parse(options.selector).name
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
        level = store.further.level(options.level)
        if not same_grid(level.grid, model.grid):
            raise ConfigError(
                f"term {name}: {teacher.root}: level {options.level} is on {level.grid}, the student on {model.grid}; "
                "name a level on the student's grid"
            )
        return cls(name, weight, options, model.bev_channels, level.encoding.channels, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options, parts = self.options, {}
        with torch.autocast(output.bev.device.type, enabled=False):
            student = self.adaptor(at_least_fp32(output.bev))  # (B, C, H, W)
            labelled = labelled_frames(batch, student.device)
            if options.heat_weight:
                target = heat_targets(batch, labelled, self.grid, options.min_overlap, options.min_radius)
                target = target.to(student)
                numerator = focal_numerator(self.heat(student[labelled]), target)
                peaks = (target == 1).sum()[None].to(student.dtype)
                parts[f"{self.name}.heat"] = LossPart(numerator[None], peaks, self.weight * options.heat_weight)
            if options.dense_weight:
                parts[f"{self.name}.dense"] = self._dense(student, batch, said, labelled)
        return parts

    def _dense(self, student: Tensor, batch: Batch, said: TeacherSaid, labelled: Tensor) -> LossPart:
        options = self.options
        cells = said.cells if self.frozen is not None else said.levels[options.level]
        assert cells is not None
        weights = column_of(cells, self.column) * labelled[cells.samples()]
        places = cell_places(cells, weights, batch, self.grid)
        if self.frozen is not None:
            wanted = self.frozen.at(cells, places.chosen, self.grid)
        else:
            wanted = cells.values[places.chosen]
        found = sample_bilinear(student, places.samples, places.row, places.col)
        per_cell = distance_per_cell(found - wanted.to(student.dtype), options.reduce, "squared")
        return weighted_part(
            per_cell,
            places.weights.to(student.dtype),
            places.samples,
            len(student),
            "mass",
            self.grid.height * self.grid.width,
            self.weight * options.dense_weight,
        )


def heat_targets(batch: Batch, labelled: Tensor, grid: BevGrid, min_overlap: float, min_radius: int) -> Tensor:
    """(labelled frames, classes, H, W) float32: gaussians of their annotated boxes, by class id."""
    frames = torch.nonzero(labelled).flatten().tolist()
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
        return TermNeeds(("bev_index", "bev_weights", "adaptor"), (options.selector,), ("bev",), every_cell=True)
    return TermNeeds((f"level(name={options.level})",), (options.selector,), ("bev",))
