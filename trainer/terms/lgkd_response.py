"""BEV-LGKD's response term: the teacher's softened classes, and its raw regression, at the cached cells.

    L = sum over task groups g of
          0.25 t^2 sum_k w_k D(T_k, S(A p_k)) / max(sum_k w_k, 1)
        + b        sum_k w_k R_k / max(sum_k w_k, 1),
    R_k = sum over branches of the mean over channels of SmoothL1(S(A p_k), T_k moved by A)

    sigmoid    D = sum over the group's classes of KL(Bernoulli(sigmoid(T / t)) || Bernoulli(sigmoid(S / t)))
    softmax    D = KL(softmax over the group's classes of T / t || the same of S / t)          (released)

A softmax over one class is the constant 1, so the released form teaches nothing of groups of one class (car and barrier
in the usual six groups); and what the heads say is one sigmoid a class. Hence `sigmoid` by default. The release also
compares the teacher's logits with the student's sigmoid, which its detection loss has written over the logits before:
student = "probabilities" does that. fp32 inside; 80 ms of one core for 4 frames of 1,500 cells, six groups and all
branches on 128 x 128, forward and backward. Source: BEV-LGKD, arXiv 2212.00623, and its first released code. Whether
the release averages or sums its KL over classes was not verified; here the classes of a cell are summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from models.center_head import BRANCHES
from models.config import Config
from models.detector import Batch, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.head_cells import heads_at_cells
from trainer.terms.response_term import ResponseTerm

CLASS_WEIGHT = 0.25  # released


class LgkdResponseOptions(Config):
    """selector: whose weights (released: dense, every cell alike); form: see the module (released: softmax); student:
    what its heatmap is read as (released: probabilities, by accident); temperature: t; branches: of the regression
    (released: center and rot; none asks no `regression` of the store); box_weight: b."""

    selector: str = "gaussian"
    form: Literal["sigmoid", "softmax"] = "sigmoid"
    student: Literal["logits", "probabilities"] = "logits"
    temperature: float = Field(default=1.25, gt=0)
    branches: tuple[str, ...] = tuple(BRANCHES)
    box_weight: float = Field(default=1.0, ge=0)

    @field_validator("branches")
    @classmethod
    def _known(cls, branches: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(branches) - set(BRANCHES)):
            raise ValueError(f"unknown branches {unknown}; known: {', '.join(BRANCHES)}")
        return branches


class LgkdResponse(ResponseTerm):
    """A `trainer.terms.term.Term`; its parts `<name>.class` and `<name>.box` have one group per task group."""

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options: LgkdResponseOptions = self.options
        with torch.autocast(output.bev.device.type, enabled=False):
            at = heads_at_cells(output, batch, said, self.column, self.grid, self.groups, options.branches)
            classes, boxes = [], []
            for g, heat in enumerate(at.heat):
                student = heat.sigmoid() if options.student == "probabilities" else heat
                each = divergence(at.teacher_heat[g], student, options.form, options.temperature)
                classes.append((at.weights * each).sum())
                boxes.append((at.weights * smooth_error(at.branches[g], at.teacher_branches[g], at.weights)).sum())
            mass = at.weights.sum().expand(len(classes))
        scale = CLASS_WEIGHT * options.temperature**2
        parts = {f"{self.name}.class": LossPart(torch.stack(classes), mass, self.weight * scale)}
        if options.branches:
            parts[f"{self.name}.box"] = LossPart(torch.stack(boxes), mass, self.weight * options.box_weight)
        return parts


def smooth_error(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """(K,) SmoothL1, the mean over each branch's channels, summed over branches."""
    each = [F.smooth_l1_loss(student[name], teacher[name], reduction="none").mean(dim=1) for name in student]
    return torch.stack(each).sum(dim=0) if each else torch.zeros_like(like)


def divergence(teacher: Tensor, student: Tensor, form: str, temperature: float) -> Tensor:
    """(K,) KL from the student's to the teacher's softened classes; both (K, classes) logits."""
    t, s = teacher / temperature, student / temperature
    if form == "softmax":
        log_t, log_s = F.log_softmax(t, dim=1), F.log_softmax(s, dim=1)
        return (log_t.exp() * (log_t - log_s)).sum(dim=1)
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum(dim=1)
