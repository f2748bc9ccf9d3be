"""CRKD's response term: heat under a quality focal loss, raw regression weighted by how sure the teacher is.

    heat   L = sum over task groups g of u_g sum_k sum_c |p_kc - q_kc|^beta BCE(q_kc, p_kc) / max(P_g, 1)
    box    L = sum over task groups g of u_g sum_k h_gk R_gk / max(sum_k h_gk, 1)

over the cells k of the selector (its weights say which, not how much); p, q: the teacher's and the student's
probabilities; P_g: classes and cells with p > 0.3; h_gk: the sum of p over the group's classes where above 0.1, else 0;
R: SmoothL1, mean over each branch's channels, summed over branches; beta 2, u = 2, 2, 2, 1, 2, 1 in the release, which
reads all cells (selector = "dense"). Needs no annotations, so it serves unlabelled frames. fp32 inside; 70 ms of one
core for 4 frames of 1,500 cells, six groups on 128 x 128, forward and backward. Source: CRKD, CVPR 2024, and its
released code; its feature terms are `lgkd_feature` with other selectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from cache.errors import ConfigError
from cache.store import TeacherStore
from models.center_head import BRANCHES
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.head_cells import heads_at_cells
from trainer.terms.lgkd_response import smooth_error
from trainer.terms.store_facts import column_name, map_fields, require_same_groups
from trainer.terms.student import head_classes
from trainer.terms.term import TermNeeds

POSITIVE, SURE = 0.3, 0.1  # released thresholds of p and h


class CrkdResponseOptions(Config):
    """selector: which cells; beta: of the focal factor; task_weights: u, one a task group of the student, () for ones;
    regression: whether raw maps are compared; the weights of the two parts."""

    selector: str = "confident"
    beta: float = Field(default=2.0, ge=0)
    task_weights: tuple[float, ...] = ()
    regression: bool = True
    heat_weight: float = Field(default=1.0, ge=0)
    box_weight: float = Field(default=1.0, ge=0)

    @property
    def branches(self) -> tuple[str, ...]:
        """Which raw maps are compared."""
        return tuple(BRANCHES) if self.regression else ()


class CrkdResponse(nn.Module):
    """A `trainer.terms.term.Term` with the parts `<name>.heat` and `<name>.box`, one group per task group."""

    def __init__(self, name: str, weight: float, options: CrkdResponseOptions, model: Detector) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.column = needs_of(options), column_name(options.selector)
        self.groups = head_classes(name, model).names
        self.task_weights = options.task_weights or (1.0,) * len(self.groups)
        if len(self.task_weights) != len(self.groups):
            raise ConfigError(
                f"term {name}: {len(self.task_weights)} task_weights for {len(self.groups)} task groups of the "
                "student; give one each, or none"
            )

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: CrkdResponseOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> CrkdResponse:
        """The term for a student. ConfigError where raw maps of other task groups would be compared."""
        if options.regression:
            require_same_groups(name, teacher, model)
        return cls(name, weight, options, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options = self.options
        heat, positives, box, sureness = [], [], [], []
        with torch.autocast(output.bev.device.type, enabled=False):
            at = heads_at_cells(output, batch, said, self.column, self.grid, self.groups, options.branches)
            for g, logits in enumerate(at.heat):
                p, u = at.teacher_heat[g].sigmoid(), self.task_weights[g]
                entropy = F.binary_cross_entropy_with_logits(logits, p, reduction="none")
                heat.append(u * ((p - logits.sigmoid()).abs().pow(options.beta) * entropy).sum())
                positives.append((p > POSITIVE).sum().to(p.dtype))
                h = p.sum(dim=1)
                h = torch.where(h > SURE, h, 0.0)
                box.append(u * (h * smooth_error(at.branches[g], at.teacher_branches[g], h)).sum())
                sureness.append(h.sum())
        heat_part = LossPart(torch.stack(heat), torch.stack(positives), self.weight * options.heat_weight)
        parts = {f"{self.name}.heat": heat_part}
        if options.regression:
            box_part = LossPart(torch.stack(box), torch.stack(sureness), self.weight * options.box_weight)
            parts[f"{self.name}.box"] = box_part
        return parts


def needs_of(options: CrkdResponseOptions) -> TermNeeds:
    """What the term reads under these options."""
    fields = (*map_fields(), "logits", *(("regression",) if options.regression else ()))
    return TermNeeds(fields, (options.selector,), ("heads",), any_grid=True)
