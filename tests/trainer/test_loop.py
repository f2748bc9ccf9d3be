from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import ConfigError, CorruptError, FingerprintError, OutOfSpaceError, StoreError
from cache.files import file_sha256, read_json
from cache.frame import Detections
from models.build import load_weights, read_metadata
from models.detector import LossPart
from models.lift_splat import LiftSplat
from tests.trainer.conftest import BOXES
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, write_frames, write_teacher
from trainer import checkpoint, loop, run_lock
from trainer.checkpoints import checkpoint_path, list_checkpoints
from trainer.loader_options import STUCK_AFTER
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.observer import StepReport
from trainer.plan import make_plan
from trainer.recipe import Recipe, make_recipe
from trainer.run_files import CHECKPOINTS, RECORD, WEIGHTS
from trainer.setup import make_training
from trainer.step import DivergedError

TIMES = ("frames_per_s", "stall_share", "loader_s")
AUGMENTATION = {
    "bev_augmentation": {"flip_x": 0.5, "flip_y": 0.5, "rotation_deg": 22.5, "scale": [0.95, 1.05]},
    "image_augmentation": {"resize": [0.9, 1.1], "crop_x": True, "flip": 0.5, "brightness": 0.2, "contrast": 0.2},
}


def recipe(kind: str = "distilled", **train_values: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": TINY_TEACHER if kind == "teacher" else TINY_STUDENT,
        "data": {**AUGMENTATION, "teacher": "demo" if kind == "distilled" else ""},
        "train": {
            "steps": 8,
            "batch": 4,
            "lr": 1e-3,
            "log_every": 1,
            "checkpoint_every": 3,
            "ema": 0.9,
            **train_values,
        },
        "terms": [{"name": "bevdistill_dense"}] if kind == "distilled" else [],
    }
    return make_recipe(values, "test", kind)


def quiet(report: StepReport) -> None:
    pass


def killed_at(step: int) -> Any:
    def listener(report: StepReport) -> None:
        if report.done == step:
            raise KeyboardInterrupt

    return listener


def losses(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize("kind", ["distilled", "teacher"])
def test_a_resumed_run_goes_on_exactly(tmp_path: Path, cache: Path, kind: str) -> None:
    train(recipe(kind), cache, tmp_path / "whole", progress=quiet)
    for step in (2, 5, 7):  # before the first checkpoint, between two, after the last
        with pytest.raises(KeyboardInterrupt):
            train(recipe(kind), cache, tmp_path / "cut", resume=True, progress=killed_at(step))
        assert not (tmp_path / "cut" / WEIGHTS).exists()
    train(recipe(kind), cache, tmp_path / "cut", resume=True, progress=quiet)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [line["step"] for line in losses(tmp_path / "cut")] == list(range(1, 9))
    assert file_sha256(tmp_path / "cut" / WEIGHTS) == file_sha256(tmp_path / "whole" / WEIGHTS)


def test_a_run_killed_between_its_last_checkpoint_and_its_record_ends_as_if_it_had_not(
    tmp_path: Path, cache: Path
) -> None:
    whole = train(recipe(steps=3), cache, tmp_path / "run", progress=quiet)
    weights, log = (tmp_path / "run" / WEIGHTS).read_bytes(), (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / WEIGHTS).unlink()
    (tmp_path / "run" / RECORD).unlink()
    again = train(recipe(steps=3), cache, tmp_path / "run", resume=True, progress=quiet)
    assert (again.loss, again.steps, again.resumed_from) == (whole.loss, 3, 3)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == weights
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log
    assert read_json(tmp_path / "run" / RECORD, "the record")["loss"] == whole.loss


def test_two_runs_of_one_recipe_are_the_same_and_another_seed_is_not(tmp_path: Path, cache: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        train(recipe(steps=3, seed=seed), cache, tmp_path / name, progress=quiet)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert losses(tmp_path / "one")[0]["heatmap"] != losses(tmp_path / "other")[0]["heatmap"]


def test_with_and_without_a_term_the_student_starts_the_same(tmp_path: Path, cache: Path) -> None:
    for kind in ("student", "distilled"):
        train(recipe(kind, steps=1), cache, tmp_path / kind, progress=quiet)
    plain, distilled = losses(tmp_path / "student")[0], losses(tmp_path / "distilled")[0]
    assert distilled["heatmap"] == plain["heatmap"]
    assert distilled["depth"] == plain["depth"]
    assert distilled["bevdistill_dense"] > 0
    assert "bevdistill_dense" not in plain


def test_training_lowers_the_loss(tmp_path: Path, cache: Path) -> None:
    for kind in ("distilled", "teacher"):
        train(recipe(kind, steps=30, batch=2, lr=1e-2, warmup_steps=3), cache, tmp_path / kind, progress=quiet)
        seen = losses(tmp_path / kind)
        assert sum(line["loss"] for line in seen[-6:]) < 0.85 * sum(line["loss"] for line in seen[:6])
    assert (
        losses(tmp_path / "distilled")[-1]["bevdistill_dense"]
        < 0.85 * losses(tmp_path / "distilled")[0]["bevdistill_dense"]
    )


def test_the_run_folder_says_what_was_done(tmp_path: Path, cache: Path) -> None:
    reports: list[StepReport] = []
    chosen = recipe(log_every=4)
    result = train(chosen, cache, tmp_path / "run", progress=reports.append)
    assert [report.done for report in reports] == list(range(1, 9))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.json", "run.json", "metrics.jsonl", CHECKPOINTS, WEIGHTS,
    }  # fmt: skip
    assert Recipe.model_validate(json.loads((tmp_path / "run" / "recipe.json").read_text())) == chosen
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe_digest"] == chosen.digest
    assert record["stores"] == {
        "frames": file_sha256(cache / "frames" / "manifest.json"),
        "teachers/demo": file_sha256(cache / "teachers" / "demo" / "manifest.json"),
    }
    lines = read_metrics(result.metrics)
    assert [line["step"] for line in lines] == [4, 8]
    parts = {"heatmap", "center", "height", "dim", "rot", "vel", "depth", "bevdistill_dense"}
    assert set(lines[0]) == parts | {"step", "epoch", "lr", "loss", "gradient_norm", "digest", *TIMES}
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][part] for part in parts), rel=1e-5)
    assert result.steps == 8
    assert result.loss == lines[-1]["loss"]


def test_the_exported_model_is_the_average_and_holds_no_adaptor(tmp_path: Path, cache: Path) -> None:
    train(recipe(), cache, tmp_path / "run", progress=quiet)
    model = load_weights(tmp_path / "run" / WEIGHTS)
    from safetensors import safe_open

    with safe_open(checkpoint_path(tmp_path / "run", 8), framework="pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = model.state_dict()
    assert not any("adaptor" in name for name in state)
    assert any(name.startswith("terms.bevdistill_dense.adaptor") for name in saved)
    assert all(torch.equal(tensor, saved[f"average.{name}"]) for name, tensor in state.items())
    assert any(not torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in state.items())
    assert read_metadata(tmp_path / "run" / WEIGHTS)["recipe"] == "distilled"


def test_a_student_begins_from_a_backbone_file_and_says_what_it_skipped(tmp_path: Path, cache: Path) -> None:
    source = make_training(make_plan(recipe(seed=9), cache), torch.device("cpu")).model.get_submodule("backbone")
    weights = {**source.state_dict(), "fc.bias": torch.zeros(3)}
    torch.save(weights, tmp_path / "resnet.pth")
    begun = recipe(steps=1, backbone_weights=str(tmp_path / "resnet.pth"))
    training = make_training(make_plan(begun, cache), torch.device("cpu"))
    for name, tensor in training.model.get_submodule("backbone").state_dict().items():
        assert torch.equal(tensor, weights[name]), name
        assert training.average is not None
        assert torch.equal(training.average.tensors[f"backbone.{name}"], weights[name]), name
    plain = make_training(make_plan(recipe(), cache), torch.device("cpu")).model.state_dict()
    for name, tensor in training.model.state_dict().items():  # all else starts as without the file
        assert name.startswith("backbone.") or torch.equal(tensor, plain[name]), name
    result = train(begun, cache, tmp_path / "run", progress=quiet)
    assert "skipped the classifier: fc.bias" in result.backbone
    assert train(begun, cache, tmp_path / "run", resume=True, progress=quiet).backbone == result.backbone
    assert train(recipe(steps=1), cache, tmp_path / "other", progress=quiet).backbone == ""


def test_epochs_make_each_frame_come_once_per_epoch(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    original = LiftSplat.loss_parts

    def watched(self: LiftSplat, output: Any, batch: Any) -> dict[str, LossPart]:
        seen.append(batch.tokens)
        return original(self, output, batch)

    monkeypatch.setattr(LiftSplat, "loss_parts", watched)
    result = train(recipe("student", steps=None, epochs=2), cache, tmp_path / "run", progress=quiet)
    assert result.steps == 4
    assert [len(tokens) for tokens in seen] == [4, 2, 4, 2]
    for epoch in (seen[:2], seen[2:]):
        assert len({token for tokens in epoch for token in tokens}) == 6


def test_resume_is_refused_for_another_recipe_and_for_other_stores(tmp_path: Path, cache: Path) -> None:
    train(recipe(steps=2), cache, tmp_path / "run", progress=quiet)
    with pytest.raises(FingerprintError, match=r"begun with recipe\.train\.lr = 0\.001, this call has 0\.002"):
        train(recipe(steps=2, lr=2e-3), cache, tmp_path / "run", resume=True, progress=quiet)
    write_frames(tmp_path / "other", boxes=BOXES)
    write_teacher(tmp_path / "other", boxes=BOXES, seed=9)
    was = file_sha256(cache / "teachers" / "demo" / "manifest.json")
    now = file_sha256(tmp_path / "other" / "teachers" / "demo" / "manifest.json")
    with pytest.raises(FingerprintError, match=rf"stores\.teachers/demo = {was}, this call has {now}"):
        train(recipe(steps=2), tmp_path / "other", tmp_path / "run", resume=True, progress=quiet)


def test_a_folder_with_a_run_is_not_overwritten_and_a_finished_run_is_not_run_again(
    tmp_path: Path, cache: Path
) -> None:
    first = train(recipe(steps=2), cache, tmp_path / "run", progress=quiet)
    before = file_sha256(first.weights)
    with pytest.raises(ConfigError, match="holds a run; add --resume"):
        train(recipe(steps=2), cache, tmp_path / "run", progress=quiet)
    calls: list[StepReport] = []
    again = train(recipe(steps=2), cache, tmp_path / "run", resume=True, progress=calls.append)
    assert calls == []
    assert again == first
    assert file_sha256(again.weights) == before


def test_a_finished_run_whose_checkpoints_were_removed_is_not_begun_anew(tmp_path: Path, cache: Path) -> None:
    first = train(recipe(steps=2), cache, tmp_path / "run", progress=quiet)
    before = file_sha256(first.weights)
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS)
    calls: list[StepReport] = []
    assert train(recipe(steps=2, keep=5), cache, tmp_path / "run", resume=True, progress=calls.append) == first
    with pytest.raises(FingerprintError, match=r"begun with recipe\.train\.lr = 0\.001, this call has 0\.002"):
        train(recipe(steps=2, lr=2e-3), cache, tmp_path / "run", resume=True, progress=calls.append)
    (tmp_path / "run" / RECORD).unlink()
    with pytest.raises(ConfigError, match=r"neither a checkpoint to go on from nor the record of a finished run"):
        train(recipe(steps=2), cache, tmp_path / "run", resume=True, progress=calls.append)
    assert calls == [] and file_sha256(first.weights) == before


@pytest.mark.parametrize(("stuck", "patience"), [("900", 1800), ("5", 600), ("0", 600)])
def test_ranks_wait_until_the_watchdog_has_named_what_hangs(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, stuck: str, patience: float
) -> None:
    monkeypatch.setenv(STUCK_AFTER, stuck)
    given = list[float]()

    def joined(device: str | None, timeout_s: float) -> Any:
        given.append(timeout_s)
        raise ConfigError("no further")

    monkeypatch.setattr(loop, "joined", joined)
    with pytest.raises(ConfigError, match="no further"):
        train(recipe(), cache, tmp_path / "run", progress=quiet)
    assert given == [patience]


def test_two_trainings_of_one_folder_are_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_S", 0.3)

    def second(report: StepReport) -> None:
        if report.done == 2:
            with pytest.raises(ConfigError, match=r"run: another process trains in it; wait for its end, or choose"):
                train(recipe("student"), cache, tmp_path / "run", resume=True, progress=quiet)

    train(recipe("student", steps=3), cache, tmp_path / "run", progress=second)
    assert [line["step"] for line in losses(tmp_path / "run")] == [1, 2, 3]
    assert train(recipe("student", steps=3), cache, tmp_path / "run", resume=True, progress=quiet).steps == 3


def test_a_loss_that_is_not_finite_stops_the_run_naming_step_and_frames(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = LiftSplat.loss_parts, 0

    def poisoned(self: LiftSplat, output: Any, batch: Any) -> dict[str, LossPart]:
        nonlocal count
        count += 1
        parts = original(self, output, batch)
        if count == 5:
            parts["vel"] = LossPart(parts["vel"].numerator * float("nan"), parts["vel"].normaliser, 1.0)
        return parts

    monkeypatch.setattr(LiftSplat, "loss_parts", poisoned)
    with pytest.raises(
        DivergedError, match=r"step 5: not finite: \{'loss': nan, 'vel': nan\}; frames 0{31}\d"
    ) as caught:
        train(recipe(), cache, tmp_path / "run", progress=quiet)
    assert "\n" not in str(caught.value)
    assert checkpoint.read_state(list_checkpoints(tmp_path / "run")[0])["step"] == 3
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_what_the_stores_cannot_serve_is_refused_before_training(tmp_path: Path, cache: Path) -> None:
    write_frames(tmp_path / "bare", points=False, boxes=BOXES)
    with pytest.raises(StoreError, match="cache-frames --points"):
        train(recipe("teacher"), tmp_path / "bare", tmp_path / "run", progress=quiet)
    with pytest.raises(StoreError, match=r"no store.*cache-teacher"):
        train(recipe(), tmp_path / "bare", tmp_path / "run", progress=quiet)
    chosen = recipe("student")
    elsewhere = chosen.model_copy(update={"data": chosen.data.model_copy(update={"split": "val"})})
    with pytest.raises(StoreError, match=r"no split 'val'; it has \['train'\]"):
        train(elsewhere, cache, tmp_path / "run", progress=quiet)
    write_teacher(tmp_path / "bare", boxes=BOXES, world=1)
    with pytest.raises(FingerprintError, match=r"dataset_version = v1\.0-synthetic-1, but .* has v1\.0-synthetic-0"):
        train(recipe(), tmp_path / "bare", tmp_path / "run", progress=quiet)
    write_teacher(tmp_path / "bare", name="few", frames=4, boxes=BOXES)
    few = recipe().model_copy(update={"data": recipe().data.model_copy(update={"teacher": "few"})})
    with pytest.raises(StoreError, match=r"2 of 6 frames are missing, the first .*; run cache-teacher again"):
        train(few, tmp_path / "bare", tmp_path / "run", progress=quiet)
    assert not list_checkpoints(tmp_path / "run")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), cache, tmp_path / "run", progress=killed_at(4))
    (path,) = list_checkpoints(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptError, match="not a readable checkpoint"):
        train(recipe(), cache, tmp_path / "run", resume=True, progress=quiet)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), cache, tmp_path / "run", progress=killed_at(4))
    before = file_sha256(checkpoint_path(tmp_path / "run", 3))

    def full(*_: Any) -> None:
        raise OutOfSpaceError("no space left")

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(OutOfSpaceError):
        train(recipe(), cache, tmp_path / "run", resume=True, progress=quiet)
    assert file_sha256(checkpoint_path(tmp_path / "run", 3)) == before


def test_detections_are_what_a_finished_run_gives(tmp_path: Path, cache: Path) -> None:
    from cache.store import FrameStore
    from trainer.predict import load_run, predict

    train(recipe("teacher", steps=2), cache, tmp_path / "run", progress=quiet)
    store = FrameStore(cache / "frames")
    found = predict(load_run(tmp_path / "run"), store, [0, 3], progress=lambda done, total: None)
    assert set(found) == {store.tokens[0], store.tokens[3]}
    assert all(isinstance(value, Detections) for value in found.values())
