"""GID-L: each box that the student finds should be the teacher's box that overlaps it most.

    L = sum_{pairs} [smooth_l1(s_S, s_T) + mean_i smooth_l1(b_S,i, b_T,i)] / max(pairs, 1)

The student's best cells are decoded to boxes with gradients; each that scores above student_score is paired with the
teacher's box of its class (moved by A) of the best overlap seen from above, above `iou`. i runs over x, y, z, l, w, h
(m), the heading as sin(a) cos(b) against cos(a) sin(b), and vx, vy where the student has them. 31 ms for 4 frames of
six heads with 100 cells each and 40 boxes, forward and backward, on one core. Source: SparseKD's benchmark of 2-D
methods and its released code; see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from cache.grid import BevGrid
from cache.store import TeacherStore
from models.center_head import BRANCHES, LOG_SIZE_LIMIT
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from models.rotated_iou import every_iou, rectangles
from trainer.said import TeacherSaid
from trainer.terms.box_code import move_boxes
from trainer.terms.places import augmentation_of
from trainer.terms.precision import at_least_fp32
from trainer.terms.student import HeadClasses, head_classes, require_box_maps
from trainer.terms.term import TermNeeds


class GidLogitsOptions(Config):
    """top: cells a frame and head that are decoded; student_score, teacher_score: boxes below are left out; iou: that a
    pair needs; same_class: pairs are of one class; score_weight, box_weight: of the two parts."""

    top: int = Field(default=100, ge=1)
    student_score: float = Field(default=0.1, ge=0, le=1)
    teacher_score: float = Field(default=0.1, ge=0, le=1)
    iou: float = Field(default=0.3, ge=0, le=1)
    same_class: bool = True
    score_weight: float = Field(default=1.0, ge=0)
    box_weight: float = Field(default=1.0, ge=0)


def needs_of(options: GidLogitsOptions) -> TermNeeds:
    """The decoded boxes, which every teacher store holds."""
    return TermNeeds(("boxes", "scores", "labels"), (), ("heads",), any_grid=True)


class GidLogits(nn.Module):
    """A `trainer.terms.term.Term`; nothing in it is trained."""

    def __init__(self, name: str, weight: float, options: GidLogitsOptions, model: Detector) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.heads = needs_of(options), head_classes(name, model)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: GidLogitsOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> GidLogits:
        """The term for a student; ConfigError where that is known to regress no boxes on its map."""
        require_box_maps(name, model)
        return cls(name, weight, options, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options = self.options
        with torch.autocast(output.heads[0]["heatmap"].device.type, enabled=False):
            code, scores, labels = decode_best(output, self.heads, self.grid, options.top)
            matrices = augmentation_of(batch, code.device)
            boxes = torch.cat([code[..., :6], torch.atan2(code[..., 6:7], code[..., 7:8])], dim=-1).detach()
            numerator, pairs = code.sum() * 0, 0
            for i, (theirs, their_scores, their_labels) in enumerate(
                zip(said.boxes, said.scores, said.labels, strict=True)
            ):
                good = their_scores.to(code.device) >= options.teacher_score
                theirs = move_boxes(theirs.to(code.device)[good], matrices[i].expand(int(good.sum()), 4, 4))
                mine = (scores[i].detach() > options.student_score).nonzero()[:, 0]
                if not len(theirs) or not len(mine):
                    continue
                overlap = every_iou(rectangles(boxes[i, mine]), rectangles(theirs))
                if options.same_class:
                    overlap = overlap * (labels[i, mine, None] == their_labels.to(code.device)[good][None])
                best, partner = overlap.max(dim=1)
                mine, partner = mine[best > options.iou], partner[best > options.iou]
                wanted = theirs[partner].to(code.dtype)
                wanted_scores = their_scores.to(code.device)[good][partner].to(code.dtype)
                by_score = nn.functional.smooth_l1_loss(scores[i, mine], wanted_scores, reduction="sum")
                numerator = numerator + options.score_weight * by_score
                numerator = numerator + options.box_weight * _box_error(code[i, mine], wanted).sum()
                pairs += len(mine)
        return {self.name: LossPart(numerator[None], numerator.new_tensor([float(pairs)]), self.weight)}


def _box_error(code: Tensor, boxes: Tensor) -> Tensor:
    """(N,): of decoded codes (N, 8 or 10) against boxes (N, 9)."""
    norm = (code[:, 6:8].square().sum(dim=1, keepdim=True) + 1e-12).sqrt()
    sin, cos = (code[:, 6:8] / norm).unbind(dim=1)
    found = [*code[:, :6].unbind(dim=1), sin * boxes[:, 6].cos(), *code[:, 8:].unbind(dim=1)]
    wanted = [*boxes[:, :6].unbind(dim=1), cos * boxes[:, 6].sin(), *boxes[:, 7 : 7 + code.shape[1] - 8].unbind(dim=1)]
    return nn.functional.smooth_l1_loss(torch.stack(found, 1), torch.stack(wanted, 1), reduction="none").mean(dim=1)


def decode_best(output: DetectorOutput, heads: HeadClasses, grid: BevGrid, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `top` best cells of every head, differentiable: code (B, N, 10) x, y, z (m), l, w, h (m), sin, cos (raw), vx,
    vy (8 without velocities); scores (B, N); labels (B, N) class ids. No peaks are asked for."""
    codes, scores, labels, first = [], [], [], 0
    for maps in output.heads:
        heat = at_least_fp32(maps["heatmap"]).sigmoid()
        classes, height, width = heat.shape[1:]
        flat = heat.detach().flatten(1).topk(min(top, heat[0].numel()), dim=1).indices  # (B, N)
        cell = flat % (height * width)
        names = [name for name in BRANCHES if name in maps]
        raw = torch.cat([at_least_fp32(maps[name]) for name in names], dim=1).flatten(2)
        raw = raw.gather(2, cell[:, None].expand(-1, raw.shape[1], -1)).transpose(1, 2)  # (B, N, 8 or 10)
        x = grid.x_min + (cell % width + raw[..., 0]) * grid.cell_m
        y = grid.y_min + (cell // width + raw[..., 1]) * grid.cell_m
        size = raw[..., 3:6].clamp(-LOG_SIZE_LIMIT, LOG_SIZE_LIMIT).exp()
        codes.append(torch.cat([torch.stack([x, y, raw[..., 2]], dim=-1), size, raw[..., 6:]], dim=-1))
        scores.append(heat.flatten(1).gather(1, flat))
        ids = torch.tensor(heads.classes[first : first + classes], device=heat.device)
        labels.append(ids[flat // (height * width)])
        first += classes
    return torch.cat(codes, dim=1), torch.cat(scores, dim=1), torch.cat(labels, dim=1)
