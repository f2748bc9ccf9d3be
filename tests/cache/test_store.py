"""The reader: what was written comes back in every bit, and damage anywhere is an error, never another value."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import store as store_module
from cache.commit import begin, shard_path, write_record
from cache.errors import BevcaskError, CorruptError, FingerprintError, StoreError
from cache.fields import FieldSpec, encode_npy
from cache.files import sha256
from cache.frame import CAMERA_CHANNELS
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from cache.store import FrameStore, Store, TeacherStore, pack_depth, require_same_frames
from cache.tar_writer import ShardWriter
from tests.cache.stores import (
    GRID,
    IDENTITY,
    SCENES,
    SELECTORS,
    SHARDS,
    TOKENS,
    UNLABELLED,
    assert_equal,
    forge_manifest,
    frame_of,
    frame_plan,
    frame_values,
    teacher_plan,
    teacher_values,
    tree,
    write_shard,
    write_store,
)


def read_all(store: Store) -> dict[tuple[str, str], Any]:
    """Every field of every frame, arrays as (dtype, shape, bytes)."""
    found = {}
    for row, token in enumerate(store.tokens):
        for spec in store.manifest.fields:
            if store.has(row, spec.name):
                value = store.read(row, spec.name)
                if isinstance(value, np.ndarray):
                    value = (value.dtype, value.shape, value.tobytes())
                found[token, spec.name] = value
    return found


# --- what was written comes back


@pytest.mark.parametrize(
    ("fixture", "values"), [("frames_root", frame_values), ("teacher_root", teacher_values)], ids=["frames", "teacher"]
)
def test_every_field_of_every_frame_reads_back_bit_for_bit(
    request: pytest.FixtureRequest, fixture: str, values: Callable[[str], dict[str, Any]]
) -> None:
    store = Store(request.getfixturevalue(fixture))
    assert store.tokens == TOKENS and len(store) == 6
    for row, token in enumerate(TOKENS):
        expected = values(token)
        for spec in store.manifest.fields:
            assert store.has(row, spec.name) == (spec.name in expected)
            if spec.name in expected:
                assert_equal(store.read(row, spec.name), expected[spec.name])
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


def test_the_teacher_store_speaks_of_cells_and_detections(teacher_root: Path) -> None:
    store = TeacherStore(teacher_root)
    assert store.grid == GRID and store.selectors == SELECTORS
    for row, token in enumerate(TOKENS):
        values, cells, detections = teacher_values(token), store.cells(row), store.detections(row)
        assert_equal(cells.index, values["bev_index"])
        assert_equal(cells.values, values["bev_values"])
        assert_equal(cells.weights, values["bev_weights"])
        assert_equal(detections.boxes_lidar, values["boxes"])
        assert_equal(detections.scores, values["scores"])
        assert_equal(detections.labels, values["labels"])


def test_tokens_scenes_and_splits_lead_to_rows(frames_root: Path) -> None:
    store = FrameStore(str(frames_root))
    assert [store.row_of(token) for token in TOKENS] == list(range(6))
    assert [store.scene_of(row) for row in range(6)] == ["scene-0001"] * 4 + ["scene-0002"] * 2
    assert store.split_rows("train") == [0, 1, 2, 3] and store.split_rows("val") == [4, 5]
    assert store.split_rows() == store.split_rows(None) == list(range(6))
    assert store.index.timestamp_us.tolist() == list(range(6))
    assert store.index.class_counts.tolist() == [list(range(10))] * 6


def test_a_split_with_scenes_but_no_frames_is_empty_not_unknown(tmp_path: Path) -> None:
    write_store(tmp_path, frame_plan(shards=SHARDS[:2]))
    assert FrameStore(tmp_path).split_rows("val") == []


@given(st.integers(0, 5), st.floats(0, 2047.9), st.floats(0, 2047.9), st.floats(0.1, 655.3))
def test_depth_labels_keep_a_64th_of_a_pixel_and_half_a_centimetre(
    camera: int, u: float, v: float, depth: float
) -> None:
    packed = pack_depth(np.array([camera]), np.array([u]), np.array([v]), np.array([depth]))
    assert packed.shape == (1, 4) and packed.dtype == np.uint16
    assert packed[0, 0] == camera
    assert abs(packed[0, 1] / 32 - u) <= 1 / 64 and abs(packed[0, 2] / 32 - v) <= 1 / 64
    assert abs(packed[0, 3] / 100 - depth) <= 0.005001


def test_depth_labels_come_back_in_pixels_and_metres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_depth(np.array([5, 0]), np.array([2047.5, 0.0]), np.array([0.03125, 899.0]), np.array([655.35, 1.0]))
    monkeypatch.setattr("tests.cache.stores.frame_values", lambda token: {"depth": packed})
    write_store(tmp_path, frame_plan())
    found = FrameStore(tmp_path).depth(0)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[5, 2047.5, 0.03125, 655.35], [0, 0, 899, 1]], np.float32))


@pytest.mark.parametrize(
    ("camera", "u", "v", "depth"),
    [(6, 1, 1, 1), (-1, 1, 1, 1), (0, 2048, 1, 1), (0, -0.1, 1, 1), (0, 1, 2048, 1), (0, 1, 1, 656), (0, np.nan, 1, 1),
     (0, 1, 1, np.inf), (0, 1, 1, -1)],
)  # fmt: skip
def test_a_depth_label_that_would_wrap_is_refused(camera: int, u: float, v: float, depth: float) -> None:
    with pytest.raises(StoreError, match="depth labels"):
        pack_depth(np.array([camera]), np.array([u]), np.array([v]), np.array([depth]))


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


def test_a_store_of_the_other_kind_is_refused(frames_root: Path, teacher_root: Path) -> None:
    with pytest.raises(StoreError, match="holds a teacher store, expected a frames store"):
        FrameStore(teacher_root)
    with pytest.raises(StoreError, match="holds a frames store, expected a teacher store"):
        TeacherStore(frames_root)


def test_an_unfinished_store_is_refused_until_it_is_finished(tmp_path: Path) -> None:
    plan = frame_plan()
    with pytest.raises(StoreError, match="no store"):
        FrameStore(tmp_path)
    for shard in begin(tmp_path, plan):
        write_shard(tmp_path, plan, shard)
        with pytest.raises(StoreError, match="an unfinished caching run"):
            FrameStore(tmp_path)
    write_store(tmp_path, plan)
    assert len(FrameStore(tmp_path)) == 6


def test_a_store_is_not_pickled_because_it_holds_open_files(frames_root: Path) -> None:
    with pytest.raises(TypeError, match="open it again from its root in each process"):
        pickle.dumps(FrameStore(frames_root))


# --- damage


def test_a_flipped_byte_anywhere_is_an_error_or_changes_nothing_that_is_read(damaged: Path) -> None:
    """Over all files: every byte of the first member, and a random choice of the rest."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    good = read_all(FrameStore(damaged))
    identity = FrameStore(damaged).manifest.to_dict()
    refused = []
    for name, data in tree(damaged).items():
        if name.startswith(("records/", "plan")):
            continue  # not a reader's files
        picked = range(512, 512 + 46) if name.endswith("00000.tar") else ()
        for position in {*picked, *(rng.randrange(len(data)) for _ in range(60))}:
            broken = bytearray(data)
            broken[position] ^= 1 << rng.randrange(8)
            (damaged / name).write_bytes(broken)
            try:
                store = FrameStore(damaged)
                found = read_all(store)
            except StoreError as error:  # not Corrupt where a digit of the version flipped
                refused.append((name, error))
            else:
                assert found == good and store.manifest.to_dict() == identity
                assert name.startswith("shards/")  # a tar's headers and padding are read by other tools only
        (damaged / name).write_bytes(data)
    assert len(refused) > 60 * 10
    for name, error in refused:
        assert isinstance(error, CorruptError) or name == "manifest.json"
        assert name in str(error), "the message names the file"


def test_every_member_of_a_frame_is_checked(damaged: Path) -> None:
    store = FrameStore(damaged)
    data = bytearray(shard_path(damaged, 1).read_bytes())
    for position, spec in enumerate(store.manifest.fields):
        if store.has(2, spec.name):
            middle = int(store.index.offset[2, position]) + int(store.index.length[2, position]) // 2
            broken = bytearray(data)
            broken[middle] ^= 0x10
            shard_path(damaged, 1).write_bytes(broken)
            with pytest.raises(
                CorruptError, match=rf"00001\.tar: {TOKENS[2]}\.{spec.member}: checksum differs; delete"
            ):
                store.read(2, spec.name)
            others = [s.name for s in store.manifest.fields if s.name != spec.name and store.has(2, s.name)]
            assert all(store.read(2, other) is not None for other in others)


def test_every_read_is_checked_not_only_the_first(damaged: Path) -> None:
    store = FrameStore(damaged)
    store.points(0)
    with open(shard_path(damaged, 0), "r+b") as file:
        file.seek(int(store.index.offset[0, 0]))
        file.write(b"#")
    with pytest.raises(CorruptError):
        store.frame(0)
    store.points(0)


@pytest.mark.parametrize("opened", [False, True], ids=["before its first read", "while it is open"])
def test_a_truncated_shard_is_an_error(damaged: Path, opened: bool) -> None:
    store = FrameStore(damaged)
    if opened:
        store.frame(2)
    with open(shard_path(damaged, 1), "r+b") as file:
        file.truncate(int(store.index.offset[3, 0]) + 3)
    with pytest.raises(
        CorruptError, match=r"00001\.tar: .*3 of \d+ bytes" if opened else r"00001\.tar: \d+ bytes, expected"
    ):
        store.frame(3)
    store.frame(0)  # other shards are as good as ever


@pytest.mark.parametrize("extra", [b"\0", bytes(10240)])
def test_a_shard_that_grew_is_an_error(damaged: Path, extra: bytes) -> None:
    with open(shard_path(damaged, 1), "ab") as file:
        file.write(extra)
    with pytest.raises(
        CorruptError, match=r"00001\.tar: \d+ bytes, expected \d+; restore it or run the caching command"
    ):
        FrameStore(damaged).frame(2)


def test_a_missing_shard_is_an_error_that_names_it(damaged: Path) -> None:
    shard_path(damaged, 1).unlink()
    store = FrameStore(damaged)
    with pytest.raises(CorruptError, match=r"00001\.tar: missing; restore it or run the caching command again"):
        store.frame(2)
    store.frame(0)


def test_two_shards_exchanged_are_an_error(tmp_path: Path) -> None:
    fields = (FieldSpec("cam_front", "jpg"),)
    plan = frame_plan(fields=fields)
    for shard in begin(tmp_path, plan):  # all of equal sizes
        with ShardWriter(shard_path(tmp_path, shard), {"cam_front": fields[0]}) as writer:
            rows = [
                {
                    "token": token,
                    "scene": 0,
                    "timestamp_us": 0,
                    "kind": 0,
                    "class_counts": [0] * 10,
                    "members": {"cam_front": writer.write(token, {"cam_front": token.encode()})["cam_front"].to_list()},
                }
                for token in plan.shards[shard]
            ]
        write_record(tmp_path, shard, plan.digest, size=writer.size, sha256="", frames=rows, quarantined=[])
    write_store(tmp_path, plan)
    assert FrameStore(tmp_path).image(0, "CAM_FRONT") == TOKENS[0].encode()
    os.replace(shard_path(tmp_path, 0), tmp_path / "x")
    os.replace(shard_path(tmp_path, 1), shard_path(tmp_path, 0))
    os.replace(tmp_path / "x", shard_path(tmp_path, 1))
    store = FrameStore(tmp_path)
    for row in range(4):
        with pytest.raises(CorruptError):
            store.image(row, "CAM_FRONT")


def test_the_named_remedies_work(damaged: Path, frames_root: Path) -> None:
    """`delete that shard and run the caching command again`, and the latter alone for all else."""
    shard_path(damaged, 0).unlink()
    with open(shard_path(damaged, 1), "ab") as file:
        file.write(b"\0")
    (damaged / "index" / "kind.npy").write_bytes(b"")
    (damaged / "manifest.json").write_bytes(b"")
    write_store(damaged, frame_plan())
    assert tree(damaged) == tree(frames_root)


def forge_column(root: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another column, and a manifest that agrees with it."""
    path = root / "index" / f"{name}.npy"
    data = encode_npy(change(np.load(path, allow_pickle=False)))
    path.write_bytes(data)
    row = {"size": len(data), "sha256": sha256(data)}
    forge_manifest(root, lambda values: values["index"].update({path.name: row}))


def setting(*where: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[where] = value
        return array

    return change


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("shard", setting(0, value=3), "count frames differently"),
        ("shard", setting(0, value=2**32 - 1), "count frames differently"),
        ("shard", setting(0, value=1), "count frames differently"),
        ("scene", setting(0, value=2), "unknown scene"),
        ("token", lambda array: array[[0, 0, 2, 3, 4, 5]], "a token twice"),
        ("offset", lambda array: array[:, :-1], "shape"),
    ],
)
def test_an_index_that_contradicts_the_manifest_does_not_open(
    damaged: Path, column: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    forge_column(damaged, column, change)
    with pytest.raises(CorruptError, match=message):
        FrameStore(damaged)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("offset", setting(0, 0, value=2**64 - 1)),
        ("offset", setting(0, 0, value=2**63)),
        ("offset", setting(0, 0, value=0)),
        ("length", setting(0, 0, value=2**64 - 1)),
        ("length", setting(0, 0, value=2**40)),
        ("length", setting(0, 0, value=1)),
        ("crc32c", setting(0, 0, value=0)),
    ],
)
def test_a_forged_place_of_a_member_reads_nothing_else(
    damaged: Path, column: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    forge_column(damaged, column, change)
    with pytest.raises(CorruptError):
        FrameStore(damaged).frame(0)


@pytest.mark.parametrize("size", [2**60, 100, -1])
def test_a_forged_shard_size_takes_no_memory(damaged: Path, size: int) -> None:
    forge_column(damaged, "length", setting(0, 0, value=2**59))
    forge_manifest(damaged, lambda values: values["shards"][0].update(size=size))
    with pytest.raises(CorruptError, match=r"00000\.tar: \d+ bytes, expected"):
        FrameStore(damaged).frame(0)


def test_fields_and_index_must_count_alike(damaged: Path) -> None:
    forge_manifest(damaged, lambda values: values["fields"].pop())
    with pytest.raises(CorruptError, match="the index has 13 fields, the manifest 12"):
        FrameStore(damaged)


def test_a_shard_name_outside_the_store_is_never_opened(damaged: Path) -> None:
    shutil.copy(shard_path(damaged, 0), damaged.parent / "secret.tar")
    forge_manifest(damaged, lambda values: values["shards"][0].update(name="shards/../../secret.tar"))
    with pytest.raises(CorruptError, match="damaged or forged"):
        FrameStore(damaged)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(bev_index=values["bev_index"][:-1]),
        lambda values: values.update(bev_weights=values["bev_weights"][1:]),
        lambda values: values.update(bev_index=values["bev_index"][::-1].copy()),
        lambda values: values.update(bev_index=values["bev_index"] - values["bev_index"][0] - 1),
        lambda values: values.update(bev_index=values["bev_index"] + 128 - values["bev_index"][-1]),
        lambda values: values.update(bev_index=np.repeat(values["bev_index"][:1], len(values["bev_index"]))),
    ],
)
def test_cells_that_do_not_fit_each_other_or_the_grid_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> None:
    """As another program might write them, checksums and all."""

    def wrong_values(token: str) -> dict[str, Any]:
        values = teacher_values(token)
        change(values)
        return values

    monkeypatch.setattr("tests.cache.stores.teacher_values", wrong_values)
    write_store(tmp_path, teacher_plan())
    with pytest.raises(CorruptError, match=r"cells, .* values, .* weights"):
        TeacherStore(tmp_path).cells(0)


# --- sharing


def test_many_threads_read_one_store(frames_root: Path) -> None:
    expected = {token: frame_values(token) for token in TOKENS}
    store = FrameStore(frames_root)

    def work(seed: int) -> int:
        rng = random.Random(seed)
        for _ in range(150):
            row = rng.randrange(6)
            field = rng.choice(list(expected[TOKENS[row]]))
            assert_equal(store.read(row, field), expected[TOKENS[row]][field])
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 8
    assert len(store._descriptors) == 3  # opened once each, whoever came first


def test_threads_that_meet_at_a_closed_shard_open_it_once(frames_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    really_open = Store._open

    def slow_open(self: Store, shard: int) -> int:
        opened.append(shard)
        time.sleep(0.1)
        return really_open(self, shard)

    monkeypatch.setattr(Store, "_open", slow_open)
    store = FrameStore(frames_root)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.points, [0, 1, 0, 1]))
    assert opened == [0] and open_descriptors(frames_root) == 1
    store.close()


def open_descriptors(root: Path) -> int:
    """How many of the store's shards this process holds open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{name}")
            count += target.startswith(f"{root}/shards/")
    return count


def test_more_shards_than_descriptors_are_still_read(frames_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_OPEN", 1)
    store = FrameStore(frames_root)
    for _ in range(3):
        for row, token in enumerate(TOKENS):
            assert_equal(store.points(row), frame_values(token)["points"])
            assert open_descriptors(frames_root) == 1
    store.close()
    assert open_descriptors(frames_root) == 0


def test_close_gives_the_descriptors_back_and_reading_opens_again(frames_root: Path) -> None:
    store = FrameStore(frames_root)
    assert open_descriptors(frames_root) == 0  # opening reads no shard
    store.points(0)
    store.points(5)
    assert open_descriptors(frames_root) == 2
    store.close()
    assert open_descriptors(frames_root) == 0
    assert_equal(store.points(0), frame_values(TOKENS[0])["points"])
    store.close()


def test_a_store_that_is_dropped_unclosed_leaks_nothing(frames_root: Path) -> None:
    for _ in range(3):
        FrameStore(frames_root).points(0)
    gc.collect()
    assert open_descriptors(frames_root) == 0


# --- two stores


def test_a_teacher_of_the_same_frames_gives_its_rows(frames_root: Path, tmp_path: Path) -> None:
    write_store(tmp_path, teacher_plan(shards=(SHARDS[2], SHARDS[0], SHARDS[1])))
    frames, teacher = FrameStore(frames_root), TeacherStore(tmp_path)
    rows = require_same_frames(frames, teacher, [0, 5, 3])
    assert rows == [2, 1, 5]
    assert [teacher.tokens[row] for row in rows] == [TOKENS[0], TOKENS[5], TOKENS[3]]


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({**IDENTITY, "dataset_version": "v1.0-mini"}, r"dataset_version = v1.0-mini, but {} has v1.0-test"),
        ({**IDENTITY, "frames_digest": "beef"}, "frames_digest = beef, but {} has f00d"),
        ({"dataset_version": "v1.0-test"}, "frames_digest = None, but {} has f00d"),
    ],
)
def test_a_teacher_of_other_frames_is_refused_with_both_values_and_both_stores(
    frames_root: Path, tmp_path: Path, identity: dict[str, str], named: str
) -> None:
    write_store(tmp_path, teacher_plan(identity=identity))
    with pytest.raises(FingerprintError) as raised:
        require_same_frames(FrameStore(frames_root), TeacherStore(tmp_path), [0])
    assert str(raised.value).startswith(f"{tmp_path}: {named.format(frames_root)}")
    assert str(raised.value).endswith("; cache the teacher again on these frames")


def test_frames_that_the_teacher_lacks_are_counted_and_the_first_is_named(frames_root: Path, tmp_path: Path) -> None:
    write_store(tmp_path, teacher_plan(), quarantine={TOKENS[1], TOKENS[4]})
    frames, teacher = FrameStore(frames_root), TeacherStore(tmp_path)
    with pytest.raises(StoreError, match=rf"2 of 6 frames are missing, the first {TOKENS[1]}; run cache-teacher again"):
        require_same_frames(frames, teacher, range(6))
    assert require_same_frames(frames, teacher, [0, 2]) == [0, 1]


def test_every_error_here_is_one_line_that_the_command_line_prints(damaged: Path) -> None:
    shard_path(damaged, 0).unlink()
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


def test_scenes_keep_their_descriptions(frames_root: Path) -> None:
    assert FrameStore(frames_root).manifest.scenes == SCENES
