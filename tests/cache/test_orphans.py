"""gc: what a dead writer left is found and removed; what a plan, a manifest or a live writer may need never is."""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from cache.commit import begin
from cache.errors import StoreError
from cache.orphans import find_orphans, remove_orphans
from cache.plan import Format
from cache.roots import open_root
from cache.shard_writer import open_shard
from tests.cache.small_caches import ZARR, plan_of, reads, tree, write_cache, write_store

LATER = time.time() + 86400.0
PARTIAL = "shards/00001.tar.1a2b-0123abcd.partial"


def orphans(cache: Any, **options: Any) -> dict[str, str]:
    """Name -> why it is kept."""
    found = find_orphans(cache, **({"now_s": LATER} | options))
    return {f"{orphan.store}/{orphan.name}": orphan.kept for orphan in found}


@pytest.mark.parametrize("layout", [Format(), ZARR], ids=lambda layout: layout.name)
def test_a_sound_cache_has_none(tmp_path: Path, layout: Format) -> None:
    assert orphans(write_cache(tmp_path, ["s1", "s2"], layout=layout)) == {}


@pytest.mark.parametrize("layout", [Format(), ZARR], ids=lambda layout: layout.name)
def test_nor_has_an_unfinished_store(tmp_path: Path, layout: Format) -> None:
    write_cache(tmp_path, ["s1"], teachers=[])
    plan = plan_of("teacher", ["s1", "s2"], format=layout)
    store = tmp_path / "teachers" / "t"
    begin(store, plan)
    assert orphans(tmp_path) == {}
    write_store(store, plan)
    (store / "manifest.json").unlink()
    for record in (store / "records").iterdir():  # files in place, their records not yet
        record.unlink()
    assert orphans(tmp_path) == {}


def test_what_dead_writers_left_is_found_and_removed(tmp_path: Path) -> None:
    write_cache(tmp_path, ["s1", "s2"])
    before = tree(tmp_path)
    for name in (PARTIAL, "manifest.json.ff-00000000.partial", "shards/00002.tar", "records/00002.json"):
        (tmp_path / "frames" / name).write_bytes(b"x" * 100)
    (tmp_path / "teachers" / "t" / "index" / "old_column.npy").write_bytes(b"x")
    found = find_orphans(tmp_path, now_s=LATER)
    assert {(orphan.store, orphan.name) for orphan in found} == {
        ("frames", PARTIAL),
        ("frames", "manifest.json.ff-00000000.partial"),
        ("frames", "shards/00002.tar"),
        ("frames", "records/00002.json"),
        ("teachers/t", "index/old_column.npy"),
    }
    assert remove_orphans(tmp_path, found) == 401
    assert tree(tmp_path) == before and reads(tmp_path / "frames")


def test_a_zarr_shard_beyond_the_plan_is_found(tmp_path: Path) -> None:
    write_cache(tmp_path, ["s1", "s2"], layout=ZARR)
    store = tmp_path / "teachers" / "t"
    smaller = plan_of("teacher", ["s1"], format=ZARR)
    for name in ("plan.json", "manifest.json"):
        (store / name).unlink()
    write_store(store, smaller)
    found = orphans(tmp_path)
    assert "teachers/t/data.zarr/values/c/1/0/0" in found and "teachers/t/records/00001.json" in found
    assert not any("/c/0" in name for name in found)
    remove_orphans(tmp_path, find_orphans(tmp_path, now_s=LATER))
    write_store(tmp_path / "fresh", smaller)
    assert tree(store) == tree(tmp_path / "fresh")


def test_a_live_writers_partials_are_kept_whatever_is_asked_to_be_deleted(tmp_path: Path) -> None:
    write_cache(tmp_path, ["s1"])
    plan = plan_of("teacher", ["s1"])
    [shard] = begin(tmp_path / "teachers" / "live", plan)
    writer = open_shard(tmp_path / "teachers" / "live", shard)
    writer.__enter__()
    found = orphans(tmp_path, now_s=None)
    assert len(found) == 1 and next(iter(found)).endswith(".partial")
    assert "less than 60 minutes ago" in next(iter(found.values()))
    assert remove_orphans(tmp_path, find_orphans(tmp_path)) == 0
    [name] = orphans(tmp_path, now_s=None)
    assert (tmp_path / name).exists()
    assert orphans(tmp_path, older_than_minutes=0.0, now_s=LATER) == {name: ""}
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def test_foreign_files_and_lost_stores_are_named_and_kept(tmp_path: Path) -> None:
    write_cache(tmp_path, ["s1"])
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere.txt").write_text("not in a store")
    for name in ("plan.json", "manifest.json"):
        (tmp_path / "teachers" / "t" / name).unlink()
    found = orphans(tmp_path)
    assert found.pop("frames/notes.txt") == "not a file that this project writes"
    assert found and all("both missing" in kept for kept in found.values())
    before = tree(tmp_path)
    assert remove_orphans(tmp_path, find_orphans(tmp_path, now_s=LATER)) == 0
    assert tree(tmp_path) == before


def test_a_damaged_manifest_or_plan_is_an_error_and_not_an_excuse_to_delete(tmp_path: Path) -> None:
    write_cache(tmp_path, ["s1"])
    for name in ("manifest.json", "plan.json"):
        whole = (tmp_path / "frames" / name).read_bytes()
        (tmp_path / "frames" / name).write_bytes(whole[:-9])
        with pytest.raises(StoreError, match=name):
            find_orphans(tmp_path, now_s=LATER)
        (tmp_path / "frames" / name).write_bytes(whole)


def test_a_store_whose_manifest_is_older_than_its_plan_owns_both(tmp_path: Path) -> None:
    write_cache(tmp_path, ["s1"])
    plan = plan_of("frames", ["s1", "s2"])
    begin(tmp_path / "frames", plan, grow=True)
    (tmp_path / "frames" / "shards" / "00001.tar").write_bytes(b"half of it")
    assert orphans(tmp_path) == {}


def test_no_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store lies there"):
        find_orphans(tmp_path)


def test_remote_roots_are_cleaned_too() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    write_cache(url, ["s1"])
    with open_root(f"{url}/frames").write("shards/00009.tar") as file:
        file.write(b"beyond")
    assert "less than" in orphans(url, now_s=None)["frames/shards/00009.tar"]
    assert orphans(url) == {"frames/shards/00009.tar": ""}
    assert remove_orphans(url, find_orphans(url, now_s=LATER)) == 6
    assert orphans(url) == {} and reads(f"{url}/frames")


def test_a_store_that_does_not_say_when_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cache(tmp_path, ["s1"])
    (tmp_path / "frames" / "shards" / "00009.tar").write_bytes(b"beyond")
    monkeypatch.setattr("cache.roots.LocalRoot.modified", lambda root, name: math.inf)
    assert "less than" in orphans(tmp_path)["frames/shards/00009.tar"]


def test_removing_takes_only_what_may_go(tmp_path: Path) -> None:
    write_cache(tmp_path, ["s1"])
    path = tmp_path / "frames" / "shards" / "00009.tar"
    path.write_bytes(b"beyond")
    [orphan] = find_orphans(tmp_path, now_s=LATER)
    assert remove_orphans(tmp_path, [dataclasses.replace(orphan, kept="why ever")]) == 0 and path.exists()
    assert remove_orphans(tmp_path, [orphan]) == 6 and not path.exists()
