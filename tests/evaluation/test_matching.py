"""Matching in rounds of proposals gives the pairs of the rule itself, taken one prediction after the other."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.box_arrays import BoxArrays
from evaluation.matching import match


def boxes(frame: np.ndarray, class_ids: np.ndarray, places: np.ndarray, scores: np.ndarray) -> BoxArrays:
    rows = np.zeros((len(frame), 12))
    rows[:, :2] = places
    none = np.zeros(len(frame), np.int64)
    return BoxArrays(frame, rows, scores, class_ids, none, none, none)


def one_by_one(truth: BoxArrays, predicted: BoxArrays, threshold: float) -> list[int]:
    """The rule as the metric states it: in order of score (of equal ones the later first) each prediction takes the
    nearest free object of its frame and class, if it is closer than the threshold."""
    taken: dict[int, int] = {}
    for p in sorted(range(len(predicted)), key=lambda p: (predicted.scores[p], p), reverse=True):
        best, found = np.inf, -1
        for t in range(len(truth)):
            same = truth.frame[t] == predicted.frame[p] and truth.class_ids[t] == predicted.class_ids[p]
            if same and t not in taken.values():
                distance = float(np.linalg.norm(predicted.boxes[p, :2] - truth.boxes[t, :2]))
                if distance < best:
                    best, found = distance, t
        if best < threshold:
            taken[p] = found
    return [taken.get(p, -1) for p in range(len(predicted))]


@pytest.mark.parametrize("seed", range(8))
def test_rounds_of_proposals_give_the_greedy_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)

    def some(count: int) -> BoxArrays:
        frame, class_ids = np.sort(random.integers(0, 2, count)), random.integers(0, 2, count)
        places = random.integers(-4, 5, (count, 2)) / 2 if seed % 2 else random.normal(0, 2, (count, 2))
        return boxes(frame, class_ids, places, random.integers(0, 6, count) / 5)

    truth, predicted = some(12), some(60)
    thresholds = (0.5, 1.0, 2.0, 4.0)
    taken, distance = match(truth, predicted, thresholds)
    for row, threshold in enumerate(thresholds):
        assert taken[row].tolist() == one_by_one(truth, predicted, threshold)
        assert ((distance[row] < threshold) == (taken[row] >= 0)).all()
    assert (taken[3] >= 0).sum() > 5


def test_a_chain_of_displacements_is_followed_to_its_end() -> None:
    """Each better prediction takes the object of the one before: as many rounds as objects."""
    count = 50
    zero = np.zeros(count, np.int64)
    places = np.stack([np.arange(count), np.zeros(count)], axis=1)
    truth = boxes(zero, zero, places, np.full(count, -1.0))
    predicted = boxes(zero, zero, places + np.array([0.6, 0.0]), np.linspace(0, 1, count))
    taken, _ = match(truth, predicted, [2.0])
    assert taken[0].tolist() == one_by_one(truth, predicted, 2.0) == list(range(count))  # the nearest is i + 1
