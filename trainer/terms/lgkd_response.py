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
student = "probabilities" does that. fp32 inside; 75 ms for 4 frames of 1,500 cells, six groups and all branches on
128 x 128, forward and backward, on one core. Source: BEV-LGKD, arXiv 2212.00623, and its first released code. Whether
the release averages or sums its KL over classes was not verified; here the classes of a cell are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.store import TeacherStore
from models.center_head import BRANCHES
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.map_places import augmentation_of, places_of_cells
from trainer.terms.moved_regression import moved_branch
from trainer.terms.sampling import sample_bilinear
from trainer.terms.store_facts import columns_of, require_same_groups, student_groups
from trainer.terms.term import TermNeeds

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


class LgkdResponse(nn.Module):
    """A `trainer.terms.term.Term`; its parts `<name>.class` and `<name>.box` have one group per task group."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: LgkdResponseOptions,
        model: Detector,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, (self.column,) = needs_of(options), columns_of((options.selector,))
        self.groups = student_groups(name, model)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: LgkdResponseOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> LgkdResponse:
        """The term for a student. ConfigError where its task groups are not the teacher's and a branch is compared."""
        if options.branches:
            require_same_groups(name, teacher, model)
        return cls(name, weight, options, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options, cells = self.options, said.cells
        assert cells is not None
        assert said.logits is not None
        with torch.autocast(output.bev.device.type, enabled=False):
            augmentation, samples = augmentation_of(batch), cells.samples()
            row, col, inside = places_of_cells(cells.index, samples, augmentation, said.grid, self.grid)
            weights = cells.weights[:, cells.selectors.index(self.column)]
            kept = inside & (weights > 0)
            samples, row, col = samples[kept], row[kept], col[kept]
            maps, widths = _joined(output, options.branches)
            found = sample_bilinear(maps, samples, row, col).split(widths, dim=1)  # heatmap and branches, by group
            weights, logits = weights[kept].to(maps.dtype), said.logits[kept].to(maps.dtype)
            classes, boxes = [], []
            for g, names in enumerate(self.groups):
                heat, *branches = found[g * (1 + len(options.branches)) : (g + 1) * (1 + len(options.branches))]
                wanted = logits[:, [DETECTION_CLASSES.index(name) for name in names]]
                heat = heat.sigmoid() if options.student == "probabilities" else heat
                classes.append((weights * divergence(wanted, heat, options.form, options.temperature)).sum())
                if options.branches:
                    boxes.append((weights * self._box_error(names, branches, said, kept, augmentation[samples])).sum())
            mass = weights.sum().expand(len(self.groups))
        scale = CLASS_WEIGHT * options.temperature**2
        parts = {f"{self.name}.class": LossPart(torch.stack(classes), mass, self.weight * scale)}
        if boxes:
            parts[f"{self.name}.box"] = LossPart(torch.stack(boxes), mass, self.weight * options.box_weight)
        return parts

    def _box_error(
        self, names: tuple[str, ...], branches: Sequence[Tensor], said: TeacherSaid, kept: Tensor, a: Tensor
    ) -> Tensor:
        """(K,) of one task group."""
        assert said.regression is not None
        group = [frozenset(theirs) for theirs in said.groups].index(frozenset(names))
        columns = said.regression_columns[group]
        error = torch.zeros(len(a), dtype=branches[0].dtype, device=a.device)
        for name, found in zip(self.options.branches, branches, strict=True):
            raw = said.regression[kept][:, columns[name]].to(found.dtype)
            wanted = moved_branch(name, raw, a, said.grid.cell_m / self.grid.cell_m)
            error = error + F.smooth_l1_loss(found, wanted, reduction="none").mean(dim=1)
        return error


def divergence(teacher: Tensor, student: Tensor, form: str, temperature: float) -> Tensor:
    """(K,) KL from the student's to the teacher's softened classes; both (K, classes) logits."""
    t, s = teacher / temperature, student / temperature
    if form == "softmax":
        log_t, log_s = F.log_softmax(t, dim=1), F.log_softmax(s, dim=1)
        return (log_t.exp() * (log_t - log_s)).sum(dim=1)
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum(dim=1)


def _joined(output: DetectorOutput, branches: Sequence[str]) -> tuple[Tensor, list[int]]:
    """The maps that are read, (B, channels, H, W) at fp32 or more, group by group, and each one's channels."""
    maps = [heads[name] for heads in output.heads for name in ("heatmap", *branches)]
    joined = torch.cat(maps, dim=1)
    return joined if joined.dtype == torch.float64 else joined.float(), [m.shape[1] for m in maps]


def needs_of(options: LgkdResponseOptions) -> TermNeeds:
    """What the term reads under these options."""
    fields = ("bev_index", "bev_weights", "logits", *(("regression",) if options.branches else ()))
    return TermNeeds(fields, (options.selector,), ("heads",))
