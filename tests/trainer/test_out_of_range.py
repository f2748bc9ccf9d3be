"""Numbers out of all proportion: either refused in one line that names the key, or taken for what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import ConfigError
from tests.trainer.synthetic import TINY_STUDENT, write_frames
from tests.trainer.test_loop import losses, quiet
from trainer.blocks import block_offsets
from trainer.loop import train
from trainer.plan import make_plan
from trainer.recipe import Recipe, make_recipe


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("range")
    write_frames(root, frames=6, size=(32, 18), points=False, unlabelled=(1, 4))
    return root


def recipe(data: dict[str, Any] | None = None, **train_values: Any) -> Recipe:
    settings = {"steps": 2, "batch": 2, "lr": 1e-3, "log_every": 1, **train_values}
    return make_recipe({"model": TINY_STUDENT, "data": data or {}, "train": settings}, "test", "range")


@pytest.mark.parametrize("batch", [10**9, 10**30])
def test_a_batch_larger_than_the_split_is_all_of_it_and_asks_for_no_more_memory(
    mixed: Path, tmp_path: Path, batch: int
) -> None:
    train(recipe(batch=4), mixed, tmp_path / "all", progress=quiet)
    train(recipe(batch=batch), mixed, tmp_path / "huge", progress=quiet)
    assert losses(tmp_path / "huge") == losses(tmp_path / "all")


def test_more_unlabelled_frames_than_there_are_is_all_of_them(mixed: Path) -> None:
    plans = [make_plan(recipe({"unlabelled_per_labelled": share}), mixed) for share in (1.7e308, 1.0, 1e-300)]
    assert [plan.drawn for plan in plans] == [2, 2, 1]


def test_a_block_larger_than_a_shard_is_the_shard() -> None:
    shard = np.array([0, 0, 0, 2, 2])
    assert block_offsets(shard, 10**30).tolist() == block_offsets(shard, 0).tolist() == [0, 3, 5]


@pytest.mark.parametrize(
    ("key", "data", "values"),
    [
        ("train.seed", {}, {"seed": 2**63}),
        ("train.lr", {}, {"lr": float("inf")}),
        ("train.weight_decay", {}, {"weight_decay": float("nan")}),
        ("data.image_augmentation.resize", {"image_augmentation": {"resize": [1.0, 1e9]}}, {}),
        ("data.bev_augmentation.scale", {"bev_augmentation": {"scale": [1e-3, 1e300]}}, {}),
    ],
)
def test_what_cannot_be_meant_is_refused_naming_the_key(key: str, data: dict[str, Any], values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^test: key '{key}': .*found") as caught:
        recipe(data, **values)
    assert "\n" not in str(caught.value)
    assert recipe(seed=2**63 - 1).train.seed == 2**63 - 1
