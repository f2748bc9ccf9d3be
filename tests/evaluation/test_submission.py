"""The submission file: atomic, exact, and refused with an error that says where it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import BevcaskError, DataError, StoreError
from cache.frame import Detections, Frame, GroundTruth
from evaluation import array_metric, official
from evaluation.submission import (
    export_submission,
    require_annotations,
    submission_meta,
    submission_results,
)
from evaluation.submission_file import load_submission
from studies.benches.odd_worlds import largest_difference
from tests.evaluation.worlds import made_up_frame, made_up_truth, noisy_detections


@pytest.fixture
def world() -> tuple[list[Frame], dict[str, Detections]]:
    random = np.random.default_rng(30)
    frames = [made_up_frame(random, number) for number in range(3)]
    return frames, {frame.token: noisy_detections(random, frame, made_up_truth(random, frame)) for frame in frames}


def test_exported_values_read_back_exactly_and_in_order(
    world: tuple[list[Frame], dict[str, Detections]], tmp_path: Path
) -> None:
    frames, detections = world
    export_submission(tmp_path / "s.json", frames, detections, submission_meta(camera=True))
    submission = load_submission(tmp_path / "s.json", [frame.token for frame in frames])
    assert submission.results == submission_results(frames, detections)
    assert list(submission.results) == [frame.token for frame in frames]
    assert submission.meta == submission_meta(camera=True)


def test_a_frame_without_boxes_keeps_its_key(world: tuple[list[Frame], dict[str, Detections]], tmp_path: Path) -> None:
    frames, detections = world
    export_submission(
        tmp_path / "s.json", frames, {**detections, frames[1].token: Detections.empty()}, submission_meta()
    )
    assert load_submission(tmp_path / "s.json").results[frames[1].token] == []


def test_a_failed_export_leaves_the_old_file_and_no_other(
    world: tuple[list[Frame], dict[str, Detections]], tmp_path: Path
) -> None:
    frames, detections = world
    (tmp_path / "s.json").write_text("old")
    incomplete = {token: d for token, d in detections.items() if token != frames[0].token}
    with pytest.raises(DataError, match=f"1 missing .{frames[0].token}"):
        export_submission(tmp_path / "s.json", frames, incomplete, submission_meta())
    with pytest.raises(DataError, match="use_lidar"):
        export_submission(tmp_path / "s.json", frames, detections, {"use_camera": True})
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    assert (tmp_path / "s.json").read_text() == "old"


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda box: box.update({key: value})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (change("detection_name", "van"), "detection_name 'van', expected one of car, truck"),
        (change("attribute_name", "vehicle.flying"), "attribute_name 'vehicle.flying', expected ''"),
        (change("attribute_name", None), "attribute_name None"),
        (change("translation", [1.0, 2.0]), r"translation \[1.0, 2.0\], expected 3 numbers"),
        (change("velocity", [float("inf"), 0.0]), "velocity .* is not finite"),
        (change("size", [1.0, 0.0, 1.0]), "expected w, l, h > 0"),
        (change("rotation", [0.0, 0.0, 0.0, 0.0]), "zero quaternion"),
        (change("detection_score", "high"), "detection_score 'high', expected a finite number"),
        (change("sample_token", "f" * 32), "differs from the key"),
        (lambda box: box.pop("velocity"), "no velocity"),
    ],
)
def test_a_bad_box_is_named_with_what_was_expected(
    world: tuple[list[Frame], dict[str, Detections]], tmp_path: Path, spoil: Callable[[dict[str, Any]], None], says: str
) -> None:
    frames, detections = world
    results = submission_results(frames, detections)
    spoil(results[frames[1].token][4])
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"meta": submission_meta(), "results": results}))
    with pytest.raises(DataError, match=f"box 4 of sample {frames[1].token}: .*{says}"):
        load_submission(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not readable as a nuScenes submission"),
        ("[]", 'no "results"'),
        ('{"results": {}}', 'no "meta"'),
        ('{"meta": {}, "results": {"a": {}}}', "sample a holds dict, expected a list"),
    ],
)
def test_a_bad_file_is_named_with_what_was_expected(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(BevcaskError, match=says) as caught:
        load_submission(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.json: not found"):
        load_submission(tmp_path / "none.json")


def test_tokens_of_another_split_are_counted_and_named(
    world: tuple[list[Frame], dict[str, Detections]], tmp_path: Path
) -> None:
    frames, detections = world
    export_submission(tmp_path / "s.json", frames, detections, submission_meta())
    others = [f"{n:032x}" for n in range(1, 7)]
    with pytest.raises(
        DataError, match=r"3 samples, but the split has 6: 4 missing \(0+3, 0+4, 0+5, \.\.\.\); 1 extra \(0+\)"
    ):
        load_submission(tmp_path / "s.json", others)


def test_a_split_without_annotations_says_that_the_export_is_the_way() -> None:
    with pytest.raises(BevcaskError, match=r"v1\.0-test has no annotations, so it can't be scored.*--export"):
        require_annotations([None, None], "v1.0-test")
    assert len(require_annotations([GroundTruth.empty()], "val")) == 1


def test_unknown_velocities_are_read_and_scored_as_the_devkit_scores_them(
    world: tuple[list[Frame], dict[str, Detections]], tmp_path: Path
) -> None:
    frames, detections = world
    results = submission_results(frames, detections)
    for boxes in results.values():
        for box in boxes[::2]:
            box["velocity"] = [float("nan"), float("nan")]
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"meta": submission_meta(), "results": results}))
    read = load_submission(path).results
    truth = [made_up_truth(np.random.default_rng(number), frame) for number, frame in enumerate(frames)]
    ours, theirs = (module.evaluate_submission(frames, truth, read) for module in (array_metric, official))
    assert largest_difference(ours, theirs) <= 1e-12
