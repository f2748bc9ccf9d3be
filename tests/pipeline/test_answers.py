"""What a teacher says is checked before it is stored: each way to be wrong is told, and leaves no store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import BevcaskError, ConfigError, DataError
from cache.frame import Detections
from models.detector import Batch, DetectorOutput
from pipeline.answers import own_code, require_boxes
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher
from tests.pipeline.query_teacher import QueryTeacher

GOOD = Detections(np.ones((2, 9), np.float32), np.array([0.9, 0.1], np.float32), np.array([0, 9], np.int32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes_lidar": np.where(np.eye(2, 9), np.nan, 1).astype(np.float32)}, "box 0 holds NaN"),
        ({"boxes_lidar": np.ones((2, 7), np.float32)}, r"\(2, 7\) boxes"),
        ({"boxes_lidar": np.ones((2, 9))}, "boxes are float64"),
        ({"boxes_lidar": torch.ones(2, 9)}, "boxes are Tensor, expected a numpy array of float32"),
        ({"scores": np.array([0.9], np.float32)}, "1 scores and 2 labels"),
        ({"scores": np.array([5, 0.1], np.float32)}, r"scores reach 0\.1\.\.5, expected 0\.\.1"),
        ({"scores": np.array([np.nan, 0.1], np.float32)}, "scores reach nan"),
        ({"scores": np.array([0.1, 0.9], np.float32)}, "scores rise"),
        ({"labels": np.array([0, 10], np.int32)}, r"labels reach 0\.\.10, expected ids of 10 classes"),
        ({"labels": np.array([-1, 0], np.int32)}, "labels reach -1"),
    ],
)
def test_boxes_that_are_none_are_told_with_their_frame(change: dict[str, Any], words: str) -> None:
    require_boxes(GOOD, "abc")
    require_boxes(Detections.empty(), "abc")
    with pytest.raises(DataError, match=rf"^frame abc: .*{words}.*; correct the detector"):
        require_boxes(replace(GOOD, **change), "abc")


def test_only_what_own_code_raises_is_put_into_one_line() -> None:
    with (
        pytest.raises(DataError, match=r"^--teacher a\.b:c: its detector raised ValueError: two lines$"),
        own_code("a.b:c"),
    ):
        raise ValueError("two\nlines")
    with pytest.raises(ValueError, match="two"), own_code("demo"):
        raise ValueError("two")
    with pytest.raises(torch.OutOfMemoryError), own_code("a.b:c"):
        raise torch.OutOfMemoryError("full")


class Turning(QueryTeacher):
    """Answers the clouds that it is tried out on, of 64 points and none, and real ones as `turn` has it."""

    def forward(self, batch: Batch) -> DetectorOutput:
        output = super().forward(batch)
        self.real = any(len(cloud) > 64 for cloud in batch.points or [])
        if self.real and TURN == "raise":
            raise RuntimeError("no more")
        return replace(output, bev=output.bev[:, :2]) if self.real and TURN == "bev" else output

    def decode(self, output: DetectorOutput) -> list[Detections]:
        found = super().decode(output)
        if self.real and TURN == "class":
            found = [replace(one, labels=one.labels + 77) for one in found]
        return found[:-1] if self.real and TURN == "fewer" else found


TURN = ""


def build(path: Path) -> Turning:
    return Turning()


@pytest.fixture(scope="module")
def cached(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("answers")
    options = FrameOptions(image_scale=0.05, points=True, sweeps=0)
    cache_frames(simulated_root, "v1.0-mini", place, split="mini_val", options=options, workers=1)
    return place


@pytest.mark.parametrize(
    ("turn", "kind", "words"),
    [
        ("raise", DataError, r"test_answers:build: its detector raised RuntimeError: no more"),
        ("bev", ConfigError, r"bev is \(\d, 2, 16, 16\), expected \(\d, 4, 16, 16\)"),
        ("class", DataError, r"frame [0-9a-f]{32}: .*labels reach"),
        ("fewer", ConfigError, r"answered (\d) frames with \1 heatmaps and \d lists of boxes"),
    ],
)
def test_a_callable_that_turns_on_real_frames_is_told_and_leaves_no_store(
    turn: str, kind: type[BevcaskError], words: str, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.pipeline.test_answers.TURN", turn)
    (weights := tmp_path / "none").touch()
    with pytest.raises(kind, match=words):
        cache_teacher(
            cached,
            turn,
            teacher="tests.pipeline.test_answers:build",
            checkpoint=weights,
            options=TeacherOptions(coverage="gaussian"),
            workers=1,
        )
    assert not list((cached / "teachers" / turn).glob("**/*.partial"))
    assert not (cached / "teachers" / turn / "manifest.json").exists()


def test_a_default_coverage_that_a_teacher_of_queries_cannot_serve_is_told_as_such(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.teacher.default_coverage", lambda frames: "gaussian+confident")
    (weights := tmp_path / "none").touch()
    with pytest.raises(
        ConfigError, match=r"\(the default where there are unlabelled frames\).*--coverage gaussian\+lidar"
    ):
        cache_teacher(cached, "x", teacher="tests.pipeline.test_answers:build", checkpoint=weights, workers=1)
