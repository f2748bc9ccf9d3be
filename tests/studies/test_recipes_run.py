"""The methods' small recipes, from the simulator's folder through frame and teacher stores to a trained student."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from invoke.context import Context

from models.build import build_detector, load_weights, save_weights
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import SHIPPED_TEACHERS, TeacherOptions, cache_teacher
from studies.commands.training import train
from studies.scoring import evaluate_source
from studies.training import loss_curves, train_run
from tests.conftest import SIMULATED_VERSION
from tests.trainer.recipe_lines import cache_line
from trainer.initialise import REPORT
from trainer.metrics import read_metrics
from trainer.recipe import load_recipe

SMALL_CAMERA: dict[str, Any] = {
    "image_size": [64, 32],
    "fpn_channels": 16,
    "context_channels": 8,
    "depth": {"bins": 8},
    "backbone": {"layers": [1, 1, 1, 1], "base_width": 8},
    "encoder": {"filters": [8, 12, 16], "neck_channels": 6},
}
SMALL_BEVFORMER: dict[str, Any] = {
    "image_size": [64, 32],
    "channels": 16,
    "bev": {"cell_m": 1.6},
    "backbone": {"layers": [1, 1, 1, 1], "base_width": 8},
    "encoder": {"layers": 1, "hidden": 16},
    "transformer": {"decoder_layers": 2, "queries": 12, "hidden": 16},
}
RUNS: dict[str, tuple[dict[str, Any], set[str]]] = {  # recipe -> the model made smaller, the terms' parts in its log
    "bevdistill-tiny": (
        SMALL_CAMERA,
        {"bevdistill_dense", "bevdistill_instance.class", "bevdistill_instance.box", "bevdistill_contrast"},
    ),
    "bevdistill-query-tiny": (
        SMALL_BEVFORMER,
        {"bevdistill_dense", "bevdistill_sparse.class", "bevdistill_sparse.box", "bevdistill_contrast"},
    ),
    "sparsekd-tiny": ({}, {"sparsekd_logits", "sparsekd_regression"}),
    "bev-lgkd-tiny": (SMALL_CAMERA, {"lgkd_feature", "lgkd_response.class", "lgkd_response.box"}),
    "bev-lgkd-camera-tiny": (SMALL_CAMERA, {"lgkd_feature", "lgkd_depth", "lgkd_response.class", "lgkd_response.box"}),
}


@pytest.fixture(scope="module")
def frames(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with frames, to which each test adds its teacher."""
    cache = tmp_path_factory.mktemp("recipes") / "cache"
    options = FrameOptions(image_scale=0.1, points=True, sweeps=2)
    cache_frames(simulated_root, SIMULATED_VERSION, cache, split="mini_train", options=options, workers=1)
    return cache


def with_teacher(cache: Path, recipe: str, folder: Path) -> None:
    """The store that the recipe's own comment says how to make, once."""
    line = cache_line(recipe)
    assert line is not None
    checkpoint = None
    if line.teacher == "own":
        torch.manual_seed(1)
        checkpoint = folder / "camera.safetensors"
        save_weights(build_detector({"preset": "lift-splat-tiny", **SMALL_CAMERA}), checkpoint)
    options = TeacherOptions(line.coverage, fields=line.fields)
    cache_teacher(cache, line.name, teacher=line.teacher, checkpoint=checkpoint, options=options, workers=1)


def smaller(recipe: str) -> dict[str, Any]:
    return {
        "model": RUNS[recipe][0],
        "data": {"split": "mini_train"},
        "train": {"steps": 3, "batch": 2, "warmup_steps": 1, "log_every": 1},
    }


@pytest.mark.parametrize("recipe", RUNS)
def test_a_method_runs_from_its_stores_and_logs_every_part(recipe: str, frames: Path, tmp_path: Path) -> None:
    with_teacher(frames, recipe, tmp_path)
    summary = train_run(recipe, frames, tmp_path / "run", threads=1, overrides=smaller(recipe))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3] and summary["steps"] == 3
    terms = tuple(term.name for term in load_recipe(recipe).terms)
    logged = {name for name in lines[0] if name.startswith(terms) and "/" not in name}
    assert logged == RUNS[recipe][1]
    for part in logged:
        assert all(math.isfinite(line[part]) and line[part] > 0 for line in lines), part
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
    load_weights(tmp_path / "run" / "model.safetensors")


def test_a_temporal_student_trains_and_is_scored(frames: Path, tmp_path: Path) -> None:
    over = {
        "model": {**SMALL_BEVFORMER, "heat": {"channels": 16, "hidden": 8}},
        "data": {"split": "mini_train"},
        "train": {"steps": 3, "batch": 2, "warmup_steps": 1, "log_every": 1, "ema": 0.0},
    }
    summary = train_run("bevformer-t-demo", frames, tmp_path / "run", threads=1, overrides=over)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert summary["steps"] == 3 and all(math.isfinite(line["loss"]) for line in lines)
    assert load_weights(tmp_path / "run" / "model.safetensors").config["queue"] == 3
    outcome = evaluate_source(str(frames), run=tmp_path / "run", split="mini_train")
    assert 0 <= outcome.summary["NDS"] <= 1


def test_sparsekd_begins_from_its_teacher_changes_labels_and_says_so(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_teacher(frames, "sparsekd-tiny", tmp_path)
    written, run = tmp_path / "mine.toml", tmp_path / "run"
    written.write_text(
        'extends = "sparsekd-tiny"\n[data]\nsplit = "mini_train"\n'
        "[train]\nsteps = 1\nbatch = 2\nwarmup_steps = 1\nlog_every = 1\n"
    )
    train(Context(), recipe=str(written), cache=str(frames), run=str(run), init_scheme="bn_scale", threads="1")
    said = " ".join(capsys.readouterr().out.split())
    assert "began from demo by bn_scale: " in said and "sliced" in said and str(run / REPORT) in said
    report = (run / REPORT).read_text()
    student = load_weights(run / "model.safetensors")
    assert all(name in report for name in student.state_dict())
    line = read_metrics(run / "metrics.jsonl")[0]
    assert line["sparsekd_label/kept"] + line["sparsekd_label/duplicates"] > 0
    assert not [curve.panel for curve in loss_curves("x", run) if "/" in curve.panel]


def test_the_shipped_teacher_is_what_init_from_demo_reads() -> None:
    from trainer.initialise import teacher_weights

    assert teacher_weights("demo").samefile(SHIPPED_TEACHERS["demo"])
