"""The reader: what was written comes back in every bit, and what is asked for and not there is told."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.commit import begin
from cache.depth_labels import pack_depth
from cache.errors import BevcaskError, CorruptError, FingerprintError, StoreError
from cache.frame import CAMERA_CHANNELS
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from cache.plan import StorePlan
from cache.roots import open_root
from cache.same_frames import require_same_frames
from cache.shard_writer import open_shard
from cache.store import FrameStore, Store, TeacherStore
from tests.cache.stores import (
    COVERAGE,
    ENCODING,
    GRID,
    IDENTITY,
    SCENES,
    SHARDS,
    TOKENS,
    UNLABELLED,
    ZARR,
    assert_equal,
    entry_of,
    forge_column,
    forge_manifest,
    frame_of,
    frame_plan,
    frame_values,
    shard_files,
    tar_path,
    teacher_plan,
    teacher_values,
    values_of,
    write_shard,
    write_store,
)


def test_every_field_of_every_frame_reads_back_bit_for_bit(plan: StorePlan, whole: Path) -> None:
    store = Store(whole)
    assert store.tokens == TOKENS and len(store) == 6
    for row, token in enumerate(TOKENS):
        expected = values_of(plan, token)
        assert store.token(row) == token and store.entry(row) == entry_of(token)
        for name, value in zip(expected, store.read_many(row, list(expected)), strict=True):
            assert_equal(value, expected[name])
        for spec in store.manifest.fields:
            assert store.has(row, spec.name) == (spec.name in expected)
            if spec.name in expected:
                assert_equal(store.read(row, spec.name), expected[spec.name])
                if plan.format.name == "webdataset":
                    assert store.read_bytes(row, spec.name) == spec.encode(expected[spec.name])


def test_the_frame_store_speaks_of_frames(frames_root: Path) -> None:
    store = FrameStore(frames_root)
    for row, token in enumerate(TOKENS):
        values = frame_values(token)
        assert store.frame(row).to_dict() == frame_of(token).to_dict()
        for channel in CAMERA_CHANNELS:
            assert store.image(row, channel) == values[channel.lower()]
        assert_equal(store.points(row), values["points"])
        assert store.is_labelled(row) == (token != UNLABELLED)
        assert store.index.kind[row] == (KIND_UNLABELLED if token == UNLABELLED else KIND_LABELLED)
        if token == UNLABELLED:
            continue
        truth = store.truth(row)
        assert len(truth) == len(values["gt_boxes"])
        assert_equal(truth.boxes_global, values["gt_boxes"])
        assert_equal(truth.racks_global, values["racks"])
        columns = [truth.class_ids, truth.attribute_ids, truth.num_lidar_pts, truth.num_radar_pts, truth.visibility]
        for column, expected in zip(columns, values["gt_ids"].T, strict=True):
            assert_equal(column, expected)
        assert_equal(store.boxes_lidar(row), values["gt_lidar"])


@pytest.mark.parametrize("fixture", ["teacher_root", "zarr_root"])
def test_the_teacher_store_speaks_of_cells_and_detections(fixture: str, request: pytest.FixtureRequest) -> None:
    store = TeacherStore(request.getfixturevalue(fixture))
    assert store.grid == GRID and store.coverage == COVERAGE and store.bev == ENCODING
    assert store.selectors == ["gaussian", "random"]
    for row, token in enumerate(TOKENS):
        values, cells, detections = teacher_values(token), store.cells(row), store.detections(row)
        assert_equal(cells.index, values["bev_index"])
        assert_equal(cells.values, values["bev_values"])
        assert_equal(cells.weights, values["bev_weights"])
        assert_equal(detections.boxes_lidar, values["boxes"])
        assert_equal(detections.scores, values["scores"])
        assert_equal(detections.labels, values["labels"])


def test_tokens_scenes_and_splits_lead_to_rows(whole: Path, plan: StorePlan) -> None:
    store = Store(str(whole))
    assert [store.row_of(token) for token in TOKENS] == list(range(6))
    assert [store.scene_of(row) for row in range(6)] == ["scene-0001"] * 4 + ["scene-0002"] * 2
    assert store.split_rows("train") == [0, 1, 2, 3] and store.split_rows("val") == [4, 5]
    assert store.split_rows() == store.split_rows(None) == list(range(6))
    assert store.index.timestamp_us.tolist() == list(range(6))
    assert [tuple(row) for row in store.index.class_counts.tolist()] == [entry_of(t).class_counts for t in TOKENS]
    assert store.manifest.scenes == SCENES and store.classes == IDENTITY["classes"]


def test_a_split_with_scenes_but_no_frames_is_empty_not_unknown(tmp_path: Path) -> None:
    write_store(tmp_path, frame_plan(shards=SHARDS[:2]))
    assert FrameStore(tmp_path).split_rows("val") == []


def test_depth_labels_come_back_in_pixels_and_metres(tmp_path: Path) -> None:
    packed = pack_depth(np.array([5, 0]), np.array([2047.5, 0.0]), np.array([0.03125, 899.0]), np.array([655.35, 1.0]))
    plan = frame_plan(shards=((TOKENS[0],),))
    begin(tmp_path, plan)
    with open_shard(tmp_path, plan.shard_plans()[0]) as writer:
        writer.write(entry_of(TOKENS[0]), {"depth": packed})
    write_store(tmp_path, plan)
    found = FrameStore(tmp_path).depth(0)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[5, 2047.5, 0.03125, 655.35], [0, 0, 899, 1]], np.float32))


# --- what is asked for and not there


def test_unknown_tokens_fields_and_splits_are_named_with_what_there_is(frames_root: Path) -> None:
    store = FrameStore(frames_root)
    with pytest.raises(StoreError, match=r"no frame 'abc' among its 6"):
        store.row_of("abc")
    for read in (store.read, store.read_bytes):
        with pytest.raises(StoreError, match=rf"frame {TOKENS[0]} has no field 'radar'; the store holds \['cam_back'"):
            read(0, "radar")
    assert not store.has(0, "radar")
    with pytest.raises(StoreError, match=r"no split 'test'; it has \['train', 'val'\]"):
        store.split_rows("test")
    with pytest.raises(StoreError, match="no field 'gt_boxes'"):
        store.read(TOKENS.index(UNLABELLED), "gt_boxes")
    with pytest.raises(StoreError, match="no field 'cam_top'"):
        store.image(0, "CAM_TOP")


def test_a_store_of_the_other_kind_is_refused(frames_root: Path, zarr_root: Path) -> None:
    with pytest.raises(StoreError, match="holds a teacher store, expected a frames store"):
        FrameStore(zarr_root)
    with pytest.raises(StoreError, match="holds a frames store, expected a teacher store"):
        TeacherStore(frames_root)


def test_an_unfinished_store_is_refused_until_it_is_finished(tmp_path: Path, plan: StorePlan) -> None:
    with pytest.raises(StoreError, match="no store"):
        Store(tmp_path)
    for shard in begin(tmp_path, plan):
        write_shard(tmp_path, plan, shard.number)
        with pytest.raises(StoreError, match="an unfinished caching run"):
            Store(tmp_path)
    write_store(tmp_path, plan)
    assert len(Store(tmp_path)) == 6


def test_every_error_here_is_one_line_that_the_command_line_prints(damaged: Path) -> None:
    tar_path(damaged, 0).unlink()
    store = FrameStore(damaged)
    for call in (
        lambda: store.frame(0),
        lambda: store.row_of("x"),
        lambda: store.split_rows("x"),
        lambda: TeacherStore(damaged),
    ):
        with pytest.raises(BevcaskError) as raised:
            call()
        assert "\n" not in str(raised.value) and str(damaged) in str(raised.value)


# --- sharing


def test_many_threads_read_one_store(plan: StorePlan, whole: Path) -> None:
    expected = {token: values_of(plan, token) for token in TOKENS}
    store = Store(whole)

    def work(seed: int) -> int:
        rng = random.Random(seed)
        for _ in range(100):
            row = rng.randrange(6)
            field = rng.choice(list(expected[TOKENS[row]]))
            assert_equal(store.read(row, field), expected[TOKENS[row]][field])
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 8


def test_another_process_that_is_handed_a_store_opens_it_anew(whole: Path) -> None:
    store = Store(whole)
    store.read(0, store.manifest.fields[0].name)
    handed = pickle.dumps(store)
    assert len(handed) < 2000  # a place, no index
    again = pickle.loads(handed)
    assert type(again) is Store and again.root is not store.root and again.tokens == TOKENS


def open_descriptors(root: Path) -> int:
    """How many of the store's data files this process holds open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{name}")
            count += target.startswith((f"{root}/shards/", f"{root}/data.zarr/"))
    return count


def test_opening_reads_no_shard_and_close_gives_descriptors_back(plan: StorePlan, whole: Path) -> None:
    store, name = Store(whole), plan.fields[-1].name
    assert open_descriptors(whole) == 0
    store.read(0, name)
    store.read(5, name)
    assert open_descriptors(whole) == 2
    store.close()
    assert open_descriptors(whole) == 0
    assert_equal(store.read(0, name), values_of(plan, TOKENS[0])[name])
    store.close()


def test_a_store_that_is_dropped_unclosed_leaks_nothing(whole: Path, collect_garbage: Callable[[], None]) -> None:
    for _ in range(3):
        store = Store(whole)
        store.read(0, store.manifest.fields[0].name)
        del store
    collect_garbage()
    assert open_descriptors(whole) == 0


def test_a_file_that_grew_gives_the_same_values_and_is_written_again(copy: Path, plan: StorePlan, whole: Path) -> None:
    """A read goes by place and checksum; `begin` goes by the size."""
    for path in shard_files(copy, 1):
        with open(path, "ab") as file:
            file.write(bytes(10240))
    store = Store(copy)
    for name, value in values_of(plan, TOKENS[2]).items():
        assert_equal(store.read(2, name), value)
    assert [shard.number for shard in begin(copy, plan)] == [1]


# --- two stores


@pytest.mark.parametrize("layout", [None, ZARR], ids=["webdataset", "zarr"])
def test_a_teacher_of_the_same_frames_gives_its_rows(frames_root: Path, tmp_path: Path, layout: Any) -> None:
    changes = {} if layout is None else {"format": layout}
    write_store(tmp_path, teacher_plan(shards=(SHARDS[2], SHARDS[0], SHARDS[1]), **changes))
    frames, teacher = FrameStore(frames_root), TeacherStore(tmp_path)
    rows = require_same_frames(frames, teacher, [0, 5, 3])
    assert rows == [2, 1, 5]
    assert [teacher.tokens[row] for row in rows] == [TOKENS[0], TOKENS[5], TOKENS[3]]
    assert require_same_frames(frames, teacher, []) == []


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({**IDENTITY, "dataset_version": "v1.0-mini"}, "dataset_version = v1.0-mini, but {} has v1.0-test"),
        ({**IDENTITY, "classes": ["car"] * 10}, "classes = ['car', 'car',"),
        ({**IDENTITY, "dataset_version": None}, "dataset_version = None, but {} has v1.0-test"),
    ],
)
def test_a_teacher_of_another_data_set_is_refused_with_both_values_and_both_stores(
    frames_root: Path, tmp_path: Path, identity: dict[str, Any], named: str
) -> None:
    write_store(tmp_path, teacher_plan(identity=identity))
    with pytest.raises(FingerprintError) as raised:
        require_same_frames(FrameStore(frames_root), TeacherStore(tmp_path), [0])
    assert str(raised.value).startswith(f"{tmp_path}: {named.format(frames_root)}")
    assert str(frames_root) in str(raised.value)
    assert str(raised.value).endswith("; cache the teacher again on these frames")


def test_a_frame_with_another_pose_in_the_teacher_store_is_refused_with_both_digests(
    frames_root: Path, tmp_path: Path
) -> None:
    plan = teacher_plan(shards=((TOKENS[0], TOKENS[1]),))
    begin(tmp_path, plan)
    with open_shard(tmp_path, plan.shard_plans()[0]) as writer:
        writer.write(entry_of(TOKENS[0]), teacher_values(TOKENS[0]))
        writer.write(dataclasses.replace(entry_of(TOKENS[1]), digest="0" * 16), teacher_values(TOKENS[1]))
    write_store(tmp_path, plan)
    frames, teacher = FrameStore(frames_root), TeacherStore(tmp_path)
    assert require_same_frames(frames, teacher, [0]) == [0]
    with pytest.raises(FingerprintError) as raised:
        require_same_frames(frames, teacher, [0, 1])
    assert f"frame {TOKENS[1]} has pose digest {'0' * 16}" in str(raised.value)
    assert entry_of(TOKENS[1]).digest in str(raised.value)


def test_frames_that_the_teacher_lacks_are_counted_and_the_first_is_named(frames_root: Path, tmp_path: Path) -> None:
    write_store(tmp_path, teacher_plan(), quarantine={TOKENS[1], TOKENS[4]})
    frames, teacher = FrameStore(frames_root), TeacherStore(tmp_path)
    with pytest.raises(StoreError, match=rf"2 of 6 frames are missing, the first {TOKENS[1]}; run cache-teacher again"):
        require_same_frames(frames, teacher, range(6))
    assert require_same_frames(frames, teacher, [0, 2]) == [0, 1]


# --- many fields and many frames at once


class Counted:
    """A root that counts its ranged reads."""

    def __init__(self, root: Any) -> None:
        self.root, self.ranges = root, 0

    def read_range(self, name: str, start: int, length: int) -> bytes:
        self.ranges += name.startswith(("shards/", "data.zarr/"))
        return self.root.read_range(name, start, length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.root, name)


def test_fields_of_a_tar_come_by_one_ranged_read(teacher_root: Path, zarr_root: Path) -> None:
    for place, expected in ((teacher_root, 1), (zarr_root, 6)):
        root = Counted(open_root(place))
        store = TeacherStore(root)
        store.cells(2)
        store.detections(2)
        assert root.ranges == (2 if expected == 1 else 6)
        root.ranges = 0
        store.read_many(3, [spec.name for spec in store.manifest.fields])
        assert root.ranges == expected
        root.ranges = 0
        store.cells_of([0, 5, 3])
        assert root.ranges == (3 if expected == 1 else 9)


@pytest.mark.parametrize("rows", [[0], [5, 0, 3], [1, 1], []])
def test_joined_fields_are_those_of_each_frame_one_after_another(
    teacher_root: Path, zarr_root: Path, rows: list[int]
) -> None:
    for place in (teacher_root, zarr_root):
        store = TeacherStore(place)
        names = [spec.name for spec in store.manifest.fields]
        joined = store.read_joined(rows, names)
        for name in names:
            parts = [store.read(row, name) for row in rows]
            assert store.lengths(rows, name).tolist() == [len(part) for part in parts]
            assert joined[name].dtype == np.dtype(store._fields[name][1].dtype)
            assert_equal(joined[name], np.concatenate(parts) if parts else joined[name][:0])
        cells, offsets = store.cells_of(rows)
        assert offsets.tolist() == np.cumsum([0, *(len(store.cells(row)) for row in rows)]).tolist()
        for i, row in enumerate(rows):
            for name in ("index", "values", "weights"):
                assert_equal(getattr(cells, name)[offsets[i] : offsets[i + 1]], getattr(store.cells(row), name))


@pytest.mark.parametrize(("layout", "dtype"), [("cells", "u8"), ("dense", "float16"), ("dense", "u8")])
def test_joined_cells_of_other_encodings(tmp_path: Path, layout: str, dtype: str) -> None:
    encoding = dataclasses.replace(ENCODING, layout=layout, dtype=dtype)
    write_store(tmp_path, teacher_plan(encoding))
    store = TeacherStore(tmp_path)
    cells, offsets = store.cells_of([4, 0, 2])
    for i, row in enumerate([4, 0, 2]):
        assert_equal(cells.values[offsets[i] : offsets[i + 1]], store.cells(row).values)
    none, offsets = store.cells_of([])
    for name in ("index", "values", "weights"):
        assert_equal(getattr(none, name), getattr(store.cells(0), name)[:0])
    assert offsets.tolist() == [0]
    boxes = store.read_joined([1, 3], ["boxes", "scores", "boxes"])  # a name may stand twice
    assert_equal(boxes["boxes"], np.concatenate([store.read(row, "boxes") for row in (1, 3)]))


def test_joined_reading_from_many_threads_is_that_of_one(teacher_root: Path) -> None:
    """Each thread decodes into memory that it uses again: nobody meets another's values, nor its own earlier ones."""
    store = TeacherStore(teacher_root)
    jobs = [random.Random(number).choices(range(6), k=4) for number in range(200)]
    expected = [store.read_joined(rows, ["bev_values"])["bev_values"].copy() for rows in jobs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(store.cells_of, jobs), expected, strict=True):
            assert_equal(found[0].values, wanted)


@pytest.mark.parametrize("fields", [["points", "frame"], ["frame"], ["gone"], ["cam_front"]])
def test_what_cannot_be_joined_is_told(frames_root: Path, fields: list[str]) -> None:
    with pytest.raises(StoreError, match=r"use read|is not in this store|has no first axis"):
        FrameStore(frames_root).read_joined([0, 1], fields)


def test_damage_met_by_a_joined_read_is_named_as_by_a_single_one(teacher_root: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(teacher_root, tmp_path / "copy"))
    store = TeacherStore(place)
    path, position = tar_path(place, 0), store._fields["bev_values"][0]
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[int(store.index.offset[1, position]) + 3] ^= 0x10
    path.write_bytes(data)
    for read in (
        lambda: store.cells_of([0, 1]),
        lambda: store.cells(1),
        lambda: store.read_many(1, ["bev_values", "boxes"]),
    ):
        with pytest.raises(CorruptError, match=rf"{TOKENS[1]}\.bev_values\..*checksum differs"):
            read()
    assert len(store.cells_of([0, 2])[0]) > 0
    path.unlink()
    store.close()
    with pytest.raises(CorruptError, match="missing; restore it"):
        store.cells_of([0])


@contextlib.contextmanager
def little_memory(room: int = 3 << 29) -> Iterator[None]:
    """What is asked for beyond `room` bytes more than now raises MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("read", ["cells_of", "read_joined", "cells", "read_many"])
@pytest.mark.parametrize("claim", ["sizes", "length"])
def test_an_index_that_claims_too_much_takes_no_memory(
    teacher_root: Path, tmp_path: Path, read: str, claim: str
) -> None:
    """All digests agree; only what the members themselves say is less."""
    place = Path(shutil.copytree(teacher_root, tmp_path / "copy"))

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[:] = 2**28 if claim == "sizes" else 2**31
        return array

    forge_column(place, claim, change)
    store = TeacherStore(place)
    calls: dict[str, Callable[[], Any]] = {
        "cells_of": lambda: store.cells_of([0] * 8),
        "read_joined": lambda: store.read_joined([0] * 8, ["bev_values"]),
        "cells": lambda: store.cells(0),
        "read_many": lambda: store.read_many(0, ["bev_values", "boxes"]),
    }
    with little_memory(), pytest.raises(CorruptError):
        calls[read]()


@pytest.mark.parametrize("field", ["bev_values", "bev_index"])
def test_a_field_that_the_manifest_calls_a_picture_is_no_array(teacher_root: Path, tmp_path: Path, field: str) -> None:
    place = Path(shutil.copytree(teacher_root, tmp_path / "copy"))

    def change(values: dict[str, Any]) -> None:
        for spec in values["fields"]:
            if spec["name"] == field:
                spec["ext"] = "jpg"

    forge_manifest(place, change)
    store = TeacherStore(place)
    for read in (lambda: store.cells(0), lambda: store.cells_of([0]), lambda: store.read_joined([0], [field])):
        with pytest.raises(StoreError):
            read()
