"""Where a command's files can't be written is told before anything is scored, and nothing is left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from cache.errors import ConfigError
from studies.benches.evaluate_data import made_up_split, write_stores
from studies.commands.training import evaluate
from studies.outputs import require_outputs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_stores(folder, made_up_split(6, 20), "boxes")
    return folder


def test_places_that_can_hold_a_file_are_taken(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    require_outputs({"--a": tmp_path / "old", "--b": tmp_path / "new" / "deep" / "file", "--c": None})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is a folder; give a file in it"),
        ("file/below", "file is a file, expected a folder"),
        ("link", "--in and --out are one file"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(ConfigError, match=says):
        require_outputs({"--out": tmp_path / name}, {"--in": tmp_path / "file"})


def test_a_url_and_a_folder_without_permission_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--out s3:/b/x: expected a local file"):
        require_outputs({"--out": Path("s3://b/x")})
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root everything is allowed
    with pytest.raises(ConfigError, match="no permission to write into"):
        require_outputs({"--out": tmp_path / "x"})


@pytest.mark.parametrize("option", ["report", "export", "export_summary"])
def test_evaluate_refuses_before_it_scores(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr("studies.scoring.teacher_found", lambda *_: pytest.fail("something was scored"))
    with pytest.raises(Exit):
        evaluate.body(Context(), cache=str(cache), teacher="boxes", **{option: str(tmp_path)})
    assert f"--{option.replace('_', '-')} {tmp_path} is a folder" in capsys.readouterr().err


def test_evaluate_never_writes_over_what_it_reads_nor_twice_into_one_file(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(Exit):
        evaluate.body(Context(), cache=str(cache), teacher="boxes", export=str(path), report=str(path))
    assert "--report and --export are one file" in capsys.readouterr().err and not path.exists()
    evaluate.body(Context(), cache=str(cache), teacher="boxes", export=str(path))
    before = path.read_bytes()
    with pytest.raises(Exit):
        evaluate.body(Context(), cache=str(cache), submission=str(path), report=str(path))
    assert "--submission and --report are one file" in capsys.readouterr().err and path.read_bytes() == before


def test_brackets_in_the_names_of_files_are_shown_as_they_are(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {option: str(tmp_path / "[" / "red]" / f"[bold]:car:{option}") for option in ("export", "export_summary")}
    report = str(tmp_path / "[" / "red].html")
    evaluate.body(Context(), cache=str(cache), teacher="boxes", report=report, pictures="0", draws="2", **paths)
    said = "".join(capsys.readouterr().out.split())
    assert f"next:open{report}" in said
    assert all(path in said for path in paths.values())


def test_scores_below_zero_are_told_where_the_devkits_own_code_stops(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    evaluate.body(Context(), cache=str(cache), teacher="boxes", export=str(path))
    content = json.loads(path.read_text())
    for box in (box for boxes in content["results"].values() for box in boxes):
        box["detection_score"] = -0.1
    path.write_text(json.dumps(content))
    for official, says in ((False, "the metric needs finite scores of 0 or more"), (True, "stopped at an assertion")):
        with pytest.raises(Exit):
            evaluate.body(Context(), cache=str(cache), submission=str(path), official=official)
        assert says in capsys.readouterr().err
