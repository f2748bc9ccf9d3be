"""Small worlds in which the metric's odd cases are common: ties, exact thresholds, racks, unknowns, missing classes.

Built in the global frame as submissions, so that coordinates land exactly where an inequality is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cache.classes import ATTRIBUTES, DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import Frame, GroundTruth
from evaluation import array_metric, official
from evaluation.metric_config import CVPR_2019, MetricConfig
from evaluation.metrics import SUMMARY_KEYS, Metrics
from studies.benches.evaluate_data import made_up_frame

OddWorld = tuple[list[Frame], list[GroundTruth], dict[str, list[dict[str, Any]]]]


def odd_world(random: np.random.Generator) -> OddWorld:
    """Frames, truth and the results of a submission. What is odd about them changes from draw to draw."""
    frames = [made_up_frame(random, number) for number in range(random.integers(1, 5))]
    if random.random() < 0.5:  # whole numbers, so that distances of exactly 0.5, 1, 2, 4, 30, 40, 50 m occur
        for frame in frames:
            frame.ego_to_global.translation[:2] = np.round(frame.ego_to_global.translation[:2])
    classes = random.permutation(10)[: random.choice([1, 2, 4, 10])]
    truth = [_truth(random, frame, classes) for frame in frames]
    silent = random.random() < 0.03
    results = {
        frame.token: [] if silent or random.random() < 0.1 else _predictions(random, frame, one, classes)
        for frame, one in zip(frames, truth, strict=True)
    }
    order = random.permutation(len(frames))  # a file may list its samples in any order
    return frames, truth, {frames[i].token: results[frames[i].token] for i in order}


def odd_config(random: np.random.Generator) -> MetricConfig:
    """The official settings, or others that the devkit's class allows."""
    if random.random() < 0.6:
        return CVPR_2019
    thresholds = (0.5, 1.0, 3.0) if random.random() < 0.5 else (2.0,)
    names = [DETECTION_CLASSES[i] for i in random.permutation(10)]
    return MetricConfig(
        {name: float(random.integers(10, 60)) for name in names},
        dist_ths=thresholds,
        dist_th_tp=thresholds[-1],
        min_recall=float(random.choice([0.0, 0.1, 0.29, 0.9])),
        min_precision=float(random.choice([0.0, 0.1, 0.5])),
        mean_ap_weight=int(random.integers(0, 9)),
    )


def _places(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2) offsets from the car: on a half-metre grid, on the rings of the ranges, or anywhere."""
    near = np.round(random.uniform(-8, 8, (count, 2)) * 2) / 2
    ring = random.choice([30.0, 40.0, 50.0], count)[:, None] * [[1.0, 0.0], [0.0, -1.0]][random.integers(2)]
    far = random.uniform(-60, 60, (count, 2))
    which = random.choice(3, count, p=[0.7, 0.1, 0.2])[:, None]
    return np.where(which == 0, near, np.where(which == 1, ring, far))


def _truth(random: np.random.Generator, frame: Frame, classes: np.ndarray) -> GroundTruth:
    count = int(random.choice([0, 1, 5, 12, 40], p=[0.24, 0.24, 0.24, 0.24, 0.04]))
    rows = np.zeros((count, 12))
    rows[:, :2] = frame.ego_to_global.translation[:2] + _places(random, count)
    rows[:, 3:6] = random.choice([0.5, 1.0, 2.0, 4.5], (count, 3))
    rows[:, 6:10] = _rotations(random, count)
    rows[:, 10:] = random.choice([0.0, 0.2, 3.0, np.nan], (count, 2))
    racks = np.zeros((int(random.integers(0, 3)), 10))
    racks[:, :2] = frame.ego_to_global.translation[:2] + np.round(random.uniform(-8, 8, (len(racks), 2)))
    racks[:, 3:6] = random.choice([2.0, 4.0, 8.0], (len(racks), 3))
    racks[:, 6:10] = _rotations(random, len(racks))
    return GroundTruth(
        rows,
        random.choice(classes, count).astype(np.int32),
        random.integers(-1, len(ATTRIBUTES), count).astype(np.int32),
        random.integers(0, 3, count).astype(np.int32),
        random.integers(0, 2, count).astype(np.int32),
        random.integers(0, 5, count).astype(np.int32),
        racks,
    )


def _rotations(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4): quarter turns, any turns, tilted ones, some not of length 1 and now and then one of length 0."""
    out = np.zeros((count, 4))
    for row in range(count):
        kind = random.integers(5)
        yaw = float(random.integers(-4, 5)) * np.pi / 2 if kind < 2 else random.uniform(-7, 7)
        axis = [0.0, 0.0, 1.0] if kind < 3 else [*random.uniform(-1, 1, 2), 1.0]
        out[row] = _quaternion(axis, yaw) * (random.uniform(0.2, 3.0) if kind == 4 else 1.0)
        if random.random() < 0.01:
            out[row] = 0.0
    return out


def _quaternion(axis: Sequence[float], angle: float) -> np.ndarray:
    unit = np.asarray(axis, float) / np.linalg.norm(axis)
    return np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * unit])


def _predictions(
    random: np.random.Generator, frame: Frame, truth: GroundTruth, classes: np.ndarray
) -> list[dict[str, Any]]:
    """Boxes on objects, beside them by whole steps, on racks and their faces, and anywhere."""
    boxes = []
    scores = random.choice([0.0, 0.5, 0.5, 1.0, 1.5], 200) if random.random() < 0.5 else random.random(200)
    if random.random() < 0.05:
        scores[:] = random.choice([0.0, -0.5])  # on scores below 0 the devkit stops, mostly
    most = CVPR_2019.max_boxes_per_sample
    count = most if random.random() < 0.02 else int(random.choice([0, 1, 8, 30]))
    scores = np.resize(scores, count)
    for number in range(count):
        label = int(random.choice(classes)) if random.random() < 0.8 else int(random.integers(10))
        size, rotation = random.choice([0.5, 1.0, 2.0, 4.5], 3), _rotations(random, 1)[0]
        place = np.append(frame.ego_to_global.translation[:2] + _places(random, 1)[0], 0.0)
        kind = random.random()
        if kind < 0.6 and len(truth):
            i = int(random.integers(len(truth)))
            label = int(truth.class_ids[i])
            step = random.choice([0.0, 0.5, 1.0, 2.0, 4.0]) * np.array([[1, 0, 0], [0, -1, 0]][random.integers(2)])
            place = truth.boxes_global[i, :3] + step
            if random.random() < 0.2:  # the same heading, or the other way round
                rotation = truth.boxes_global[i, 6:10]
                rotation = rotation if random.random() < 0.5 else np.array([-1, -1, 1, 1]) * rotation[[3, 2, 1, 0]]
        elif kind < 0.75 and len(truth.racks_global):
            rack = truth.racks_global[int(random.integers(len(truth.racks_global)))]
            place, label = rack[:3] + random.choice([0.0, 1.0, 2.0, 4.0], 3), int(random.choice([6, 7]))
            label = int(random.integers(10)) if random.random() < 0.2 else label
        box = {
            "sample_token": frame.token,
            "translation": place.tolist(),
            "size": size.tolist(),
            "rotation": rotation.tolist(),
            "velocity": random.choice([0.0, 0.2, 3.0, np.nan, np.inf], 2, p=[0.4, 0.3, 0.2, 0.08, 0.02]).tolist(),
            "detection_name": DETECTION_CLASSES[label],
            "detection_score": float(scores[number]),
            "attribute_name": random.choice(["", *ATTRIBUTES]),
        }
        if random.random() < 0.05:
            box["num_pts"] = int(random.integers(0, 2))
        boxes.append(box)
    return boxes


def largest_difference(ours: Metrics, theirs: Metrics) -> float:
    """The largest absolute difference of any figure, inf where NaN or infinity stand on one side only."""
    a, b = (np.array(_all_figures(metrics)) for metrics in (ours, theirs))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b))
    counts = (ours.truth_counts, ours.detection_counts) == (theirs.truth_counts, theirs.detection_counts)
    return float(np.nan_to_num(apart, nan=np.inf).max()) if counts else float("inf")


def _all_figures(metrics: Metrics) -> list[float]:
    figures = [getattr(metrics, key) for key in SUMMARY_KEYS]
    for name in DETECTION_CLASSES:
        figures += [*metrics.ap[name].values()]
        figures += [metrics.tp_errors[name][key] for key in ("trans_err", "scale_err", "orient_err")]
        figures += [metrics.tp_errors[name][key] for key in ("vel_err", "attr_err")]
    return figures


def drawn(random: np.random.Generator) -> tuple[OddWorld, MetricConfig]:
    """An odd world and odd settings."""
    world = odd_world(random)
    return world, odd_config(random)


def difference_to_the_devkit(random: np.random.Generator) -> float:
    """`largest_difference` on one odd world under odd settings; 0 where both refuse it (scores below 0), inf where one
    does."""
    (frames, truth, results), config = drawn(random)
    figures: list[Metrics | None] = []
    for score, refusal in ((array_metric, DataError), (official, AssertionError)):
        try:
            figures.append(score.evaluate_submission(frames, truth, results, config=config))
        except refusal:
            figures.append(None)
    ours, theirs = figures
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float("inf")
    return largest_difference(ours, theirs)
