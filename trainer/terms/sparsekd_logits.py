"""SparseKD's logits at pivotal positions, and plain logit distillation: the student's class probabilities should be the
teacher's where it matters.

    L = 1/G * sum_g  sum_{k, c in g} w_kg d(p_S(A p_k)_c, p_T(k)_c) / max(sum_k w_kg, 1)

over the stored cells k of the whole batch and the G heads g of the student; d is the squared difference. The weight is
a stored column: `gaussian*confident(threshold=0)` is the released max_c G * max_c p_T. Probabilities are explicit:
sigmoids of raw logits, one of each. Where grids differ the student's probabilities are read at the teacher's cell
centres. 11 ms for 4 frames of 1,500 cells and ten classes on 128 x 128, forward and backward, on one core.
Source: Yang et al. 2022 (SparseKD), arXiv 2205.15156, and its released code; see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.places import cell_places, column_of
from trainer.terms.precision import at_least_fp32
from trainer.terms.sampling import sample_bilinear
from trainer.terms.store_facts import columns_of, map_fields
from trainer.terms.student import head_classes, heat_logits_of
from trainer.terms.term import TermNeeds

PIVOTAL = "gaussian*confident(threshold=0)"


class SparseKdLogitsOptions(Config):
    """selectors: whose weights, one for all heads, or one for each head of the student in its order (released heads
    draw their own gaussians: `gaussian(classes=car)`, ...); products by `*`. group_confidence: times the teacher's best
    probability among the head's own classes. distance: squared as released, or smooth_l1 (threshold 1)."""

    selectors: tuple[str, ...] = Field(default=(PIVOTAL,), min_length=1)
    group_confidence: bool = False
    distance: Literal["squared", "smooth_l1"] = "squared"

    @field_validator("selectors")
    @classmethod
    def _readable(cls, selectors: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for text in selectors:
                NeededSelector.parse(text)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return selectors


class KdLogitsOptions(SparseKdLogitsOptions):
    """Plain logit distillation: every cell, weight 1."""

    selectors: tuple[str, ...] = Field(default=("dense",), min_length=1)


def needs_of(options: SparseKdLogitsOptions) -> TermNeeds:
    """Logits and weights at the stored cells; any grid will do."""
    return TermNeeds((*map_fields(), "logits"), tuple(dict.fromkeys(options.selectors)), ("heads",), any_grid=True)


class SparseKdLogits(nn.Module):
    """A `trainer.terms.term.Term`; nothing in it is trained."""

    def __init__(self, name: str, weight: float, options: SparseKdLogitsOptions, model: Detector) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs = needs_of(options)
        self.heads = head_classes(name, model)
        if len(options.selectors) not in (1, len(self.heads.names)):
            raise ConfigError(
                f"term {name}: selectors holds {len(options.selectors)} entries, the student has "
                f"{len(self.heads.names)} heads; give one for all, or one for each head"
            )
        self.columns = columns_of(options.selectors)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: SparseKdLogitsOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> SparseKdLogits:
        """The term for a student; the store is checked by `require_served`."""
        return cls(name, weight, options, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        assert said.cells is not None
        assert said.logits is not None
        cells, heads = said.cells, len(self.heads.names)
        with torch.autocast(said.logits.device.type, enabled=False):
            student = heat_logits_of(self.name, output).sigmoid()  # (B, classes, H, W)
            columns = torch.stack([column_of(cells, name) for name in self.columns], dim=1)
            at = cell_places(cells, columns, batch, said.grid, self.grid)
            classes = torch.tensor(self.heads.classes, device=at.chosen.device)
            wanted = at_least_fp32(said.logits[at.chosen][:, classes]).to(student.dtype).sigmoid()  # (K, classes)
            found = sample_bilinear(student, at.samples, at.row, at.col)
            weights = at.weights.to(student.dtype).expand(-1, heads)  # (K, heads)
            if self.options.group_confidence:
                weights = weights * self._best_of_group(wanted)
            error = self._distance(found, wanted)
            group = torch.tensor(self.heads.groups, device=at.chosen.device)
            per_head = error.new_zeros(len(error), heads).index_add(1, group, error)
            numerator, mass = (weights * per_head).sum(dim=0), weights.sum(dim=0)
        return {self.name: LossPart(numerator, mass, self.weight / heads)}

    def _distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        if self.options.distance == "squared":
            return (found - wanted).square()
        return nn.functional.smooth_l1_loss(found, wanted, reduction="none")

    def _best_of_group(self, wanted: Tensor) -> Tensor:
        """(K, heads): the teacher's best probability among each head's classes."""
        group = torch.tensor(self.heads.groups, device=wanted.device).expand_as(wanted)
        return wanted.new_zeros(len(wanted), len(self.heads.names)).scatter_reduce(1, group, wanted, "amax")
