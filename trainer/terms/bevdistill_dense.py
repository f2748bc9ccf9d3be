"""BEVDistill's dense feature term: the student's map should be the teacher's where objects are.

    L = sum_k w_k * r_c (adaptor(S)(A p_k) - T_k)^2 / max(sum_k w_k, 1),   r_c = mean or sum over channels

over all cached cells k of the whole batch. Follows the released code (the normaliser is the mask's mass) without its
fault that a batch above 1 broadcasts the mask wrongly, and without its NaN where a frame has no object; the paper's
distance and normaliser are options, see `trainer.terms.masked`. fp32 inside; about 5 ms for 4 frames of 500 cells,
forward and backward, on one core. Source: Chen et al. 2022, arXiv 2211.09386, and its released configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import StoreError
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.adaptor import AdaptorKind, student_adaptor
from trainer.terms.masked import (
    CellPlaces,
    Distance,
    Normaliser,
    Reduce,
    cell_places,
    column_of,
    distance_per_cell,
    weighted_part,
)
from trainer.terms.precision import at_least_fp32
from trainer.terms.sampling import sample_bilinear
from trainer.terms.student import heat_logits_of, require_heat
from trainer.terms.term import TermNeeds

STATISTICS_FRAMES = 128  # enough for a channel's mean and deviation to 1 %; evenly spread over the training rows


class BevDistillDenseOptions(Config):
    """selector: whose weights, `NAME` or `NAME(option=value)`; mask: those weights (gt, as released where the selector
    is gaussian), or, of a store with every cell, the student's own best class heat at each (pred), or 1 (none);
    adaptor: conv1x1, or conv3x3 with norm and ReLU as released (for teacher maps that are never negative); reduce: over
    channels (released: sum, with weight 0.01); standardise: teacher values by channel; distance: squared as released,
    or the paper's norm; normaliser: the mask's mass as released, or the paper's area times the largest weight.
    """

    selector: str = "gaussian"
    mask: Literal["gt", "pred", "none"] = "gt"
    adaptor: AdaptorKind = "conv1x1"
    reduce: Reduce = "mean"
    standardise: bool = True
    distance: Distance = "squared"
    normaliser: Normaliser = "mass"


class BevDistillDense(nn.Module):
    """A `trainer.terms.term.Term`. statistics: (mean, deviation) of each teacher channel, or None to leave values
    alone.
    """

    teacher_mean: Tensor
    teacher_deviation: Tensor

    def __init__(
        self,
        name: str,
        weight: float,
        options: BevDistillDenseOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.column = needs_of(options), _column(options)
        self.adaptor: nn.Module = student_adaptor(options.adaptor, student_channels, teacher_channels)
        mean, deviation = statistics or (torch.zeros(teacher_channels), torch.ones(teacher_channels))
        self.register_buffer("teacher_mean", mean)
        self.register_buffer("teacher_deviation", deviation)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: BevDistillDenseOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> BevDistillDense:
        """The term for a student and the frames it will be trained on."""
        if options.mask == "pred":
            require_heat(name, model)
        column = None if options.mask != "gt" else _column(options)
        statistics = channel_statistics(teacher, teacher_rows, column) if options.standardise else None
        channels = teacher.bev.channels
        return cls(name, weight, options, model.bev_channels, channels, model, statistics)

    def forward(
        self, output: DetectorOutput, batch: Batch, said: TeacherSaid | TeacherCells | None
    ) -> dict[str, LossPart]:
        """One part, of the term's name. said: the cells alone will do."""
        cells = said.cells if isinstance(said, TeacherSaid) else said
        assert cells is not None
        with torch.autocast(output.bev.device.type, enabled=False):
            student = self.adaptor(at_least_fp32(output.bev))  # (B, C, H, W)
            weights = column_of(cells, self.column) if self.options.mask == "gt" else None
            places = cell_places(cells, weights, batch, self.grid)
            wanted = (cells.values[places.chosen].to(student.dtype) - self.teacher_mean) / self.teacher_deviation
            found = sample_bilinear(student, places.samples, places.row, places.col)  # (K, C)
            per_cell = distance_per_cell(found - wanted, self.options.reduce, self.options.distance)
            mass = (
                places.weights
                if self.options.mask != "pred"
                else class_heat_at(heat_logits_of(self.name, output), places)
            )
            frames, area = len(output.bev), self.grid.height * self.grid.width
            part = weighted_part(
                per_cell, mass.to(student.dtype), places.samples, frames, self.options.normaliser, area, self.weight
            )
        return {self.name: part}


def class_heat_at(logits: Tensor, places: CellPlaces) -> Tensor:
    """(K,): the student's best class probability there, without gradient: it must not cool down to lower its loss."""
    best = logits.detach().amax(dim=1).sigmoid()
    return sample_bilinear(best[:, None], places.samples, places.row, places.col)[:, 0]


def needs_of(options: BevDistillDenseOptions) -> TermNeeds:
    """What the term reads under these options. Where the values lie is the store's affair: cells and dense will do."""
    if options.mask == "gt":
        return TermNeeds(("bev_index", "bev_weights"), (options.selector,), ("bev",))
    student = ("bev", "heads") if options.mask == "pred" else ("bev",)
    return TermNeeds(("bev_index", "bev_weights"), (), student, every_cell=True)


def _column(options: BevDistillDenseOptions) -> str:
    return NeededSelector.parse(options.selector).name


def channel_statistics(teacher: TeacherStore, rows: Sequence[int], selector: str | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) float32 of the teacher's values over the cells of `selector` (None: of all
    stored cells), each cell counted once.

    Deterministic: of up to STATISTICS_FRAMES frames evenly spread over `rows`. A channel that never changes gets
    deviation 1. StoreError where none of those frames has a cell.
    """
    column = None if selector is None else teacher.selectors.index(selector)
    picked = (
        np.unique(np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS_FRAMES)).round().astype(int)) if rows else []
    )
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for i in picked:
        cells = teacher.cells(rows[i])
        chosen = slice(None) if column is None else cells.weights[:, column] > 0
        values = cells.values[chosen].astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    if not count:
        raise StoreError(
            f"{teacher.root}: no cell of selector {selector or 'any'!r} in {len(picked)} training frames; the teacher "
            "store has nothing to distil there, choose another selector or split"
        )
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation[deviation < 1e-6] = 1.0
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(deviation.astype(np.float32))
