"""Merging: reads of the merged store are the sources' reads, in the order of sources; every disagreement is named."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import merge
from cache.commit import begin
from cache.errors import BevcaskError, ConfigError, CorruptError, FingerprintError, StoreError
from cache.files import canonical_json, parse_json, seal
from cache.layout import frames_place, teacher_place
from cache.merge import merge_caches
from cache.plan import Format
from cache.roots import open_root
from cache.shard_files import metadata_files, shard_files
from cache.store import Store
from tests.cache.small_caches import (
    FRAME_FIELDS,
    IDENTITY,
    ZARR,
    plan_of,
    reads,
    token_of,
    tree,
    write_cache,
    write_store,
)

LAYOUTS = [Format(), ZARR]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def two(folder: Path, layout: Format | None = None) -> list[Path]:
    return [write_cache(folder / "a", ["s1", "s2"], layout=layout), write_cache(folder / "b", ["s3"], layout=layout)]


@layouts
@pytest.mark.parametrize("copy", [False, True])
def test_the_merged_stores_read_as_their_sources(tmp_path: Path, layout: Format, copy: bool) -> None:
    a, b = two(tmp_path, layout)
    manifests = merge_caches(tmp_path / "out", [a, b], copy=copy)
    assert list(manifests) == ["teachers/t", "frames"]
    for place in ("frames", "teachers/t"):
        assert reads(tmp_path / "out" / place) == reads(a / place) | reads(b / place)
        assert Store(tmp_path / "out" / place).tokens == Store(a / place).tokens + Store(b / place).tokens
        assert Store(tmp_path / "out" / place).manifest.digest == manifests[place].digest


@layouts
def test_merged_stores_are_what_one_run_over_all_scenes_writes(tmp_path: Path, layout: Format) -> None:
    merge_caches(tmp_path / "out", two(tmp_path, layout))
    write_cache(tmp_path / "one", ["s1", "s2", "s3"], layout=layout)
    assert tree(tmp_path / "out") == tree(tmp_path / "one")


@settings(max_examples=6)
@given(cut=st.integers(1, 3), order=st.permutations(range(3)))
def test_who_wrote_what_does_not_show_but_the_order_of_sources_does(
    tmp_path_factory: pytest.TempPathFactory, cut: int, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    scenes = [f"s{i}" for i in order] + ["s3"]
    halves = [write_cache(folder / "a", scenes[:cut]), write_cache(folder / "b", scenes[cut:])]
    merge_caches(folder / "out", halves)
    write_cache(folder / "one", scenes)
    assert tree(folder / "out") == tree(folder / "one")
    shutil.rmtree(folder)


def test_shards_are_links_on_one_disk_and_copies_on_request(tmp_path: Path) -> None:
    sources = two(tmp_path)
    merge_caches(tmp_path / "out", sources)
    merge_caches(tmp_path / "copied", sources, copy=True)
    original = sources[1] / "frames" / "shards" / "00000.tar"
    assert (tmp_path / "out" / "frames" / "shards" / "00002.tar").samefile(original)
    assert not (tmp_path / "copied" / "frames" / "shards" / "00002.tar").samefile(original)
    assert tree(tmp_path / "out") == tree(tmp_path / "copied")


def test_where_links_do_not_work_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = two(tmp_path)
    link = os.link

    def refuse(here: Any, there: Any) -> None:
        if "shards" in str(there):
            raise OSError(18, "Invalid cross-device link")
        link(here, there)

    monkeypatch.setattr(os, "link", refuse)
    merge_caches(tmp_path / "out", sources)
    monkeypatch.undo()
    assert reads(tmp_path / "out" / "frames") == reads(sources[0] / "frames") | reads(sources[1] / "frames")
    assert not (tmp_path / "out/frames/shards/00000.tar").samefile(sources[0] / "frames/shards/00000.tar")


@pytest.mark.parametrize("out_is_remote", [False, True])
def test_remote_roots_are_merged_by_copy(tmp_path: Path, out_is_remote: bool) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    sources = [write_cache(tmp_path / "a", ["s1"]), write_cache(f"{url}/b", ["s2"])]
    out: Any = f"{url}/out" if out_is_remote else tmp_path / "out"
    merge_caches(out, sources)
    assert reads(teacher_place(out, "t")) == reads(tmp_path / "a" / "teachers" / "t") | reads(f"{url}/b/teachers/t")


@layouts
@pytest.mark.parametrize("copy", [False, True])
def test_a_killed_merge_shows_no_manifest_and_its_rerun_converges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Format, copy: bool
) -> None:
    sources = two(tmp_path, layout)
    merge_caches(tmp_path / "undisturbed", sources, copy=copy)
    out, real, copied, stop_at = tmp_path / "out", merge._copy_file, 0, 0

    def die_later(*arguments: Any) -> None:
        nonlocal copied
        if copied >= stop_at:
            raise KeyboardInterrupt
        copied += 1
        real(*arguments)

    monkeypatch.setattr(merge, "_copy_file", die_later)
    for stop_at in itertools.count(0, 3):  # noqa: B007 (read by die_later)
        copied = 0
        try:
            merge_caches(out, sources, copy=copy)
            break
        except KeyboardInterrupt:
            assert not list(out.rglob("manifest.json"))
    assert stop_at > 3
    assert tree(out) == tree(tmp_path / "undisturbed")


def test_a_rerun_of_a_finished_merge_changes_nothing(tmp_path: Path) -> None:
    sources = two(tmp_path)
    first = merge_caches(tmp_path / "out", sources)
    before = tree(tmp_path / "out")
    assert merge_caches(tmp_path / "out", sources) == first and tree(tmp_path / "out") == before


def test_the_merged_store_grows_on(tmp_path: Path) -> None:
    merge_caches(tmp_path / "out", two(tmp_path))
    write_store(frames_place(tmp_path / "out"), plan_of("frames", ["s1", "s2", "s3", "s4"]))
    write_cache(tmp_path / "one", ["s1", "s2", "s3", "s4"])
    assert tree(tmp_path / "out" / "frames") == tree(tmp_path / "one" / "frames")


def test_quarantined_frames_stay_named(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    shutil.rmtree(b)
    lost = token_of("s3/1")
    write_store(b / "frames", plan_of("frames", ["s3"]), lost=[lost])
    manifest = merge_caches(tmp_path / "out", [a, b], teachers=[])["frames"]
    assert [row["token"] for row in manifest.quarantined] == [lost]
    assert len(Store(tmp_path / "out" / "frames")) == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"header": {"sweeps": 9}}, r"b/teachers/t: header\.sweeps = 9, but .*a/teachers/t has 1; re-encode"),
        (
            {"identity": IDENTITY | {"dataset_version": "v9"}},
            r"_version = v9, but .* has v1\.0-test; only stores",
        ),
        ({"fields": FRAME_FIELDS[1:]}, r"number of fields = 1, but .* has 2; re-encode"),
        ({"layout": ZARR}, r"format\.capacity\.K = 9, but .* has \(absent\); re-encode both to webdataset"),
    ],
)
def test_other_settings_are_refused_with_both_values(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    write_cache(tmp_path / "a", ["s1"])
    if "fields" in changes:
        write_store(tmp_path / "b" / "frames", plan_of("frames", ["s2"], **changes))
        teachers: Any = []
    else:
        write_cache(tmp_path / "b", ["s2"], **changes)
        teachers = None
    with pytest.raises(FingerprintError, match=named):
        merge_caches(tmp_path / "out", [tmp_path / "a", tmp_path / "b"], teachers=teachers)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", [Format("zarr", 4, ZARR.capacity), Format("zarr", 3, {"K": 10, "N": 9})])
def test_zarr_of_other_rows_or_room_is_refused_with_the_remedy(tmp_path: Path, layout: Format) -> None:
    write_cache(tmp_path / "a", ["s1"], layout=ZARR)
    write_cache(tmp_path / "b", ["s2"], layout=layout)
    with pytest.raises(FingerprintError, match=r"format\.(rows|capacity\.K) = \d+, .* re-encode both to webdataset"):
        merge_caches(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])


def test_a_frame_in_two_sources_is_named_with_both(tmp_path: Path) -> None:
    write_cache(tmp_path / "a", ["s1", "s2"])
    write_cache(tmp_path / "b", ["s2"])
    with pytest.raises(StoreError, match=rf"frame {token_of('s2/0')} is in .*a/frames and in .*b/frames"):
        merge_caches(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])


def test_a_scene_told_otherwise_is_refused(tmp_path: Path) -> None:
    plan = plan_of("frames", ["s1"], frames=1)
    write_store(tmp_path / "a" / "frames", plan)
    other = dataclasses.replace(plan, shards=((token_of("more"),),))
    other = dataclasses.replace(other, scenes=(dataclasses.replace(plan.scenes[0], split="val"),))
    write_store(tmp_path / "b" / "frames", other)
    with pytest.raises(FingerprintError, match=f"scene {plan.scenes[0].token} is .*val.*, elsewhere .*train"):
        merge_caches(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])


def test_a_teacher_that_only_the_last_source_holds_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    write_cache(tmp_path / "a", ["s1"])
    write_cache(tmp_path / "b", ["s2"], teachers=["t", "u"])
    sources = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(StoreError, match=r"teachers/u: .* does not follow .* --teachers"):
        merge_caches(tmp_path / "out", sources)
    assert not (tmp_path / "out").exists()
    assert set(merge_caches(tmp_path / "out", sources, teachers=["t"])) == {"frames", "teachers/t"}
    with pytest.raises(ConfigError, match="no source holds v; they hold t, u"):
        merge_caches(tmp_path / "out", sources, teachers=["v"])


def test_a_teacher_that_the_first_sources_hold_is_merged_to_be_continued(tmp_path: Path) -> None:
    write_cache(tmp_path / "a", ["s1"], teachers=["t", "u"])
    write_cache(tmp_path / "b", ["s2"])
    merge_caches(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert len(begin(teacher_place(tmp_path / "out", "u"), plan_of("teacher", ["s1", "s2"]), grow=True)) == 1


def test_the_source_manifests_of_re_encoded_stores_are_gathered(tmp_path: Path) -> None:
    header = {"sweeps": 1, "source": {"settings": "x", "manifests": ["d1"]}}
    write_cache(tmp_path / "a", ["s1"], header=header)
    write_cache(tmp_path / "b", ["s2"], header=header | {"source": {"settings": "x", "manifests": ["d2"]}})
    merged = merge_caches(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])["teachers/t"]
    assert merged.header["source"] == {"settings": "x", "manifests": ["d1", "d2"]}
    write_cache(tmp_path / "c", ["s3"], header=header | {"source": {"settings": "y", "manifests": ["d2"]}})
    with pytest.raises(FingerprintError, match=r"header\.source\.settings = y"):
        merge_caches(tmp_path / "out2", [tmp_path / "a", tmp_path / "c"])


def cut_manifest(store: Path) -> None:
    (store / "manifest.json").unlink()


def cut_shard(store: Path) -> None:
    (store / "shards" / "00000.tar").write_bytes(b"short")


def flip_shard(store: Path) -> None:
    path = store / "shards" / "00000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def forge_record(store: Path) -> None:
    path = store / "records" / "00000.json"
    record = parse_json(path.read_bytes(), "", "")
    del record["digest"]
    record["frames"][0]["class_counts"] = [7, 7]
    path.write_bytes(canonical_json(seal(record)))


def forge_manifest(store: Path) -> None:
    path = store / "manifest.json"
    values = parse_json(path.read_bytes(), "", "")
    values["shards"] = []
    path.write_bytes(canonical_json(seal({key: value for key, value in values.items() if key != "digest"})))


def grow_plan(store: Path) -> None:
    begin(store, plan_of("frames", ["s3", "s4"]), grow=True)


@pytest.mark.parametrize(
    ("damage", "error", "named"),
    [
        (cut_manifest, StoreError, "an unfinished caching run"),
        (cut_shard, CorruptError, r"records/00000\.json: the record or a file"),
        (flip_shard, CorruptError, r"shards/00000\.tar: its bytes are not those"),
        (forge_record, CorruptError, r"do not say what index/class_counts\.npy says"),
        (forge_manifest, CorruptError, "plan and manifest do not tell"),
        (grow_plan, StoreError, r"plan\.json: not the one that its manifest names"),
    ],
)
@pytest.mark.parametrize("copy", [True, False], ids=["copied", "linked"])
def test_a_source_that_is_not_whole_is_refused(
    tmp_path: Path, damage: Any, error: type, named: str, copy: bool
) -> None:
    a, b = two(tmp_path)
    damage(b / "frames")
    with pytest.raises(error, match=named):
        merge_caches(tmp_path / "out", [a, b], copy=copy)
    assert not list((tmp_path).glob("out/**/manifest.json"))


def test_out_must_be_another_cache_and_sources_two(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    with pytest.raises(ConfigError, match="is one of the sources"):
        merge_caches(a, [a, b])
    with pytest.raises(ConfigError, match="found 1, expected two or more"):
        merge_caches(tmp_path / "out", [a])
    write_cache(tmp_path / "out", ["s9"])
    with pytest.raises(BevcaskError, match="was begun with"):
        merge_caches(tmp_path / "out", [a, b])


@layouts
def test_the_names_of_a_shards_files_are_those_that_its_writer_made(tmp_path: Path, layout: Format) -> None:
    plan = plan_of("teacher", ["s1", "s2"], format=layout)
    write_store(tmp_path, plan)
    there = set(open_root(tmp_path).sizes())
    for shard in plan.shard_plans():
        record = parse_json((tmp_path / shard.record).read_bytes(), "", "")
        assert [row[0] for row in record["files"]] == shard_files(shard)
    if layout.name == "zarr":
        extra = metadata_files(plan.fields, tuple(layout.capacity))
        assert {name for name in there if name.endswith("zarr.json")} == set(extra)
