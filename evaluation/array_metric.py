"""The official nuScenes detection metric over arrays: the figures of the devkit's code, tens of times faster.

`ArrayMetric` takes predictions in any portions, shard by shard or frame by frame, and holds of each only its score, its
class and which thresholds it was matched at (some 20 bytes), since a match never crosses frames. `evaluate` and
`evaluate_submission` feed it everything at once. Equal to `evaluation.official` within 1e-12, which tests hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import Detections, Frame, GroundTruth
from evaluation.box_arrays import (
    BoxArrays,
    Places,
    detection_arrays,
    places_of,
    submission_arrays,
    truth_arrays,
)
from evaluation.metric_config import CVPR_2019, MetricConfig
from evaluation.metrics import TP_ERRORS, UNDEFINED_ERRORS, FilterCounts, Metrics
from evaluation.portion import match_portion
from evaluation.recall_curves import average_precision, mean_error, recall_curve
from evaluation.submission import limited, require_same_tokens
from evaluation.subsets import EVERYTHING, Subset

PORTION = 256  # frames that are matched at once: their candidate pairs fit a core's cache


@dataclass(frozen=True)
class _Matched:
    """What stays of one portion's N predictions, M of them matched at the threshold of the TP errors. frame (N,) int32:
    place in the split; class_ids (N,) int8; scores (N,) float64; hits (N, T) bool; errors (M, 5) float64."""

    frame: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    errors: np.ndarray


class ArrayMetric:
    """The metric of a split whose predictions arrive in portions.

    tokens: the split's samples in order; of equal scores the sample that comes later ranks first, in whatever order the
    portions come. Memory: about 20 bytes a prediction and 40 a match, besides the portion at hand.
    """

    def __init__(self, tokens: Sequence[str], config: MetricConfig = CVPR_2019, subset: Subset = EVERYTHING) -> None:
        self.config, self.subset = config, subset
        self._place = {token: number for number, token in enumerate(tokens)}
        self._waiting = dict.fromkeys(tokens)
        self._portions: list[_Matched] = []
        self._lock = Lock()
        self._objects = np.zeros(len(DETECTION_CLASSES), np.int64)
        self._counts = np.zeros((2, 4), np.int64)

    def add(
        self,
        frames: Sequence[Frame],
        truth: Sequence[GroundTruth],
        detections: Mapping[str, Detections],
        *,
        keep_top: bool = False,
    ) -> None:
        """Some frames of the split, their ground truth and what a model says of them.

        Raises DataError for a frame that is foreign or comes twice, for detections that are missing or not sound, and
        for more boxes than the metric allows, unless keep_top takes the best of them; then begin anew.
        """
        _require_pairs(frames, truth)
        tokens = [frame.token for frame in frames]
        require_same_tokens("detections", detections, "these frames", tokens)
        most = self.config.max_boxes_per_sample
        ready = [limited(token, detections[token], keep_top=keep_top, most=most) for token in tokens]
        for start in range(0, len(frames), PORTION):
            part = slice(start, start + PORTION)
            boxes = detection_arrays(frames[part], ready[part])
            self.add_boxes(tokens[part], places_of(frames[part], truth[part]), truth_arrays(truth[part]), boxes)

    def add_boxes(self, tokens: Sequence[str], places: Places, truth: BoxArrays, predicted: BoxArrays) -> None:
        """The same from arrays, whose `frame` counts in `tokens`. A subset's frames are not chosen here: give those.
        Threads may add portions at the same time."""
        with self._lock:
            for token in tokens:
                if token not in self._waiting:
                    known = "comes a second time" if token in self._place else "is none of the split's"
                    raise DataError(f"the metric: sample {token} {known}; every sample of the split comes once")
                del self._waiting[token]
        place = np.array([self._place[token] for token in tokens], np.int32)
        found = match_portion(truth, predicted, places, self.config, self.subset)
        class_ids, hits = found.predicted.class_ids.astype(np.int8), (found.taken >= 0).T.copy()
        portion = _Matched(place[found.predicted.frame], class_ids, found.predicted.scores, hits, found.errors)
        with self._lock:
            self._portions.append(portion)
            self._objects += np.bincount(found.truth.class_ids, minlength=len(DETECTION_CLASSES))
            self._counts += [_row(found.truth_counts), _row(found.predicted_counts)]

    def result(self) -> Metrics:
        """The figures of all that came. Raises DataError naming samples of the split that did not come."""
        if self._waiting:
            require_same_tokens("predictions so far", self._place.keys() - self._waiting, "the split", [*self._place])
        return self.so_far()

    def so_far(self) -> Metrics:
        """The figures of the frames that came, as though they were all of the split; to be shown while others come.

        Costs as much as `result` over as many predictions: a second for a million."""
        return _figures(self._joined(), self._objects, self._counts, self.config, self.subset)

    def _joined(self) -> _Matched:
        """All portions as one, in the order of the split."""
        empty = np.zeros(0)
        thresholds = len(self.config.dist_ths)
        none = _Matched(
            empty.astype(np.int32), empty.astype(np.int8), empty, np.zeros((0, thresholds), bool), np.zeros((0, 5))
        )
        # most portions are runs of the split, so that nothing is left to sort
        inside = sorted((part for part in self._portions if len(part.frame)), key=lambda part: int(part.frame[0]))
        columns = [vars(part).values() for part in (none, *inside)]
        joined = _Matched(*(np.concatenate(column) for column in zip(*columns, strict=True)))
        if (np.diff(joined.frame) >= 0).all():
            return joined
        order = np.argsort(joined.frame, kind="stable")
        hit = joined.hits[:, self.config.dist_ths.index(self.config.dist_th_tp)]
        row = np.cumsum(hit) - 1  # the errors of a match, by prediction
        errors = joined.errors[row[order][hit[order]]]
        return _Matched(joined.frame[order], joined.class_ids[order], joined.scores[order], joined.hits[order], errors)


def evaluate(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    detections: Mapping[str, Detections],
    *,
    keep_top: bool = False,
    config: MetricConfig = CVPR_2019,
    subset: Subset = EVERYTHING,
) -> Metrics:
    """Scores detections (token -> canonical boxes, one entry per frame, empty ones too) against the ground truth.

    keep_top: keep a sample's best boxes instead of refusing more than the metric allows. subset: count these boxes
    alone (its scenes are chosen by `Subset.frames`, before). Raises DataError naming the sample that is wrong.
    """
    _require_pairs(frames, truth, least=1)
    metric = ArrayMetric([frame.token for frame in frames], config, subset)
    metric.add(frames, truth, detections, keep_top=keep_top)
    return metric.result()


def evaluate_submission(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    config: MetricConfig = CVPR_2019,
    subset: Subset = EVERYTHING,
) -> Metrics:
    """Scores the `results` of a submission (see `evaluation.submission_file.load_submission`) against the ground truth.

    Equal scores rank by the order of samples in the file, as in the devkit."""
    _require_pairs(frames, truth, least=1)
    require_same_tokens("submission", results, "the split", [frame.token for frame in frames])
    by_token = {frame.token: (frame, one) for frame, one in zip(frames, truth, strict=True)}
    metric = ArrayMetric([*results], config, subset)
    tokens = [*results]
    for start in range(0, len(tokens), PORTION):
        part = tokens[start : start + PORTION]
        some_frames, some_truth = zip(*(by_token[token] for token in part), strict=True)
        boxes = submission_arrays(
            {token: number for number, token in enumerate(part)}, {token: results[token] for token in part}
        )
        metric.add_boxes(part, places_of(some_frames, some_truth), truth_arrays(some_truth), boxes)
    return metric.result()


def _figures(
    matched: _Matched, objects: np.ndarray, counts: np.ndarray, config: MetricConfig, subset: Subset
) -> Metrics:
    """AP and TP errors of every class, and their means over the subset's classes."""
    at = config.dist_ths.index(config.dist_th_tp)
    match_row = np.cumsum(matched.hits[:, at]) - 1
    ap: dict[str, dict[float, float]] = {}
    tp_errors: dict[str, dict[str, float]] = {}
    for name in config.class_range:
        if not subset.has_class(name):
            continue
        label = DETECTION_CLASSES.index(name)
        mine = np.nonzero(matched.class_ids == label)[0]
        mine = mine[np.argsort(matched.scores[mine], kind="stable")[::-1]]  # of equal scores the later one first
        hits, scores, count = matched.hits[mine], matched.scores[mine], int(objects[label])
        curves = [recall_curve(hits[:, row], scores, count, name) for row in range(len(config.dist_ths))]
        ap[name] = {
            threshold: average_precision(curve, config.min_recall, config.min_precision)
            for threshold, curve in zip(config.dist_ths, curves, strict=True)
        }
        errors, at_scores = matched.errors[match_row[mine[hits[:, at]]]], scores[hits[:, at]]
        tp_errors[name] = {
            key: np.nan
            if key in UNDEFINED_ERRORS.get(name, ())
            else mean_error(curves[at], errors[:, column], at_scores, config.min_recall)
            for column, key in enumerate(TP_ERRORS)
        }
    return summed(ap, tp_errors, counts, config)


def summed(
    ap: Mapping[str, Mapping[float, float]],
    tp_errors: Mapping[str, Mapping[str, float]],
    counts: np.ndarray,
    config: MetricConfig,
) -> Metrics:
    """The means over classes, and NDS. An error that none of the classes has is NaN and leaves the mean of NDS."""
    mean_ap = float(np.mean([np.mean(list(row.values())) for row in ap.values()]))
    means = [_mean_known([row[key] for row in tp_errors.values()]) for key in TP_ERRORS]
    gains = [max(0.0, 1.0 - mean) for mean in means if not np.isnan(mean)]
    nds = float(config.mean_ap_weight * mean_ap + np.sum(gains)) / float(config.mean_ap_weight + len(gains))
    of_truth, of_detections = (FilterCounts(*(int(value) for value in row)) for row in counts)
    named = dict(zip(("mATE", "mASE", "mAOE", "mAVE", "mAAE"), means, strict=True))
    return Metrics(
        mAP=mean_ap,
        NDS=nds,
        **named,
        ap=ap,
        tp_errors=tp_errors,
        truth_counts=of_truth,
        detection_counts=of_detections,
    )


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _row(counts: FilterCounts) -> list[int]:
    return [counts.given, counts.in_range, counts.with_points, counts.outside_racks]


def _require_pairs(frames: Sequence[Frame], truth: Sequence[GroundTruth], least: int = 0) -> None:
    if len(frames) != len(truth) or len(frames) < least:
        raise DataError(
            f"evaluation: {len(frames)} frames and {len(truth)} ground truths, expected as many of each, at least one"
        )
