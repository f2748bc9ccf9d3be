"""The commit protocol: what is redone, what is refused, and that every rerun ends in the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.commit import begin, finish, read_plan
from cache.differences import differences, first_difference
from cache.errors import BevcaskError, FingerprintError, OutOfSpaceError, StoreError
from cache.fields import FieldSpec
from cache.files import canonical_json, seal, sha256
from cache.manifest import Manifest
from cache.plan import StorePlan
from cache.roots import open_root
from cache.shard_writer import open_shard
from cache.store import FrameStore, Store, TeacherStore
from tests.cache.stores import (
    FRAME_FIELDS,
    IDENTITY,
    SCENES,
    SHARDS,
    TOKENS,
    ZARR,
    assert_equal,
    entry_of,
    frame_plan,
    frame_values,
    record_path,
    shard_files,
    teacher_plan,
    todo,
    tree,
    values_of,
    write_shard,
    write_store,
)


def test_a_new_store_plans_every_shard_and_a_finished_one_none(tmp_path: Path, plan: StorePlan) -> None:
    assert todo(tmp_path, plan) == [0, 1, 2]
    write_shard(tmp_path, plan, 1)
    assert todo(tmp_path, plan) == [0, 2]
    write_shard(tmp_path, plan, 0)
    write_shard(tmp_path, plan, 2)
    assert todo(tmp_path, plan) == []
    finish(tmp_path, plan)
    assert begin(tmp_path, plan) == []


def test_finish_returns_the_manifest_that_a_reader_reads(tmp_path: Path, plan: StorePlan) -> None:
    manifest = write_store(tmp_path, plan)
    again = Manifest.read(open_root(tmp_path))
    assert again == manifest and again.digest == manifest.digest
    assert [shard.frames for shard in manifest.shards] == [2, 2, 2]
    assert manifest.format == plan.format and read_plan(open_root(tmp_path)) == plan


def test_the_manifest_vouches_for_every_file_but_itself_and_the_records(whole: Path) -> None:
    listed = {file.name: file for file in Manifest.read(open_root(whole)).files}
    files = tree(whole)
    assert set(listed) == {name for name in files if name != "manifest.json" and not name.startswith("records/")}
    assert all(listed[name].size == len(files[name]) for name in listed)
    assert all(listed[name].sha256 == sha256(files[name]) for name in listed)


def test_the_order_in_which_shards_are_written_does_not_show(tmp_path: Path, plan: StorePlan, whole: Path) -> None:
    for shard in reversed(todo(tmp_path, plan)):
        write_shard(tmp_path, plan, shard)
    finish(tmp_path, plan)
    assert tree(tmp_path) == tree(whole)


def test_a_rerun_leaves_shards_alone_and_every_byte_the_same(copy: Path, plan: StorePlan, whole: Path) -> None:
    files = [path for number in range(3) for path in shard_files(copy, number)]
    times = [path.stat().st_mtime_ns for path in files]
    write_store(copy, plan)
    assert tree(copy) == tree(whole) and [path.stat().st_mtime_ns for path in files] == times


def test_no_clock_host_or_folder_name_is_in_the_bytes(
    tmp_path: Path, plan: StorePlan, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_store(tmp_path / "elsewhere" / "b", plan)
    assert tree(whole) == tree(tmp_path / "elsewhere" / "b")
    assert not any(str(whole.parent).encode() in data for data in tree(whole).values())


def test_a_run_that_goes_on_by_the_plans_file_ends_in_the_same_bytes(
    tmp_path: Path, plan: StorePlan, whole: Path
) -> None:
    """As the teacher pass does, which takes a Zarr store's capacities from it."""
    begin(tmp_path, plan)
    write_shard(tmp_path, plan, 0)
    again = read_plan(open_root(tmp_path))
    assert again is not None and again.shard_plans() == plan.shard_plans()
    write_store(tmp_path, again)
    assert tree(tmp_path) == tree(whole)


OTHER_POINTS = FieldSpec("points", "npy", "float32", ("P", "5"), "m")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"header": {"annotated": True, "image_scale": 0.5, "sweeps": 10}}, r"header\.image_scale = 1\.0, .* 0\.5"),
        ({"identity": {**IDENTITY, "dataset_version": "v1.0-mini"}}, r"version = v1\.0-test, .*mini"),
        ({"shards": (SHARDS[0], SHARDS[1])}, r"number of shards = 3, .* 2"),
        ({"shards": (*SHARDS, ("f" * 32,))}, r"number of shards = 3, .* 4"),
        ({"shards": (SHARDS[0], SHARDS[1], SHARDS[2][::-1])}, rf"shards\[2\]\[0\] = {TOKENS[4]}, .* {TOKENS[5]}"),
        ({"scenes": (SCENES[0], dataclasses.replace(SCENES[1], split="test"))}, r"scenes\[1\]\.split = val, .* test"),
        ({"header": {"annotated": True, "image_scale": 1.0}}, r"header\.sweeps = 10, .*\(absent\)"),
        ({"fields": (*FRAME_FIELDS[:-1], OTHER_POINTS)}, r"fields\[12\]\.about = x, y"),
    ],
)
def test_another_plan_is_refused_with_both_values_and_nothing_is_touched(
    damaged: Path, changes: dict[str, Any], named: str
) -> None:
    (damaged / "shards" / "x.partial").touch()
    before = tree(damaged)
    with pytest.raises(FingerprintError, match=f"was begun with .*{named}"):
        begin(damaged, frame_plan(**changes))
    assert tree(damaged) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": dataclasses.replace(ZARR, rows=4)}, r"format\.rows = 3, .* 4"),
        ({"format": dataclasses.replace(ZARR, capacity={"N": 6, "K": 91})}, r"format\.capacity\.K = 90, .* 91"),
        ({}, r"format\.capacity\.K = 90, .*\(absent\)"),
    ],
)
def test_another_format_or_capacity_is_refused_with_both_values(
    zarr_root: Path, changes: dict[str, Any], named: str
) -> None:
    for grow in (False, True):
        with pytest.raises(FingerprintError, match=f"was begun with .*{named}"):
            begin(zarr_root, teacher_plan(**changes), grow=grow)


def test_a_plan_with_tuples_in_it_resumes(tmp_path: Path) -> None:
    plan = frame_plan(header={"annotated": True, "sizes": (1, 2), "sweeps": 10})
    write_store(tmp_path, plan)
    assert begin(tmp_path, plan) == []


def test_a_store_without_its_plan_is_read_but_not_continued(damaged: Path) -> None:
    (damaged / "plan.json").unlink()
    with pytest.raises(StoreError, match=r"no plan\.json; .* choose another folder"):
        begin(damaged, frame_plan())
    assert len(FrameStore(damaged)) == 6


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"settings": 5}', '{"settings": {}}', "[" * 100_000])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    begin(tmp_path, frame_plan())
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(StoreError, match=r"plan\.json: not (readable as )?a store plan"):
        begin(tmp_path, frame_plan())


def test_a_plan_with_a_field_that_no_writer_makes_is_named(tmp_path: Path) -> None:
    begin(tmp_path, frame_plan())
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace('"ext": "json"', '"ext": "pkl"'))
    with pytest.raises(StoreError, match=r"plan\.json: not a store plan \(StoreError: field frame: extension 'pkl'"):
        begin(tmp_path, frame_plan())


def harm_file_missing(root: Path) -> None:
    shard_files(root, 1)[0].unlink()


def harm_last_file_missing(root: Path) -> None:
    shard_files(root, 1)[-1].unlink()


def harm_file_truncated(root: Path) -> None:
    path = shard_files(root, 1)[-1]
    path.write_bytes(path.read_bytes()[:-1])


def harm_file_grown(root: Path) -> None:
    with open(shard_files(root, 1)[0], "ab") as file:
        file.write(b"\0")


def harm_record_missing(root: Path) -> None:
    record_path(root, 1).unlink()


def harm_record_truncated(root: Path) -> None:
    record_path(root, 1).write_bytes(record_path(root, 1).read_bytes()[:300])


def harm_record_damaged(root: Path) -> None:
    text = record_path(root, 1).read_text()
    assert '"timestamp_us": 2' in text
    record_path(root, 1).write_text(text.replace('"timestamp_us": 2', '"timestamp_us": 7'))


def harm_record_not_a_dict(root: Path) -> None:
    record_path(root, 1).write_text("[]")


def harm_record_of_another_shard(root: Path) -> None:
    record_path(root, 1).write_bytes(record_path(root, 0).read_bytes())


def harm_record_of_another_plan(root: Path) -> None:
    values = json.loads(record_path(root, 1).read_text())
    del values["digest"]
    record_path(root, 1).write_text(json.dumps(seal({**values, "plan": "0" * 64})))


HARMS = [value for name, value in list(globals().items()) if name.startswith("harm_")]


@pytest.mark.parametrize("harm", HARMS)
def test_a_shard_whose_record_and_files_do_not_agree_is_redone(
    copy: Path, plan: StorePlan, whole: Path, harm: Callable[[Path], None]
) -> None:
    harm(copy)
    with pytest.raises(StoreError, match=r"shards \[1\] of 3 are not committed; run the same command again"):
        finish(copy, plan)
    assert todo(copy, plan) == [1]
    write_store(copy, plan)
    assert tree(copy) == tree(whole)


def test_killed_before_the_record_the_shard_is_redone(tmp_path: Path, plan: StorePlan, whole: Path) -> None:
    begin(tmp_path, plan)
    write_shard(tmp_path, plan, 0)
    write_shard(tmp_path, plan, 1, commit=False)
    assert todo(tmp_path, plan) == [1, 2]
    write_store(tmp_path, plan)
    assert tree(tmp_path) == tree(whole)


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path, plan: StorePlan, whole: Path) -> None:
    begin(tmp_path, plan)
    for name in (
        "shards/00000.tar.1-2.partial",
        "records/00000.json.partial",
        "manifest.json.3-4.partial",
        "data.zarr/valid/c/0.5-6.partial",
        "index/.hidden one.partial",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"half")
    write_store(tmp_path, plan)
    assert tree(tmp_path) == tree(whole)


def test_finish_names_what_is_missing_and_leaves_no_manifest(tmp_path: Path, plan: StorePlan) -> None:
    begin(tmp_path, plan)
    write_shard(tmp_path, plan, 1)
    with pytest.raises(StoreError, match=r"shards \[0, 2\] of 3 are not committed"):
        finish(tmp_path, plan)
    names = set(tree(tmp_path))
    assert not any(name.startswith(("manifest", "index")) or name.endswith("zarr.json") for name in names)


RECORD_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "one frame less": lambda record: record["frames"].pop(),
    "other order": lambda record: record["frames"].reverse(),
    "another token": lambda record: record["frames"][0].update(token=TOKENS[5]),
    "size beyond its column": lambda record: record["frames"][0].update(sizes={"N": 2**70}),
    "negative size": lambda record: record["frames"][0].update(sizes={"N": -1}),
    "length beyond its column": lambda record: record["frames"][0]["members"].update(frame=[0, 2**32, 5]),
    "fraction": lambda record: record["frames"][0]["members"].update(frame=[0, 1.5, 5]),
    "count beyond its column": lambda record: record["frames"][0]["class_counts"].__setitem__(0, 2**16),
    "no frames": lambda record: record.pop("frames"),
    "text for frames": lambda record: record.update(frames="abc"),
    "kind": lambda record: record["frames"][0].update(kind=256),
    "digest": lambda record: record["frames"][0].update(digest="zz"),
    "short digest": lambda record: record["frames"][0].update(digest="ab"),
    "number for a digest": lambda record: record["frames"][0].update(digest=5),
    "list for a scene": lambda record: record["frames"][0].update(scene=["a"]),
    "no counts": lambda record: record["frames"][0].update(class_counts={}),
    "no digest of a file": lambda record: record["files"][0].__setitem__(2, None),
    "beyond the file": lambda record: next(iter(record["frames"][0]["members"].values())).__setitem__(0, 2**64 - 1),
}


@pytest.mark.parametrize("change", RECORD_CHANGES.values(), ids=RECORD_CHANGES)
def test_a_record_that_no_writer_makes_is_not_assembled_and_a_rerun_writes_its_shard_again(
    tmp_path: Path, whole: Path, plan: StorePlan, change: Callable[[dict[str, Any]], object]
) -> None:
    """Its seal holds, so only what it says tells."""
    record = json.loads(record_path(whole, 0).read_bytes())
    del record["digest"]
    change(record)
    place = Path(shutil.copytree(whole, tmp_path / "again"))
    record_path(place, 0).write_bytes(canonical_json(seal(record)))
    with pytest.raises(StoreError, match=r"shards \[0\] of 3 are not committed; run the same command again"):
        finish(place, plan)
    assert tree(place) != tree(whole)
    write_store(place, plan)
    assert tree(place) == tree(whole)


@pytest.mark.parametrize("change", [{"scene": "f" * 32}, {"class_counts": [1]}])
def test_a_record_that_no_index_can_hold_is_named_with_the_remedy(
    tmp_path: Path, whole: Path, plan: StorePlan, change: dict[str, Any]
) -> None:
    place = Path(shutil.copytree(whole, tmp_path / "again"))
    record = json.loads(record_path(whole, 1).read_bytes())
    del record["digest"]
    record["frames"][0].update(change)
    record_path(place, 1).write_bytes(canonical_json(seal(record)))
    with pytest.raises(StoreError, match=r"records/00001\.json: frames that no index can hold .*; delete it"):
        finish(place, plan)
    record_path(place, 1).unlink()
    write_store(place, plan)
    assert tree(place) == tree(whole)


def test_another_plan_is_refused_even_where_nothing_was_committed(tmp_path: Path) -> None:
    """A worker whose client died may still commit a shard of the first plan, over one of the second."""
    begin(tmp_path, teacher_plan(format=dataclasses.replace(ZARR, capacity={"N": 1, "K": 1})))
    with pytest.raises(FingerprintError, match=r"remove that folder \(no shard of it was committed\)"):
        begin(tmp_path, teacher_plan())


def test_quarantined_frames_are_listed_skipped_and_tried_again(tmp_path: Path, plan: StorePlan, whole: Path) -> None:
    manifest = write_store(tmp_path, plan, quarantine={TOKENS[2]})
    assert manifest.quarantined == ({"token": TOKENS[2], "reason": "a.bin: truncated"},)
    store = Store(tmp_path)
    assert store.tokens == [token for token in TOKENS if token != TOKENS[2]]
    with pytest.raises(StoreError, match="no frame"):
        store.row_of(TOKENS[2])
    for token in store.tokens:
        for name, value in values_of(plan, token).items():
            assert_equal(store.read(store.row_of(token), name), value)
    assert todo(tmp_path, plan) == [1]
    again = write_store(tmp_path, plan, quarantine={TOKENS[2]})
    assert again.digest == manifest.digest
    assert write_store(tmp_path, plan).quarantined == ()  # the raw file has been restored
    assert tree(tmp_path) == tree(whole)


def test_a_shard_of_which_nothing_could_be_read_is_an_empty_one(tmp_path: Path, plan: StorePlan) -> None:
    write_store(tmp_path, plan, quarantine=set(SHARDS[1]))
    store = Store(tmp_path)
    assert len(store) == 4 and store.split_rows("val") == [2, 3]
    for name, value in values_of(plan, TOKENS[5]).items():
        assert_equal(store.read(3, name), value)


def test_a_store_without_a_single_frame_opens_empty(tmp_path: Path, plan: StorePlan) -> None:
    write_store(tmp_path, plan, quarantine=set(TOKENS))
    store = Store(tmp_path)
    assert len(store) == 0 and store.tokens == [] and store.split_rows("train") == [] and store.split_rows() == []


# --- two runs of one store


def other_bytes(root: Path, plan: StorePlan, number: int = 1) -> None:
    """A second run, on a device that computes other values."""
    shard = plan.shard_plans()[number]
    with open_shard(root, shard) as writer:
        for token in shard.tokens:
            values = values_of(plan, token)
            name = "points" if plan.kind == "frames" else "bev_weights"
            writer.write(entry_of(token), {**values, name: values[name] + np.float32(0.5)})


def test_another_run_with_other_bytes_is_refused_by_name_and_harms_nothing(
    copy: Path, plan: StorePlan, whole: Path
) -> None:
    with pytest.raises(StoreError, match=r"records/00001\.json: another run has committed this shard with other bytes"):
        other_bytes(copy, plan)
    assert tree(copy) == tree(whole)


def test_another_run_with_the_same_bytes_passes(copy: Path, plan: StorePlan, whole: Path) -> None:
    write_shard(copy, plan, 1)
    assert tree(copy) == tree(whole)


def test_a_run_that_was_overtaken_while_writing_is_refused_as_well(
    tmp_path: Path, plan: StorePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run commits between this one's look and its own record."""
    begin(tmp_path, plan)
    monkeypatch.setattr("cache.shard_writer.make_way", lambda *_, **__: None)
    write_shard(tmp_path, plan, 1)
    monkeypatch.setattr("cache.commit.committed_record", lambda *_: {"quarantined": []})
    with pytest.raises(StoreError, match=r"records/00001\.json: another run has committed"):
        other_bytes(tmp_path, plan)


def test_a_damaged_shard_may_be_written_with_other_bytes(copy: Path, plan: StorePlan) -> None:
    harm_file_truncated(copy)
    other_bytes(copy, plan)
    assert todo(copy, plan) == []


# --- full disks


def test_a_full_disk_keeps_what_was_committed(
    tmp_path: Path, plan: StorePlan, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills before each single write in turn; what was committed before stays, and a rerun completes it."""
    fsync, expected = os.fsync, tree(whole)
    steps, stride = 0, 1 if plan.format.name == "webdataset" else 7
    while True:
        root = tmp_path / str(steps)
        count = 0

        def full(descriptor: int) -> None:
            nonlocal count
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                count += 1
                if count > steps:  # noqa: B023 (called within the same turn)
                    raise OSError(28, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        try:
            write_store(root, plan)
        except OutOfSpaceError:
            monkeypatch.undo()
            assert not list(root.rglob("*.partial"))
            left = tree(root) if root.exists() else {}
            assert all(expected[name] == data for name, data in left.items())
            assert len(left) == steps
            write_store(root, plan)
            assert tree(root) == expected
            shutil.rmtree(root)
        else:
            break
        steps += stride
    monkeypatch.undo()
    assert steps >= len(expected) > steps - stride
    if plan.format.name == "webdataset":
        assert len(expected) == 1 + 2 * 3 + 12 + 1  # plan, shards and records, columns, manifest


# --- the difference of two plans


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("xy", min_size=1, max_size=1), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(JSON, JSON)
def test_the_first_difference_of_two_plans_is_a_difference(one: Any, other: Any) -> None:
    found, expected = {"plan": one}, {"plan": other}
    name, a, b = first_difference(found, expected)
    if one == other:
        assert (name, a, b) == ("", found, expected)
    else:
        assert name.removeprefix("number of ").startswith("plan") and a != b


def test_the_first_difference_is_named_down_to_its_place() -> None:
    found = {"a": {"b": [{"c": 1}, {"c": 2}], "x": None}}
    assert first_difference(found, {"a": {"b": [{"c": 1}, {"c": 3}], "x": None}}) == ("a.b[1].c", 2, 3)
    assert first_difference(found, {"a": {"b": [{"c": 1}], "x": None}}) == ("number of a.b", 2, 1)
    assert first_difference(found, {"a": {"b": found["a"]["b"]}}) == ("a.x", None, "(absent)")
    two = [("a.b[1].c", 2, 3), ("a.x", None, "(absent)")]
    assert list(differences(found, {"a": {"b": [{"c": 1}, {"c": 3}]}})) == two


def test_every_refusal_is_an_error_the_command_line_prints() -> None:
    assert issubclass(FingerprintError, StoreError) and issubclass(StoreError, BevcaskError)
    assert issubclass(OutOfSpaceError, BevcaskError)


def test_frames_and_teacher_of_one_plan_of_shards_share_their_entries(frames_root: Path, teacher_root: Path) -> None:
    frames, teacher = FrameStore(frames_root), TeacherStore(teacher_root)
    assert [frames.entry(row) for row in range(6)] == [teacher.entry(row) for row in range(6)]
    assert frames.entry(0) == entry_of(TOKENS[0]) and frames.points(0).shape == frame_values(TOKENS[0])["points"].shape
