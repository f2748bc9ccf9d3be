"""BEVDistill's dense feature term: the student's map should be the teacher's where objects are.

    L = sum_k w_k * r_c (adaptor(S)(A p_k) - T_k)^2 / max(sum_k w_k, 1),   r_c = mean or sum over channels

over all cached cells k of the whole batch. Follows the released code (the normaliser is the mask's mass) without its
fault that a batch above 1 broadcasts the mask wrongly, and without its NaN where a frame has no object; the paper's
distance and normaliser are options, see `trainer.terms.masked`. fp32 inside; 70 ms for 4 frames of 1,500 cells of 256
channels, forward and backward, on one core. Source: Chen et al. 2022, arXiv 2211.09386, and its released configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.adaptor import AdaptorKind, adapted_at, student_adaptor
from trainer.terms.masked import Distance, Normaliser, Reduce, distance_per_cell, weighted_part
from trainer.terms.places import CellPlaces, cell_places, column_of
from trainer.terms.sampling import sample_bilinear
from trainer.terms.standardise import Standardise
from trainer.terms.store_facts import column_name, map_fields
from trainer.terms.student import heat_logits_of, map_of, require_heat
from trainer.terms.term import TermNeeds


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
        self.needs, self.column = needs_of(options), column_name(options.selector)
        self.adaptor: nn.Module = student_adaptor(options.adaptor, student_channels, teacher_channels)
        self.standardise = Standardise(*(statistics or (torch.zeros(teacher_channels), torch.ones(teacher_channels))))

    @property
    def teacher_mean(self) -> Tensor:
        """(C,) that is taken from the teacher's values."""
        return self.standardise.mean

    @property
    def teacher_deviation(self) -> Tensor:
        """(C,) by which they are divided."""
        return self.standardise.scale

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
        column = None if options.mask != "gt" else column_name(options.selector)
        statistics = channel_statistics(teacher, teacher_rows, column) if options.standardise else None
        channels = teacher.bev.channels
        return cls(name, weight, options, model.bev_channels, channels, model, statistics)

    def forward(
        self, output: DetectorOutput, batch: Batch, said: TeacherSaid | TeacherCells | None
    ) -> dict[str, LossPart]:
        """One part, of the term's name. said: the cells alone will do."""
        cells, grid = (said.cells, said.grid) if isinstance(said, TeacherSaid) else (said, self.grid)
        assert cells is not None
        bev = map_of(output)
        with torch.autocast(bev.device.type, enabled=False):
            weights = column_of(cells, self.column) if self.options.mask == "gt" else None
            places = cell_places(cells, weights, batch, grid, self.grid)
            wanted = self.standardise(cells.values[places.chosen].to(bev.dtype))
            found = adapted_at(self.adaptor, bev, places.samples, places.row, places.col)  # (K, C)
            per_cell = distance_per_cell(found - wanted, self.options.reduce, self.options.distance)
            mass = (
                places.weights
                if self.options.mask != "pred"
                else class_heat_at(heat_logits_of(self.name, output), places)
            )
            area = self.grid.height * self.grid.width
            part = weighted_part(
                per_cell, mass.to(bev.dtype), places.samples, len(bev), self.options.normaliser, area, self.weight
            )
        return {self.name: part}


def class_heat_at(logits: Tensor, places: CellPlaces) -> Tensor:
    """(K,): the student's best class probability there, without gradient: it must not cool down to lower its loss."""
    best = logits.detach().amax(dim=1).sigmoid()
    return sample_bilinear(best[:, None], places.samples, places.row, places.col)[:, 0]


def needs_of(options: BevDistillDenseOptions) -> TermNeeds:
    """What the term reads under these options. Where the values lie is the store's affair: cells and dense will do."""
    if options.mask == "gt":
        return TermNeeds(map_fields(), (options.selector,), ("bev",))
    student = ("bev", "heads") if options.mask == "pred" else ("bev",)
    return TermNeeds(map_fields(), (), student, every_cell=True)


def channel_statistics(teacher: TeacherStore, rows: Sequence[int], selector: str | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) float32 of the teacher's values over the cells of the column `selector` (None:
    of all stored cells). Raises as `Standardise.fit`."""
    fitted = Standardise.fit("channels", teacher, "", rows, None if selector is None else (selector,))
    return fitted.mean, fitted.scale
