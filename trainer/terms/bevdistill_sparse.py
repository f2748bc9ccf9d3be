"""BEVDistill's sparse term for students of queries: matched one to one with the teacher's objects, they should say the
same boxes and classes.

    box    sum_(i matched) q_i sum_d c_d |b_S - b_T|_d / max(sum q_i, 1)          c = 1, velocities 0.2
    class  sum_queries v BCE(logits_S, p_T) / max(matched, 1)     v = q_i, p_T soft where matched, else `background`, 0

for each layer of the decoder, both sums over the whole batch; boxes as ten numbers in the student's frame, where the
teacher's are moved exactly. A frame in which the teacher names nothing adds nothing. q: `trainer.terms.teacher_set`.
Against the release: q is not squared unless asked, unmatched queries have target 0 and not its sentinel 10, sums are
those of the whole batch and not of one card. Four frames, 6 layers, 900 queries, 50 objects: 26 ms on one core; 300
objects: 115 ms, most of it the assignments. Source: Chen et al. 2022, its released code, and Wang and Solomon 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cache.store import TeacherStore
from models.detector import Batch, Detector, DetectorOutput, LossPart, QueryOutput
from trainer.said import TeacherSaid
from trainer.terms.box_code import CODE, VELOCITY
from trainer.terms.matching import Matches, match_sets
from trainer.terms.precision import at_least_fp32
from trainer.terms.student import queries_of, require_queries
from trainer.terms.teacher_set import TeacherSet, TeacherSetOptions, fields_of, quality_of, teacher_set
from trainer.terms.term import TermNeeds


class BevDistillSparseOptions(TeacherSetOptions):
    """layers: every one of the student's decoder, against the teacher's last, or the last; box_weight, class_weight: of
    the parts (released: 0.25 and 0); velocity_weight: of vx and vy within the box part; background: of unmatched
    queries within the class part; box_cost, class_cost: in matching; released_square: q squared in the box part's
    numerator alone, as the release has it.
    """

    layers: Literal["all", "last"] = "all"
    box_weight: float = Field(default=0.25, ge=0)
    class_weight: float = Field(default=1.0, ge=0)
    velocity_weight: float = Field(default=0.2, ge=0)
    background: float = Field(default=1.0, ge=0)
    box_cost: float = Field(default=0.25, ge=0)
    class_cost: float = Field(default=1.0, ge=0)
    released_square: bool = False


class BevDistillSparse(nn.Module):
    """A `trainer.terms.term.Term` without parameters; parts `<name>.box` and `<name>.class`."""

    def __init__(self, name: str, weight: float, options: BevDistillSparseOptions, model: Detector) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs = needs_of(options)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: BevDistillSparseOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> BevDistillSparse:
        """The term for a student; ConfigError where that is known to have no queries."""
        require_queries(name, model)
        return cls(name, weight, options, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options, queries = self.options, queries_of(self.name, output)
        with torch.autocast(queries.logits.device.type, enabled=False):
            logits, codes = _layers(queries, options.layers)
            objects = teacher_set(said, batch, options, self.grid)
            quality = quality_of(objects, batch, options)
            costs = (options.class_cost, options.box_cost)
            matches = match_sets(logits, codes, objects.probs, objects.codes, objects.counts, costs)
            parts = {}
            if options.box_weight:
                parts[f"{self.name}.box"] = self._box(codes, objects, quality, matches)
            if options.class_weight:
                parts[f"{self.name}.class"] = self._class(logits, objects, quality, matches)
        return parts

    def _box(self, codes: Tensor, objects: TeacherSet, quality: Tensor, matches: Matches) -> LossPart:
        found = codes[matches.layer, matches.sample, matches.query]  # (M, 10)
        error = code_distance(found, objects.codes[matches.item], self.options.velocity_weight)
        q = quality[matches.item].to(error.dtype)
        share = q.square() if self.options.released_square else q
        zeros = error.new_zeros(len(codes))
        numerator, mass = zeros.index_add(0, matches.layer, share * error), zeros.index_add(0, matches.layer, q)
        return LossPart(numerator, mass, self.weight * self.options.box_weight)

    def _class(self, logits: Tensor, objects: TeacherSet, quality: Tensor, matches: Matches) -> LossPart:
        where = (matches.layer, matches.sample, matches.query)
        target = torch.zeros_like(logits).index_put(where, objects.probs[matches.item].to(logits.dtype))
        spoken = torch.tensor(objects.counts, device=logits.device) > 0  # (B,)
        share = (self.options.background * spoken.to(logits.dtype))[None, :, None].expand(logits.shape[:3])
        share = share.index_put(where, quality[matches.item].to(logits.dtype))  # (L, B, Q)
        error = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=3)
        matched = torch.bincount(matches.layer, minlength=len(logits)).to(logits.dtype)
        return LossPart((share * error).sum(dim=(1, 2)), matched, self.weight * self.options.class_weight)


def code_distance(found: Tensor, wanted: Tensor, velocity_weight: float) -> Tensor:
    """(M,): L1 over the numbers of box codes (M, 10), velocities by their weight; numbers that are not known (NaN) in
    `wanted` add nothing."""
    weights = found.new_ones(CODE)
    weights[VELOCITY] = velocity_weight
    known = torch.isfinite(wanted)
    return ((found - torch.where(known, wanted.to(found.dtype), 0.0)).abs() * known * weights).sum(dim=1)


def needs_of(options: BevDistillSparseOptions) -> TermNeeds:
    """What the term reads under these options."""
    return TermNeeds(fields_of(options), (), ("queries",))


def _layers(queries: QueryOutput, layers: str) -> tuple[Tensor, Tensor]:
    chosen: Any = slice(-1, None) if layers == "last" else slice(None)
    return at_least_fp32(queries.logits[chosen]), at_least_fp32(queries.boxes[chosen])
