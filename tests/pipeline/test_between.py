"""Which sweeps are chosen between key frames: evenly in time, none twice, whatever is missing of the recording."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.between import MAX_IMAGE_US, Between, choose_evenly, nearest

TWENTY_HERTZ = [50_000 * i for i in range(1, 10)]


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, []), (1, [4]), (2, [2, 6]), (3, [1, 4, 6]), (4, [1, 3, 5, 7]), (9, list(range(9))), (12, list(range(9)))],
)
def test_a_whole_interval_is_cut_evenly(count: int, chosen: list[int]) -> None:
    """Of 3 the ideal moments are 125, 250 and 375 ms: between two sweeps the earlier is taken."""
    assert choose_evenly(TWENTY_HERTZ, 0, 500_000, count) == chosen


def test_sweeps_that_are_missing_move_the_choice_no_farther_than_they_must() -> None:
    only_late = [350_000, 400_000, 450_000]  # as a simulated interval of 3 sweeps
    assert choose_evenly(only_late, 0, 500_000, 1) == [0]
    assert choose_evenly(only_late, 0, 500_000, 2) == [0, 1]
    assert choose_evenly([10_000, 240_000, 260_000, 490_000], 0, 500_000, 2) == [1, 2]
    assert choose_evenly([], 0, 500_000, 2) == []


def test_the_choice_is_rising_and_full_and_moves_with_the_interval() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        begin, length = int(rng.integers(10**15)), int(rng.integers(50_000, 700_000))
        there = np.unique(rng.integers(1, length, rng.integers(0, 15)))
        times, count = (begin + there).tolist(), int(rng.integers(0, 12))
        chosen = choose_evenly(times, begin, begin + length, count)
        assert len(chosen) == min(count, len(times)), f"seed {seed}"
        assert all(a < b for a, b in itertools.pairwise(chosen)), f"seed {seed}"
        assert chosen == choose_evenly(there.tolist(), 0, length, count), f"seed {seed}"


def test_the_first_choice_is_the_nearest_one_that_leaves_enough_for_the_others() -> None:
    """The rule by a slow search: among all rising choices, the one that is best at the first moment, then the second,
    and so on."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        times = np.unique(rng.integers(1, 1000, 7)).tolist()
        count = int(rng.integers(1, len(times) + 1))
        ideal = [1000 * k / (count + 1) for k in range(1, count + 1)]
        best = min(
            itertools.combinations(range(len(times)), count),
            key=lambda picked: [(round(abs(times[i] - t), 6), i) for i, t in zip(picked, ideal, strict=True)],
        )
        assert choose_evenly(times, 0, 1000, count) == list(best), f"seed {seed}"


def test_the_nearest_image_is_taken_up_to_the_limit() -> None:
    times = [0, 83_000, 166_000]
    assert [nearest(times, moment) for moment in (-1, 0, 41_000, 41_500, 42_000, 166_000)] == [0, 0, 0, 0, 1, 2]
    assert nearest(times, 166_000 + MAX_IMAGE_US) == 2
    assert nearest(times, 166_000 + MAX_IMAGE_US + 1) is None
    assert nearest([], 0) is None


def test_the_line_says_what_is_missing_and_why() -> None:
    assert str(Between(2, 4, 8)) == "--between 2: 8 unlabelled frames in 4 intervals of key frames"
    both = str(Between(4, 1, 3, 1) + Between(4, 1, 2, 0, 2))
    assert "5 unlabelled frames in 2 intervals" in both and "1 intervals have fewer than 4 sweeps" in both
    assert "2 sweeps left out, a camera has no image within 60 ms" in both and "--between-images" in both
    assert "no scene has two key frames" in str(Between(2))
