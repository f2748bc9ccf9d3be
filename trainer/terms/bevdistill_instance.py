"""BEVDistill's sparse term for students of heatmaps: where the teacher has an object, the student should say it.

    class  sum_i q_i sum_c BCE(heat_S,c(A p_i), p_T,c,i) / max(sum q_i, 1)       heat logits read bilinearly
    box    sum_i q_i sum_d c_d |b_S(cell of A p_i) - b_T,i|_d / max(sum q_i, 1)     c = 1, velocities 0.2

over the teacher's objects i, centres p_i, whose class the student has a heat for; b_S is what the student's head of
that class's group regresses in the cell, as ten numbers. There is nothing to match: an object's place says who answers
for it. Features at these places are `bevdistill_contrast`'s. Ours: the release and the paper have students of queries
only. Four frames of 50 objects on 128 x 128: 14 ms on one core.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.center_head import BRANCHES
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.bevdistill_sparse import code_distance
from trainer.terms.places import cells_holding, rows_and_columns
from trainer.terms.precision import at_least_fp32
from trainer.terms.sampling import sample_bilinear
from trainer.terms.student import heat_logits_of, require_box_maps, require_heat
from trainer.terms.teacher_set import TeacherSet, TeacherSetOptions, fields_of, quality_of, teacher_set
from trainer.terms.term import TermNeeds


class BevDistillInstanceOptions(TeacherSetOptions):
    """box_weight, class_weight: of the parts; velocity_weight: of vx and vy within the box part."""

    box_weight: float = Field(default=0.25, ge=0)
    class_weight: float = Field(default=1.0, ge=0)
    velocity_weight: float = Field(default=0.2, ge=0)


class BevDistillInstance(nn.Module):
    """A `trainer.terms.term.Term` without parameters; parts `<name>.box` and `<name>.class`."""

    class_ids: Tensor

    def __init__(self, name: str, weight: float, options: BevDistillInstanceOptions, model: Detector) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs = needs_of(options)
        ids = [DETECTION_CLASSES.index(name) for name in model.heat_classes]
        self.register_buffer("class_ids", torch.tensor(ids), persistent=False)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: BevDistillInstanceOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> BevDistillInstance:
        """The term for a student; ConfigError where that has no heat, or regresses no boxes and the box part is on."""
        require_heat(name, model)
        if options.box_weight:
            require_box_maps(name, model)
        return cls(name, weight, options, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options = self.options
        with torch.autocast(output.bev.device.type, enabled=False):
            objects = teacher_set(said, batch, options, self.grid)
            quality = quality_of(objects, batch, options)
            channel = (objects.labels[:, None] == self.class_ids).long()  # (T, heat channels), one 1 or none
            q = quality * channel.sum(dim=1)
            parts = {}
            if options.box_weight:
                codes = codes_at(output.heads, objects, channel, self.grid)
                error = code_distance(codes, objects.codes, options.velocity_weight)
                parts["box"] = (error, options.box_weight)
            if options.class_weight:
                row, col = rows_and_columns(objects.codes[:, :2], self.grid)
                logits = sample_bilinear(heat_logits_of(self.name, output), objects.sample, row, col)
                target = objects.probs[:, self.class_ids].to(logits.dtype)
                error = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1)
                parts["class"] = (error, options.class_weight)
        return {
            f"{self.name}.{part}": LossPart(
                (q.to(error.dtype) * error).sum()[None], q.sum()[None].to(error.dtype), self.weight * factor
            )
            for part, (error, factor) in parts.items()
        }


def codes_at(heads: Sequence[dict[str, Tensor]], objects: TeacherSet, channel: Tensor, grid: BevGrid) -> Tensor:
    """(T, 10): the boxes that the student regresses in the cell of each object's centre, by the head of its class.

    channel: (T, heat channels), 1 at the object's class; all 0 gives zeros.
    """
    row, col = cells_holding(objects.codes[:, :2], grid)
    row, col = row.clamp(0, grid.height - 1), col.clamp(0, grid.width - 1)  # rounding at the upper border
    x, y = (cell.to(objects.codes.dtype) * grid.cell_m for cell in (col, row))
    corner = torch.stack([grid.x_min + x, grid.y_min + y], dim=1)
    out, first = None, 0
    for maps in heads:
        last = first + maps["heatmap"].shape[1]
        # gathered branch by branch: joining whole maps first would copy them
        said = [at_least_fp32(maps[name][objects.sample, :, row, col]) for name in BRANCHES]
        code = torch.cat([corner.to(said[0].dtype) + said[0] * grid.cell_m, *said[1:]], dim=1)
        mine = code * channel[:, first:last].sum(dim=1, keepdim=True)
        out, first = mine if out is None else out + mine, last
    assert out is not None
    return out


def needs_of(options: BevDistillInstanceOptions) -> TermNeeds:
    """What the term reads under these options."""
    return TermNeeds(fields_of(options), (), ("heads",))
