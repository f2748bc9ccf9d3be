"""The upkeep tasks on the command line: what they print, their JSON, their next step, their errors in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

import tasks
from pipeline.frames import FrameOptions, cache_frames
from studies.upkeep import size_text, time_text

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def cached(simulated_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches: a with the training split and a teacher store, b with the rest."""
    folder = tmp_path_factory.mktemp("upkeep")
    for name, split in (("a", "mini_train"), ("b", "mini_val")):
        options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
        cache_frames(simulated_root, VERSION, folder / name, split=split, options=options, workers=1)
        tasks.cache_teacher(  # type: ignore[attr-defined]
            Context(), cache=str(folder / name), name="t", teacher="own", checkpoint=str(weights), workers="1"
        )
    return folder


@pytest.fixture
def folder(cached: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cached, tmp_path / "f"))


def run(capsys: pytest.CaptureFixture[str], task: str, **options: Any) -> tuple[str, Any]:
    """Output of a task and its last line's JSON."""
    capsys.readouterr()
    getattr(tasks, task)(Context(), json=True, **options)
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


def failing(capsys: pytest.CaptureFixture[str], task: str, **options: Any) -> str:
    capsys.readouterr()
    with pytest.raises(Exit) as stop:
        getattr(tasks, task)(Context(), **options)
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def test_extend_says_what_was_added_and_how_to_go_on(
    folder: Path, simulated_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"cache": str(folder / "a"), "data_root": str(simulated_root), "version": VERSION, "workers": "1"}
    out, said = run(capsys, "extend", **options)
    assert "added: 1 scenes, 2 frames" in out and "teacher store t lacks 2 frames" in out
    assert "next: ./bevcask cache-teacher --cache" in out
    assert (said["added_frames"], said["frames"], said["continue"][0]["name"]) == (2, 6, "t")
    out, said = run(capsys, "extend", **options)
    assert "added: nothing new" in out and said["added_frames"] == 0


def test_merge_then_re_encode(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, said = run(capsys, "merge", cache=str(folder / "out"), sources=f"{folder / 'a'},{folder / 'b'}")
    assert said["frames"]["frames"] == said["teachers/t"]["frames"] == 6
    assert f"next: ./bevcask inspect --cache {folder / 'out'}" in out
    out, said = run(
        capsys, "re_encode", cache=str(folder / "out"), name="t", out="z", format="zarr", dtype="u8", workers="1"
    )
    assert said["frames"] == 6 and "--teacher z" in out
    err = failing(capsys, "merge", cache=str(folder / "o"), sources=f"{folder / 'a'},{folder / 'out'}")
    assert "is in" in err
    assert "of the 4096 asked for are missing" in failing(
        capsys, "re_encode", cache=str(folder / "a"), name="t", out="d", encoding="dense"
    )


def test_gc_lists_and_on_request_deletes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "a" / "frames" / "shards" / "00077.tar"
    path.write_bytes(b"x" * 1234)
    out, said = run(capsys, "gc", cache=str(folder / "a"))
    assert "kept: written less than 60 minutes ago" in out and said["files"] == 0
    out, said = run(capsys, "gc", cache=str(folder / "a"), older_than=0.0)
    assert "frames/shards/00077.tar: 1.2 kB, beyond the plan" in out and "--delete" in out.splitlines()[-2]
    assert (said["files"], said["bytes"], said["deleted"]) == (1, 1234, False) and path.exists()
    out, said = run(capsys, "gc", cache=str(folder / "a"), older_than=0.0, delete=True)
    assert said["deleted"] and not path.exists()
    assert "out of range" in failing(capsys, "gc", cache=str(folder / "a"), older_than=-1.0)


def test_plan_prints_a_table_a_store_and_the_command(
    simulated_root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, said = run(
        capsys,
        "plan",
        data_root=str(simulated_root),
        version=VERSION,
        split="mini_val",
        points=True,
        sweeps=0,
        image_scale=0.1,
        checkpoint=str(weights),
        workers="2",
    )
    assert set(said["stores"]) == {"frames", "teacher"} and said["frames"] == 2
    assert "cam_front" in out and "bev_values" in out and "with 2 workers" in out
    command = f"--data-root {simulated_root} --version {VERSION} --cache CACHE --split mini_val --points --sweeps 0"
    assert command in out
    assert os.path.basename(str(simulated_root)) in out


@pytest.mark.parametrize(
    ("name", "missing"),
    [("extend", "--cache"), ("merge", "--cache"), ("re_encode", "--cache"), ("gc", "--cache"), ("plan", "--data-root")],
)
def test_a_missing_option_is_named(name: str, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{missing} is missing" in failing(capsys, name)


def test_sizes_and_times_read_well() -> None:
    assert [size_text(size) for size in (12, 1234, 5.5e6, 3e9, 2e12)] == [
        "12.0 B",
        "1.2 kB",
        "5.5 MB",
        "3.0 GB",
        "2.0 TB",
    ]
    assert [time_text(seconds) for seconds in (3, 600, 36000)] == ["3 s", "10 min", "10.0 h"]


def test_verify_ends_in_json_and_names_what_is_no_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, good = run(capsys, "verify", cache=str(folder / "a"))
    assert [store["findings"] for store in good["stores"]] == [[], []]
    (folder / "a" / "teachers" / "notes.txt").write_text("x")
    (folder / "a" / "teachers" / "Bad.Name").mkdir()
    (folder / "a" / "teachers" / "Bad.Name" / "manifest.json").write_text("{}")
    (folder / "a" / "frames" / "stranger").write_text("x")
    capsys.readouterr()
    with pytest.raises(Exit):
        tasks.verify(Context(), cache=str(folder / "a"), json=True)  # type: ignore[attr-defined]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["stores"]
    files = {(store["store"], finding["file"]) for store in told for finding in store["findings"]}
    assert files == {("teachers", "notes.txt"), ("teachers", "Bad.Name"), ("frames", "stranger")}


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("gc", {"older_than": "abc"}, "--older-than 'abc' is not a number"),
        ("cache_frames", {"image_scale": "x"}, "--image-scale 'x' is not a number"),
        ("simulate", {"frames": "2.5"}, "--frames '2.5' is not a whole number"),
        ("cache_frames", {"workers": "0"}, "--workers 0: expected 1 or more"),
    ],
)
def test_an_option_that_is_no_number_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, options: dict[str, str], message: str
) -> None:
    more = {"cache": str(tmp_path / "c")} if task != "simulate" else {"out": str(tmp_path / "c")}
    if task == "cache_frames":
        more |= {"data_root": str(tmp_path), "version": VERSION}
    assert message in failing(capsys, task, **more, **options)
    assert not (tmp_path / "c").exists()
