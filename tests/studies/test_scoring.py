"""`evaluate`: one source, the right split, equal to the unmodified devkit, honest where nothing can be scored."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from cache.errors import ConfigError, DataError, StoreError
from cache.frame import Detections
from cache.store import FrameStore, TeacherStore
from evaluation.audit import audit_store
from evaluation.subsets import parse_subset
from pipeline.frames import FrameOptions, cache_frames
from pipeline.simulator import simulate
from pipeline.teacher import TeacherOptions, cache_teacher
from studies.auditing import audit_source
from studies.commands.training import evaluate
from studies.inspection import describe, draw_token
from studies.reporting import reporter
from studies.scoring import choose_split, evaluate_source, score, score_shuffled
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

ROOT = Path(__file__).parents[2]
VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def cache(simulated_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=2)
    cache_frames(simulated_root, VERSION, folder, options=options, workers=1)
    cache_teacher(folder, "t", teacher="own", checkpoint=weights, workers=1)
    return folder


def perfect(store: FrameStore, rows: list[int]) -> dict[str, Detections]:
    """The annotations given back as predictions."""
    out = {}
    for row in rows:
        boxes = store.boxes_lidar(row)
        out[store.tokens[row]] = Detections(boxes, np.full(len(boxes), 0.9, np.float32), store.truth(row).class_ids)
    return out


def test_the_validation_split_is_the_default(cache: Path) -> None:
    store = FrameStore(cache / "frames")
    assert choose_split(store, None) == "mini_val"
    assert choose_split(store, "mini_train") == "mini_train"
    with pytest.raises(StoreError, match="no split 'val'; it has"):
        choose_split(store, "val")


def test_the_truth_given_back_scores_high_and_on_other_frames_low(cache: Path) -> None:
    store = FrameStore(cache / "frames")
    rows = store.split_rows("mini_train")
    own, other = score(store, rows, perfect(store, rows)), score_shuffled(store, rows, perfect(store, rows))
    present = [name for name in own.ap if any(own.ap[name].values())]
    assert len(present) >= 5 and np.mean([own.class_ap(name) for name in present]) > 0.8
    assert own.mATE < 0.5 and other.mAP < own.mAP / 3


def test_a_teacher_store_is_scored_as_the_devkit_scores_its_exported_submission(
    cache: Path, simulated_root: Path, tmp_path: Path
) -> None:
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.nuscenes import NuScenes

    path = tmp_path / "submission.json"
    outcome = evaluate_source(cache, teacher="t", export=path)
    assert outcome.summary is not None
    nusc = NuScenes(VERSION, str(simulated_root), verbose=False)
    config = config_factory("detection_cvpr_2019")
    theirs, _ = DetectionEval(nusc, config, str(path), "mini_val", str(tmp_path), verbose=False).evaluate()
    assert outcome.summary["mAP"] == pytest.approx(theirs.mean_ap, abs=1e-12)
    assert outcome.summary["NDS"] == pytest.approx(theirs.nd_score, abs=1e-12)
    again = evaluate_source(cache, submission=path)
    assert again.summary == outcome.summary


def test_lost_frames_are_told_and_no_partial_submission_is_written(
    simulated_root: Path, weights: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(simulated_root, tmp_path / "data"))
    sorted((root / "samples" / "CAM_BACK").iterdir())[0].write_bytes(b"")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(root, VERSION, tmp_path / "c", options=options, workers=1)
    cache_teacher(tmp_path / "c", "t", teacher="own", checkpoint=weights, workers=1)
    outcome = evaluate_source(tmp_path / "c", teacher="t")
    assert "1 frames could not be read" in str(outcome.renderables[0])
    with pytest.raises(StoreError, match="1 frames are quarantined, and a submission must have every sample"):
        evaluate_source(tmp_path / "c", teacher="t", export=tmp_path / "s.json")
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("sources", [{}, {"teacher": "t", "submission": Path("x.json")}])
def test_exactly_one_source_is_asked_for(cache: Path, sources: dict) -> None:
    with pytest.raises(ConfigError, match="exactly one of --run, --teacher and --submission"):
        evaluate_source(cache, **sources)


def test_a_version_without_annotations_exports_and_says_that_it_cannot_be_scored(weights: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "data", version="v1.0-test", scenes={"test": 1}, frames=1, sweeps=0, seed=5, workers=1)
    cache = tmp_path / "c"
    cache_frames(tmp_path / "data", "v1.0-test", cache, options=FrameOptions(image_scale=0.1, points=True), workers=1)
    cache_teacher(cache, "t", teacher="own", checkpoint=weights, workers=1)
    with pytest.raises(DataError, match=r"v1\.0-test \(test\) has no annotations, so it can't be scored"):
        evaluate_source(cache, teacher="t")
    path = tmp_path / "submission.json"
    for more in (
        {"official": True},
        {"export_summary": tmp_path / "s.json"},
        {"listener": reporter(tmp_path / "r.html", 0, 5)},
    ):
        with pytest.raises(ConfigError, match="no figures to report: leave --report, --export-summary and --official"):
            evaluate_source(cache, teacher="t", export=path, **more)
    assert not path.exists() and not (tmp_path / "s.json").exists() and not (tmp_path / "r.html").exists()
    outcome = evaluate_source(cache, teacher="t", export=path)
    assert outcome.summary is None and "can't be scored" in str(outcome.renderables[-1])
    written = json.loads(path.read_text())
    assert list(written["results"]) == FrameStore(cache / "frames").tokens and written["meta"]["use_lidar"] is True
    audited = audit_source(cache, "t", out=tmp_path / "a.png")
    assert "nothing to compare the teacher with: cells only" in str(audited.renderables)
    assert "a.png is not written" in str(audited.renderables) and not (tmp_path / "a.png").exists()
    assert audited.summary is not None and set(audited.summary) == {"audit"}
    assert audited.summary["audit"]["frames"]["unlabelled"] == 1 and "classes" not in audited.summary["audit"]
    exported = audit_source(cache, "t", export=tmp_path / "again.json")
    assert "can't be scored" in str(exported.renderables[1]) and (tmp_path / "again.json").exists()


def test_audit_prints_the_score_and_the_audit_and_writes_the_picture(cache: Path, tmp_path: Path) -> None:
    picture = tmp_path / "[new]" / "audit.png"
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "invoke", "--search-root", str(ROOT), "evaluate", "--cache", str(cache)),
            *("--teacher", "t", "--audit", "--score", "0.05", "--split", "mini_train", "--out", str(picture), "--json"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    plain = evaluate_source(cache, teacher="t", split="mini_train").summary
    assert {key: value for key, value in said.items() if key != "audit"} == plain
    audit = said["audit"]
    store = FrameStore(cache / "frames")
    expected = audit_store(store, TeacherStore(cache / "teachers" / "t"), store.split_rows("mini_train"), 0.05)
    assert audit == {"split": "mini_train", **expected.to_dict()} and audit["totals"]["counted"] > 20
    assert "objects have no support" in done.stdout and "stored cells" in done.stdout
    assert "[new]/audit.png" in "".join(done.stdout.split())
    assert "next: ./bevcask train --recipe demo-distilled" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_after_another_split_the_audit_of_the_training_split_is_next(cache: Path) -> None:
    assert audit_source(cache, "t").next_step.endswith("--teacher t --audit --split mini_train")


def test_where_some_frames_have_no_annotations_the_others_are_audited_and_nothing_is_scored(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = FrameStore(cache / "frames").split_rows("mini_train")
    monkeypatch.setattr(FrameStore, "is_labelled", lambda store, row: row != rows[0])
    outcome = audit_source(cache, "t", split="mini_train")
    assert str(outcome.renderables[0]).startswith("1 of 4 frames of mini_train have no annotations")
    assert outcome.summary is not None and set(outcome.summary) == {"audit"}
    audit = outcome.summary["audit"]
    assert (audit["frames"]["labelled"], audit["frames"]["unlabelled"]) == (3, 1) and audit["totals"]["counted"] > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"teacher": "gone", "audit": True}, r"gone: no store"),
        ({"teacher": "other", "audit": True}, r"other: classes = .* cache the teacher again on these frames"),
        ({"teacher": "t", "audit": True, "score": "1.5"}, r"--score 1\.5: expected 0 to 1"),
        ({"teacher": "t", "audit": True, "score": "nan"}, r"--score nan: expected 0 to 1"),
        ({"teacher": "t", "audit": True, "score": "high"}, r"--score 'high' is not a number"),
        ({"teacher": "t", "audit": True, "out": "a.html"}, r"--out a\.html: the heat maps are a PNG"),
        ({"teacher": "t", "audit": True, "split": "val"}, r"no split 'val'; it has"),
        ({"teacher": "t", "score": "0.5"}, r"--score belongs to --audit"),
        ({"teacher": "t", "out": "a.png"}, r"--out belongs to --audit"),
        ({"run": "r", "audit": True}, r"--audit looks into a teacher store: give --teacher"),
        ({"audit": True}, r"--audit looks into a teacher store: name it with --teacher"),
    ],
)
def test_wrong_arguments_of_an_audit_are_one_line(
    cache: Path, capsys: pytest.CaptureFixture[str], options: dict, says: str
) -> None:
    other = cache / "teachers" / "other"
    if not other.exists():
        shutil.copytree(ROOT / "tests" / "golden" / "v1" / "teachers" / "cells-fp16", other)
    try:
        with pytest.raises(Exit) as ended:
            evaluate(Context(), cache=str(cache), **options)
    finally:
        shutil.rmtree(other)
    said = capsys.readouterr()
    assert ended.value.code == 1 and len(said.err.splitlines()) == 1 and said.out == ""
    assert re.search(says, said.err), said.err


def test_inspect_tells_and_draws(cache: Path, tmp_path: Path) -> None:
    said = " ".join(str(part) for part in describe(cache) if isinstance(part, str))
    assert "mini_train 4 frames, mini_val 2 frames" in said and "coverage gaussian" in said
    store = FrameStore(cache / "frames")
    path = draw_token(cache, store.tokens[0], None, tmp_path / "frame.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 100_000
    with pytest.raises(StoreError, match="no teacher store 'gone'; it has"):
        draw_token(cache, store.tokens[0], "gone", tmp_path / "other.png")


@needs_real_data
def test_the_real_keyframe_goes_through_every_task(weights: Path, tmp_path: Path) -> None:
    cache_frames(REAL_ROOT, VERSION, tmp_path, workers=1)
    options = TeacherOptions("gaussian", sweeps=0)
    cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, data_root=REAL_ROOT, options=options, workers=1)
    outcome = evaluate_source(tmp_path, teacher="t")
    assert outcome.summary is not None and 0 <= outcome.summary["NDS"] <= 1
    assert "33 of 68 annotated boxes count" in str(outcome.renderables[0])
    token = FrameStore(tmp_path / "frames").tokens[0]
    assert draw_token(tmp_path, token, "t", tmp_path / "real.png").stat().st_size > 500_000


def test_the_devkits_own_code_gives_the_same_table_and_json(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    for source in ({"teacher": "t", "export": path}, {"submission": path}):
        ours, theirs = (evaluate_source(cache, split="mini_train", official=o, **source) for o in (False, True))
        assert ours.summary is not None and theirs.summary is not None
        assert ours.summary == pytest.approx(theirs.summary, abs=1e-12) and list(ours.summary) == list(theirs.summary)
        lines = [[part for part in said.renderables if isinstance(part, str)] for said in (ours, theirs)]
        assert lines[0] == lines[1]


def test_a_subset_is_scored_by_scene_and_by_box_from_every_source(cache: Path, tmp_path: Path) -> None:
    store, path = FrameStore(cache / "frames"), tmp_path / "submission.json"
    rows = store.key_rows("mini_train")
    scene = store.scene_of(rows[0])
    subset = parse_subset([f"scenes={scene}", "distance=0-25", "classes=vehicles"])
    evaluate_source(cache, teacher="t", split="mini_train", export=path)
    said = evaluate_source(cache, teacher="t", split="mini_train", subset=subset)
    some = [row for row in rows if store.scene_of(row) == scene]
    assert 0 < len(some) < len(rows) and f"{subset}: {len(some)} samples" in str(said.renderables[0])
    detections = {store.tokens[row]: TeacherStore(cache / "teachers" / "t").detections(row) for row in some}
    assert said.summary == score(store, some, detections, subset=subset).summary()
    assert evaluate_source(cache, submission=path, split="mini_train", subset=subset).summary == said.summary
    assert said.summary != evaluate_source(cache, teacher="t", split="mini_train").summary


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"subset": ["near=5"]}, r"subset: there is no 'near'; expected one of scenes="),
        ({"subset": ["distance"]}, r"subset 'distance': expected KEY=VALUE"),
        ({"subset": ["distance=a-b"]}, r"subset 'distance=a-b': not numbers"),
        ({"subset": ["distance=20-10"]}, r"distance \(20\.0, 10\.0\), expected 0 <= from < to"),
        ({"subset": ["classes=van"]}, r"classes van; expected car"),
        ({"subset": ["visibility=7"]}, r"visibility \(7,\), expected 1 to 4"),
        ({"subset": ["scenes=a", "scenes=b"]}, r"scenes is given twice"),
        ({"subset": ["scenes=scene-9999"]}, r"no scene scene-9999 in the frame store"),
        ({"subset": ["description=no such words"]}, r"none of the 2 frames is in it"),
        ({"subset": ["distance=0-9"], "official": True}, r"--subset scores a part of the split: leave --official"),
        ({"subset": ["distance=0-9"], "export": "x.json"}, r"--subset scores a part of the split: leave --official"),
        ({"subset": ["visibility=+"]}, r"subset 'visibility=\+': names nothing"),
        ({"subset": ["scenes=+"]}, r"subset 'scenes=\+': names nothing"),
        ({"subset": ["description=!"]}, r"subset 'description=!': names nothing"),
        ({"official": True, "audit": True}, r"--audit takes no --official"),
        ({"nproc": "2", "audit": True}, r"--audit takes no --nproc"),
        ({"weights": "best", "audit": True}, r"--audit takes no --weights"),
        ({"callable": "a.b:c", "audit": True}, r"--audit takes no --callable"),
        ({"callable": "a.b:c"}, r"--callable belongs to --run"),
    ],
)
def test_wrong_subsets_are_one_line(cache: Path, capsys: pytest.CaptureFixture[str], options: dict, says: str) -> None:
    with pytest.raises(Exit):
        evaluate(Context(), cache=str(cache), teacher="t", **options)
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and re.search(says, said.err), said.err
