"""The metric from stored arrays is the official one: equal to the unmodified devkit run on the folder itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import Detections, Frame, GroundTruth
from evaluation import array_metric
from evaluation.boxes import truth_to_canonical
from evaluation.official import SUMMARY_KEYS, Metrics, evaluate, evaluate_submission
from evaluation.submission import export_submission, submission_meta
from evaluation.submission_file import load_submission
from pipeline.tables import open_tables
from studies.benches.odd_worlds import largest_difference
from tests.evaluation.worlds import made_up_frame, made_up_truth, noisy_detections
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

VERSION = "v1.0-mini"


def stored(root: Path, split: str) -> tuple[list[Frame], list[GroundTruth]]:
    """Frames and ground truth as the frame store holds them."""
    records = [record for scene in open_tables(root, VERSION, split, 0).records for record in scene]
    return [record.frame for record in records], [record.truth for record in records if record.truth is not None]


def by_the_devkit(root: Path, split: str, submission: Path, out: Path) -> tuple[DetectionMetrics, DetectionEval]:
    nusc = NuScenes(VERSION, str(root), verbose=False)
    task = DetectionEval(nusc, config_factory("detection_cvpr_2019"), str(submission), split, str(out), verbose=False)
    return task.evaluate()[0], task


def assert_equal(ours: Metrics, theirs: DetectionMetrics, task: DetectionEval) -> None:
    errors = theirs.tp_errors
    expected = dict(
        zip(
            SUMMARY_KEYS,
            (
                theirs.mean_ap,
                theirs.nd_score,
                *(errors[k] for k in ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")),
            ),
            strict=True,
        )
    )
    for key, value in expected.items():
        assert abs(getattr(ours, key) - value) < 1e-12, key
    for name in DETECTION_CLASSES:
        for threshold, value in ours.ap[name].items():
            assert abs(value - theirs.get_label_ap(name, threshold)) < 1e-12, (name, threshold)
        for key, value in ours.tp_errors[name].items():
            np.testing.assert_allclose(
                value, theirs.get_label_tp(name, key), rtol=0, atol=1e-12, err_msg=f"{name} {key}"
            )
    assert ours.truth_counts.outside_racks == len(task.gt_boxes.all)
    assert ours.detection_counts.outside_racks == len(task.pred_boxes.all)


def compare_on(root: Path, split: str, tmp_path: Path, seed: int) -> Metrics:
    print("seed", seed)
    random = np.random.default_rng(seed)
    frames, truth = stored(root, split)
    detections = {frame.token: noisy_detections(random, frame, one) for frame, one in zip(frames, truth, strict=True)}
    ours = evaluate(frames, truth, detections)
    path = tmp_path / "submission.json"
    export_submission(path, frames, detections, submission_meta(lidar=True))
    theirs, task = by_the_devkit(root, split, path, tmp_path / "devkit")
    assert_equal(ours, theirs, task)
    assert largest_difference(array_metric.evaluate(frames, truth, detections), ours) <= 1e-12
    read_back = evaluate_submission(frames, truth, load_submission(path, [frame.token for frame in frames]).results)
    assert read_back.to_dict() == ours.to_dict()
    return ours


@pytest.fixture(scope="module")
def folder_with_racks(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated tables with every seventh object turned into a large bicycle rack and its neighbour into a bicycle
    inside it, so that the filter of the racks has something to drop on both sides."""
    root = tmp_path_factory.mktemp("racks")
    shutil.copytree(simulated_root / VERSION, root / VERSION)
    for entry in simulated_root.iterdir():
        if entry.name != VERSION:
            (root / entry.name).symlink_to(entry)
    tables = {
        name: json.loads((root / VERSION / f"{name}.json").read_text())
        for name in ("sample_annotation", "instance", "category")
    }
    token_of = {row["name"]: row["token"] for row in tables["category"]}
    racks, cycles = tables["instance"][::7], tables["instance"][1::7]
    place = {row["instance_token"]: row for row in tables["sample_annotation"]}
    for rack, cycle in zip(racks, cycles, strict=False):
        rack["category_token"], cycle["category_token"] = (
            token_of["static_object.bicycle_rack"],
            token_of["vehicle.bicycle"],
        )
    beside = {cycle["token"]: rack["token"] for rack, cycle in zip(racks, cycles, strict=False)}
    for row in tables["sample_annotation"]:
        if row["instance_token"] in beside.values():
            row.update(size=[6.0, 14.0, 8.0], attribute_tokens=[])
        elif row["instance_token"] in beside:
            row.update(
                translation=place[beside[row["instance_token"]]]["translation"], attribute_tokens=[], num_lidar_pts=3
            )
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    return root


@pytest.mark.parametrize(("split", "seed"), [("mini_train", 1), ("mini_val", 2)])
def test_metric_equals_the_devkits_on_the_folder_itself(
    simulated_root: Path, tmp_path: Path, split: str, seed: int
) -> None:
    metrics = compare_on(simulated_root, split, tmp_path, seed)
    assert 0.1 < metrics.mAP < 0.9


def test_metric_equals_the_devkits_where_racks_drop_cycles(folder_with_racks: Path, tmp_path: Path) -> None:
    metrics = compare_on(folder_with_racks, "mini_train", tmp_path, 3)
    assert metrics.truth_counts.outside_racks < metrics.truth_counts.with_points < metrics.truth_counts.given
    assert metrics.detection_counts.outside_racks < metrics.detection_counts.with_points


@needs_real_data
def test_metric_equals_the_devkits_on_the_real_keyframe(tmp_path: Path) -> None:
    metrics = compare_on(REAL_ROOT, "mini_train", tmp_path, 4)
    assert metrics.truth_counts.given == 68
    assert metrics.truth_counts.outside_racks == 33


def made_up(seed: int, frames: int = 4) -> tuple[list[Frame], list[GroundTruth], dict[str, Detections]]:
    print("seed", seed)
    random = np.random.default_rng(seed)
    world = [made_up_frame(random, number, number // 2) for number in range(frames)]
    truth = [made_up_truth(random, frame) for frame in world]
    return world, truth, {f.token: noisy_detections(random, f, t) for f, t in zip(world, truth, strict=True)}


def perfect(frames: list[Frame], truth: list[GroundTruth]) -> dict[str, Detections]:
    out = {}
    for frame, one in zip(frames, truth, strict=True):
        boxes, labels = truth_to_canonical(frame, one)
        out[frame.token] = Detections(boxes, np.linspace(0.9, 0.5, len(boxes), dtype=np.float32), labels)
    return out


def test_ground_truth_as_predictions_is_found_whole() -> None:
    frames, truth, _ = made_up(5)
    seen = [
        GroundTruth(**{**vars(one), "num_lidar_pts": np.full(len(one), 9, np.int32), "racks_global": np.zeros((0, 10))})
        for one in truth
    ]
    metrics = evaluate(frames, seen, perfect(frames, seen))
    assert metrics.mAP == pytest.approx(1.0)
    assert metrics.mATE < 1e-4
    assert metrics.summary()["mAP"] <= 1.0


def test_a_half_turn_of_every_box_shows_in_the_orientation_error_alone() -> None:
    frames, truth, _ = made_up(6)
    right = perfect(frames, truth)
    turned = {
        token: Detections(d.boxes_lidar + np.array([0] * 6 + [np.pi] + [0] * 2, np.float32), d.scores, d.labels)
        for token, d in right.items()
    }
    before, after = evaluate(frames, truth, right), evaluate(frames, truth, turned)
    assert (after.mAP, after.mASE) == (before.mAP, before.mASE)
    assert after.tp_errors["car"]["orient_err"] > 3.0
    assert after.tp_errors["barrier"]["orient_err"] < 0.1


def test_no_prediction_at_all_scores_zero_instead_of_failing() -> None:
    frames, truth, _ = made_up(7)
    metrics = evaluate(frames, truth, {frame.token: Detections.empty() for frame in frames})
    assert (metrics.mAP, metrics.NDS, metrics.detection_counts.given) == (0.0, 0.0, 0)


def test_no_ground_truth_at_all_scores_zero_instead_of_failing() -> None:
    frames, _, detections = made_up(8)
    assert evaluate(frames, [GroundTruth.empty()] * len(frames), detections).mAP == 0.0


def test_summary_has_exactly_the_seven_keys_in_range() -> None:
    frames, truth, detections = made_up(9)
    summary = evaluate(frames, truth, detections).summary()
    assert tuple(summary) == SUMMARY_KEYS
    assert all(0.0 <= value <= 1.0 for value in summary.values())


def test_metrics_survive_json() -> None:
    frames, truth, detections = made_up(10)
    metrics = evaluate(frames, truth, detections)
    again = Metrics.from_dict(json.loads(json.dumps(metrics.to_dict(), allow_nan=False)))
    assert again.to_dict() == metrics.to_dict()
    assert np.isnan(again.tp_errors["traffic_cone"]["vel_err"])


def test_an_unknown_velocity_is_scored_as_standing_still() -> None:
    frames, truth, detections = made_up(11)
    silent, still = ({t: with_velocity(d, v) for t, d in detections.items()} for v in (np.nan, 0.0))
    assert evaluate(frames, truth, silent).to_dict() == evaluate(frames, truth, still).to_dict()


def with_velocity(detections: Detections, value: float) -> Detections:
    boxes = detections.boxes_lidar.copy()
    boxes[:, 7:9] = value
    return Detections(boxes, detections.scores, detections.labels)


def many(detections: Mapping[str, Detections], token: str, count: int) -> dict[str, Detections]:
    one = detections[token]
    pick = np.arange(count) % len(one)
    scores = np.linspace(0.01, 0.99, count, dtype=np.float32)
    return {**detections, token: Detections(one.boxes_lidar[pick], scores, one.labels[pick])}


def test_more_than_500_boxes_are_refused_by_the_samples_name_or_cut_to_the_best_where_asked() -> None:
    frames, truth, detections = made_up(12)
    crowded = many(detections, frames[2].token, 640)
    with pytest.raises(DataError, match=f"{frames[2].token}: 640 boxes"):
        evaluate(frames, truth, crowded)
    top = crowded[frames[2].token]
    best = {**crowded, frames[2].token: Detections(top.boxes_lidar[140:], top.scores[140:], top.labels[140:])}
    assert evaluate(frames, truth, crowded, keep_top=True).to_dict() == evaluate(frames, truth, best).to_dict()


def test_missing_and_foreign_frames_are_named() -> None:
    frames, truth, detections = made_up(13)
    wrong = {("f" * 32 if token == frames[1].token else token): d for token, d in detections.items()}
    with pytest.raises(DataError, match=f"1 missing .{frames[1].token}.; 1 extra .{'f' * 32}."):
        evaluate(frames, truth, wrong)


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [(0, np.nan, "not finite"), (3, -1.0, "not positive"), (7, np.inf, "infinite velocity")],
)
def test_an_unsound_box_is_named(column: int, value: float, what: str) -> None:
    frames, truth, detections = made_up(14)
    boxes = detections[frames[0].token].boxes_lidar.copy()
    boxes[2, column] = value
    bad = {
        **detections,
        frames[0].token: Detections(boxes, detections[frames[0].token].scores, detections[frames[0].token].labels),
    }
    with pytest.raises(DataError, match=f"sample {frames[0].token}: box 2 has .*{what}"):
        evaluate(frames, truth, bad)
