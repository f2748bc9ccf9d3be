"""`evaluate --report` and `compare` on real stores: from a cache to a page that a browser shows."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import fsspec
import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from cache.errors import ConfigError, DataError
from cache.store import FrameStore
from evaluation.subsets import parse_subset
from studies.benches.evaluate_data import made_up_split, write_stores
from studies.commands.training import compare, evaluate
from studies.comparing import ComparisonRequest, compare_sources
from studies.reporting import ReportRequest, reporter
from studies.scoring import evaluate_source
from tests.browser import browser, needs_browser
from tests.evaluation.test_evaluation_report import assert_sound
from tests.evaluation.test_report import Page


@pytest.fixture(scope="module")
def report(between_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the teacher store, by the command itself."""
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    evaluate.body(Context(), cache=str(between_cache), teacher="t", report=str(path), pictures="2", draws="20")
    return path


def make_run(folder: Path, weights: Path, recipe: str, seed: int, split: str = "mini_train") -> Path:
    """A finished run: a model, the recipe it wrote down, and a log."""
    folder.mkdir(parents=True)
    shutil.copy(weights, folder / "model.safetensors")
    said = {"name": recipe, "data": {"split": split, "teacher": "t"}, "train": {"seed": seed}, "terms": []}
    (folder / "recipe.json").write_text(json.dumps(said))
    lines = [{"step": step, "epoch": 0, "lr": 0.1, "loss": 1 / step} for step in range(1, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_page_has_the_figures_of_the_score_and_says_what_is_not_scored(between_cache: Path, report: Path) -> None:
    text = report.read_text()
    Page(text)
    summary = evaluate_source(between_cache, teacher="t").summary
    assert summary is not None and f"<dt>mAP</dt><dd>{summary['mAP']:.3f}" in text
    store = FrameStore(between_cache / "frames")
    unlabelled = len(store.split_rows("mini_val")) - len(store.key_rows("mini_val"))
    assert unlabelled > 0 and f"{unlabelled} unlabelled frames of the split, between its key frames" in text
    assert "The split has one scene, so there is no interval over scenes" in text
    assert f"--teacher t --split mini_val --report {report}" in text


@needs_browser
def test_the_pictures_of_worst_frames_are_shown(report: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as chromium:
        for width, dark in ((1400, False), (390, True)):
            look = chromium.look(report, width=width, dark=dark)
            assert_sound(look, width)
            assert look.seen["images"] >= 2 and "at the working scores" in look.seen["text"]


def test_a_submission_and_a_run_are_reported_as_the_teacher_is(
    between_cache: Path, weights: Path, tmp_path: Path
) -> None:
    def others(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder).name == "teachers" and name != "t"]

    cache = Path(shutil.copytree(between_cache, tmp_path / "cache", ignore=others))  # other tests add teachers
    evaluate_source(cache, teacher="t", export=tmp_path / "s.json")
    run = make_run(tmp_path / "runs" / "student", weights, "some-recipe", 4)
    for kind, ask in (("submission", {"submission": tmp_path / "s.json"}), ("run", {"run": run})):
        path = tmp_path / f"{kind}.html"
        outcome = evaluate_source(cache, **ask, listener=reporter(path, 1, 20))
        text = path.read_text()
        assert outcome.summary is not None and f"<dt>NDS</dt><dd>{outcome.summary['NDS']:.3f}" in text
        assert text.count("<img") >= 2 and "teacher drawn" in text
        assert ("some-recipe" in text and '<h2 id="training">' in text) == (kind == "run")


def test_an_image_that_is_damaged_is_told_and_the_rest_is_drawn(between_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(between_cache, tmp_path / "cache"))
    store = FrameStore(cache / "frames")
    for row in store.key_rows("mini_val"):
        data = store.image(row, "CAM_BACK")
        for shard in (cache / "frames" / "shards").iterdir():
            content = shard.read_bytes()
            shard.write_bytes(content.replace(data, data[:-20] + bytes(18) + data[-2:]))
    path = tmp_path / "report.html"
    evaluate_source(cache, teacher="t", listener=reporter(path, 1, 20))
    text = path.read_text()
    assert "no pictures of the cameras: " in text and 'class="bev"' in text and 'class="cameras"' not in text


def test_a_teacher_of_boxes_alone_and_frames_without_pictures_are_reported_with_what_there_is(tmp_path: Path) -> None:
    write_stores(tmp_path / "cache", made_up_split(90, 30), "boxes")
    path = tmp_path / "report.html"
    evaluate_source(tmp_path / "cache", teacher="boxes", listener=reporter(path, 2, 20))
    text = path.read_text()
    assert "no pictures of the cameras: 4 bytes do not decode" in text and "over 3 scenes (20 draws" in text
    assert text.count('<img class="bev"') == 3 and "<figcaption>" in text  # two worst frames and a typical one


def test_stores_at_a_url_are_reported_too(between_cache: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(between_cache), "/report-cache", recursive=True)
    try:
        path = tmp_path / "report.html"
        evaluate_source("memory://report-cache", teacher="t", listener=reporter(path, 1, 20))
        assert path.read_text().count("<img") >= 2
    finally:
        memory.rm("/report-cache", recursive=True)


def test_options_that_need_a_report_and_a_report_that_cannot_be_are_refused(
    between_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        ({"pictures": "2"}, "--pictures belongs to --report"),
        ({"draws": "1"}, "--draws 1: expected 2 or more"),
        ({"report": str(tmp_path)}, "is a folder; give a file in it"),
        ({"report": str(tmp_path / "r.html"), "audit": True}, "--audit takes no --report"),
    ):
        with pytest.raises(Exit):
            evaluate.body(Context(), cache=str(between_cache), teacher="t", **options)
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert ReportRequest(tmp_path / "r.html").pictures > 0


def test_runs_are_compared_with_their_seeds_in_terminal_csv_and_page(
    between_cache: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from models.build import build_detector, save_weights

    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny"}), other)
    runs = [make_run(tmp_path / f"plain-{seed}", weights, "plain", seed) for seed in (0, 1)]
    runs += [make_run(tmp_path / f"taught-{seed}", other, "taught", seed) for seed in (0, 1)]
    page, table = tmp_path / "c.html", tmp_path / "c.csv"
    compare.body(
        Context(),
        cache=str(between_cache),
        run=[str(run) for run in runs],
        teacher=["t"],
        split="mini_train",
        out=str(page),
        csv=str(table),
        draws="10",
        json=True,
    )
    said = capsys.readouterr().out
    summary = json.loads(said.splitlines()[-1])
    assert list(summary["models"]) == ["plain-0", "plain-1", "taught-0", "taught-1", "t"]
    assert summary["models"]["plain-0"] == evaluate_source(between_cache, run=runs[0], split="mini_train").summary
    assert [row["group"] for row in summary["seeds"]] == ["plain", "taught"]
    assert summary["seeds"][1]["gain"]["NDS"]["n"] == 2 and summary["seeds"][0]["gain"] is None
    assert "over seeds" in said and "minus" in said
    rows = list(csv.DictReader(table.open()))
    assert [(row["group"], row["seed"]) for row in rows[:4]] == [
        (f, str(s)) for f in ("plain", "taught") for s in (0, 1)
    ]
    text = page.read_text()
    Page(text)
    assert 'id="seeds"' in text and text.count("<polyline") >= 4


def test_runs_of_different_training_splits_are_refused_naming_both(
    between_cache: Path, weights: Path, tmp_path: Path
) -> None:
    runs = [str(make_run(tmp_path / split, weights, split, 0, split)) for split in ("mini_train", "mini_val")]
    said = r"mini_train was trained on the split 'mini_train' and mini_val on 'mini_val'.* --mixed"
    with pytest.raises(ConfigError, match=said):
        compare_sources(between_cache, ComparisonRequest(runs=runs))
    outcome = compare_sources(between_cache, ComparisonRequest(runs=runs, mixed=True, draws=5))
    assert outcome.summary is not None and len(outcome.summary["models"]) == 2


def test_what_makes_no_comparison_is_refused_before_anything_is_scored(
    between_cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.comparing.evaluate_source", lambda *_, **__: pytest.fail("something was scored"))
    run = str(make_run(tmp_path / "a" / "student", weights, "r", 0))
    with pytest.raises(ConfigError, match="1 to compare; give --run"):
        compare_sources(between_cache, ComparisonRequest(runs=[run]))
    with pytest.raises(ConfigError, match="a/student is given twice"):
        compare_sources(between_cache, ComparisonRequest(runs=[run, run]))
    with pytest.raises(ConfigError, match="expected a run's folder or LABEL=FOLDER"):
        compare_sources(between_cache, ComparisonRequest(runs=["=x", run]))
    two: dict[str, Any] = {"runs": [run], "teachers": ["t"]}
    with pytest.raises(ConfigError, match="no 'z' to compare with; there are student, t, labels r"):
        compare_sources(between_cache, ComparisonRequest(**two, baseline="z"))
    with pytest.raises(ConfigError, match=r"--out .* is a folder; give a file in it"):
        compare_sources(between_cache, ComparisonRequest(**two, html=tmp_path))
    with pytest.raises(ConfigError, match="--out and --csv are one file"):
        compare_sources(between_cache, ComparisonRequest(**two, html=tmp_path / "x", csv=tmp_path / "x"))
    said = tmp_path / "s.json"
    with pytest.raises(ConfigError, match=r"--submission .*s\.json and --csv are one file"):
        compare_sources(between_cache, ComparisonRequest(teachers=["t"], submissions=[str(said)], csv=said))
    with pytest.raises(ConfigError, match="--callable belongs to --run"):
        compare_sources(between_cache, ComparisonRequest(teachers=["t", "u"], trusted="a.b:c"))


def test_equal_folder_names_labels_and_equal_seeds_are_told_apart(
    between_cache: Path, weights: Path, tmp_path: Path
) -> None:
    runs = [str(make_run(tmp_path / part / "student", weights, "r", 0)) for part in ("a", "b")]
    outcome = compare_sources(between_cache, ComparisonRequest(runs=runs, draws=5))
    assert outcome.summary is not None and list(outcome.summary["models"]) == ["a/student", "b/student"]
    assert any("no table over seeds: r: two runs of seed 0" in str(line) for line in outcome.renderables)
    labelled = [f"one={runs[0]}", f"two={runs[1]}"]
    outcome = compare_sources(between_cache, ComparisonRequest(runs=labelled, baseline="two", draws=5))
    assert outcome.summary is not None and outcome.summary["base"] == "b/student"


def test_a_submission_of_another_split_is_refused_by_its_tokens(between_cache: Path, tmp_path: Path) -> None:
    evaluate_source(between_cache, teacher="t", split="mini_train", export=tmp_path / "train.json")
    request = ComparisonRequest(teachers=["t"], submissions=[str(tmp_path / "train.json")], split="mini_val")
    with pytest.raises(DataError, match=re.escape("train.json") + ".*missing"):
        compare_sources(between_cache, request)


def test_the_command_in_a_report_makes_it_again_whatever_its_words_hold(between_cache: Path, tmp_path: Path) -> None:
    store, path = FrameStore(between_cache / "frames"), tmp_path / "of a $(part).html"
    said = next(scene.description for scene in store.manifest.scenes if scene.split == "mini_train")
    subset = parse_subset([f"description={said}", "distance=0-30"])
    assert " " in said
    listener = reporter(path, 0, 7)
    evaluate_source(between_cache, teacher="t", split="mini_train", subset=subset, listener=listener)
    (command,) = re.findall(r"\./bevcask evaluate [^\n<]*", unescape(path.read_text()))
    words = shlex.split(command)
    given = [value for option, value in itertools.pairwise(words) if option == "--subset"]
    assert parse_subset(given) == subset and words[words.index("--report") + 1] == str(path)
    assert words[words.index("--draws") + 1] == "7" and words[words.index("--pictures") + 1] == "0"


def test_the_command_of_a_comparison_tells_every_option(between_cache: Path, tmp_path: Path) -> None:
    evaluate_source(between_cache, teacher="t", split="mini_train", export=tmp_path / "a b.json")
    page, table = tmp_path / "c d.html", tmp_path / "c d.csv"
    request = ComparisonRequest(
        teachers=["t"], submissions=[str(tmp_path / "a b.json")], split="mini_train", draws=7, csv=table, html=page
    )
    compare_sources(between_cache, request)
    (command,) = re.findall(r"\./bevcask compare [^\n<]*", unescape(page.read_text()))
    words = shlex.split(command)
    asked = dict(zip(words[2::2], words[3::2], strict=True))
    assert asked["--submission"] == str(tmp_path / "a b.json") and asked["--split"] == "mini_train"
    assert asked["--draws"] == "7" and asked["--csv"] == str(table) and asked["--out"] == str(page)
