"""Whether a detector learns at all: a short training on the train split, judged on val against two that saw nothing.

The two are its own predictions handed to frames of other scenes (where things usually are, without looking) and the
same network before its first step. Cost: the training, minutes on one core; a training that was stopped goes on. Norms'
statistics are taken anew on frames of the train split, since the running ones lag behind so few steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cache.frame import CAMERA_CHANNELS
from cache.layout import frames_place
from cache.store import FrameStore
from evaluation.metrics import Metrics
from models.build import build_detector
from models.detector import Batch, Detector
from studies.scoring import score, score_shuffled
from studies.settled_norms import settle_norms
from trainer.augment import no_augment
from trainer.batches import BatchBuilder
from trainer.loop import train
from trainer.plan import training_needs
from trainer.predict import load_run, predict
from trainer.recipe import Recipe

SETTLING = 16  # batches that norms' statistics are taken of


@dataclass(frozen=True)
class Learnt:
    """mAP and NDS on val of the trained network; mAP of the same predictions on frames of other scenes, and of the
    untrained network; the training's length."""

    preset: str
    mAP: float
    NDS: float
    shuffled_mAP: float
    untrained_mAP: float
    steps: int
    loss: float
    seconds: float

    @property
    def held(self) -> bool:
        """At least twice the shuffled, and more than the untrained."""
        return self.mAP >= 2 * self.shuffled_mAP and self.mAP > self.untrained_mAP

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def learn_shortly(recipe: Recipe, cache: Path, run: Path) -> Learnt:
    """Trains in `run` (resumed where it was begun) and scores on val."""
    result = train(recipe, cache, run, resume=True, threads=torch.get_num_threads())
    store = FrameStore(frames_place(cache))
    rows = store.key_rows("val")
    model = load_run(run)
    settle_norms(cast(nn.Module, model), _batches(model, store, recipe))
    found = predict(model, store, rows)
    metrics, shuffled = score(store, rows, found), score_shuffled(store, rows, found)
    return Learnt(
        preset=recipe.name,
        mAP=metrics.mAP,
        NDS=metrics.NDS,
        shuffled_mAP=shuffled.mAP,
        untrained_mAP=_untrained(recipe, store, rows).mAP,
        steps=result.steps,
        loss=result.loss,
        seconds=result.seconds,
    )


def _batches(model: Detector, store: FrameStore, recipe: Recipe) -> Iterator[Batch]:
    """SETTLING batches of the recipe's size, spread over its split, as they are seen in evaluation."""
    builder = BatchBuilder(store, training_needs(model, recipe))
    rows, size = store.key_rows(recipe.data.split), recipe.train.batch
    spread = rows[:: max(1, len(rows) // (SETTLING * size))][: SETTLING * size]
    for first in range(0, len(spread), size):
        chosen = spread[first : first + size]
        yield builder.build(chosen, [no_augment(len(CAMERA_CHANNELS))] * len(chosen))[0]


def _untrained(recipe: Recipe, store: FrameStore, rows: list[int]) -> Metrics:
    """The network that the training begins from."""
    torch.manual_seed(recipe.train.seed)
    model: Detector = build_detector(recipe.model)
    return score(store, rows, predict(model, store, rows))
