"""Stores at URLs read through a local cache that the environment names, from a real S3-compatible server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.errors import ConfigError
from cache.local_cache import FOLDER, LIMIT, read_through, use_local_cache
from cache.read_through import ReadThrough
from cache.roots import LocalRoot, open_root
from cache.store import FrameStore, Store, TeacherStore
from tests.cache.stores import ZARR, assert_equal, frame_plan, teacher_plan, write_store

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of 1 MB, switched on."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "local"))
    monkeypatch.setenv(LIMIT, "1MB")
    return tmp_path / "local"


def everything(store: Store) -> list[object]:
    names = [spec.name for spec in store.manifest.fields]
    return [store.read(row, name) for row in range(len(store)) for name in names if store.has(row, name)]


@pytest.mark.parametrize("kind", [FrameStore, TeacherStore])
def test_a_store_on_s3_reads_as_the_local_one_and_only_once_over_the_network(
    kind: type[Store], s3_root: str, through: Path, frames_root: Path, zarr_root: Path
) -> None:
    write_store(s3_root, frame_plan() if kind is FrameStore else teacher_plan(format=ZARR))
    store = kind(s3_root)
    assert isinstance(store.root, ReadThrough)
    for found, expected in zip(
        everything(store), everything(kind(frames_root if kind is FrameStore else zarr_root)), strict=True
    ):
        assert_equal(found, expected)
    fetched = store.root.fetches
    everything(store)
    assert store.root.fetches == fetched and any(through.iterdir())


def test_a_local_copy_that_went_bad_is_fetched_again(s3_root: str, through: Path) -> None:
    write_store(s3_root, frame_plan())
    before = everything(FrameStore(s3_root))
    spoiled = 0
    for path in through.rglob("*.tar"):
        data = bytearray(path.read_bytes())
        data[600:] = bytes(len(data) - 600)
        path.chmod(0o644)
        path.write_bytes(data)
        spoiled += 1
    assert spoiled
    store = FrameStore(s3_root)
    for found, expected in zip(everything(store), before, strict=True):
        assert_equal(found, expected)
    assert isinstance(store.root, ReadThrough) and store.root.fetches >= 1


def test_local_stores_are_read_where_they_are(frames_root: Path, through: Path) -> None:
    assert isinstance(FrameStore(frames_root).root, LocalRoot) and not through.exists()


def test_a_limit_below_one_shard_is_refused_at_once(
    s3_root: str, through: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(s3_root, frame_plan())
    monkeypatch.setenv(LIMIT, "9kB")
    with pytest.raises(ConfigError, match="--local-cache-limit"):
        FrameStore(s3_root)


def test_the_options_go_together_and_reach_child_processes(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (FOLDER, LIMIT):  # so that what is set here is undone
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    use_local_cache(None, None)
    assert FOLDER not in os.environ
    for given in (("x", None), (None, "1GB"), ("x", "much")):
        with pytest.raises(ConfigError, match=r"local-cache|200GB"):
            use_local_cache(*given)
    use_local_cache(str(tmp_path / "local"), "1MB")
    write_store(s3_root, frame_plan())
    code = f"from cache.store import FrameStore; print(type(FrameStore({s3_root!r}).root).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ReadThrough"


def test_a_folder_without_a_limit_is_refused(through: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT)
    with pytest.raises(ConfigError, match=LIMIT):
        read_through(open_root("memory://somewhere"))
