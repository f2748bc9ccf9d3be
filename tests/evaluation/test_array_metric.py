"""The array metric is the devkit's: on odd worlds, on any world that hypothesis finds, in any portions, on subsets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, DataError
from cache.frame import Detections, GroundTruth
from evaluation import array_metric, official
from evaluation.array_metric import ArrayMetric
from evaluation.metric_config import CVPR_2019, MetricConfig
from evaluation.metrics import Metrics
from evaluation.subsets import Subset
from studies.benches.odd_cases import CASES, count_cases
from studies.benches.odd_worlds import difference_to_the_devkit, drawn, largest_difference, odd_world
from tests.evaluation.test_official import made_up, many, perfect

ROOT = Path(__file__).parents[2]
ODD_WORLDS = 40  # of the 200 that `./bevcask prove` runs


@pytest.mark.parametrize("start", range(0, ODD_WORLDS, 10))
def test_it_equals_the_devkit_on_odd_worlds(start: int) -> None:
    for seed in range(start, start + 10):
        assert difference_to_the_devkit(np.random.default_rng(seed)) <= 1e-12, f"seed {seed}"


def test_the_odd_worlds_hold_every_odd_case() -> None:
    """On all 200 that `./bevcask prove` compares with the devkit: a case that never occurs would be claimed in vain."""
    counts = count_cases(drawn(np.random.default_rng(seed)) for seed in range(200))
    assert set(counts) == set(CASES)
    assert [case for case, count in counts.items() if not count] == []


@settings(max_examples=30, deadline=None)
@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_it_equals_the_devkit_on_any_world(seed: int) -> None:
    assert difference_to_the_devkit(np.random.default_rng(seed)) <= 1e-12


def test_it_equals_the_devkit_on_a_models_detections() -> None:
    frames, truth, detections = made_up(20, frames=6)
    ours, theirs = (module.evaluate(frames, truth, detections) for module in (array_metric, official))
    assert 0.1 < ours.mAP < 0.9 and largest_difference(ours, theirs) <= 1e-12


@pytest.mark.parametrize("silent", ["detections", "truth"])
def test_it_equals_the_devkit_where_one_side_is_empty(silent: str) -> None:
    frames, truth, detections = made_up(21)
    if silent == "detections":
        detections = {frame.token: Detections.empty() for frame in frames}
    else:
        truth = [GroundTruth.empty()] * len(frames)
    ours, theirs = (module.evaluate(frames, truth, detections) for module in (array_metric, official))
    assert ours.mAP == 0.0 and largest_difference(ours, theirs) == 0.0


def test_portions_in_any_order_give_the_same_figures() -> None:
    frames, truth, detections = made_up(22, frames=7)  # scores in steps of 0.1: ties over frames
    whole = array_metric.evaluate(frames, truth, detections)
    random = np.random.default_rng(22)
    for portions in (7, 3, 2):
        metric = ArrayMetric([frame.token for frame in frames])
        for part in np.array_split(random.permutation(len(frames)), portions):
            some = [frames[i] for i in part]
            metric.add(some, [truth[i] for i in part], {frame.token: detections[frame.token] for frame in some})
        assert metric.result().to_dict() == whole.to_dict()


def test_small_portions_inside_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, truth, detections = made_up(23, frames=5)
    whole = array_metric.evaluate(frames, truth, detections)
    monkeypatch.setattr(array_metric, "PORTION", 2)
    assert array_metric.evaluate(frames, truth, detections).to_dict() == whole.to_dict()


def test_a_sample_that_is_missing_twice_or_foreign_is_named() -> None:
    frames, truth, detections = made_up(24)
    metric = ArrayMetric([frame.token for frame in frames[:3]])
    first = {frames[0].token: detections[frames[0].token]}
    metric.add(frames[:1], truth[:1], first)
    with pytest.raises(DataError, match=f"2 missing .{frames[1].token}, {frames[2].token}."):
        metric.result()
    with pytest.raises(DataError, match=f"sample {frames[0].token} comes a second time"):
        metric.add(frames[:1], truth[:1], first)
    with pytest.raises(DataError, match=f"sample {frames[3].token} is none of the split's"):
        metric.add(frames[3:], truth[3:], {frames[3].token: detections[frames[3].token]})


def test_more_boxes_than_allowed_are_refused_or_cut_as_the_devkit_would_see_them() -> None:
    frames, truth, detections = made_up(25)
    crowded = many(detections, frames[2].token, 640)
    with pytest.raises(DataError, match=f"{frames[2].token}: 640 boxes, the metric allows 500"):
        array_metric.evaluate(frames, truth, crowded)
    ours, theirs = (module.evaluate(frames, truth, crowded, keep_top=True) for module in (array_metric, official))
    assert largest_difference(ours, theirs) <= 1e-12
    few = MetricConfig(max_boxes_per_sample=20)
    with pytest.raises(DataError, match="the metric allows 20"):
        array_metric.evaluate(frames, truth, crowded, config=few)


def test_scores_below_zero_are_refused_in_words_where_the_devkit_only_asserts() -> None:
    frames, truth, _ = made_up(26)
    detections = {
        token: Detections(d.boxes_lidar[::2], np.full(len(d), -0.5, np.float32)[::2], d.labels[::2])
        for token, d in perfect(frames, truth).items()
    }
    with pytest.raises(AssertionError):
        official.evaluate(frames, truth, detections)
    with pytest.raises(DataError, match=r"scores of \w+ go from -0\.5 to -0\.5; the metric needs finite scores"):
        array_metric.evaluate(frames, truth, detections)


def within(
    subset: Subset, frames: list, truth: list[GroundTruth], results: dict
) -> tuple[list[GroundTruth], dict[str, list]]:
    """What the devkit must be given: truth and results without the boxes outside the subset, one by one."""
    near, far = subset.distance or (0.0, np.inf)
    names = subset.classes or DETECTION_CLASSES
    new_truth: list[GroundTruth] = []
    new_results: dict[str, list] = {}
    for frame, one in zip(frames, truth, strict=True):
        ego = frame.ego_to_global.translation
        keep = np.array(
            [
                near <= float(np.hypot(*(box[:2] - ego[:2]))) < far
                and DETECTION_CLASSES[label] in names
                and (subset.visibility is None or level in subset.visibility)
                for box, label, level in zip(one.boxes_global, one.class_ids, one.visibility, strict=True)
            ],
            bool,
        )
        columns = {key: value[keep] for key, value in vars(one).items() if key != "racks_global"}
        new_truth.append(GroundTruth(**columns, racks_global=one.racks_global))
        new_results[frame.token] = [
            box
            for box in results[frame.token]
            if near <= float(np.hypot(*(np.array(box["translation"][:2]) - ego[:2]))) < far
            and box["detection_name"] in names
        ]
    return new_truth, {token: new_results[token] for token in results}


@pytest.mark.parametrize(
    "subset",
    [
        Subset(distance=(0.0, 4.25)),
        Subset(distance=(4.25, 30.0)),
        Subset(visibility=(3, 4)),
        Subset(classes=("car", "pedestrian", "bicycle")),
        Subset(distance=(2.25, 20.0), classes=DETECTION_CLASSES[:8], visibility=(0, 1, 2)),
    ],
    ids=str,
)
def test_a_subset_scores_as_the_devkit_on_that_subset(subset: Subset) -> None:
    less = 0
    for seed in range(100, 115):
        frames, truth, results = odd_world(np.random.default_rng(seed))
        results = {t: [{**b, "detection_score": abs(b["detection_score"])} for b in r] for t, r in results.items()}
        ours = array_metric.evaluate_submission(frames, truth, results, subset=subset)
        theirs = official.evaluate_submission(frames, *within(subset, frames, truth, results))
        less += theirs.truth_counts.given < sum(map(len, truth))
        for name in subset.classes or DETECTION_CLASSES:
            for key, value in (*theirs.ap[name].items(), *theirs.tp_errors[name].items()):
                mine = dict([*ours.ap[name].items(), *ours.tp_errors[name].items()])[key]  # type: ignore[misc, list-item]
                np.testing.assert_allclose(mine, value, rtol=0, atol=1e-12, err_msg=f"seed {seed}: {name} {key}")
        if subset.classes is None:
            assert largest_difference(ours, theirs) <= 1e-12
        else:
            assert set(ours.ap) == set(subset.classes)
            assert ours.mAP == pytest.approx(np.mean([theirs.class_ap(name) for name in subset.classes]), abs=1e-12)
    assert less >= 5


def test_errors_that_no_class_of_a_subset_has_are_left_out() -> None:
    frames, truth, detections = made_up(27)
    metrics = array_metric.evaluate(frames, truth, detections, subset=Subset(classes=("traffic_cone", "barrier")))
    assert np.isnan(metrics.mAVE) and np.isnan(metrics.mAAE)
    assert set(metrics.summary()) == {"mAP", "NDS", "mATE", "mASE", "mAOE"}
    gains = sum(max(0.0, 1 - value) for value in (metrics.mATE, metrics.mASE, metrics.mAOE))
    assert pytest.approx((5 * metrics.mAP + gains) / 8) == metrics.NDS
    assert Metrics.from_dict(metrics.to_dict()).to_dict() == metrics.to_dict()


def test_the_official_settings_are_the_devkits_file() -> None:
    from nuscenes.eval.common.config import config_factory

    theirs = config_factory(official.CONFIG).serialize()
    assert CVPR_2019.to_dict() == theirs and list(CVPR_2019.class_range) == list(theirs["class_range"])
    assert MetricConfig.from_dict(theirs) == CVPR_2019


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class_range": {"car": 50}}, "class_range has car; expected the ten classes"),
        ({"dist_fcn": "iou"}, "the only one there is is 'center_distance'"),
        ({"dist_th_tp": 3.0}, r"dist_th_tp 3\.0 is none of dist_ths"),
        ({"dist_ths": (2.0, 2.0)}, "expected different distances"),
        ({"min_precision": 1.0}, "expected 0 to below 1"),
        ({"more": 1}, "fields .*more"),
        ({"dist_ths": [2.0, "4"]}, "'4' is no finite number"),
        ({"dist_ths": []}, "dist_ths is empty"),
        ({"dist_ths": 2.0}, "expected a list of dist_ths"),
        ({"min_recall": float("nan")}, "nan is no finite number"),
        ({"class_range": {**CVPR_2019.class_range, "car": None}}, "None is no finite number"),
        ({"mean_ap_weight": -1}, "mean_ap_weight -1 and max_boxes_per_sample 500, expected 0 or more"),
    ],
)
def test_wrong_settings_are_refused(change: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MetricConfig.from_dict({**CVPR_2019.to_dict(), **change})


def test_what_is_held_of_a_prediction_is_some_twenty_bytes() -> None:
    frames, truth, detections = made_up(28, frames=40)
    metric = ArrayMetric([frame.token for frame in frames])
    metric.add(frames, truth, detections)
    held = [column for portion in metric._portions for column in vars(portion).values()]
    assert all(column.base is None for column in held)  # a view would keep the portion's boxes alive
    matches = sum(len(portion.errors) for portion in metric._portions)
    assert sum(column.nbytes for column in held) <= 20 * sum(map(len, detections.values())) + 40 * matches


def test_the_array_metric_loads_neither_the_devkit_nor_torch() -> None:
    code = "import sys, evaluation.array_metric, evaluation.mistakes; print({'nuscenes', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
