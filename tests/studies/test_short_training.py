"""Short trainings: norms' statistics, what counts as learnt, and the path from a recipe to figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.build import build_detector
from studies import short_training
from studies.settled_norms import settle_norms
from studies.short_training import Learnt, learn_shortly
from tests.models.synthetic import LIDAR, synthetic_batch
from tests.trainer.synthetic import TINY_TEACHER, write_frames
from trainer.recipe import make_recipe


def test_settled_norms_answer_in_evaluation_as_in_training() -> None:
    torch.manual_seed(0)
    model, batch = build_detector(LIDAR), synthetic_batch()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        expected = model.train()(batch).bev
        assert not torch.allclose(model.eval()(batch).bev, expected, atol=1e-2)
        settle_norms(model, [batch])
        assert not model.training and [norm.momentum for norm in norms] == momenta
        torch.testing.assert_close(model(batch).bev, expected, atol=2e-2, rtol=2e-2)  # the variance is the unbiased one


def test_statistics_of_several_batches_are_the_mean_of_each_ones() -> None:
    torch.manual_seed(0)
    model, batches = build_detector(LIDAR), [synthetic_batch(seed=seed) for seed in range(3)]
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    means = []
    for batch in batches:
        settle_norms(model, [batch])
        means.append(first.running_mean.clone())
    settle_norms(model, batches)
    torch.testing.assert_close(first.running_mean, torch.stack(means).mean(dim=0))
    assert not torch.allclose(means[0], means[1])


@pytest.mark.parametrize(
    ("figures", "held"),
    [
        ({}, True),
        ({"shuffled_mAP": 0.05}, True),
        ({"shuffled_mAP": 0.051}, False),  # not twice as good as where things usually are
        ({"untrained_mAP": 0.1}, False),  # no more than before the first step
        ({"mAP": 0.0, "shuffled_mAP": 0.0}, False),
    ],
)
def test_learnt_is_twice_the_shuffled_and_more_than_untrained(figures: dict[str, float], held: bool) -> None:
    learnt = Learnt("a", mAP=0.1, NDS=0.1, shuffled_mAP=0.0, untrained_mAP=0.0, steps=1, loss=1.0, seconds=1.0)
    assert dataclasses.replace(learnt, **figures).held is held


def test_a_short_training_is_scored_on_val_with_settled_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path / "cache", split="val")  # one split a store; here both are the same frames
    seen: list[int] = []
    settle = short_training.settle_norms
    monkeypatch.setattr(
        short_training,
        "settle_norms",
        lambda model, batches: settle(model, (batch for batch in batches if not seen.append(len(batch)))),
    )
    monkeypatch.setattr(short_training, "score_shuffled", short_training.score)  # frames of one scene: no exchange
    values = {"model": TINY_TEACHER, "data": {"split": "val"}, "train": {"steps": 2, "batch": 2, "lr": 1e-3}}
    result = learn_shortly(make_recipe(values, "a test", "small"), tmp_path / "cache", tmp_path / "run")
    assert seen and max(seen) == 2
    assert result.steps == 2 and result.mAP < 1 and not (result.held and result.mAP == 0)
    assert json.loads(json.dumps(result.to_dict()))["preset"] == "small"
