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

import torch
import torch.nn.functional as F
from pydantic import Field

from cache.errors import ConfigError
from models.center_head import BRANCHES
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.head_cells import heads_at_cells
from trainer.terms.lgkd_response import smooth_error
from trainer.terms.response_term import ResponseTerm

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


class CrkdResponse(ResponseTerm):
    """A `trainer.terms.term.Term` with the parts `<name>.heat` and `<name>.box`, one group per task group."""

    def __init__(self, name: str, weight: float, options: CrkdResponseOptions, model: Detector) -> None:
        super().__init__(name, weight, options, model)
        self.task_weights = options.task_weights or (1.0,) * len(self.groups)
        if len(self.task_weights) != len(self.groups):
            raise ConfigError(
                f"term {name}: {len(self.task_weights)} task_weights for {len(self.groups)} task groups of the "
                "student; give one each, or none"
            )

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options: CrkdResponseOptions = self.options
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
