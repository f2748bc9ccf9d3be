"""FitNet, and FG near objects: the student's adapted map should be the teacher's at weighed cells (Romero et al. 2015).

    L = sum_k w_k mean_c (adaptor(S)(A p_k)_c - T_kc)^2 / max(sum_k w_k, 1)

over the stored cells k of the whole batch: the weights of `selector`, 1 wherever they are above 0 (soft = false), or 1
at every cell (mask = "none", of a store with every cell). A row of BEVDistill's table and of SparseKD's benchmark of
2-D methods; `fg` is that benchmark's FG. Unmasked it made students worse than no distillation wherever it was measured
(BEVDistill's table; Li et al. 2023, RDD, on nuScenes), so masked is the default. At 256 channels and 1,500 cells a
frame 70 ms for 4 frames, forward and backward, on one core (conv3x3 runs over the whole map: 2 s).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.adaptor import adapted_at, student_adaptor
from trainer.terms.masked import distance_per_cell
from trainer.terms.places import cell_places, column_of
from trainer.terms.standardise import Standard, Standardise
from trainer.terms.store_facts import column_name, map_fields
from trainer.terms.student import map_of
from trainer.terms.term import TermNeeds


class FitNetOptions(Config):
    """mask: weights of `selector`, or none; soft: those weights, else 1 wherever they are above 0. adaptor: conv1x1,
    whose loss does not depend on how a batch is split; conv3x3 with norm and ReLU, as BEVDistill's; conv3x3_linear with
    norm alone, as SparseKD's; none, where channels are equal. standardise: see `trainer.terms.standardise`."""

    mask: Literal["selector", "none"] = "selector"
    selector: str = "gaussian"
    soft: bool = True
    adaptor: Literal["none", "conv1x1", "conv3x3", "conv3x3_linear", "conv3x3_cells"] = "conv1x1"
    standardise: Standard = "none"


class FgOptions(FitNetOptions):
    """As FitNet where the gaussians of annotated objects are not 0, dilated on coarse cells: each such cell alike."""

    soft: bool = False


def needs_of(options: FitNetOptions) -> TermNeeds:
    """The feature and weights at the stored cells; any grid will do."""
    masked = options.mask == "selector"
    return TermNeeds(
        map_fields(), (options.selector,) if masked else (), ("bev",), every_cell=not masked, any_grid=True
    )


class FitNet(nn.Module):
    """A `trainer.terms.term.Term` that owns the adaptor."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: FitNetOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
        standardise: Standardise | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.column = needs_of(options), column_name(options.selector)
        self.adaptor = student_adaptor(options.adaptor, student_channels, teacher_channels, name)
        self.standardise = standardise or Standardise()

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: FitNetOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> FitNet:
        """The term for a student and the frames it will be trained on."""
        columns = (column_name(options.selector),) if options.mask == "selector" else None
        standardise = Standardise.fit(options.standardise, teacher, "", teacher_rows, columns)
        return cls(name, weight, options, model.bev_channels, teacher.bev.channels, model, standardise)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        assert said.cells is not None
        bev = map_of(output)
        with torch.autocast(bev.device.type, enabled=False):
            weights = column_of(said.cells, self.column) if self.options.mask == "selector" else None
            at = cell_places(said.cells, weights, batch, said.grid, self.grid)
            found = adapted_at(self.adaptor, bev, at.samples, at.row, at.col)  # (K, C)
            wanted = self.standardise(said.cells.values[at.chosen].to(bev.dtype))
            mass = at.weights.to(bev.dtype) if self.options.soft else torch.ones_like(at.weights, dtype=bev.dtype)
            numerator = (mass * distance_per_cell(found - wanted, "mean", "squared")).sum()
        return {self.name: LossPart(numerator[None], mass.sum()[None], self.weight)}
