"""Each classic mistake, made on purpose, is told in words; right and merely poor predictions are met with silence."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from cache.frame import Detections, Frame
from evaluation.mistakes import mistakes_in_detections, mistakes_in_submission
from evaluation.submission import submission_results
from studies.benches.evaluate_data import Split, made_up_split

Change = Callable[[np.ndarray, np.ndarray, Frame], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def split() -> Split:
    return made_up_split(24, 60, seed=4)


def changed(split: Split, change: Change) -> dict[str, Detections]:
    out = {}
    for frame in split.frames:
        one = split.detections[frame.token]
        boxes, labels = change(one.boxes_lidar.copy(), one.labels.copy(), frame)
        out[frame.token] = Detections(boxes.astype(np.float32), one.scores, labels)
    return out


def moved(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    boxes[:, :3] = boxes[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    boxes[:, 6] += np.arctan2(matrix[1, 0], matrix[0, 0])
    return boxes


def swapped(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    return boxes[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]], labels


def turned(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    return boxes + np.array([0] * 6 + [np.pi / 2, 0, 0]), labels


def old_boxes(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """mmdetection3d before 1.0: width first, yaw clockwise from -y."""
    boxes = boxes[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
    boxes[:, 6] = -boxes[:, 6] - np.pi / 2
    return boxes, labels


def in_ego(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    return moved(boxes, frame.lidar_to_ego.matrix()), labels


def other_order(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    return boxes, ((labels + 3) % 10).astype(np.int32)


def still(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    boxes[:, 7:] = 0
    return boxes, labels


def unknown(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    boxes[:, 7:] = np.nan
    return boxes, labels


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (swapped, ["width and length look swapped"]),
        (turned, [r"headings look turned by \+(89|9.) degrees"]),
        (old_boxes, ["width and length look swapped", "headings look mirrored"]),
        (in_ego, ["ego vehicle's frame and were read as the LiDAR's"]),
        (other_order, ["classes look to be in another order: .* lies on .*; the order here is car, truck"]),
        (still, ["velocities look to be missing"]),
        (unknown, ["velocities look to be missing"]),
    ],
)
def test_a_mistake_is_told(split: Split, change: Change, says: list[str]) -> None:
    detections = changed(split, change)
    said = mistakes_in_detections(split.frames, split.truth, detections)
    as_file = mistakes_in_submission(split.frames, split.truth, submission_results(split.frames, detections))
    assert said == as_file and len(said) == len(says), said
    for sentence, expected in zip(said, says, strict=True):
        assert re.search(expected, sentence), sentence


@pytest.mark.parametrize("seed", range(5))
def test_right_and_poor_predictions_are_met_with_silence(seed: int) -> None:
    split = made_up_split(12, 60, seed=seed)
    assert mistakes_in_detections(split.frames, split.truth, split.detections) == []
    random = np.random.default_rng(seed)

    def poor(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        boxes[:, :2] += random.normal(0, 3, (len(boxes), 2))
        boxes[:, 6] = random.uniform(-np.pi, np.pi, len(boxes))
        boxes[:, 3:6] *= random.uniform(0.5, 2.0, (len(boxes), 3))
        wrong = random.random(len(labels)) < 0.5
        return boxes, np.where(wrong, random.integers(0, 10, len(labels)), labels).astype(np.int32)

    assert mistakes_in_detections(split.frames, split.truth, changed(split, poor)) == []
    none = {frame.token: Detections.empty() for frame in split.frames}
    assert mistakes_in_detections(split.frames, split.truth, none) == []


@pytest.mark.parametrize(("name", "says"), [("lidar", "LiDAR's frame, and a submission is global"), ("ego", "ego veh")])
def test_a_submission_that_was_never_turned_global_is_told(split: Split, name: str, says: str) -> None:
    results = submission_results(split.frames, split.detections)
    for frame in split.frames:
        pose = frame.lidar_to_global() if name == "lidar" else frame.ego_to_global.matrix()
        to_local = np.linalg.inv(pose)
        for box in results[frame.token]:
            box["translation"] = (to_local @ [*box["translation"], 1.0])[:3].tolist()
    (said,) = mistakes_in_submission(split.frames, split.truth, results)
    assert says in said and "submission is global" in said


def test_predictions_that_the_metric_drops_for_their_points_are_counted(split: Split) -> None:
    results = submission_results(split.frames, split.detections)
    for box in results[split.frames[0].token][:3]:
        box["num_pts"] = 0
    (said,) = mistakes_in_submission(split.frames, split.truth, results)
    assert said.startswith('3 predictions hold "num_pts": 0')


def test_unknown_velocities_of_a_submission_are_counted_and_scored_as_the_devkit_does(split: Split) -> None:
    results = submission_results(split.frames, split.detections)
    for boxes in results.values():
        for box in boxes[::2]:
            box["velocity"] = [np.nan, np.nan]
    changed_boxes = sum(len(boxes[::2]) for boxes in results.values())
    (said,) = mistakes_in_submission(split.frames, split.truth, results)
    assert said.startswith(f"{changed_boxes} predictions have no velocity (NaN)")
