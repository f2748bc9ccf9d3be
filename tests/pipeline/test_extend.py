"""Growing: new scenes behind the old ones, whose shards keep every byte; then the teacher runs on new shards only."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache.commit import begin, read_plan
from cache.errors import ConfigError, DataError, FingerprintError, StoreError
from cache.roots import open_root
from cache.store import FrameStore, TeacherStore
from pipeline import extend, teacher_shard
from pipeline.extend import behind, extend_frames
from pipeline.frames import FrameOptions, cache_frames
from pipeline.tables import open_tables
from pipeline.teacher import TeacherOptions, cache_teacher

VERSION = "v1.0-mini"
OPTIONS = FrameOptions(image_scale=0.1, points=True, sweeps=1)


def begun(root: Path, cache: Path, split: str | None = "mini_train", options: FrameOptions = OPTIONS) -> Path:
    cache_frames(root, VERSION, cache, split=split, options=options, workers=1)
    return cache


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = [path for kind in ("shards", "records", "data.zarr") for path in sorted((folder / kind).rglob("*"))]
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in paths
        if path.is_file() and path.name != "zarr.json"
    }


@pytest.fixture(scope="module")
def small(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the training split only. Read only: tests take a copy."""
    return begun(simulated_root, tmp_path_factory.mktemp("small"))


@pytest.fixture
def cache(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "c"))


def test_new_scenes_are_added_and_what_stood_is_untouched(cache: Path, simulated_root: Path, tmp_path: Path) -> None:
    before, plan = files(cache / "frames"), read_plan(open_root(cache / "frames"))
    added = extend_frames(cache, simulated_root, VERSION, workers=1)
    assert (added.scenes, added.frames) == (1, 2)
    after = files(cache / "frames")
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    grown = read_plan(open_root(cache / "frames"))
    assert plan is not None and grown is not None
    assert grown.settings() == plan.settings() and grown.shards[: len(plan.shards)] == plan.shards
    whole = begun(simulated_root, tmp_path / "whole", None)
    one, other = FrameStore(cache / "frames"), FrameStore(whole / "frames")
    assert set(one.tokens) == set(other.tokens)
    for token in other.tokens:
        for spec in other.manifest.fields:
            rows = one.row_of(token), other.row_of(token)
            assert one.read_bytes(rows[0], spec.name) == other.read_bytes(rows[1], spec.name)
    assert one.split_rows("mini_val") == [4, 5]


def test_nothing_new_changes_nothing(cache: Path, simulated_root: Path) -> None:
    before = files(cache / "frames"), (cache / "frames" / "manifest.json").read_bytes()
    added = extend_frames(cache, simulated_root, VERSION, split="mini_train", workers=1)
    assert (added.scenes, added.frames) == (0, 0)
    assert (files(cache / "frames"), (cache / "frames" / "manifest.json").read_bytes()) == before


def test_the_options_are_the_stores_own(cache: Path, simulated_root: Path) -> None:
    extend_frames(cache, simulated_root, VERSION, workers=1)
    store = FrameStore(cache / "frames")
    assert {store.frame(row).cameras[0].width for row in range(len(store))} == {160}
    assert all(store.has(row, "points") for row in range(len(store)))
    assert store.manifest.header["sweeps"] == 1


@pytest.mark.parametrize("kind", ["webdataset", "zarr"])
def test_the_teacher_then_runs_on_new_shards_only(
    cache: Path, simulated_root: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    room = {"K": 9000, "N": 600} if kind == "zarr" else {}

    def run(name: str) -> Any:
        return cache_teacher(
            cache,
            name,
            teacher="own",
            checkpoint=weights,
            options=TeacherOptions(format=kind, capacity=room),
            workers=1,
        )

    run("t")
    before = files(cache / "teachers" / "t")
    assert behind(cache) == []
    extend_frames(cache, simulated_root, VERSION, workers=1)
    [waiting] = behind(cache)
    assert (waiting.name, waiting.missing) == ("t", 2)
    assert f"cache-teacher --cache {cache} --name t --teacher own --checkpoint" in waiting.command
    seen: list[str] = []
    real = teacher_shard.fields_of

    def watched(said: Any, frames: Any, job: Any) -> Any:
        seen.extend(frames.token(row) for row in said.rows)
        return real(said, frames, job)

    monkeypatch.setattr(teacher_shard, "fields_of", watched)
    manifest = run("t")
    frames = FrameStore(cache / "frames")
    assert seen == frames.tokens[4:]
    after = files(cache / "teachers" / "t")
    assert {name: after[name] for name in before} == before and behind(cache) == []
    assert run("fresh").digest == manifest.digest
    assert TeacherStore(cache / "teachers" / "t").tokens == frames.tokens


def test_the_command_that_continues_a_store_names_its_settings(
    simulated_root: Path, weights: Path, tmp_path: Path
) -> None:
    cache = begun(simulated_root, tmp_path, options=FrameOptions(image_scale=0.1))
    options = TeacherOptions("footprint(margin=1)+random(cells=9)", "dense", "u8", sweeps=2)
    cache_teacher(cache, "t", teacher="own", checkpoint=weights, data_root=simulated_root, options=options, workers=1)
    extend_frames(cache, simulated_root, VERSION, workers=1)
    [waiting] = behind(cache, simulated_root)
    assert waiting.command.endswith(
        "--coverage 'footprint(margin=1)+random(cells=9,seed=0)' --encoding dense --dtype u8 --format webdataset "
        f"--sweeps 2 --data-root {simulated_root}"
    )


def test_an_interrupted_extension_is_ended_by_the_next(
    cache: Path, simulated_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    other = Path(shutil.copytree(cache, tmp_path / "other"))
    for step in ("run_shards", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(extend, step, stop)
            with pytest.raises(KeyboardInterrupt):
                extend_frames(cache, simulated_root, VERSION, workers=1)
        assert len(FrameStore(cache / "frames")) == 4  # readers see the store as it was
    added = extend_frames(cache, simulated_root, VERSION, workers=1)
    assert (added.scenes, added.frames) == (1, 2)
    assert extend_frames(other, simulated_root, VERSION, workers=1).manifest.digest == added.manifest.digest


def test_an_interrupted_extension_needs_its_own_scenes(
    cache: Path, simulated_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extend, "run_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            extend_frames(cache, simulated_root, VERSION, workers=1)
    with pytest.raises(DataError, match="shard 2 of an interrupted run is not written"):
        extend_frames(cache, simulated_root, VERSION, split="mini_train", workers=1)


def test_a_scene_that_is_there_with_other_poses_or_frames_is_refused(
    cache: Path, simulated_root: Path, tmp_path: Path
) -> None:
    def tables(name: str, change: Any) -> Path:
        root = tmp_path / change.__name__
        root.mkdir()
        for part in simulated_root.iterdir():
            if part.name != VERSION:
                (root / part.name).symlink_to(part)
        shutil.copytree(simulated_root / VERSION, root / VERSION)
        path = root / VERSION / f"{name}.json"
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))
        return root

    def moved(rows: Any) -> None:
        for row in rows:
            row["translation"][0] += 1.0

    def retold(rows: Any) -> None:
        for row in rows:
            row["description"] = "retold"

    before = files(cache / "frames")
    with pytest.raises(FingerprintError, match=r"has pose digest [0-9a-f]{16}, the tables give [0-9a-f]{16}"):
        extend_frames(cache, tables("ego_pose", moved), VERSION, workers=1)
    with pytest.raises(FingerprintError, match=r"scene .* the tables say .*retold"):
        extend_frames(cache, tables("scene", retold), VERSION, workers=1)
    assert files(cache / "frames") == before


def test_a_scene_with_more_frames_than_are_there_is_refused(cache: Path, simulated_root: Path) -> None:
    store = FrameStore(cache / "frames")
    plan = read_plan(store.root)
    assert plan is not None
    data = open_tables(simulated_root, VERSION, None, 1)
    longer = dataclasses.replace(data, records=(data.records[0] + data.records[2], *data.records[1:]))
    with pytest.raises(FingerprintError, match="has other frames there than in the tables"):
        extend._require_same_frames(store, plan, longer)
    shorter = dataclasses.replace(data, records=(data.records[0][:1], *data.records[1:]))
    with pytest.raises(FingerprintError, match="has other frames there than in the tables"):
        extend._require_same_frames(store, plan, shorter)


def test_another_version_no_store_and_a_foreign_store_are_refused(
    cache: Path, simulated_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="no store"):
        extend_frames(tmp_path / "none", simulated_root, VERSION, workers=1)
    plan = read_plan(open_root(cache / "frames"))
    assert plan is not None
    begin(tmp_path / "unfinished" / "frames", plan)
    with pytest.raises(StoreError, match="an unfinished caching run"):
        extend_frames(tmp_path / "unfinished", simulated_root, VERSION, workers=1)
    with pytest.raises((FingerprintError, DataError), match=r"v1\.0-trainval"):
        extend_frames(cache, simulated_root, "v1.0-trainval", workers=1)
    with pytest.raises((DataError, ConfigError), match="split 'no_such'"):
        extend_frames(cache, simulated_root, VERSION, split="no_such", workers=1)


def test_quarantined_frames_are_tried_again_once_all_files_are_there(simulated_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(simulated_root, tmp_path / "data"))
    victim, other = (root / record.image_paths[3] for record in open_tables(root, VERSION, "mini_train", 0).records[0])
    whole = victim.read_bytes()
    victim.write_bytes(whole[:1000])
    cache = begun(root, tmp_path / "c")
    assert len(FrameStore(cache / "frames").manifest.quarantined) == 1
    moved = other.rename(tmp_path / "away.jpg")  # a folder that now lacks a file of the same shard, or of another
    victim.unlink()
    extend_frames(cache, root, VERSION, workers=1)
    assert len(FrameStore(cache / "frames")) == 5  # what was readable once is not lost
    moved.rename(other)
    victim.write_bytes(whole)
    added = extend_frames(cache, root, VERSION, workers=1)
    assert not added.manifest.quarantined and added.frames == 1
