from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cache.errors import ConfigError
from trainer.balance import balanced_length, balanced_list

COUNTS = arrays.arrays(np.uint16, st.tuples(st.integers(0, 30), st.integers(1, 6)), elements=st.integers(0, 2))


def published(class_counts: np.ndarray) -> dict[int, tuple[list[int], int]]:
    """The rule, plainly, in exact fractions: by class the frames that show it, and how many are drawn of them."""
    frames: dict[int, list[int]] = {}
    for frame, counts in enumerate(class_counts.tolist()):
        for class_id, count in enumerate(counts):
            if count:
                frames.setdefault(class_id, []).append(frame)
    total = sum(len(of_class) for of_class in frames.values())
    out = {}
    for class_id, of_class in sorted(frames.items()):
        ratio = Fraction(1, len(frames)) / Fraction(len(of_class), total)
        out[class_id] = (of_class, int(len(of_class) * ratio))
    return out


@given(COUNTS, st.integers(0, 2**40), st.integers(0, 1000))
def test_every_class_is_drawn_for_as_often_as_published_and_from_its_own_frames(
    counts: np.ndarray, seed: int, epoch: int
) -> None:
    expected = published(counts)
    if not expected:
        with pytest.raises(ConfigError, match=r"none of .* frames has a box"):
            balanced_list(counts, seed, epoch)
        return
    drawn = balanced_list(counts, seed, epoch)
    assert len(drawn) == balanced_length(counts) == sum(number for _, number in expected.values())
    start = 0
    for of_class, number in expected.values():
        assert set(drawn[start : start + number].tolist()) <= set(of_class)
        start += number
    assert drawn.tolist() == balanced_list(counts, seed, epoch).tolist()


def test_frames_of_a_class_are_drawn_evenly_and_frequencies_are_those_of_the_slow_reference() -> None:
    counts = np.array([[5, 0, 0], [1, 0, 0], [2, 1, 0], [3, 0, 2], [0, 0, 0], [1, 0, 0]], np.uint16)
    reference: Counter[int] = Counter()
    for of_class, number in published(counts).values():
        for frame in of_class:
            reference[frame] += number / len(of_class)
    epochs = 4000
    drawn = Counter(np.concatenate([balanced_list(counts, 3, epoch) for epoch in range(epochs)]).tolist())
    assert 4 not in drawn  # shows nothing
    assert set(drawn) == set(reference)
    for frame, expected in reference.items():
        assert drawn[frame] / epochs == pytest.approx(expected, abs=0.06)  # 4 standard deviations and more


def test_epochs_draw_anew_and_seeds_too() -> None:
    counts = np.eye(4, dtype=np.uint16).repeat(20, axis=0)
    lists = {tuple(balanced_list(counts, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(lists) == 16


def test_balanced_draw_of_a_seed_never_changes_between_releases() -> None:
    assert balanced_list(np.array([[1, 0], [2, 0], [1, 3], [0, 1]]), 5, 2).tolist() == [1, 2, 3, 3]
