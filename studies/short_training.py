"""Whether a detector learns at all: a short training on the train split, judged on val against two that saw nothing.

The two are its own predictions handed to frames of other scenes (where things usually are, without looking) and the
same network before its first step. Cost: the training, minutes on one core; a training that was stopped goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cache.layout import frames_place
from cache.store import FrameStore
from evaluation.official import Metrics
from models.build import build_detector
from models.detector import Detector
from studies.scoring import score, score_shuffled
from trainer.loop import train
from trainer.predict import load_run, predict
from trainer.recipe import Recipe


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
    found = predict(load_run(run), store, rows)
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


def _untrained(recipe: Recipe, store: FrameStore, rows: list[int]) -> Metrics:
    """The network that the training begins from."""
    torch.manual_seed(recipe.train.seed)
    model: Detector = build_detector(recipe.model)
    return score(store, rows, predict(model, store, rows))
