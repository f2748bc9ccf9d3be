"""FitNet and FG: the student's BEV map, lifted to the teacher's channels, should be the teacher's at weighed cells.

    L = sum_k w_k mean_c (lift(S)(A p_k)_c - T_kc)^2 / max(sum_k w_k, 1)

over the stored cells k of the whole batch: all of them with weight 1 (FitNet), or those near an annotated object (FG).
Whole-map FitNet made students worse on nuScenes than no distillation (Li et al. 2023, RDD): it is here as a baseline.
At 256 channels and 1,500 cells a frame 85 ms for 4 frames, forward and backward, on one core (conv1x1; conv3x3 runs
over the whole map and takes seconds).
Source: SparseKD's benchmark of 2-D methods and its released code; see docs/methods-sparsekd.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.places import cells_on
from trainer.terms.sampling import inside_grid, sample_bilinear
from trainer.terms.student_heads import at_least_fp32
from trainer.terms.term import TermNeeds

LiftName = Literal["conv1x1", "conv3x3", "none"]


class FitNetOptions(Config):
    """selector: whose cells. lift: conv1x1 without norm, whose loss does not depend on how a batch is split; conv3x3
    with batch norm, as released; none, where channels are equal. soft: the selector's weights, else 1 wherever they are
    above 0."""

    selector: str = "dense"
    lift: LiftName = "conv1x1"
    soft: bool = False


class FgOptions(FitNetOptions):
    """As FitNet near annotated objects: where their gaussians are not 0, dilated on coarse cells."""

    selector: str = "gaussian"


def needs_of(options: FitNetOptions) -> TermNeeds:
    """The feature and weights at the stored cells; any grid will do."""
    return TermNeeds(("bev_index", "bev_weights"), (options.selector,), ("bev",), any_grid=True)


class MaskedFeatures(nn.Module):
    """A `trainer.terms.term.Term` that owns the lift."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: FitNetOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.column = needs_of(options), NeededSelector.parse(options.selector).name
        self.lift = make_lift(name, options.lift, student_channels, teacher_channels)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: FitNetOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> MaskedFeatures:
        """The term for a student and a store."""
        return cls(name, weight, options, model.bev_channels, teacher.bev.channels, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        assert said.cells is not None
        cells = said.cells
        with torch.autocast(output.bev.device.type, enabled=False):
            samples, row, col = cells_on(cells, said.grid, batch, self.grid)
            weights = cells.weights[:, cells.selectors.index(self.column)]
            kept = (weights > 0) & inside_grid(row, col, self.grid)
            found = lifted_at(self.lift, at_least_fp32(output.bev), samples[kept], row[kept], col[kept])  # (K, C)
            error = (found - cells.values[kept].to(found.dtype)).square().mean(dim=1)
            mass = weights[kept].to(found.dtype) if self.options.soft else torch.ones_like(error)
            numerator = (mass * error).sum()
        return {self.name: LossPart(numerator[None], mass.sum()[None], self.weight)}


def make_lift(name: str, kind: LiftName, student_channels: int, teacher_channels: int) -> nn.Module:
    """The module that brings a student's map to the teacher's channels. ConfigError for `none` with unequal ones."""
    if kind == "conv1x1":
        return nn.Conv2d(student_channels, teacher_channels, 1)
    if kind == "conv3x3":
        conv = nn.Conv2d(student_channels, teacher_channels, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(teacher_channels))
    if student_channels != teacher_channels:
        raise ConfigError(
            f"term {name}: lift none, but the student's map has {student_channels} channels and the teacher's "
            f"{teacher_channels}; set lift to conv1x1"
        )
    return nn.Identity()


def lifted_at(lift: nn.Module, bev: Tensor, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """(K, C): the lifted map at places. A 1x1 convolution and bilinear reading commute, so it runs on K rows only."""
    if isinstance(lift, nn.Conv2d):
        found = sample_bilinear(bev, samples, row, col)
        return nn.functional.linear(found, lift.weight[:, :, 0, 0], lift.bias)
    return sample_bilinear(lift(bev), samples, row, col)
