"""The official nuScenes detection metric (detection_cvpr_2019) by the devkit's own code, fed from stored arrays.

Takes frames, their ground truth and a model's detections; no raw data set. The devkit asks its tables four questions
while filtering (sample, its LIDAR_TOP, that ego pose, the racks); a small stand-in answers them from the arrays, so
that filters, matching, AP and TP errors are the devkit's lines unchanged. Cost: minutes for full val, seconds for the
demo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_prediction
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig, DetectionMetrics

from cache.classes import ATTRIBUTES, BICYCLE_RACK, DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import Detections, Frame, GroundTruth
from evaluation.metric_config import MetricConfig
from evaluation.metrics import SUMMARY_KEYS, UNDEFINED_ERRORS, FilterCounts, Metrics
from evaluation.submission import require_same_tokens, submission_results

__all__ = ["SUMMARY_KEYS", "FilterCounts", "Metrics", "evaluate", "evaluate_submission"]

CONFIG = "detection_cvpr_2019"


def evaluate(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    detections: Mapping[str, Detections],
    *,
    keep_top: bool = False,
    config: MetricConfig | None = None,
) -> Metrics:
    """Scores detections (token -> canonical boxes, one entry per frame, empty ones too) against the ground truth.

    keep_top: keep a sample's 500 best boxes instead of refusing more. Equal scores rank as the devkit ranks the
    exported submission: by the order of `frames` and of the boxes. Raises DataError naming the sample that is wrong.
    """
    return evaluate_submission(frames, truth, submission_results(frames, detections, keep_top=keep_top), config=config)


def evaluate_submission(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    config: MetricConfig | None = None,
) -> Metrics:
    """Scores the `results` of a submission (see `evaluation.submission_file.load_submission`) against the ground truth.

    config: None for the devkit's own file of detection_cvpr_2019."""
    return evaluate_boxes(frames, truth, EvalBoxes.deserialize(results, DetectionBox), config=config)


def evaluate_boxes(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    predicted: EvalBoxes,
    *,
    config: MetricConfig | None = None,
) -> Metrics:
    """`evaluate_submission` of the devkit's own objects (see `DevkitBoxes`), which its filters change."""
    if not frames or len(frames) != len(truth):
        raise DataError(
            f"evaluation: {len(frames)} frames and {len(truth)} ground truths, expected as many of each, at least one"
        )
    require_same_tokens("submission", predicted.sample_tokens, "the split", [frame.token for frame in frames])
    settings = config_factory(CONFIG) if config is None else DetectionConfig.deserialize(config.to_dict())
    tables, truth_boxes = _StoredTables(frames, truth), _truth_boxes(frames, truth)
    truth_boxes, truth_counts = _filtered(tables, truth_boxes, settings)
    predicted, detection_counts = _filtered(tables, predicted, settings)
    return _as_metrics(_metrics(truth_boxes, predicted, settings), settings, truth_counts, detection_counts)


class DevkitBoxes:
    """The devkit's objects of a submission whose samples come some at a time, so that the file's records need not stand
    in memory beside them: some 2 kB a box."""

    def __init__(self) -> None:
        self.boxes = EvalBoxes()

    def add(self, samples: Sequence[tuple[str, list[dict[str, Any]]]]) -> None:
        """Checked boxes of further samples."""
        some = EvalBoxes.deserialize(dict(samples), DetectionBox)
        for token in some.sample_tokens:
            self.boxes.add_boxes(token, some[token])


def evaluate_file(path: Path, frames: Sequence[Frame], truth: Sequence[GroundTruth]) -> Metrics:
    """A submission file by the devkit's own loader and checks, of which nothing is told in words: AssertionError,
    KeyError, TypeError, ... where it stops."""
    settings = config_factory(CONFIG)
    predicted, meta = load_prediction(str(path), settings.max_boxes_per_sample, DetectionBox)
    tables, truth_boxes = _StoredTables(frames, truth), _truth_boxes(frames, truth)
    assert set(predicted.sample_tokens) == set(truth_boxes.sample_tokens), (
        "Samples in split doesn't match samples in predictions."
    )
    truth_boxes, truth_counts = _filtered(tables, truth_boxes, settings)
    predicted, detection_counts = _filtered(tables, predicted, settings)
    found = _as_metrics(_metrics(truth_boxes, predicted, settings), settings, truth_counts, detection_counts)
    meta.copy()  # as when it writes its summary
    return found


def devkit_objects(
    frames: Sequence[Frame], truth: Sequence[GroundTruth], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[_StoredTables, EvalBoxes, EvalBoxes]:
    """What the devkit's functions take: a stand-in for its tables, the objects, the predictions."""
    return _StoredTables(frames, truth), _truth_boxes(frames, truth), EvalBoxes.deserialize(results, DetectionBox)


def score_objects(tables: _StoredTables, truth: EvalBoxes, predicted: EvalBoxes) -> DetectionMetrics:
    """The devkit's filters and metric (detection_cvpr_2019) of `devkit_objects`, which it changes; nothing of ours
    takes part, for who measures its time."""
    config = config_factory(CONFIG)
    for boxes in (truth, predicted):
        filter_eval_boxes(tables, add_center_dist(tables, boxes), config.class_range)
    return _metrics(truth, predicted, config)


def _as_metrics(
    metrics: DetectionMetrics, settings: DetectionConfig, truth_counts: FilterCounts, detection_counts: FilterCounts
) -> Metrics:
    errors = metrics.tp_errors
    return Metrics(
        mAP=metrics.mean_ap,
        NDS=metrics.nd_score,
        mATE=errors["trans_err"],
        mASE=errors["scale_err"],
        mAOE=errors["orient_err"],
        mAVE=errors["vel_err"],
        mAAE=errors["attr_err"],
        ap={name: {t: metrics.get_label_ap(name, t) for t in settings.dist_ths} for name in DETECTION_CLASSES},
        tp_errors={name: {key: metrics.get_label_tp(name, key) for key in TP_METRICS} for name in DETECTION_CLASSES},
        truth_counts=truth_counts,
        detection_counts=detection_counts,
    )


class _StoredTables:
    """Answers the devkit's `nusc.get(table, token)` for the few rows that its filters read."""

    def __init__(self, frames: Sequence[Frame], truth: Sequence[GroundTruth]) -> None:
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        for frame, one in zip(frames, truth, strict=True):
            racks = [f"{frame.token}/rack/{number}" for number in range(len(one.racks_global))]
            self._rows["sample", frame.token] = {"data": {"LIDAR_TOP": frame.token}, "anns": racks}
            self._rows["sample_data", frame.token] = {"ego_pose_token": frame.token}
            self._rows["ego_pose", frame.token] = {"translation": frame.ego_to_global.translation.tolist()}
            for token, rack in zip(racks, one.racks_global.tolist(), strict=True):
                self._rows["sample_annotation", token] = {
                    "category_name": BICYCLE_RACK,
                    "translation": rack[:3],
                    "size": rack[3:6],
                    "rotation": rack[6:10],
                }

    def get(self, table: str, token: str) -> dict[str, Any]:
        return self._rows[table, token]


def _truth_boxes(frames: Sequence[Frame], truth: Sequence[GroundTruth]) -> EvalBoxes:
    out = EvalBoxes()
    for frame, one in zip(frames, truth, strict=True):
        points = np.asarray(one.num_lidar_pts, np.int64) + np.asarray(one.num_radar_pts, np.int64)
        columns = (one.boxes_global.tolist(), one.class_ids.tolist(), one.attribute_ids.tolist(), points.tolist())
        boxes = [
            DetectionBox(
                sample_token=frame.token,
                translation=tuple(box[:3]),
                size=tuple(box[3:6]),
                rotation=tuple(box[6:10]),
                velocity=tuple(box[10:12]),
                num_pts=count,
                detection_name=DETECTION_CLASSES[label],
                detection_score=-1.0,
                attribute_name=ATTRIBUTES[attribute] if attribute >= 0 else "",
            )
            for box, label, attribute, count in zip(*columns, strict=True)
        ]
        out.add_boxes(frame.token, boxes)
    return out


def _filtered(tables: _StoredTables, boxes: EvalBoxes, config: DetectionConfig) -> tuple[EvalBoxes, FilterCounts]:
    """The devkit's filters, and how many boxes each left (it only prints them)."""
    boxes = add_center_dist(tables, boxes)
    near = [box for box in boxes.all if box.ego_dist < config.class_range[box.detection_name]]
    given, with_points = len(boxes.all), sum(box.num_pts != 0 for box in near)
    if given:  # the devkit raises where there is no box at all
        boxes = filter_eval_boxes(tables, boxes, config.class_range)
    return boxes, FilterCounts(given, len(near), with_points, len(boxes.all))


def _metrics(truth: EvalBoxes, predicted: EvalBoxes, config: DetectionConfig) -> DetectionMetrics:
    """The body of the devkit's `DetectionEval.evaluate`, which cannot be called without its tables."""
    metrics = DetectionMetrics(config)
    for name in config.class_names:
        for threshold in config.dist_ths:
            data = accumulate(truth, predicted, name, config.dist_fcn_callable, threshold)
            metrics.add_label_ap(name, threshold, calc_ap(data, config.min_recall, config.min_precision))
            if threshold == config.dist_th_tp:
                for key in TP_METRICS:
                    undefined = key in UNDEFINED_ERRORS.get(name, ())
                    metrics.add_label_tp(name, key, np.nan if undefined else calc_tp(data, config.min_recall, key))
    return metrics
