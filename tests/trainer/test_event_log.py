"""TensorBoard's files, read back by tensorboard itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cache.errors import StoreError
from tests.trainer.synthetic import write_frames, write_teacher
from tests.trainer.test_loop import killed_at, quiet, recipe
from trainer.loop import train
from trainer.metrics import read_metrics, read_validations


def read_back(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("events")
    write_frames(root, frames=8, boxes=(5, 0, 3), val=4)
    write_teacher(root, frames=8, boxes=(5, 0, 3), coverage="gaussian(dilate=0)+dense", val=4)
    return root


def watched(**values: Any) -> Any:
    return recipe(
        "distilled", **{"steps": 4, "checkpoint_every": 2, "validate_every": 2, "tensorboard": True, **values}
    )


def test_scalars_are_those_of_the_log(world: Path, tmp_path: Path) -> None:
    train(watched(), world, tmp_path, progress=quiet)
    events = read_back(tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    for tag, key in (("loss/total", "loss"), ("loss/bevdistill_dense", "bevdistill_dense"), ("rate/lr", "lr")):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines]
    for line in read_validations(tmp_path / "metrics.jsonl"):
        assert [e.value for e in events.Scalars("val/NDS") if e.step == line["step"]] == [
            pytest.approx(line["val/NDS"])
        ]
    assert {"rate/gradient_norm", "rate/frames_per_s", "rate/waiting", "memory/rss_gib"} <= set(
        events.Tags()["scalars"]
    )
    assert "val/best" not in events.Tags()["scalars"]


def test_pictures_are_of_the_same_frames_at_every_validation(world: Path, tmp_path: Path) -> None:
    train(watched(), world, tmp_path, progress=quiet)
    events = read_back(tmp_path)
    tags = events.Tags()["images"]
    assert sorted(tag.split("/")[-1] for tag in tags) == ["boxes"] * 3 + ["maps"] * 3
    for tag in tags:
        pictures = events.Images(tag)
        assert [picture.step for picture in pictures] == [2, 4]
        image = cv2.imdecode(np.frombuffer(pictures[0].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[:2] == (pictures[0].height, pictures[0].width)
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 30  # something is drawn
        if tag.endswith("boxes"):
            assert image.shape == (900, 900, 3)
            # the teacher's and the truth's colours are in it (BGR)
            for colour in ((255, 167, 63), (79, 234, 123)):
                assert (np.abs(image.astype(int) - colour).max(axis=2) < 40).any()
        else:
            assert image.shape[1] == 3 * 340  # teacher, student, heat


def test_a_run_that_goes_on_takes_back_what_lies_beyond_its_checkpoint(world: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(watched(), world, tmp_path, progress=killed_at(3))
    train(watched(), world, tmp_path, progress=quiet, resume=True)
    assert [event.step for event in read_back(tmp_path).Scalars("loss/total")] == [1, 2, 3, 4]


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_no_step_twice(world: Path, tmp_path: Path) -> None:
    chosen = watched(checkpoint_every=9, validate_every=0)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, world, tmp_path, progress=killed_at(3))
    train(chosen, world, tmp_path, progress=quiet, resume=True)
    assert [event.step for event in read_back(tmp_path).Scalars("loss/total")] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_told_before_any_training(world: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(StoreError, match=r"TensorBoard's files.*tensorboard = false"):
        train(watched(), world, tmp_path, progress=quiet)
    assert not read_metrics(tmp_path / "metrics.jsonl") if (tmp_path / "metrics.jsonl").exists() else True


def test_without_the_option_nothing_is_written(world: Path, tmp_path: Path) -> None:
    train(watched(tensorboard=False, steps=1, validate_every=0), world, tmp_path, progress=quiet)
    assert not (tmp_path / "tensorboard").exists()
