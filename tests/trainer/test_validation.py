"""Validation while a run goes on: the training is as without, the best weights are those that it says."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import ConfigError, OutOfSpaceError, StoreError
from cache.frame import Detections
from cache.roots import LocalRoot
from cache.store import FrameStore
from models.build import load_weights, read_metadata
from models.centerpoint import CenterPoint
from studies.ranks import run_to_end, torchrun
from studies.scoring import evaluate_source
from tests.trainer.synthetic import TINY_TEACHER, write_frames
from tests.trainer.test_loop import killed_at, losses, quiet
from tests.trainer.test_observer import Diary
from trainer import loader, scoring_thread
from trainer.loader import StuckError
from trainer.loader_options import STUCK_AFTER
from trainer.loop import train
from trainer.metrics import read_metrics, read_validations
from trainer.plan import make_plan
from trainer.preemption import PreemptedError
from trainer.recipe import Recipe, TrainConfig, make_recipe
from trainer.run_files import BEST, WEIGHTS
from trainer.validation import Validator, validation_rows

# says so much that some of it is right
TALKATIVE = {**TINY_TEACHER, "head": {**TINY_TEACHER["head"], "score_threshold": 0.0, "max_boxes": 500, "peaks": "all"}}
TIMES = ("val/predict_s", "val/metric_s")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of the split train, five of val."""
    root = tmp_path_factory.mktemp("world")
    write_frames(root, frames=11, boxes=(250, 200), val=5)
    return root


def recipe(**train_values: Any) -> Recipe:
    values = {"steps": 6, "batch": 3, "lr": 1e-2, "log_every": 1, "checkpoint_every": 2, "warmup_steps": 1, "ema": 0.5}
    values |= {"validate_every": 2, "best_by": "mAP", **train_values}
    flips = {"bev_augmentation": {"flip_x": 0.5, "rotation_deg": 10.0}}
    return make_recipe({"model": TALKATIVE, "data": flips, "train": values}, "test", "validated")


def found(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_validations(run / "metrics.jsonl")]


def test_a_run_learns_the_same_with_and_without_validation(world: Path, tmp_path: Path) -> None:
    for name, every in (("with", 1), ("without", 0)):
        train(recipe(validate_every=every), world, tmp_path / name, progress=quiet)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    one, other = (load_weights(tmp_path / name / WEIGHTS).state_dict() for name in ("with", "without"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not (tmp_path / "without" / BEST).exists() and not found(tmp_path / "without")
    assert [line["step"] for line in found(tmp_path / "with")] == [1, 2, 3, 4, 5, 6]


def test_what_it_says_of_the_best_is_what_evaluate_says_of_its_file(world: Path, tmp_path: Path) -> None:
    diary = Diary()
    train(recipe(), world, tmp_path, progress=quiet, observers=[diary])
    lines = found(tmp_path)
    assert [what for what in diary.seen if what[0] == "validated"] == [
        ("validated", (line["step"], {k: v for k, v in seen.items() if k != "step"}))
        for line, seen in zip(lines, read_validations(tmp_path / "metrics.jsonl"), strict=True)
    ]
    best = max(lines, key=lambda line: line["val/mAP"])
    assert best["val/best"] and best["val/mAP"] > 0 and best["val/frames"] == 5
    metadata = read_metadata(tmp_path / BEST)
    assert metadata["step"] == str(next(line["step"] for line in lines if line["val/mAP"] == best["val/mAP"]))
    assert json.loads(metadata["validation"])["mAP"] == pytest.approx(best["val/mAP"])
    summary = evaluate_source(world, run=tmp_path, weights="best").summary
    assert summary == {key: best[f"val/{key}"] for key in summary or {}}
    last = evaluate_source(world, run=tmp_path).summary  # the last validation is of the weights it ends with
    assert last == {key: lines[-1][f"val/{key}"] for key in last or {}}


def test_a_run_killed_anywhere_validates_as_the_undisturbed_one(world: Path, tmp_path: Path) -> None:
    train(recipe(), world, tmp_path / "whole", progress=quiet)
    for step in (1, 2, 3, 4):  # a checkpoint lies at 2 and 4
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), world, tmp_path / "cut", resume=True, progress=killed_at(step))
    log = tmp_path / "cut" / "metrics.jsonl"
    assert [line["step"] for line in found(tmp_path / "cut")] == [2]
    last = [line for line in log.read_text().splitlines() if '"step": 4, "val/' not in line]
    log.write_text("\n".join(last) + "\n")  # killed after the checkpoint, before what its validation found was told
    (tmp_path / "cut" / f"{BEST}.12-ab.partial").write_bytes(b"x")  # and while it wrote
    train(recipe(), world, tmp_path / "cut", resume=True, progress=quiet)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert found(tmp_path / "cut") == found(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("*.partial"))


def best_step(run: Path) -> int:
    return int(read_metadata(run / BEST)["step"])


def told(run: Path, lines: dict[int, tuple[float, float]]) -> None:
    """A log whose validations found these mAP and NDS, by step."""
    found = [{"step": step, "val/mAP": mAP, "val/NDS": NDS, "val/frames": 5} for step, (mAP, NDS) in lines.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))


def test_what_a_new_best_must_beat_are_the_weights_that_are_kept(world: Path, tmp_path: Path) -> None:
    """Not a figure of weights that are gone, or of other frames."""
    train(recipe(steps=2, validate_every=1), world, tmp_path, progress=quiet)
    kept = best_step(tmp_path)
    other = 3 - kept
    told(tmp_path, {kept: (0.3, 0.2), other: (0.2, 0.9)})

    def to_beat(**values: Any) -> float:
        validator = Validator(make_plan(recipe(steps=2, **values), world), tmp_path, torch.device("cpu"))
        validator.begin()
        return validator._best

    assert to_beat() == 0.3
    assert to_beat(best_by="NDS") == 0.2  # 0.9 was found of weights that were not kept
    assert to_beat(validate_frames=2) == float("-inf")
    told(tmp_path, {9: (0.1, 0.2)})  # killed behind its last checkpoint: the step of the kept ones comes again
    assert to_beat() == 0.1
    (tmp_path / BEST).unlink()
    assert to_beat() == float("-inf")


@pytest.fixture
def hanging(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Given how a thread's name begins: its reads of the val shard never end. Returns the shard."""
    released, hung_in = threading.Event(), list[str]()
    (shard,) = (world / "frames" / "shards").glob("00002*.tar")
    read_range = LocalRoot.read_range

    def slow(self: LocalRoot, name: str, start: int, length: int) -> bytes:
        if self.folder / name == shard and threading.current_thread().name.startswith(tuple(hung_in)):
            released.wait(60)
        return read_range(self, name, start, length)

    def hang(thread: str) -> Path:
        hung_in.append(thread)
        return shard

    monkeypatch.setattr(LocalRoot, "read_range", slow)
    monkeypatch.setattr(loader, "CLOSE_S", 0.5)
    monkeypatch.setattr(scoring_thread, "CLOSE_S", 0.5)
    yield hang
    released.set()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("thread", ["loader", "validation"])
def test_a_val_shard_whose_reads_hang_ends_the_run_within_the_time_given(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Callable[[str], Path], thread: str
) -> None:
    monkeypatch.setenv(STUCK_AFTER, "0.5")
    shard, began = hanging(thread), time.monotonic()
    with pytest.raises(StuckError, match=rf"stuck: \d+ s at stage read, {shard}: [0-9a-f]{{32}}\.\S+; check that disk"):
        train(recipe(steps=2), world, tmp_path, progress=quiet)
    assert time.monotonic() - began < 40


@pytest.mark.timeout(60)
def test_a_val_shard_whose_reads_hang_does_not_keep_a_run_from_stopping(
    world: Path, tmp_path: Path, hanging: Callable[[str], Path]
) -> None:
    hanging("loader")

    def stop_soon(report: Any) -> None:
        if report.done == 2:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with pytest.raises(PreemptedError, match="saved after step 2 of 6"):
        train(recipe(), world, tmp_path, progress=stop_soon)


def test_a_run_asked_to_stop_gives_a_validation_up_and_owes_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = CenterPoint.decode

    def asked(self: Any, output: Any) -> Any:  # training decodes nothing: this is the validation after step 4
        if len(found(tmp_path / "cut")) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return decode(self, output)

    train(recipe(), world, tmp_path / "whole", progress=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(CenterPoint, "decode", asked)
        with pytest.raises(PreemptedError, match="after step 4"):
            train(recipe(), world, tmp_path / "cut", progress=quiet)
    assert [line["step"] for line in found(tmp_path / "cut")] == [2]
    train(recipe(), world, tmp_path / "cut", resume=True, progress=quiet)
    assert found(tmp_path / "cut") == found(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_ranks_validate_together_and_say_what_one_process_says(world: Path, tmp_path: Path) -> None:
    """Two ranks of a real torchrun, once with validations and once without."""
    for name, every in (("with", 2), ("without", 0)):
        (tmp_path / "recipe.json").write_text(json.dumps(recipe(validate_every=every).to_dict()))
        places = ("--recipe", str(tmp_path / "recipe.json"), "--cache", str(world), "--run-dir", str(tmp_path / name))
        done = run_to_end(torchrun(2, "trainer.main", *places, "--threads", "1"), 240)
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    lines = found(tmp_path / "with")
    assert [line["step"] for line in lines] == [2, 4, 6]
    last = evaluate_source(world, run=tmp_path / "with").summary
    assert last == {key: lines[-1][f"val/{key}"] for key in last or {}}


def test_validation_may_be_switched_on_when_a_run_goes_on(world: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe(validate_every=0), world, tmp_path, progress=killed_at(3))
    train(recipe(validate_every=1, validate_unit="epochs"), world, tmp_path, resume=True, progress=quiet)
    assert [line["step"] for line in found(tmp_path)] == [2, 4, 6]  # an epoch is of two steps


def test_boxes_that_cannot_be_scored_are_told_and_never_the_best(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = CenterPoint.decode
    steps: list[int] = []

    def diverged(self: Any, output: Any) -> list[Detections]:
        steps.append(1)
        good = decode(self, output)
        if len(steps) > 2:  # the second validation's: five frames are two batches
            return [Detections(np.full_like(one.boxes_lidar, np.nan), one.scores, one.labels) for one in good]
        return good

    monkeypatch.setattr(CenterPoint, "decode", diverged)
    train(recipe(steps=4), world, tmp_path, progress=quiet)
    good, bad = found(tmp_path)
    assert good["val/best"] and "val/mAP" not in bad and "best" not in str(bad)
    assert "not finite" in bad["val/failed"] or "nan" in bad["val/failed"].lower()
    assert read_metadata(tmp_path / BEST)["step"] == "2"
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_what_keeps_the_best_from_being_written_ends_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OutOfSpaceError("no space left")

    monkeypatch.setattr("trainer.validation.save_weights", full)
    with pytest.raises(OutOfSpaceError):
        train(recipe(), world, tmp_path, progress=quiet)
    assert not (tmp_path / BEST).exists() and not (tmp_path / WEIGHTS).exists()


def test_a_split_that_cannot_serve_is_refused_before_any_training(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"no split 'test' to validate on, it has train, val; set \[train\]"):
        train(recipe(validate_split="test"), world, run, progress=quiet)
    write_frames(tmp_path / "alone")
    with pytest.raises(ConfigError, match="no split val or mini_val to validate on, it has train"):
        train(recipe(), tmp_path / "alone", run, progress=quiet)
    write_frames(tmp_path / "bare", frames=8, val=2, unlabelled=(6, 7))
    with pytest.raises(StoreError, match=r"split 'val' has no annotated key frame"):
        train(recipe(), tmp_path / "bare", run, progress=quiet)
    write_frames(tmp_path / "blind", frames=8, val=2, points=False)
    student = make_recipe({**recipe().to_dict(), "model": TINY_TEACHER}, "test", "blind")
    with pytest.raises(StoreError, match="cache-frames --points"):
        train(student, tmp_path / "blind", run, progress=quiet)
    assert not run.exists()


def test_some_frames_are_spread_evenly_over_the_split(world: Path) -> None:
    store = FrameStore(world / "frames")
    config = TrainConfig(steps=1, lr=1.0, validate_frames=2)
    assert validation_rows(store, config, False) == [7, 9]
    assert validation_rows(store, config, True) == [6, 7, 8, 9, 10]
    assert validation_rows(store, config.model_copy(update={"validate_frames": 0}), False) == [6, 7, 8, 9, 10]
    assert validation_rows(store, config.model_copy(update={"validate_frames": 99}), False) == [6, 7, 8, 9, 10]


def test_the_metric_works_beside_the_training(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, steps = threading.Event(), []
    result = scoring_thread.ArrayMetric.result

    def slow(self: Any) -> Any:
        assert held.wait(60)
        return result(self)

    def on_step(report: Any) -> None:
        steps.append(report.done)
        if report.done == 4:
            held.set()

    monkeypatch.setattr(scoring_thread.ArrayMetric, "result", slow)
    train(recipe(steps=5, validate_every=3, checkpoint_every=9), world, tmp_path, progress=on_step)
    assert steps == [1, 2, 3, 4, 5]  # step 4 came while the metric of step 3 was still at work
    assert [line["step"] for line in found(tmp_path)] == [3, 5]
