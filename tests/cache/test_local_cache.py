"""Stores at URLs read through a local cache that the environment names, from a real S3-compatible server and from
memory: what goes bad or goes away in the cache is fetched again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cache.commit import committed_record, read_plan
from cache.errors import ConfigError, CorruptError, StoreError
from cache.local_cache import FOLDER, LIMIT, read_through, use_local_cache
from cache.manifest import MANIFEST
from cache.read_through import ReadThrough
from cache.roots import LocalRoot, open_root
from cache.shared_folder import SharedFolder
from cache.store import FrameStore, Store, TeacherStore
from tests.cache.stores import ZARR, assert_equal, frame_plan, teacher_plan, write_store

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of 1 MB, switched on."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "local"))
    monkeypatch.setenv(LIMIT, "1MB")
    return tmp_path / "local"


@pytest.fixture
def place() -> str:
    """The address of a store of frames."""
    url = f"memory://{uuid.uuid4().hex}/frames"
    write_store(url, frame_plan())
    return url


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


def spoil(through: Path, ending: str, damage: Callable[[bytes], bytes]) -> int:
    """Damages the local copies of objects whose names end so; how many there are."""
    paths = list((through / "objects").glob(f"*{ending}"))
    for path in paths:
        data = path.read_bytes()
        assert damage(data) != data
        path.unlink()  # what is mapped stays as it is
        path.write_bytes(damage(data))
    assert paths
    return len(paths)


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ (number % 7 == 0) for number, byte in enumerate(data))


DAMAGES = {
    "zeros": lambda data: bytes(len(data)),
    "flipped": flipped,
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("ending", ["manifest.json", ".npy", "+token.npy", ".tar"])
def test_a_local_copy_that_went_bad_is_fetched_again(
    place: str, through: Path, ending: str, damage: Callable[[bytes], bytes]
) -> None:
    before = everything(FrameStore(place))
    spoiled = spoil(through, ending, damage)
    for fetches in (spoiled, 0):  # once, and good from then on
        store = FrameStore(place)
        for found, expected in zip(everything(store), before, strict=True):
            assert_equal(found, expected)
        assert isinstance(store.root, ReadThrough) and store.root.fetches == fetches


def test_a_manifest_of_another_version_is_fetched_again_and_then_believed(place: str, through: Path) -> None:
    FrameStore(place)
    spoil(through, "manifest.json", lambda data: data.replace(b'"version": 1', b'"version": 7'))
    assert len(FrameStore(place)) == 6
    root = open_root(place)
    with root.write(MANIFEST) as file:
        file.write(root.read(MANIFEST).replace(b'"version": 1', b'"version": 7'))
    with pytest.raises(StoreError, match="version 7, expected bevcask version 1"):
        FrameStore(place)


@pytest.mark.parametrize("damage", [flipped, lambda data: data.replace(b"0", b"1")], ids=["flipped", "other digits"])
def test_a_local_copy_of_plan_or_record_that_went_bad_is_fetched_again(
    place: str, through: Path, damage: Callable[[bytes], bytes]
) -> None:
    """A plan has no seal: digits that changed are still a plan."""
    root = FrameStore(place).root
    sizes = root.sizes()
    for _ in range(2):
        assert read_plan(root) == frame_plan()
        for shard in frame_plan().shard_plans():
            assert committed_record(root, shard, sizes) is not None
        spoil(through, "plan.json", damage)
        spoil(through, "records+00001.json", damage)


def test_what_is_damaged_at_its_origin_stays_an_error(place: str, through: Path) -> None:
    root = open_root(place)
    for name in ("index/kind.npy", MANIFEST):
        data = root.read(name)
        with root.write(name) as file:
            file.write(flipped(data))
        with pytest.raises(CorruptError, match=name):
            FrameStore(place)
        with root.write(name) as file:
            file.write(data)
    assert len(FrameStore(place)) == 6


def test_a_store_opens_where_every_local_copy_is_evicted_as_soon_as_it_is_opened(
    place: str, through: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other processes do in a folder that is nearly full."""
    expected = everything(FrameStore(place))

    def evicting(opening: Callable[..., Any]) -> Callable[..., Any]:
        def opened(folder: SharedFolder, key: str, *more: Any) -> Any:
            descriptor = opening(folder, key, *more)
            folder.discard(key)
            return descriptor

        return opened

    for name in ("open", "make"):
        monkeypatch.setattr(SharedFolder, name, evicting(getattr(SharedFolder, name)))
    for found, right in zip(everything(FrameStore(place)), expected, strict=True):
        assert_equal(found, right)
    assert not list((through / "objects").iterdir())


def test_stores_open_side_by_side_through_a_cache_that_holds_little_more_than_one_object(
    place: str, through: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"memory://{uuid.uuid4().hex}/teacher"
    write_store(other, teacher_plan(format=ZARR))
    largest = max(size for one in (place, other) for size in open_root(one).sizes().values())
    monkeypatch.setenv(LIMIT, str(largest + 100))
    until = time.monotonic() + 2

    def work(number: int) -> int:
        opened = 0
        while time.monotonic() < until:
            store = Store((place, other)[number % 2])
            store.read(5, store.manifest.fields[0].name)
            opened += 1
        return opened

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


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
