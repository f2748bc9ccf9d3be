"""Resampling scenes from stored matches is scoring copies of the scenes, and intervals say what their draws say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, DataError
from cache.frame import Detections, Frame, GroundTruth
from evaluation.array_metric import evaluate
from evaluation.match_table import MatchTable, detections_of, match_table
from evaluation.metrics import SUMMARY_KEYS, TP_ERRORS, Metrics
from evaluation.resampling import Figures, SceneMetric, bootstrap, scene_draws, whole
from evaluation.subsets import Subset
from tests.evaluation.worlds import made_up_frame, made_up_truth, noisy_detections

World = tuple[list[Frame], list[GroundTruth], dict[str, Detections]]


def world(seed: int, scenes: int = 5, frames: int = 4, *, ties: bool = False) -> World:
    """Frames of several scenes, unlike each other in size; scores all different unless `ties`."""
    random = np.random.default_rng(seed)
    all_frames = [made_up_frame(random, n, n // frames) for n in range(scenes * frames)]
    truth = [made_up_truth(random, frame, boxes=int(random.integers(0, 40))) for frame in all_frames]
    said = {f.token: noisy_detections(random, f, t) for f, t in zip(all_frames, truth, strict=True)}
    if not ties:
        said = {t: replace(d, scores=random.uniform(0.01, 1, len(d)).astype(np.float32)) for t, d in said.items()}
    return all_frames, truth, said


def table_of(one: World, subset: Subset | None = None) -> MatchTable:
    return match_table(one[0], one[1], detections_of(one[2]), subset=subset or Subset())


def copied(one: World, times: np.ndarray) -> World:
    """The world whose scenes are there as often as `times` says, every copy under tokens of its own."""
    names = list(dict.fromkeys(frame.scene_name for frame in one[0]))
    frames, truth, said = [], [], {}
    for number, name in enumerate(names):
        for copy in range(times[number]):
            for frame, objects in zip(one[0], one[1], strict=True):
                if frame.scene_name == name:
                    token = f"{copy:02x}{frame.token[2:]}"
                    frames.append(replace(frame, token=token))
                    truth.append(objects)
                    said[token] = one[2][frame.token]
    return frames, truth, said


def assert_equal(figures: Figures, metrics: Metrics) -> None:
    names = list(metrics.ap)
    np.testing.assert_allclose(figures.ap, [list(metrics.ap[name].values()) for name in names], rtol=0, atol=1e-12)
    expected = [[metrics.tp_errors[name][key] for key in TP_ERRORS] for name in names]
    np.testing.assert_allclose(figures.tp_errors, expected, rtol=0, atol=1e-12)
    summary = [getattr(metrics, key) for key in SUMMARY_KEYS]
    np.testing.assert_allclose(figures.summary, summary, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_every_scene_once_is_the_metric_itself_with_tied_scores_too(seed: int) -> None:
    one = world(seed, ties=seed % 2 == 0)
    assert_equal(SceneMetric(table_of(one)).figures(whole(5)), evaluate(*one))


@pytest.mark.parametrize("seed", range(12))
def test_scenes_drawn_again_are_scored_as_their_copies(seed: int) -> None:
    """The slow and obvious way: frames, objects and predictions are copied and everything is matched anew."""
    one = world(100 + seed)
    metric = SceneMetric(table_of(one))
    for times in (*scene_draws(5, 3, seed), np.array([4, 0, 0, 0, 1])):
        assert_equal(metric.figures(times), evaluate(*copied(one, times)))


def test_perfect_predictions_and_none_at_all_are_scored_as_their_copies() -> None:
    frames, truth, said = world(40, scenes=3)
    nothing = {token: Detections.empty() for token in said}
    few = {t: d if n % 5 == 0 else Detections.empty() for n, (t, d) in enumerate(said.items())}
    for predictions in (nothing, few):
        one = (frames, truth, predictions)
        metric = SceneMetric(table_of(one))
        for times in ([1, 1, 1], [3, 0, 0], [0, 2, 1]):
            assert_equal(metric.figures(np.array(times)), evaluate(*copied(one, np.array(times))))


def test_a_part_of_the_split_is_resampled_as_a_part() -> None:
    one, subset = world(41), Subset(distance=(5.0, 25.0), classes=("car", "barrier", "traffic_cone"))
    metric, times = SceneMetric(table_of(one, subset)), np.array([2, 0, 1, 1, 1])
    assert_equal(metric.figures(times), evaluate(*copied(one, times), subset=subset))


def test_a_class_that_is_nowhere_has_no_average_precision() -> None:
    frames, truth, said = world(42)
    bus = DETECTION_CLASSES.index("bus")
    truth = [replace(t, class_ids=np.where(t.class_ids == bus, 0, t.class_ids).astype(np.int32)) for t in truth]
    drawn = bootstrap({"m": SceneMetric(table_of((frames, truth, said)))}, draws=20)["m"]
    assert (drawn.of_class("bus").low, drawn.of_class("bus").high) == (0.0, 0.0)


def test_intervals_are_quantiles_of_seeded_draws_and_hold_the_figure() -> None:
    one = world(43, scenes=8)
    metric = SceneMetric(table_of(one))
    drawn = bootstrap({"m": metric}, draws=60, seed=3)["m"]
    again = bootstrap({"m": metric}, draws=60, seed=3)["m"]
    np.testing.assert_array_equal(drawn.summary, again.summary)
    by_hand = [evaluate(*copied(one, times)).mAP for times in scene_draws(8, 60, 3)]
    np.testing.assert_allclose(drawn.summary[:, 0], by_hand, rtol=0, atol=1e-12)
    assert drawn.of("mAP").low == pytest.approx(np.quantile(by_hand, 0.025))
    assert drawn.of("mAP").low < evaluate(*one).mAP < drawn.of("mAP").high
    other = bootstrap({"m": metric}, draws=60, seed=4)["m"]
    assert (other.summary != drawn.summary).any()


def test_a_difference_is_paired_so_that_equal_models_differ_by_nothing() -> None:
    one = world(44)
    better = {t: Detections(d.boxes_lidar[::2], d.scores[::2], d.labels[::2]) for t, d in one[2].items()}
    other = (one[0], one[1], better)
    drawn = bootstrap({n: SceneMetric(table_of(w)) for n, w in (("a", one), ("b", other), ("c", one))}, draws=30)
    assert not drawn["a"].minus(drawn["c"]).summary.any()
    np.testing.assert_array_equal(drawn["b"].minus(drawn["a"]).summary, drawn["b"].summary - drawn["a"].summary)


def test_one_scene_gives_no_interval_and_models_of_other_frames_are_refused() -> None:
    single = SceneMetric(table_of(world(45, scenes=1)))
    assert bootstrap({"m": single}, draws=10) == {}
    with pytest.raises(ConfigError, match="1 draws"):
        bootstrap({"m": single}, draws=1)
    other = SceneMetric(table_of(world(45, scenes=2)))
    with pytest.raises(
        DataError, match=r"m is scored on 4 frames of scene-0000 and n on 8 of scene-0000 to scene-0001"
    ):
        bootstrap({"m": single, "n": other}, draws=10)
    a = bootstrap({"n": other}, draws=10)["n"]
    with pytest.raises(ConfigError, match="same draws"):
        a.minus(bootstrap({"n": other}, draws=10, seed=1)["n"])
