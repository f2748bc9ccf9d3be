"""The shuffled control: the same predictions, every one on a frame it was not made for."""

from __future__ import annotations

import numpy as np
import pytest

from cache.errors import DataError
from cache.frame import Detections
from evaluation.control import shuffled_over_frames
from evaluation.official import evaluate
from tests.evaluation.worlds import made_up_frame, made_up_truth, noisy_detections


def marked(count: int) -> dict[str, Detections]:
    """One detections object per token, told apart by its score."""
    box, label = np.ones((1, 9), np.float32), np.zeros(1, np.int32)
    return {f"{n:032x}": Detections(box, np.full(1, n, np.float32), label) for n in range(count)}


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_every_frame_gets_another_frames_predictions_each_once(count: int) -> None:
    detections = marked(count)
    for seed in range(20):
        shuffled = shuffled_over_frames(detections, list(detections), seed)
        assert all(shuffled[token] is not detections[token] for token in detections)
        assert sorted(d.scores[0] for d in shuffled.values()) == list(range(count))


def test_no_frame_gets_a_prediction_of_its_own_scene() -> None:
    detections = marked(11)
    scene_of = dict(zip(detections, "aaaaabbbccd", strict=True))
    source = {float(d.scores[0]): token for token, d in detections.items()}
    for seed in range(20):
        shuffled = shuffled_over_frames(detections, list(detections), seed, scene_of)
        assert all(scene_of[source[float(d.scores[0])]] != scene_of[token] for token, d in shuffled.items())


def test_shuffle_depends_on_the_seed_alone() -> None:
    detections = marked(30)
    first, again, other = (shuffled_over_frames(detections, list(detections), seed) for seed in (1, 1, 2))
    assert all(first[t] is again[t] for t in detections)
    assert any(first[t] is not other[t] for t in detections)


@pytest.mark.parametrize(("count", "scenes"), [(0, ""), (1, "a"), (4, "aaab")])
def test_where_no_exchange_exists_an_error_says_so(count: int, scenes: str) -> None:
    detections = marked(count)
    with pytest.raises(DataError, match="use more frames or more scenes"):
        shuffled_over_frames(detections, list(detections), 0, dict(zip(detections, scenes, strict=True)))


def test_the_right_predictions_score_far_above_the_shuffled_ones() -> None:
    random = np.random.default_rng(40)
    frames = [made_up_frame(random, number) for number in range(6)]
    truth = [made_up_truth(random, frame) for frame in frames]
    detections = {f.token: noisy_detections(random, f, t) for f, t in zip(frames, truth, strict=True)}
    shuffled = shuffled_over_frames(detections, [frame.token for frame in frames], 0)
    assert evaluate(frames, truth, detections).mAP > 5 * evaluate(frames, truth, shuffled).mAP
