"""The metric's greedy matching, for all classes, frames and thresholds at once.

The rule: predictions in order of score, each takes the nearest object of its class and frame that is still free, if
that is closer than the threshold; no second try. Among candidates closer than the threshold this is the stable
matching in which every object prefers the better score, so proposals in rounds (deferred acceptance, Gale and Shapley
1962) give the same pairs: each round is a few array operations over all predictions that are still without an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache.classes import DETECTION_CLASSES
from evaluation.box_arrays import BoxArrays

_DOUBT_M = 1e-9  # far above the rounding of a distance at coordinates of 1e4 m


@dataclass(frozen=True)
class Candidates:
    """P pairs of a prediction and an object of its class and frame, sorted by prediction, distance, object: predicted,
    truth (P,) indices; distance (P,) float64 metres. first (N + 1,): where each of N predictions' pairs begin."""

    predicted: np.ndarray
    truth: np.ndarray
    distance: np.ndarray
    first: np.ndarray


def match(truth: BoxArrays, predicted: BoxArrays, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(T, N) int64: at each threshold (m) the object that each prediction takes, -1 none; and (T, N) float64 metres
    between them, inf where none."""
    pairs = candidates(truth, predicted, thresholds)
    # of equal scores the later prediction goes first; only order within a frame matters here
    by_rank = np.argsort(predicted.scores, kind="stable")[::-1]
    rank = np.empty(len(predicted), np.int64)
    rank[by_rank] = np.arange(len(predicted))
    taken = np.full((len(thresholds), len(predicted)), -1, np.int64)
    distance = np.full(taken.shape, np.inf)
    for row, threshold in enumerate(thresholds):
        pair = _proposals(pairs, threshold, rank, by_rank, len(truth))
        taken[row, pairs.predicted[pair]] = pairs.truth[pair]
        distance[row, pairs.predicted[pair]] = pairs.distance[pair]
    return taken, distance


def candidates(truth: BoxArrays, predicted: BoxArrays, thresholds: Sequence[float]) -> Candidates:
    """All pairs that are closer than the largest threshold. Memory goes with predictions x objects of a frame and
    class, summed over the frames: feed some hundred frames at a time."""
    classes = len(DETECTION_CLASSES)
    truth_key = truth.frame * classes + truth.class_ids
    order = np.argsort(truth_key, kind="stable")
    key = predicted.frame * classes + predicted.class_ids
    begin = np.searchsorted(truth_key[order], key, side="left")
    counts = np.searchsorted(truth_key[order], key, side="right") - begin
    who = np.repeat(np.arange(len(predicted)), counts)
    object_ = order[np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(len(who))]
    x, y = ((predicted.boxes[:, axis].copy()[who] - truth.boxes[:, axis].copy()[object_]) for axis in (0, 1))
    distance = np.sqrt(np.square(x) + np.square(y))
    near = np.nonzero(distance < max(thresholds) + _DOUBT_M)[0]
    who, object_, distance = who[near], object_[near], distance[near]
    order = np.lexsort((object_, distance, who))
    who, object_, distance = who[order], object_[order], distance[order]
    doubtful = _doubtful(who, distance, thresholds)
    if len(doubtful):
        for pair in doubtful:
            distance[pair] = np.linalg.norm(predicted.boxes[who[pair], :2] - truth.boxes[object_[pair], :2])
        order = np.lexsort((object_, distance, who))
        who, object_, distance = who[order], object_[order], distance[order]
    return Candidates(who, object_, distance, np.searchsorted(who, np.arange(len(predicted) + 1)))


def _doubtful(who: np.ndarray, distance: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Pairs whose distance the last bit could carry over a threshold or past another candidate of the same prediction.

    The devkit's norm of two numbers is a BLAS dot product, which may fuse its multiplication and addition.
    """
    doubt = np.zeros(len(who), bool)
    for threshold in thresholds:
        doubt |= np.abs(distance - threshold) < _DOUBT_M
    tie = (who[1:] == who[:-1]) & (distance[1:] - distance[:-1] < _DOUBT_M)
    doubt[1:] |= tie
    doubt[:-1] |= tie
    return np.nonzero(doubt)[0]


def _proposals(pairs: Candidates, threshold: float, rank: np.ndarray, by_rank: np.ndarray, objects: int) -> np.ndarray:
    """Indices of the pairs that are matched. Every prediction asks its candidates from the nearest on; an object holds
    the best-ranked that asked, and whoever is refused or displaced asks its next one in the next round."""
    closer = np.concatenate([[0], np.cumsum(pairs.distance < threshold)])  # of a prediction's pairs these are the first
    ask = pairs.first[:-1].copy()
    end = ask + closer[pairs.first[1:]] - closer[pairs.first[:-1]]
    free = len(rank)
    held = np.full(objects, free, np.int64)  # the rank of the prediction that an object holds
    held_pair = np.full(objects, -1, np.int64)
    active = np.nonzero(ask < end)[0]
    while len(active):
        pair = ask[active]
        wish = pairs.truth[pair]
        ask[active] += 1
        before = held[wish]
        np.minimum.at(held, wish, rank[active])
        won = held[wish] == rank[active]
        held_pair[wish[won]] = pair[won]
        displaced = before[won]
        active = np.concatenate([active[~won], by_rank[displaced[displaced < free]]])
        active = active[ask[active] < end[active]]
    return held_pair[held_pair >= 0]
