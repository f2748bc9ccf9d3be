"""From a recording with images between key frames to a scored student, and scores that those frames leave alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from invoke.context import Context

from cache.errors import DataError
from cache.files import read_json
from cache.store import FrameStore
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher
from studies.auditing import audit_source
from studies.commands.training import train
from studies.scoring import evaluate_source, score
from studies.sources import teacher_detections
from studies.training import loss_curves
from tests.conftest import SIMULATED_VERSION
from tests.studies.test_scoring import perfect
from trainer.metrics import read_metrics
from trainer.recipe import RECIPES

# the shipped recipe's text -> the same on a small student, for a moment
SMALLER = {
    "[model]": "[model]\nimage_size = [64, 32]\nfpn_channels = 16\ncontext_channels = 8\ndepth = { bins = 8 }\n"
    "backbone = { layers = [1, 1, 1, 1], base_width = 8 }\nencoder = { filters = [8, 12, 16], neck_channels = 6 }",
    'split = "train"': 'split = "mini_train"',
    "\nsteps = 1300\nbatch = 4": "\nsteps = 4\nbatch = 2\nlog_every = 1",
    "warmup_steps = 50": "warmup_steps = 1",
}


@pytest.fixture(scope="module")
def pair(between_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Caches of one recording with and without frames between, each with the teacher `t`; one frame a forward pass,
    since a sum's rounding may depend on what else is in a batch."""
    places = []
    for between in (2, 0):
        place = tmp_path_factory.mktemp("pair") / f"between-{between}"
        options = FrameOptions(image_scale=0.1, points=True, sweeps=2, between=between)
        cache_frames(between_root, SIMULATED_VERSION, place, options=options, workers=1)
        asked = TeacherOptions("gaussian+topk(k=300)", batch=1)
        cache_teacher(place, "t", teacher="own", checkpoint=weights, options=asked, workers=1)
        places.append(place)
    return places[0], places[1]


@pytest.mark.parametrize("split", ["mini_train", "mini_val"])
def test_a_teachers_score_and_audit_are_those_of_a_store_without_frames_between(
    pair: tuple[Path, Path], split: str
) -> None:
    given = []
    for place in pair:
        store = FrameStore(place / "frames")
        rows = store.key_rows(split)
        detections = teacher_detections(store, rows, place / "teachers" / "t")
        given.append(score(store, rows, detections).to_dict())
        assert given[-1]["detection_counts"]["given"] > 0
    assert given[0] == given[1]
    first, second = (evaluate_source(place, teacher="t", split=split) for place in pair)
    assert first.summary == second.summary and "2 samples" in str(first.renderables[0])
    audits = [audit_source(place, "t", split=split).summary for place in pair]
    assert audits[0] == audits[1] and audits[0]["audit"]["frames"]["unlabelled"] == 0
    assert audits[0]["audit"]["frames"]["labelled"] == 2


def test_the_truth_of_key_frames_given_back_scores_the_same(pair: tuple[Path, Path]) -> None:
    found = []
    for place in pair:
        store = FrameStore(place / "frames")
        rows = store.key_rows()
        found.append(score(store, rows, perfect(store, rows)))
    assert found[0] == found[1] and found[0].mATE < 0.5


def test_a_submission_has_the_key_frames_of_a_version_without_annotations(
    between_root: Path, weights: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for part in between_root.iterdir():
        if part.name != SIMULATED_VERSION:
            (root / part.name).symlink_to(part)
    tables = Path(shutil.copytree(between_root / SIMULATED_VERSION, root / SIMULATED_VERSION))
    for name in ("sample_annotation", "instance"):
        (tables / f"{name}.json").write_text("[]")
    cache = tmp_path / "c"
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0, between=1)
    cache_frames(root, SIMULATED_VERSION, cache, split="mini_val", options=options, workers=1)
    cache_teacher(cache, "t", teacher="own", checkpoint=weights, workers=1)
    store = FrameStore(cache / "frames")
    assert store.index.kind.tolist() == [1, 1, 1] and store.key_rows() == [0, 2]
    with pytest.raises(DataError, match="has no annotations"):
        evaluate_source(cache, teacher="t")
    path = tmp_path / "submission.json"
    evaluate_source(cache, teacher="t", export=path)
    assert list(json.loads(path.read_text())["results"]) == [store.tokens[0], store.tokens[2]]


def test_a_student_learns_from_both_kinds_and_is_scored_on_key_frames(
    between_cache: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped recipe on a smaller student, as the command runs it: a term that applies to both kinds, and one that
    applies to key frames only beside it."""
    cache_teacher(between_cache, "demo", teacher="own", checkpoint=weights, workers=1)
    text = (RECIPES / "demo-unlabelled.toml").read_text()
    for part, other in SMALLER.items():
        assert part in text
        text = text.replace(part, other)
    for selector, skipped in (("confident", 0), ("gaussian", 4)):
        written, run = tmp_path / f"{selector}.toml", tmp_path / selector
        written.write_text(text.replace('"confident"', f'"{selector}"'))
        train(Context(), recipe=str(written), cache=str(between_cache), run=str(run), threads="1")
        said = " ".join(capsys.readouterr().out.split())
        assert "4 of the frames of its steps were unlabelled" in said
        line = "bevdistill_dense: skipped on 4 unlabelled frames"
        assert (line in said) == bool(skipped)
        lines = read_metrics(run / "metrics.jsonl")
        assert lines[-1]["unlabelled_frames"] == 4
        assert lines[-1]["skipped"] == ({"bevdistill_dense": 4} if skipped else {})
        assert all(np.isfinite(row["loss"]) and row["depth"] > 0 for row in lines)
        assert {curve.panel for curve in loss_curves("x", run)} >= {"loss", "heatmap", "bevdistill_dense"}
        assert not {"skipped", "unlabelled_frames"} & {curve.panel for curve in loss_curves("x", run)}
        assert read_json(run / "run.json", "a run")["unlabelled_per_epoch"] == 2
        outcome = evaluate_source(between_cache, run=run, split="mini_val")
        assert outcome.summary is not None and "2 samples" in str(outcome.renderables[0])
