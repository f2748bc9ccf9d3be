"""Each classic mistake, made on purpose, is told in words; right and merely poor predictions are met with silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cache.frame import Detections, Frame
from cache.store import FrameStore
from evaluation.box_arrays import submission_arrays
from evaluation.mistakes import looked_at, mistakes_in_boxes, mistakes_in_detections
from evaluation.submission import submission_results
from pipeline.frames import FrameOptions, cache_frames
from pipeline.simulator import simulate
from studies.benches.evaluate_data import Split, made_up_split
from tests.evaluation.worlds import GOOD, MEDIOCRE, POOR, Skill, seen_by

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


def turned_around(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    return boxes + np.array([0] * 6 + [np.pi, 0, 0]), labels


def mirrored(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    boxes[:, 6] *= -1
    return boxes, labels


def other_list(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """OpenPCDet's order of the classes, read as the devkit's."""
    return boxes, np.array([0, 1, 3, 4, 2, 8, 6, 7, 9, 5])[labels].astype(np.int32)


MISTAKES = [
    (swapped, ["width and length look swapped"]),
    (turned, [r"headings look turned by \+(8.|9.|100) degrees"]),
    (turned_around, [r"headings look turned by [+-]1(6|7|8). degrees"]),
    (mirrored, ["headings look mirrored"]),
    (old_boxes, ["width and length look swapped", "headings look mirrored"]),
    (in_ego, ["ego vehicle's frame and were read as the LiDAR's"]),
    (other_order, ["classes look to be in another order: .* lies on .*; the order here is car, truck"]),
    (other_list, ["classes look to be in another order: .* lies on .*; the order here is car, truck"]),
    (still, ["velocities look to be missing"]),
    (unknown, ["velocities look to be missing"]),
]


def mistakes_in_submission(split: Split, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    chosen = looked_at(len(split.frames))
    frames, truth = [split.frames[i] for i in chosen], [split.truth[i] for i in chosen]
    some = submission_arrays(
        {frame.token: number for number, frame in enumerate(frames)},
        {frame.token: results[frame.token] for frame in frames},
    )
    whole = submission_arrays({token: number for number, token in enumerate(results)}, results)
    return mistakes_in_boxes(frames, truth, some, [whole])


@pytest.mark.parametrize(("change", "says"), MISTAKES)
def test_a_mistake_is_told(split: Split, change: Change, says: list[str]) -> None:
    detections = changed(split, change)
    said = mistakes_in_detections(split.frames, split.truth, detections)
    as_file = mistakes_in_submission(split, submission_results(split.frames, detections))
    assert said == as_file and len(said) == len(says), said
    for sentence, expected in zip(said, says, strict=True):
        assert re.search(expected, sentence), sentence


def of_skill(split: Split, skill: Skill, seed: int) -> Split:
    random = np.random.default_rng(seed)
    pairs = zip(split.frames, split.truth, strict=True)
    return replace(split, detections={frame.token: seen_by(random, skill, frame, truth) for frame, truth in pairs})


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """A simulated split, where most objects point along the road."""
    root = tmp_path_factory.mktemp("s")
    simulate(root / "d", version="v1.0-mini", scenes={"train": 2}, frames=8, sweeps=0, seed=11, workers=1)
    cache_frames(root / "d", "v1.0-mini", root / "c", options=FrameOptions(image_scale=0.1), workers=1)
    store = FrameStore(root / "c" / "frames")
    rows = store.key_rows("mini_train")
    return Split([store.frame(row) for row in rows], [store.truth(row) for row in rows], {})


@pytest.mark.parametrize("skill", [GOOD, MEDIOCRE], ids=["good", "mediocre"])
@pytest.mark.parametrize("world", ["simulated", "made up"])
def test_mistakes_are_told_of_good_and_of_mediocre_models(
    split: Split, simulated: Split, world: str, skill: Skill
) -> None:
    """Every mistake by name on top of noise, misses, false boxes, wrong classes; and no word where none was made."""
    for seed in range(2):
        seen = of_skill(simulated if world == "simulated" else split, skill, seed)
        assert mistakes_in_detections(seen.frames, seen.truth, seen.detections) == []
        for change, says in MISTAKES:
            said = mistakes_in_detections(seen.frames, seen.truth, changed(seen, change))
            assert len(said) == len(says), (change.__name__, said)
            assert all(re.search(expected, one) for expected, one in zip(says, said, strict=True)), (change, said)


@pytest.mark.parametrize("skill", [GOOD, MEDIOCRE], ids=["good", "mediocre"])
@pytest.mark.parametrize("step", [1, -1])
def test_boxes_that_stand_one_sample_off_are_told(split: Split, skill: Skill, step: int) -> None:
    seen = of_skill(split, skill, 5)
    tokens = [frame.token for frame in seen.frames]
    moved_on = {token: seen.detections[tokens[(i + step) % len(tokens)]] for i, token in enumerate(tokens)}
    (said,) = mistakes_in_detections(seen.frames, seen.truth, moved_on)
    assert f"one sample {'early: they fit the next' if step > 0 else 'late: they fit the one before'}" in said


@pytest.mark.parametrize("world", ["simulated", "made up"])
def test_there_is_no_false_alarm(split: Split, simulated: Split, world: str) -> None:
    """Poor models, one heading for every box, nothing but chance, a box or two, none at all."""
    here = simulated if world == "simulated" else split

    def one_heading(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        boxes[:, 6] = 0.0  # along x, and in a simulated world most objects point along y
        return boxes, labels

    def one_class(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        return boxes, np.zeros_like(labels)

    def few(boxes: np.ndarray, labels: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        boxes[2:, :2] = 1000.0
        return boxes, labels

    for seed in range(4):
        for skill in (GOOD, MEDIOCRE, POOR):
            seen = of_skill(here, skill, seed)
            assert mistakes_in_detections(seen.frames, seen.truth, seen.detections) == []
        for change in (one_heading, one_class, few):
            seen = of_skill(here, MEDIOCRE, seed)
            assert mistakes_in_detections(seen.frames, seen.truth, changed(seen, change)) == [], change.__name__
        random, chance = np.random.default_rng(seed), of_skill(here, GOOD, seed)

        def anywhere(
            boxes: np.ndarray, labels: np.ndarray, frame: Frame, random: np.random.Generator = random
        ) -> tuple[np.ndarray, np.ndarray]:
            boxes[:, :2] = random.uniform(-50, 50, (len(boxes), 2))
            boxes[:, 6] = random.uniform(-np.pi, np.pi, len(boxes))
            return boxes, labels

        assert mistakes_in_detections(here.frames, here.truth, changed(chance, anywhere)) == []
    one = of_skill(Split(here.frames[:1], here.truth[:1], {}), GOOD, 0)
    assert mistakes_in_detections(one.frames, one.truth, one.detections) == []
    assert mistakes_in_detections([], [], {}) == []


def test_frames_are_looked_at_with_their_neighbours() -> None:
    assert looked_at(0) == [] and looked_at(64) == list(range(64))
    for count in (65, 81, 6019):
        rows = looked_at(count)
        assert len(rows) == len(set(rows)) == 64 and rows == sorted(rows) and rows[-1] == count - 1 and rows[0] == 0
        assert all(rows[i + 1] == rows[i] + 1 for i in range(0, 64, 2))


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
    (said,) = mistakes_in_submission(split, results)
    assert says in said and "submission is global" in said


def test_predictions_that_the_metric_drops_for_their_points_are_counted(split: Split) -> None:
    results = submission_results(split.frames, split.detections)
    for box in results[split.frames[0].token][:3]:
        box["num_pts"] = 0
    (said,) = mistakes_in_submission(split, results)
    assert said.startswith('3 predictions hold "num_pts": 0')


def test_unknown_velocities_of_a_submission_are_counted_and_scored_as_the_devkit_does(split: Split) -> None:
    results = submission_results(split.frames, split.detections)
    for boxes in results.values():
        for box in boxes[::2]:
            box["velocity"] = [np.nan, np.nan]
    changed_boxes = sum(len(boxes[::2]) for boxes in results.values())
    (said,) = mistakes_in_submission(split, results)
    assert said.startswith(f"{changed_boxes} predictions have no velocity (NaN)")
