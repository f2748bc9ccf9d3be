"""UniDistill's response term: the strongest class's heat, and the raw regression, where annotated objects are.

    heat   L = sum_k w_k |max_c sigmoid(S_kc) - max_c sigmoid(T_kc)| / max(sum_k w_k, 1)
    box    L = sum_k w_k mean over groups' channels of |S(A p_k) - T_k moved by A| / max(sum_k w_k, 1)

w: the gaussians of annotated boxes that keep 0.7 of their overlap (released). The class of the strongest heat is not
compared, which lets a student keep its own mistake of class. Released weights: 10 each. fp32 inside; 70 ms of one core
for 4 frames of 1,500 cells, six groups on 128 x 128, forward and backward. Source: UniDistill, CVPR 2023, and its
released code, whose IoU channel our heads do not have.
"""

from __future__ import annotations

import torch
from pydantic import Field

from models.center_head import BRANCHES
from models.config import Config
from models.detector import Batch, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.head_cells import heads_at_cells
from trainer.terms.response_term import ResponseTerm


class UniDistillResponseOptions(Config):
    """selector: whose weights; regression: whether raw maps are compared; the weights of the two parts."""

    selector: str = "gaussian(overlap=0.7)"
    regression: bool = True
    heat_weight: float = Field(default=1.0, ge=0)
    box_weight: float = Field(default=1.0, ge=0)

    @property
    def branches(self) -> tuple[str, ...]:
        """Which raw maps are compared."""
        return tuple(BRANCHES) if self.regression else ()


class UniDistillResponse(ResponseTerm):
    """A `trainer.terms.term.Term` with the parts `<name>.heat` and `<name>.box`."""

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options: UniDistillResponseOptions = self.options
        with torch.autocast(output.bev.device.type, enabled=False):
            at = heads_at_cells(output, batch, said, self.column, self.grid, self.groups, options.branches)
            mass = at.weights.sum()[None]
            found, wanted = (torch.cat(heat, dim=1).sigmoid().amax(dim=1) for heat in (at.heat, at.teacher_heat))
            heat = (at.weights * (found - wanted).abs()).sum()
            parts = {f"{self.name}.heat": LossPart(heat[None], mass, self.weight * options.heat_weight)}
            if options.regression:
                raw = [
                    torch.cat([maps[name] for maps in both for name in options.branches], dim=1)
                    for both in (at.branches, at.teacher_branches)
                ]
                box = (at.weights * (raw[0] - raw[1]).abs().mean(dim=1)).sum()
                parts[f"{self.name}.box"] = LossPart(box[None], mass, self.weight * options.box_weight)
        return parts
