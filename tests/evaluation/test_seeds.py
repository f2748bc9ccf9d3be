"""The ablation table's figures are scipy's, and what cannot be said is not said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cache.errors import ConfigError
from evaluation.seeds import SeedResult, paired_gain, seed_table, spread


@pytest.mark.parametrize("seed", range(5))
def test_a_paired_gain_is_scipys_paired_t_test(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 9))
    one, other = random.normal(0.3, 0.02, count), random.normal(0.28, 0.02, count)
    theirs = stats.ttest_rel(one, other)
    for level in (0.95, 0.8):
        gain = paired_gain(dict(enumerate(one)), dict(enumerate(other)), level=level)
        low, high = theirs.confidence_interval(level)
        assert (gain.n, gain.mean) == (count, pytest.approx(np.mean(one - other)))
        np.testing.assert_allclose([gain.low, gain.high, gain.p], [low, high, theirs.pvalue], rtol=1e-9)
        assert gain.clear == (low > 0 or high < 0)
    corrected = paired_gain(dict(enumerate(one)), dict(enumerate(other)), comparisons=4)
    low, high = theirs.confidence_interval(1 - 0.05 / 4)
    np.testing.assert_allclose([corrected.low, corrected.high], [low, high], rtol=1e-9)
    assert corrected.p == pytest.approx(min(1.0, 4 * theirs.pvalue))


def test_only_seeds_that_both_have_are_paired_whatever_their_order() -> None:
    gain = paired_gain({3: 0.5, 1: 0.4, 9: 0.9}, {1: 0.3, 2: 0.0, 3: 0.2})
    assert gain.n == 2 and gain.mean == pytest.approx(0.2)


def test_one_seed_has_a_difference_and_no_interval_and_none_has_nothing() -> None:
    one = paired_gain({0: 0.5}, {0: 0.25})
    assert (one.n, one.mean, one.clear) == (1, 0.25, False) and math.isnan(one.low) and math.isnan(one.p)
    none = paired_gain({0: 0.5}, {1: 0.25})
    assert none.n == 0 and math.isnan(none.mean)
    same = paired_gain({0: 0.5, 1: 0.3}, {0: 0.5, 1: 0.3})
    assert (same.low, same.high, same.p) == (0, 0, 1)


def test_spread_has_the_deviation_of_a_sample() -> None:
    values = [0.1, 0.4, 0.2, 0.6]
    found = spread(values)
    assert (found.n, found.mean, found.std) == (4, pytest.approx(np.mean(values)), pytest.approx(stats.tstd(values)))
    assert math.isnan(spread([0.1]).std)


def test_the_table_has_a_row_a_group_against_the_baseline() -> None:
    runs = [
        SeedResult(name, seed, {"NDS": value + seed / 100})
        for name, value in (("a", 0.1), ("b", 0.3))
        for seed in (0, 1)
    ]
    base, other = seed_table(runs, "a", ["NDS"])
    assert (base.group, base.gain, base.seeds) == ("a", None, (0, 1))
    assert other.gain is not None and other.gain["NDS"].mean == pytest.approx(0.2)
    assert other.spread["NDS"].mean == pytest.approx(0.305)


@pytest.mark.parametrize(
    ("runs", "baseline", "said"),
    [
        ([("a", 0, {"NDS": 1.0})], "b", "no runs of the baseline 'b'; there are a"),
        ([("a", 0, {"NDS": 1.0}), ("a", 0, {"NDS": 1.0})], "a", "a: two runs of seed 0"),
        ([("a", 0, {"mAP": 1.0})], "a", "a, seed 0: no NDS; it has mAP"),
    ],
)
def test_what_does_not_make_a_table_is_told(runs: list, baseline: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        seed_table([SeedResult(*run) for run in runs], baseline, ["NDS"])
