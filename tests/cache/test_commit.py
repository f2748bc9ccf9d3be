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

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.commit import begin, finish, first_difference, record_path, shard_path, write_record
from cache.errors import BevcaskError, FingerprintError, OutOfSpaceError, StoreError
from cache.fields import FieldSpec
from cache.files import seal
from cache.manifest import Manifest, Scene
from cache.store import FrameStore
from tests.cache.stores import (
    FRAME_FIELDS,
    SCENES,
    SHARDS,
    TOKENS,
    assert_equal,
    frame_plan,
    frame_values,
    teacher_plan,
    tree,
    write_shard,
    write_store,
)


def test_a_new_store_plans_every_shard_and_a_finished_one_none(tmp_path: Path) -> None:
    plan = frame_plan()
    assert begin(tmp_path, plan) == [0, 1, 2]
    write_shard(tmp_path, plan, 1)
    assert begin(tmp_path, plan) == [0, 2]
    write_shard(tmp_path, plan, 0)
    write_shard(tmp_path, plan, 2)
    assert begin(tmp_path, plan) == []
    finish(tmp_path, plan)
    assert begin(tmp_path, plan) == []


def test_finish_returns_the_manifest_that_a_reader_reads(tmp_path: Path) -> None:
    manifest = write_store(tmp_path, frame_plan())
    assert Manifest.read(tmp_path) == manifest and Manifest.read(tmp_path).digest == manifest.digest
    assert [shard.frames for shard in manifest.shards] == [2, 2, 2]
    assert [shard.size for shard in manifest.shards] == [shard_path(tmp_path, i).stat().st_size for i in range(3)]


@pytest.mark.parametrize("plan", [frame_plan(), teacher_plan()], ids=["frames", "teacher"])
def test_the_order_in_which_shards_are_written_does_not_show(tmp_path: Path, plan: Any) -> None:
    write_store(tmp_path / "a", plan)
    for shard in reversed(begin(tmp_path / "b", plan)):
        write_shard(tmp_path / "b", plan, shard)
    finish(tmp_path / "b", plan)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_rerun_leaves_shards_alone_and_every_byte_the_same(tmp_path: Path) -> None:
    write_store(tmp_path, frame_plan())
    before, times = tree(tmp_path), [shard_path(tmp_path, i).stat().st_mtime_ns for i in range(3)]
    write_store(tmp_path, frame_plan())
    assert tree(tmp_path) == before
    assert [shard_path(tmp_path, i).stat().st_mtime_ns for i in range(3)] == times


def test_no_clock_host_or_folder_name_is_in_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "a", frame_plan())
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_store(tmp_path / "elsewhere" / "b", frame_plan())
    assert tree(tmp_path / "a") == tree(tmp_path / "elsewhere" / "b")
    assert not any(str(tmp_path).encode() in data for data in tree(tmp_path / "a").values())


OTHER_POINTS = FieldSpec("points", "npy", "float32", ("P", "5"), "m")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"header": {"annotated": True, "image_scale": 0.5, "sweeps": 10}}, r"header\.image_scale = 1\.0, .* 0\.5"),
        ({"identity": {"dataset_version": "v1.0-mini", "frames_digest": "f00d"}}, r"version = v1\.0-test, .*mini"),
        ({"shards": (SHARDS[0], SHARDS[1])}, r"number of shards = 3, .* 2"),
        ({"shards": (SHARDS[0], SHARDS[1], SHARDS[2][::-1])}, rf"shards\[2\]\[0\] = {TOKENS[4]}, .* {TOKENS[5]}"),
        ({"scenes": (SCENES[0], dataclasses.replace(SCENES[1], split="test"))}, r"scenes\[1\]\.split = val, .* test"),
        ({"header": {"annotated": True, "image_scale": 1.0}}, r"header\.sweeps = 10, .*\(absent\)"),
        ({"fields": (*FRAME_FIELDS[:-1], OTHER_POINTS)}, r"\.ext = npy\.zstd, .*npy;"),
    ],
)
def test_another_plan_is_refused_with_both_values_and_nothing_is_touched(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    write_store(tmp_path, frame_plan())
    (tmp_path / "shards" / "x.partial").touch()
    before = tree(tmp_path)
    with pytest.raises(FingerprintError, match=f"was begun with .*{named}"):
        begin(tmp_path, frame_plan(**changes))
    assert tree(tmp_path) == before


def test_a_plan_with_tuples_in_it_resumes(tmp_path: Path) -> None:
    plan = frame_plan(header={"annotated": True, "sizes": (1, 2), "sweeps": 10})
    write_store(tmp_path, plan)
    assert begin(tmp_path, plan) == []


def test_a_frame_planned_twice_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"frame {TOKENS[0]} is planned twice"):
        begin(tmp_path / "new", frame_plan(shards=(SHARDS[0], SHARDS[0])))
    assert not (tmp_path / "new").exists()


def test_a_store_without_its_plan_is_read_but_not_continued(damaged: Path) -> None:
    (damaged / "plan.json").unlink()
    with pytest.raises(StoreError, match=r"no plan\.json; .* choose another folder"):
        begin(damaged, frame_plan())
    assert len(FrameStore(damaged)) == 6


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    begin(tmp_path, frame_plan())
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(StoreError, match=r"plan\.json: not readable as a store plan"):
        begin(tmp_path, frame_plan())


def harm_tar_missing(root: Path) -> None:
    shard_path(root, 1).unlink()


def harm_tar_truncated(root: Path) -> None:
    with open(shard_path(root, 1), "r+b") as file:
        file.truncate(1000)


def harm_record_missing(root: Path) -> None:
    record_path(root, 1).unlink()


def harm_record_truncated(root: Path) -> None:
    record_path(root, 1).write_bytes(record_path(root, 1).read_bytes()[:300])


def harm_record_damaged(root: Path) -> None:
    text = record_path(root, 1).read_text()
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
def test_a_shard_whose_record_and_tar_do_not_agree_is_redone(
    damaged: Path, frames_root: Path, harm: Callable[[Path], None]
) -> None:
    harm(damaged)
    with pytest.raises(StoreError, match=r"shards \[1\] of 3 are not committed; run the same command again"):
        finish(damaged, frame_plan())
    assert begin(damaged, frame_plan()) == [1]
    write_store(damaged, frame_plan())
    assert tree(damaged) == tree(frames_root)


def test_killed_before_the_record_the_shard_is_redone(tmp_path: Path, frames_root: Path) -> None:
    plan = frame_plan()
    begin(tmp_path, plan)
    write_shard(tmp_path, plan, 0)
    write_shard(tmp_path, plan, 1, commit=False)
    assert begin(tmp_path, plan) == [1, 2]
    write_store(tmp_path, plan)
    assert tree(tmp_path) == tree(frames_root)


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path, frames_root: Path) -> None:
    plan = frame_plan()
    begin(tmp_path, plan)
    for name in ("shards/00000.tar.1-2.partial", "records/00000.json.partial", "manifest.json.3-4.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    write_store(tmp_path, plan)
    assert tree(tmp_path) == tree(frames_root)


def test_finish_names_what_is_missing_and_leaves_no_manifest(tmp_path: Path) -> None:
    plan = frame_plan()
    begin(tmp_path, plan)
    write_shard(tmp_path, plan, 1)
    with pytest.raises(StoreError, match=r"shards \[0, 2\] of 3 are not committed"):
        finish(tmp_path, plan)
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / "index").exists()


@pytest.mark.parametrize("tokens", [[TOKENS[0]], [TOKENS[1], TOKENS[0]], [TOKENS[0], TOKENS[1], TOKENS[2]]])
def test_a_record_with_other_frames_than_planned_is_not_assembled(damaged: Path, tokens: list[str]) -> None:
    values = json.loads(record_path(damaged, 0).read_text())
    frames = [{**values["frames"][0], "token": token} for token in tokens]
    plan = frame_plan()
    write_record(damaged, 0, plan.digest, size=values["size"], sha256="", frames=frames, quarantined=[])
    with pytest.raises(StoreError, match=r"00000\.json: its frames are not the planned ones; delete it"):
        finish(damaged, plan)


def test_quarantined_frames_are_listed_skipped_and_tried_again(tmp_path: Path, frames_root: Path) -> None:
    plan = frame_plan()
    manifest = write_store(tmp_path, plan, quarantine={TOKENS[2]})
    assert manifest.quarantined == ({"token": TOKENS[2], "reason": "a.bin: truncated"},)
    store = FrameStore(tmp_path)
    assert store.tokens == [token for token in TOKENS if token != TOKENS[2]]
    with pytest.raises(StoreError, match="no frame"):
        store.row_of(TOKENS[2])
    for token in store.tokens:
        assert_equal(store.points(store.row_of(token)), frame_values(token)["points"])
    assert begin(tmp_path, plan) == [1]
    again = write_store(tmp_path, plan, quarantine={TOKENS[2]})
    assert again.digest == manifest.digest
    assert write_store(tmp_path, plan).quarantined == ()  # the raw file has been restored
    assert tree(tmp_path) == tree(frames_root)


def test_a_shard_of_which_nothing_could_be_read_is_an_empty_one(tmp_path: Path) -> None:
    write_store(tmp_path, frame_plan(), quarantine=set(SHARDS[1]))
    store = FrameStore(tmp_path)
    assert len(store) == 4 and store.split_rows("val") == [2, 3]
    assert_equal(store.depth(3)[:, 0], frame_values(TOKENS[5])["depth"][:, 0].astype("float32"))


def test_a_store_without_a_single_frame_opens_empty(tmp_path: Path) -> None:
    write_store(tmp_path, frame_plan(), quarantine=set(TOKENS))
    store = FrameStore(tmp_path)
    assert len(store) == 0 and store.tokens == [] and store.split_rows("train") == [] and store.split_rows() == []


def test_a_full_disk_keeps_what_was_committed(
    tmp_path: Path, frames_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills before each single write in turn; what was committed before stays, and a rerun completes it."""
    plan = frame_plan()
    fsync = os.fsync
    steps = 0
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
            whole = tree(frames_root)
            assert all(whole[name] == data for name, data in left.items())
            assert len(left) == steps
            write_store(root, plan)
            assert tree(root) == whole
            shutil.rmtree(root)
        else:
            break
        steps += 1
    monkeypatch.undo()
    assert steps == len(tree(frames_root)) == 1 + 2 * 3 + 9 + 1  # plan, shards and records, columns, manifest


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


def test_equal_plans_have_equal_digests_and_others_do_not() -> None:
    assert frame_plan().digest == frame_plan(header=dict(reversed(frame_plan().header.items()))).digest
    others = [
        frame_plan(kind="teacher"),
        frame_plan(header={}),
        frame_plan(identity={}),
        frame_plan(shards=SHARDS[:2]),
        frame_plan(scenes=(Scene("a", "b", "c"),)),
        frame_plan(fields=frame_plan().fields[:3]),
    ]
    assert len({plan.digest for plan in [frame_plan(), *others]}) == 7


def test_every_refusal_is_an_error_the_command_line_prints() -> None:
    assert issubclass(FingerprintError, StoreError) and issubclass(StoreError, BevcaskError)
    assert issubclass(OutOfSpaceError, BevcaskError)
