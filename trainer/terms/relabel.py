"""Label distillation: the teacher's boxes, moved by the augmentation, join or become the labels of the detection loss.

`Relabel` is the protocol beside `Term`: it is called before the detection loss and changes what that loss reads; terms
read the batch as it was, since their masks are drawn from annotations alone. `LabelDistillation` is SparseKD's, and the
baseline "label" (LAD). 2 ms for 4 frames of 40 boxes by distance, 5 ms by overlap.
Source: Yang et al. 2022 (SparseKD), released code; see docs/methods.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from models.config import Config
from models.detector import Batch
from models.rotated_iou import every_iou, rectangles
from models.suppress import circle_suppress
from trainer.said import TeacherSaid
from trainer.terms.annotations import annotated_frames
from trainer.terms.box_code import move_boxes
from trainer.terms.places import augmentation_of
from trainer.terms.term import TermNeeds

# Two people may stand half a metre apart; as the demo head's circle suppression.
SMALL_CLASSES_M = {"pedestrian": 0.4, "traffic_cone": 0.4, "motorcycle": 0.9, "bicycle": 0.9, "barrier": 1.0}


@dataclass(frozen=True)
class Relabelled:
    """batch: with other boxes and labels; counts: for the log, whole numbers that add up over ranks."""

    batch: Batch
    counts: Mapping[str, int]


class Relabel(Protocol):
    """What changes the labels of a batch by what a teacher said. Pure: the given batch stays as it is."""

    name: str
    needs: TermNeeds

    def __call__(self, batch: Batch, said: TeacherSaid) -> Relabelled:
        """The batch for the detection loss."""
        ...


class LabelDistillationOptions(Config):
    """threshold: a teacher's box below this score is dropped; thresholds: of single classes in its place. by_iou:
    classes whose boxes are kept by overlap with an annotated box of their class (at least this) instead of by score; on
    frames without annotations the score decides for them too.

    duplicates: none (as released), distance (centres closer than distance_m, or the class's distances_m, laid over
    SMALL_CLASSES_M) or iou (seen from above, above `iou`): of two boxes of one class an annotated one stays, else the
    one of the better score. Two annotated boxes are never duplicates. first: whose boxes stand first (released:
    teacher); cap: boxes a frame, those behind are dropped. unlabelled: what becomes of frames without annotations: the
    teacher's boxes are their labels (teacher), or they stay without (leave).
    """

    threshold: float = Field(default=0.6, ge=0, le=1)
    thresholds: dict[str, float] = Field(default_factory=dict)
    by_iou: dict[str, float] = Field(default_factory=dict)
    duplicates: Literal["none", "distance", "iou"] = "distance"
    distance_m: float = Field(default=2.0, gt=0)
    distances_m: dict[str, float] = Field(default_factory=dict)
    iou: float = Field(default=0.1, ge=0, le=1)
    first: Literal["annotated", "teacher"] = "annotated"
    cap: int = Field(default=500, ge=1)
    unlabelled: Literal["teacher", "leave"] = "teacher"

    @field_validator("thresholds", "by_iou", "distances_m")
    @classmethod
    def _known_classes(cls, values: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(values) - set(DETECTION_CLASSES)):
            raise ValueError(f"unknown classes {unknown}; known: {', '.join(DETECTION_CLASSES)}")
        return values


RELEASED = LabelDistillationOptions(duplicates="none", first="teacher")  # with its own three classes' thresholds


def needs_of(options: LabelDistillationOptions) -> TermNeeds:
    """The decoded boxes, which every teacher store holds; nothing of the student."""
    return TermNeeds(("boxes", "scores", "labels"), (), (), any_grid=True)


class LabelDistillation:
    """A `Relabel`."""

    def __init__(self, name: str, options: LabelDistillationOptions) -> None:
        self.name, self.options, self.needs = name, options, needs_of(options)
        self.thresholds = _by_class(options.thresholds, options.threshold)
        self.overlaps = _by_class(options.by_iou, -1.0)
        self.distances = _by_class({**SMALL_CLASSES_M, **options.distances_m}, options.distance_m)

    def __call__(self, batch: Batch, said: TeacherSaid) -> Relabelled:
        """Counts: <name>/kept and /dropped of the teacher's boxes, /duplicates among those above the threshold, /capped
        boxes of either kind, /relabelled frames that had no annotations."""
        frames = len(batch.boxes)
        if not frames == len(said.boxes) == len(said.scores) == len(said.labels):
            raise ConfigError(
                f"{self.name}: {frames} frames with {len(said.boxes)} lists of teacher boxes; expected one each"
            )
        device = batch.boxes[0].device if frames else torch.device("cpu")
        annotated = annotated_frames(batch)
        matrices = augmentation_of(batch, device)
        counts = dict.fromkeys(("kept", "dropped", "duplicates", "capped", "relabelled"), 0)
        boxes, labels = list(batch.boxes), list(batch.labels)
        for i in range(frames):
            if not annotated[i] and self.options.unlabelled == "leave":
                continue
            moved = move_boxes(said.boxes[i].to(device), matrices[i].expand(len(said.boxes[i]), 4, 4))
            theirs = (moved.to(boxes[i].dtype), said.scores[i].to(device), said.labels[i].to(device))
            good = self._good(boxes[i], labels[i], *theirs, annotated=bool(annotated[i]))
            counts["dropped"] += int((~good).sum())
            trusted = (theirs[0][good], theirs[1][good], theirs[2][good])
            boxes[i], labels[i] = self._merged((boxes[i], labels[i]), trusted, counts)
            counts["relabelled"] += int(not annotated[i])
        changes: dict[str, Any] = {"boxes": boxes, "labels": labels}
        if batch.labelled is not None and self.options.unlabelled == "teacher":
            changes["labelled"] = None
        return Relabelled(
            dataclasses.replace(batch, **changes), {f"{self.name}/{key}": value for key, value in counts.items()}
        )

    def _merged(
        self, annotated: tuple[Tensor, Tensor], trusted: tuple[Tensor, Tensor, Tensor], counts: dict[str, int]
    ) -> tuple[Tensor, Tensor]:
        """A frame's annotated boxes and labels, and the teacher's with their scores, as one list."""
        (mine, my_labels), (boxes, scores, labels) = annotated, trusted
        order = torch.argsort(scores, descending=True, stable=True)
        boxes, labels = boxes[order], labels[order]
        alone = ~self._duplicates(mine, my_labels, boxes, labels)
        counts["duplicates"] += int((~alone).sum())
        boxes, labels = boxes[alone], labels[alone].to(my_labels.dtype)
        pair = [(mine, my_labels), (boxes, labels)]
        if self.options.first == "teacher":
            pair.reverse()
        out_boxes, out_labels = torch.cat([pair[0][0], pair[1][0]]), torch.cat([pair[0][1], pair[1][1]])
        cap = self.options.cap
        counts["capped"] += max(len(out_boxes) - cap, 0)
        counts["kept"] += min(len(boxes), cap if self.options.first == "teacher" else max(cap - len(mine), 0))
        return out_boxes[:cap], out_labels[:cap]

    def _good(
        self, mine: Tensor, my_labels: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, *, annotated: bool
    ) -> Tensor:
        """(N,) bool: the teacher's boxes that are trusted."""
        by_score = scores >= self.thresholds.to(scores)[labels]
        wanted = self.overlaps.to(boxes)[labels]
        if not self.options.by_iou or not annotated:
            return by_score
        overlap = every_iou(rectangles(boxes), rectangles(mine)) * (labels[:, None] == my_labels[None])
        return torch.where(wanted >= 0, ((overlap > 0) & (overlap >= wanted[:, None])).any(dim=1), by_score)

    def _duplicates(self, mine: Tensor, my_labels: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """(N,) bool: the teacher's boxes, best first, that an annotated box or a better one of theirs stands for."""
        if self.options.duplicates == "none" or not len(boxes):
            return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        same = labels[:, None] == my_labels[None]
        if self.options.duplicates == "distance":
            radius = self.distances.to(boxes)
            taken = (same & (torch.cdist(boxes[:, :2], mine[:, :2]) < radius[labels][:, None])).any(dim=1)
            left = (~taken).nonzero()[:, 0]
            stays = circle_suppress(boxes[left, :2], labels[left], radius)
        else:
            taken = (same & (every_iou(rectangles(boxes), rectangles(mine)) > self.options.iou)).any(dim=1)
            left = (~taken).nonzero()[:, 0]
            seen = rectangles(boxes[left])
            alike = every_iou(seen, seen) > self.options.iou
            stays = _greedy(alike & (labels[left][:, None] == labels[left][None]))
        taken[left[~stays]] = True
        return taken


def _greedy(alike: Tensor) -> Tensor:
    """(N,) bool: box i stays unless a better one that stays is alike; alike (N, N) bool, best first."""
    stays = torch.ones(len(alike), dtype=torch.bool, device=alike.device)
    better = alike.triu(diagonal=1)
    while True:  # settles box i after at most i rounds, in practice after a few
        settled = ~(better & stays[:, None]).any(dim=0)
        if torch.equal(settled, stays):
            return stays
        stays = settled


def _by_class(values: Mapping[str, float], default: float) -> Tensor:
    return torch.tensor([values.get(name, default) for name in DETECTION_CLASSES])
