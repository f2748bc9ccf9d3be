"""The teacher's objects of a batch as sparse terms read them, in the student's frame, and how far each is trusted.

From the queries of a teacher of queries (soft scores of all classes) or from any teacher's decoded boxes (the score at
the box's class, 0 elsewhere). Trust, BEVDistill's quality score: q = c^gamma * IoU^(1 - gamma), with c the best class
score and IoU, seen from above, that of the best annotated box of that class; on frames without annotations q = c. The
paper's gamma is not known to us. The released code has no IoU: it takes c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from models.config import Config
from models.detector import Batch
from models.rotated_iou import paired_iou, rectangles
from trainer.said import TeacherSaid
from trainer.terms.annotations import annotated_frames
from trainer.terms.box_code import decode_codes, encode_boxes, move_codes
from trainer.terms.places import augmentation_of
from trainer.terms.precision import at_least_fp32

Source = Literal["queries", "boxes"]


class TeacherSetOptions(Config):
    """objects: the teacher's queries, or its decoded boxes; top: the best ones a frame (released: 50); quality: with
    the annotated boxes' IoU (the paper), the score alone (released), or 1 for each; gamma: share of the score in it."""

    objects: Source = "boxes"
    top: int = Field(default=50, ge=1)
    quality: Literal["iou", "score", "none"] = "iou"
    gamma: float = Field(default=0.5, ge=0, le=1)


@dataclass(frozen=True)
class TeacherSet:
    """T objects, frame by frame, best first; only those whose centre lies on the student's grid.

    sample, rank: (T,) int64: the frame, and the row in that frame's list; probs: (T, classes); codes: (T, 10) in the
    student's frame, velocities NaN where unknown; counts: of each frame.
    """

    sample: Tensor
    rank: Tensor
    probs: Tensor
    codes: Tensor
    counts: tuple[int, ...]

    @property
    def scores(self) -> Tensor:
        """(T,) of the best class."""
        return self.probs.amax(dim=1) if len(self.probs) else self.probs.new_zeros(0)

    @property
    def labels(self) -> Tensor:
        """(T,) int64: the best class."""
        return self.probs.argmax(dim=1) if len(self.probs) else self.sample


def teacher_set(said: TeacherSaid, batch: Batch, options: TeacherSetOptions, grid: BevGrid) -> TeacherSet:
    """The objects that the teacher names, moved by the batch's augmentation. grid: the student's."""
    if options.objects == "queries":
        probs = [at_least_fp32(logits[: options.top]).sigmoid() for logits in said.query_logits]
        codes = [at_least_fp32(code[: options.top]) for code in said.query_boxes]
    else:
        probs = [_one_hot(s[: options.top], c[: options.top]) for s, c in zip(said.scores, said.labels, strict=True)]
        codes = [encode_boxes(at_least_fp32(boxes[: options.top])) for boxes in said.boxes]
    counts = torch.tensor([len(code) for code in codes])
    matrices = augmentation_of(batch, codes[0].device if codes else "cpu")
    device = matrices.device
    sample = torch.repeat_interleave(torch.arange(len(codes)), counts).to(device)
    rank = torch.cat([torch.arange(int(count)) for count in counts]).to(device)
    moved = move_codes(torch.cat(codes), matrices[sample])
    x, y = moved[:, 0], moved[:, 1]
    inside = (x >= grid.x_min) & (x < grid.x_max) & (y >= grid.y_min) & (y < grid.y_max)
    kept = inside & torch.isfinite(moved[:, :8]).all(dim=1)
    sample = sample[kept]
    of_frames = tuple(torch.bincount(sample, minlength=len(codes)).tolist())
    return TeacherSet(sample, rank[kept], torch.cat(probs)[kept], moved[kept], of_frames)


@torch.no_grad()
def quality_of(objects: TeacherSet, batch: Batch, options: TeacherSetOptions) -> Tensor:
    """(T,) in 0..1, without gradient."""
    scores = objects.scores
    if options.quality == "none":
        return torch.ones_like(scores)
    if options.quality == "score" or not len(scores):
        return scores
    annotated = annotated_frames(batch, scores.device)
    boxes, labels = decode_codes(objects.codes), objects.labels
    best = torch.zeros_like(scores, dtype=torch.float64)
    first = 0
    for sample, count in enumerate(objects.counts):
        mine = slice(first, first + count)
        first += count
        if not count or not bool(annotated[sample]) or not len(batch.boxes[sample]):
            continue
        truth, truth_labels = batch.boxes[sample], batch.labels[sample]
        i, j = (labels[mine, None] == truth_labels[None]).nonzero(as_tuple=True)
        overlap = paired_iou(rectangles(boxes[mine][i]), rectangles(truth[j]))
        best[mine] = best[mine].scatter_reduce(0, i, overlap, "amax")
    q = scores.double().pow(options.gamma) * best.pow(1 - options.gamma)
    return torch.where(annotated[objects.sample], q.to(scores.dtype), scores)


def _one_hot(scores: Tensor, labels: Tensor) -> Tensor:
    scores = at_least_fp32(scores)
    probs = scores.new_zeros(len(scores), len(DETECTION_CLASSES))
    return probs.scatter(1, labels[:, None].long(), scores[:, None])


def fields_of(options: TeacherSetOptions) -> tuple[str, ...]:
    """Of the teacher store."""
    return (f"queries(top={options.top})",) if options.objects == "queries" else ("boxes", "scores", "labels")
