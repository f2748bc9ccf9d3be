from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from cache.errors import ConfigError
from models.config import parse_config
from models.detector import LossPart
from trainer.terms.schedule import Schedule, factor, scheduled

STEPS = 101


def factors(**options: object) -> list[float]:
    schedule = Schedule.model_validate(options)
    return [factor(schedule, step, STEPS) for step in range(STEPS)]


def test_constant_is_one_from_the_first_step_to_the_last() -> None:
    assert factors() == [1.0] * STEPS


def test_a_warm_up_rises_in_equal_steps_and_is_not_zero_at_the_first() -> None:
    found = factors(warmup_steps=4)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(found[4:]) == {1.0}


def test_nothing_before_the_start_and_the_warm_up_counts_from_it() -> None:
    found = factors(start=10, warmup_steps=2)
    assert found[:10] == [0.0] * 10
    assert found[10:13] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(("kind", "half"), [("linear", 0.6), ("cosine", 0.6)])
def test_a_decay_leaves_one_at_its_step_and_ends_at_the_floor(kind: str, half: float) -> None:
    found = factors(kind=kind, decay_from=20, floor=0.2)
    assert found[:21] == [1.0] * 21
    assert found[60] == pytest.approx(half)
    assert found[-1] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(found[20:]))


def test_the_two_decays_are_a_line_and_half_a_cosine() -> None:
    assert factors(kind="linear")[25] == pytest.approx(0.75)
    assert factors(kind="cosine")[25] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_shares_of_the_run_follow_its_length() -> None:
    schedule = Schedule(kind="linear", warmup_steps=0.1, decay_from=0.5)
    assert factor(schedule, 4, 100) == pytest.approx(0.5)
    assert factor(schedule, 49, 1000) == pytest.approx(0.5)
    assert factor(schedule, 500, 1000) == 1.0
    assert factor(schedule, 999, 1000) == 0.0


def test_a_run_of_one_step_and_a_decay_beyond_the_end_are_finite() -> None:
    assert factor(Schedule(kind="cosine"), 0, 1) == 1.0
    assert factor(Schedule(kind="linear", decay_from=500), 100, STEPS) == 1.0


def test_whole_numbers_stay_steps() -> None:
    schedule = Schedule.model_validate({"warmup_steps": 1, "start": 1})
    assert isinstance(schedule.warmup_steps, int)
    assert [factor(schedule, step, 10) for step in range(3)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("key", ["start", "warmup_steps", "decay_from"])
@pytest.mark.parametrize("value", [1.0, 2.5, 1e9, True])
def test_what_is_neither_steps_nor_a_share_is_refused(key: str, value: Any) -> None:
    """1.0 once meant one step, where a share of 1 was meant."""
    with pytest.raises(
        ConfigError, match=rf"'{key}': .*a whole number of steps.* or a share of the run below 1.*found {value}"
    ):
        parse_config(Schedule, {"kind": "linear", key: value}, "recipe.toml")


@pytest.mark.parametrize("given", [{"decay_from": 0.5}, {"floor": 0.1}])
def test_a_fall_without_its_kind_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match='set kind = "linear" or "cosine"'):
        parse_config(Schedule, given, "recipe.toml")


def test_the_first_step_is_the_first_that_counts() -> None:
    for schedule in (Schedule(), Schedule(start=3), Schedule(start=0.5, warmup_steps=4)):
        shares = [factor(schedule, step, 10) for step in range(10)]
        assert next(i for i, share in enumerate(shares) if share > 0) == schedule.first_step(10)


def test_parts_are_scaled_by_weight_and_cut_off_at_zero() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    part = LossPart(x * 3, torch.tensor([2.0]), 0.5)
    assert scheduled({"a": part}, 0.5)["a"].value().item() == pytest.approx(0.75)
    off = scheduled({"a": LossPart(x / 0, torch.tensor([2.0]), 0.5)}, 0.0)["a"]
    assert off.value().item() == 0
    assert not off.numerator.requires_grad
    assert off.normaliser.item() == 2.0
