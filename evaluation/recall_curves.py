"""From matches to figures: precision and errors over 101 recalls, AP and the mean TP errors of one class.

As nuScenes defines them: no monotone envelope on precision, recalls above the last reached count as precision 0, TP
errors are cumulative means read off at the scores of those recalls. np.interp stays: recalls repeat, and a hand-written
interpolation would choose another of the equal points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.errors import DataError

RECALLS = 101


@dataclass(frozen=True)
class RecallCurve:
    """One class at one threshold. precision, score: (101,) float64 at recalls 0, 0.01, .. 1; 0 past the last one."""

    precision: np.ndarray
    score: np.ndarray

    @property
    def last(self) -> int:
        """The last recall that was reached, which the metric tells by a score that is not 0."""
        reached = np.nonzero(self.score)[0]
        return int(reached[-1]) if len(reached) else 0


def recall_curve(hits: np.ndarray, scores: np.ndarray, objects: int, what: str) -> RecallCurve | None:
    """The curve of predictions in order of score: hits (N,) bool, scores (N,) float64; objects: how many there are to
    find. None where not one is found (AP 0, TP errors 1).

    Raises DataError naming `what` where the scores at rising recall do not fall: scores below 0, or infinite ones,
    on which the devkit stops.
    """
    if not objects or not hits.any():
        return None
    found, missed = np.cumsum(hits).astype(float), np.cumsum(~hits).astype(float)
    recalls, recall = np.linspace(0, 1, RECALLS), found / float(objects)
    precision = np.interp(recalls, recall, found / (missed + found), right=0)
    score = np.interp(recalls, recall, scores, right=0)
    if not (score[1:] <= score[:-1]).all():
        raise DataError(
            f"the metric: scores of {what} go from {scores.max()} to {scores.min()}; the metric needs finite scores of "
            "0 or more, since it reads 0 as a recall not reached"
        )
    return RecallCurve(precision, score)


def average_precision(curve: RecallCurve | None, min_recall: float, min_precision: float) -> float:
    """Mean of the precision above min_precision over the recalls above min_recall, scaled so that perfect is 1."""
    if curve is None:
        return 0.0
    above = np.maximum(curve.precision[_first(min_recall) :] - min_precision, 0.0)
    return float(np.mean(above)) / (1.0 - min_precision)


def mean_error(curve: RecallCurve | None, errors: np.ndarray, scores: np.ndarray, min_recall: float) -> float:
    """Mean over the recalls above min_recall of a TP error's cumulative mean. errors, scores: (M,) of the matches in
    order of score, errors NaN where unknown. 1.0 where that recall was not reached."""
    if curve is None or curve.last < _first(min_recall):
        return 1.0
    read_off = np.interp(curve.score[::-1], scores[::-1], cumulative_mean(errors)[::-1])[::-1]
    return float(np.mean(read_off[_first(min_recall) : curve.last + 1]))


def cumulative_mean(values: np.ndarray) -> np.ndarray:
    """(M,) means up to each value, NaN left out: 0 before the first known one, ones where none is known."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    sums, counts = np.nancumsum(values), np.cumsum(known)
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts != 0)


def _first(min_recall: float) -> int:
    return round(100 * min_recall) + 1
