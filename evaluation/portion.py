"""Some frames of a split, filtered and matched as the metric does: what the array metric counts and a report explains.

A match never crosses frames, so a split can be taken in portions of a few hundred frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.box_arrays import BoxArrays, Places
from evaluation.matching import match
from evaluation.metric_config import MetricConfig
from evaluation.metric_filters import ego_distance, filtered
from evaluation.metrics import FilterCounts
from evaluation.subsets import Subset
from evaluation.tp_errors import match_errors


@dataclass(frozen=True)
class MatchedPortion:
    """G objects and N predictions that count. taken (T, N) int64: at each threshold the object of each prediction, -1
    none; distance (T, N) float64 metres between them; hit (M,): the predictions matched at the threshold of the TP
    errors, and errors (M, 5) float64 theirs; truth_counts, predicted_counts: boxes before and after each filter."""

    truth: BoxArrays
    predicted: BoxArrays
    taken: np.ndarray
    distance: np.ndarray
    hit: np.ndarray
    errors: np.ndarray
    truth_counts: FilterCounts
    predicted_counts: FilterCounts


def match_portion(
    truth: BoxArrays, predicted: BoxArrays, places: Places, config: MetricConfig, subset: Subset
) -> MatchedPortion:
    """Those of the boxes that the subset and the metric's filters leave, and their matches. Raises DataError for a
    matched box whose size is not above 0."""
    truth, truth_counts = filtered(_of_subset(truth, places, subset, True), places, config)
    predicted, predicted_counts = filtered(_of_subset(predicted, places, subset, False), places, config)
    taken, distance = match(truth, predicted, config.dist_ths)
    at = config.dist_ths.index(config.dist_th_tp)
    hit = np.nonzero(taken[at] >= 0)[0]
    ours, theirs = predicted.take(hit), truth.take(taken[at, hit])
    errors = match_errors(
        theirs.boxes, ours.boxes, distance[at, hit], ours.class_ids, theirs.attribute_ids, ours.attribute_ids
    )
    return MatchedPortion(truth, predicted, taken, distance, hit, errors, truth_counts, predicted_counts)


def _of_subset(boxes: BoxArrays, places: Places, subset: Subset, truth: bool) -> BoxArrays:
    if not subset.chooses_boxes:
        return boxes
    return boxes.take(subset.boxes(ego_distance(boxes, places), boxes.class_ids, boxes.visibility if truth else None))
