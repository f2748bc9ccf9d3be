"""Whether a detector can learn four frames by heart: trained on one batch of them, then scored on them.

Takes a frame store and a recipe, gives the scores beside two ceilings: the annotations handed in as predictions, which
no detector can beat (attributes are guessed from speed), and, for centre heads, the targets of the loss decoded again:
what is left of the annotations after cells, peaks and suppression. Cost: the steps of the recipe, minutes on one core.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import CAMERA_CHANNELS, Detections, GroundTruth
from cache.store import FrameStore
from evaluation.metric_config import MetricConfig
from models.center_head import BRANCHES, CenterHead
from models.detector import Batch, Detector
from studies.scoring import score
from studies.settled_norms import settle_norms
from trainer.augment import no_augment
from trainer.batches import BatchBuilder
from trainer.checkpoint import Training
from trainer.optimiser import lr_at, set_lr
from trainer.plan import Plan, make_plan, training_needs
from trainer.predict import predict
from trainer.recipe import Recipe
from trainer.setup import make_training
from trainer.step import train_step

FRAMES = 4


@dataclass(frozen=True)
class Overfit:
    """What was seen. scores, ceiling: `Metrics.summary`; head_ceiling: the same of a centre head's own targets, None
    for queries; ap: by class; objects: that the metric counts; loss: of the last step; seconds: of the training."""

    preset: str
    scores: Mapping[str, float]
    ceiling: Mapping[str, float]
    head_ceiling: Mapping[str, float] | None
    ap: Mapping[str, float]
    objects: int
    steps: int
    loss: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def overfit(recipe: Recipe, cache: str, rows: Sequence[int] | None = None) -> Overfit:
    """Trains a fresh model by `recipe` on `rows` (default: those of `telling_frames`), all in every step and without
    augmentation, takes its norms' statistics anew, and scores it on them."""
    plan = make_plan(recipe, cache)
    store = plan.frames
    rows = list(rows) if rows is not None else telling_frames(store, store.key_rows(recipe.data.split))
    training = make_training(plan, torch.device("cpu"))
    model = cast(Detector, training.model)
    builder = BatchBuilder(store, training_needs(model, recipe))
    batch, _ = builder.build(rows, [no_augment(len(CAMERA_CHANNELS))] * len(rows))
    start = time.monotonic()
    loss = _learn(training, batch, plan)
    seconds = time.monotonic() - start
    settle_norms(training.model, [batch])
    metrics = score(store, rows, predict(model, store, rows, batch=len(rows), progress=_silent))
    head = getattr(model, "head", None)
    return Overfit(
        preset=recipe.name,
        scores=metrics.summary(),
        ceiling=score(store, rows, annotations_as_detections(store, rows)).summary(),
        head_ceiling=score(store, rows, targets_decoded(head, batch)).summary()
        if isinstance(head, CenterHead)
        else None,
        ap={name: metrics.class_ap(name) for name in DETECTION_CLASSES},
        objects=metrics.truth_counts.outside_racks,
        steps=plan.steps,
        loss=loss,
        seconds=seconds,
    )


def _learn(training: Training, batch: Batch, plan: Plan) -> float:
    """All steps on one batch; the last loss."""
    loss = float("nan")
    for step in range(plan.steps):
        set_lr(training.optimiser, lr_at(step, plan.steps, plan.recipe.train))
        loss = train_step(training, batch, None, plan, step)["loss"]
    return loss


def telling_frames(store: FrameStore, rows: Sequence[int], count: int = FRAMES) -> list[int]:
    """`count` of `rows`, no two of a scene, that together hold every class, counted by the metric: greedily, the frame
    that brings the most classes still missing, of equal ones the earliest. DataError where classes are missing in the
    end: the metric counts an absent class as one that no detector finds, AP 0 and every error 1.
    """
    there = {row: _counted(store, row) for row in rows}
    chosen: list[int] = []
    for _ in range(count):
        seen = _classes(there[row] for row in chosen)
        scenes = {store.scene_of(row) for row in chosen}
        left = [row for row in rows if store.scene_of(row) not in scenes]
        if not left:
            raise DataError(f"{store.root}: {count} frames of different scenes were asked for, there are {len(chosen)}")
        chosen.append(max(left, key=lambda row: (len(_classes([there[row]]) - seen), -row)))
    if missing := set(range(len(DETECTION_CLASSES))) - _classes(there[row] for row in chosen):
        names = ", ".join(DETECTION_CLASSES[i] for i in sorted(missing))
        raise DataError(f"{store.root}: no {count} frames have every class, {names} missing; simulate more scenes")
    return sorted(chosen)


def _classes(counts: Any) -> set[int]:
    return {int(label) for row in counts for label in np.flatnonzero(row)}


def _counted(store: FrameStore, row: int) -> np.ndarray:
    """(classes,) objects of a frame that lie in the metric's range of their class and were hit."""
    truth, ego = store.truth(row), store.frame(row).ego_to_global.translation
    limits = MetricConfig().ranges()[truth.class_ids]
    near = np.hypot(*(truth.boxes_global[:, :2] - ego[:2]).T) < limits
    return np.bincount(truth.class_ids[near & _hit(truth)], minlength=len(DETECTION_CLASSES))


def _hit(truth: GroundTruth) -> np.ndarray:
    """(N,) bool, boxes with a LiDAR or radar return: the others are not counted, so that finding one is an error."""
    return np.asarray(truth.num_lidar_pts) + np.asarray(truth.num_radar_pts) > 0


def annotations_as_detections(store: FrameStore, rows: Sequence[int]) -> dict[str, Detections]:
    """The annotated boxes that were hit, as a detector would say them, with score 1."""
    out = {}
    for row in rows:
        truth = store.truth(row)
        hit = _hit(truth)
        boxes, labels = store.boxes_lidar(row)[hit], truth.class_ids[hit]
        out[store.tokens[row]] = Detections(
            boxes.astype(np.float32), np.ones(len(boxes), np.float32), labels.astype(np.int32)
        )
    return out


def targets_decoded(head: CenterHead, batch: Batch) -> dict[str, Detections]:
    """The loss's targets as the maps of a head without error, decoded: two objects of one class in one cell are one
    here, and what suppression takes is gone. Unknown velocities are said as 0."""
    maps = []
    for target in head.targets(batch.boxes, batch.labels):
        frames, _, height, width = target.heatmap.shape
        group = {"heatmap": torch.logit(target.heatmap * 0.99, eps=1e-6)}
        columns = target.values.nan_to_num().split(list(BRANCHES.values()), dim=1)
        for (name, channels), values in zip(BRANCHES.items(), columns, strict=True):
            group[name] = torch.zeros(frames, channels, height, width)
            group[name][target.sample, :, target.row, target.col] = values
        maps.append(group)
    return dict(zip(batch.tokens, head.decode(maps), strict=True))


def _silent(done: int, total: int) -> None:
    """No bar for four frames."""
