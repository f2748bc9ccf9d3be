"""Writing a shard, in either format: what is refused, that a refusal changes nothing, and that errors leave nothing."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from cache.commit import begin, finish
from cache.errors import OutOfSpaceError, StoreError
from cache.files import file_sha256
from cache.plan import Format, FrameEntry, ShardPlan, StorePlan
from cache.shard_writer import ShardWriter, open_shard
from cache.store import TeacherStore
from cache.tar_writer import TarShardWriter
from cache.zarr_writer import ZarrShardWriter
from tests.cache.stores import (
    FORMATS,
    TOKENS,
    ZARR,
    entry_of,
    frame_plan,
    frame_values,
    record_path,
    shard_files,
    teacher_plan,
    teacher_values,
    todo,
    tree,
    values_of,
    write_shard,
    write_store,
)


@pytest.fixture(params=FORMATS, ids=[layout.name for layout in FORMATS])
def teacher(request: pytest.FixtureRequest) -> StorePlan:
    """A teacher store's plan in each format."""
    return teacher_plan(format=request.param)


@pytest.fixture
def shard(teacher: StorePlan) -> ShardPlan:
    return teacher.shard_plans()[0]


def test_the_format_decides_the_writer(tmp_path: Path) -> None:
    kinds = [type(open_shard(tmp_path, teacher_plan(format=layout).shard_plans()[0])) for layout in FORMATS]
    assert kinds == [TarShardWriter, ZarrShardWriter]


def test_the_record_tells_every_file_and_where_every_field_lies(tmp_path: Path, plan: StorePlan) -> None:
    writer = write_shard(tmp_path, plan, 0)
    record = json.loads(record_path(tmp_path, 0).read_bytes())
    assert writer.summary == {
        "frames": 2,
        "bytes": sum(path.stat().st_size for path in shard_files(tmp_path, 0)),
        "quarantined": 0,
        "first_problem": "",
    }
    for name, size, digest in record["files"]:
        assert ((tmp_path / name).stat().st_size, file_sha256(tmp_path / name)) == (size, digest)
    names = [spec.name for spec in plan.fields]
    for token, frame in zip(plan.shards[0], record["frames"], strict=True):
        values = values_of(plan, token)
        assert set(frame["members"]) == set(values)
        for name, (offset, length, crc) in frame["members"].items():
            spec = plan.fields[names.index(name)]
            file = record["files"][0 if len(record["files"]) == 1 else names.index(name)][0]
            data = (tmp_path / file).read_bytes()[offset : offset + length]
            assert google_crc32c.value(data) == crc
            if plan.format == ZARR:
                assert data == spec.encode_padded(values[name], ZARR.capacity)
            else:
                assert data == spec.encode(values[name])
        assert frame["token"] == token and {**frame, "sizes": 0, "members": 0} == {
            **json.loads(json.dumps(entry_of(token).to_dict())),
            "sizes": 0,
            "members": 0,
        }
        sizes = {letter: size for name, v in values.items() for letter, size in sizes_of(plan, name, v).items()}
        assert frame["sizes"] == sizes


def sizes_of(plan: StorePlan, name: str, value: Any) -> dict[str, int]:
    spec = next(spec for spec in plan.fields if spec.name == name)
    if not spec.is_array:
        return {}
    return {letter: n for letter, n in zip(spec.shape, value.shape, strict=True) if not letter.isdecimal()}


def test_a_second_write_gives_the_same_bytes_whatever_the_order_of_fields(
    tmp_path: Path, plan: StorePlan, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 2e9)
    shard = plan.shard_plans()[0]
    with open_shard(tmp_path, shard) as writer:
        for token in shard.tokens:
            writer.write(entry_of(token), dict(reversed(values_of(plan, token).items())))
    expected = tree(whole)
    assert all(expected[name] == data for name, data in tree(tmp_path).items())


def test_nothing_is_visible_before_the_block_ends(tmp_path: Path, shard: ShardPlan) -> None:
    def visible() -> list[str]:
        return [name for name in tree(tmp_path) if not name.endswith(".partial")]

    with open_shard(tmp_path, shard) as writer:
        for token in shard.tokens:
            writer.write(entry_of(token), teacher_values(token))
            assert visible() == []
    assert record_path(tmp_path, 0).exists() and len(visible()) == 1 + len(shard_files(tmp_path, 0))


# --- refusals, each before a byte is written


def bad_frames(shard: ShardPlan) -> list[tuple[str, FrameEntry, dict[str, Any], str]]:
    """(what, entry, values, message) of frames that are refused where the shard's second is expected."""
    token = shard.tokens[1]
    entry, good = entry_of(token), teacher_values(token)
    weights = good["bev_weights"]
    other = entry_of(TOKENS[5])
    bad = [
        ("order", entry_of(shard.tokens[0]), good, "is not the plan's next"),
        ("unplanned", other, good, rf"frame {other.token} is not the plan's next, \['{token}'\]"),
        ("undeclared", entry, {**good, "lidar": weights}, r"fields \['lidar'\] are not declared, expected some of"),
        ("dtype", entry, {**good, "labels": good["labels"].astype(np.int64)}, "field labels: found int64"),
        ("rank", entry, {**good, "scores": good["scores"][None]}, "field scores: found float32 of rank 2"),
        ("fixed size", entry, {**good, "boxes": good["boxes"][:, :8]}, r"field boxes: found shape \[4, 8\]"),
        ("sizes", entry, {**good, "bev_weights": weights[1:]}, rf"bev_weights has {len(weights) - 1} of K, another"),
        ("list", entry, {**good, "labels": [1, 2, 3, 4]}, "field labels: found a list, expected an array"),
    ]
    if shard.format == ZARR:
        many = {name: np.zeros((7, *good[name].shape[1:]), good[name].dtype) for name in ("boxes", "scores", "labels")}
        without = {name: value for name, value in good.items() if name not in ("scores", "bev_index")}
        bad += [
            ("capacity", entry, {**good, **many}, r"field boxes: 7 of N, .* hold 6; .* new store with --capacity N=7"),
            ("lacking", entry, without, r"\['bev_index', 'scores'\] are missing; in a Zarr store every frame"),
        ]
    return bad


def test_a_refused_frame_leaves_the_shard_as_it_was(tmp_path: Path, teacher: StorePlan, shard: ShardPlan) -> None:
    write_store(tmp_path / "good", teacher)
    begin(tmp_path / "tried", teacher)
    with open_shard(tmp_path / "tried", shard) as writer:
        writer.write(entry_of(shard.tokens[0]), teacher_values(shard.tokens[0]))
        for what, entry, values, message in bad_frames(shard):
            with pytest.raises(StoreError, match=message) as raised:
                writer.write(entry, values)
            assert "\n" not in str(raised.value), what
        writer.write(entry_of(shard.tokens[1]), teacher_values(shard.tokens[1]))
    write_store(tmp_path / "tried", teacher)
    assert tree(tmp_path / "tried") == tree(tmp_path / "good")


def test_each_refusal_alone_leaves_nothing_visible(tmp_path: Path, shard: ShardPlan) -> None:
    def attempt(entry: FrameEntry, values: dict[str, Any]) -> None:
        with open_shard(tmp_path, shard) as writer:
            writer.write(entry_of(shard.tokens[0]), teacher_values(shard.tokens[0]))
            writer.write(entry, values)

    for what, entry, values, message in bad_frames(shard):
        with pytest.raises(StoreError, match=message):
            attempt(entry, values)
        assert tree(tmp_path) == {}, what


def test_a_frame_over_capacity_is_written_under_the_capacity_that_the_error_names(tmp_path: Path) -> None:
    plan = teacher_plan(format=dataclasses.replace(ZARR, capacity={"K": 50, "N": 6}))
    needed = max(len(teacher_values(token)["bev_index"]) for token in plan.shards[1])
    assert todo(tmp_path, plan) == [0, 1, 2]
    write_shard(tmp_path, plan, 0)
    before = tree(tmp_path)
    with pytest.raises(StoreError, match=rf"{needed} of K, .* hold 50; .* into a new store with --capacity K={needed}"):
        write_shard(tmp_path, plan, 1)
    assert tree(tmp_path) == before and todo(tmp_path, plan) == [1, 2]
    write_store(tmp_path / "new", teacher_plan(format=dataclasses.replace(ZARR, capacity={"K": needed, "N": 6})))
    assert max(len(TeacherStore(tmp_path / "new").cells(row)) for row in range(6)) == needed


def test_frames_that_were_not_written_fail_the_shard(tmp_path: Path, shard: ShardPlan) -> None:
    with (
        pytest.raises(StoreError, match="shard 0: 1 planned frames were not written"),
        open_shard(tmp_path, shard) as w,
    ):
        w.write(entry_of(shard.tokens[0]), teacher_values(shard.tokens[0]))
    with pytest.raises(StoreError, match="shard 0: 2 planned frames were not written"), open_shard(tmp_path, shard):
        pass
    assert tree(tmp_path) == {}


# --- quarantine


def test_quarantined_frames_are_recorded_in_the_plans_order(tmp_path: Path) -> None:
    shard = teacher_plan(shards=(tuple(TOKENS),)).shard_plans()[0]
    with open_shard(tmp_path, shard) as writer:
        writer.quarantine(TOKENS[4], "late")  # out of order: a reader that looks ahead
        writer.write(entry_of(TOKENS[0]), teacher_values(TOKENS[0]))
        writer.quarantine(TOKENS[1], "early")
        for token in (TOKENS[2], TOKENS[3], TOKENS[5]):
            writer.write(entry_of(token), teacher_values(token))
    assert (writer.summary["frames"], writer.summary["quarantined"]) == (4, 2)
    assert writer.summary["first_problem"] == "early"
    record = json.loads(record_path(tmp_path, 0).read_bytes())
    assert record["quarantined"] == [
        {"token": TOKENS[1], "reason": "early"},
        {"token": TOKENS[4], "reason": "late"},
    ]


def test_a_frame_is_written_or_quarantined_once(tmp_path: Path, shard: ShardPlan) -> None:
    first, second = shard.tokens
    with open_shard(tmp_path, shard) as writer:
        writer.quarantine(first, "bad")
        for gone in (first, TOKENS[5], "nonsense"):
            with pytest.raises(StoreError, match="not among the planned ones that are left"):
                writer.quarantine(gone, "again")
        with pytest.raises(StoreError, match="not the plan's next"):
            writer.write(entry_of(first), teacher_values(first))
        writer.write(entry_of(second), teacher_values(second))
        with pytest.raises(StoreError, match="not among the planned"):
            writer.quarantine(second, "written already")
    assert writer.summary["frames"] == 1


# --- errors of every kind


def fail_in_block(root: Path, shard: ShardPlan) -> None:
    with open_shard(root, shard) as writer:
        writer.write(entry_of(shard.tokens[0]), teacher_values(shard.tokens[0]))
        raise RuntimeError("the teacher fell over")


def fail_by_interrupt(root: Path, shard: ShardPlan) -> None:
    with open_shard(root, shard):
        raise KeyboardInterrupt("stop")


def fail_in_encode(root: Path, shard: ShardPlan) -> None:
    with open_shard(root, shard) as writer:
        writer.write(entry_of(shard.tokens[0]), {"boxes": np.zeros((2, 3), np.float32)})


def fail_on_a_full_disk(root: Path, shard: ShardPlan) -> None:
    """The limit lies below the files' sizes, but above that of their first writes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with open_shard(root, shard) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, old[1]))
            for token in shard.tokens:
                writer.write(entry_of(token), teacher_values(token))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def fail_on_a_disk_full_at_the_end(root: Path, shard: ShardPlan) -> None:
    """The last bytes are written by the end of the block, beyond the limit that all before them kept."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with open_shard(root, shard) as writer:
            for token in shard.tokens:
                writer.write(entry_of(token), teacher_values(token))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, old[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [
        (fail_in_block, RuntimeError, "the teacher fell over"),
        (fail_by_interrupt, KeyboardInterrupt, "stop"),
        (fail_in_encode, StoreError, "field boxes: found shape"),
        (fail_on_a_full_disk, OutOfSpaceError, "File too large"),
        (fail_on_a_disk_full_at_the_end, OutOfSpaceError, "File too large"),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["new", "over an older shard"])
def test_an_error_leaves_no_new_file_and_prints_nothing(
    tmp_path: Path,
    teacher: StorePlan,
    shard: ShardPlan,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fail: Callable[[Path, ShardPlan], None],
    kind: type[BaseException],
    message: str,
    before: bool,
    collect_garbage: Callable[[], None],
) -> None:
    if before:
        write_shard(tmp_path, teacher, 0)
    expected = tree(tmp_path)
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(kind, match=message) as raised:
        fail(tmp_path, shard)
    raised.value.__traceback__ = None
    del raised
    collect_garbage()
    assert tree(tmp_path) == expected
    assert unraisable == [] and capfd.readouterr() == ("", "")


def test_files_opened_before_one_that_cannot_be_are_dropped(tmp_path: Path, shard: ShardPlan) -> None:
    folder = tmp_path / ("shards" if shard.format.name == "webdataset" else "data.zarr/labels")
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file in the folder's place")
    with pytest.raises(StoreError, match="cannot be written"), open_shard(tmp_path, shard):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder]


def test_a_writer_keeps_one_frame_in_memory(tmp_path: Path, teacher: StorePlan) -> None:
    """The sha256 is taken as bytes pass by: a shard of 60 frames costs the memory of a few."""
    tokens = tuple(f"{i:032x}" for i in range(60))
    count = 20_000
    layout = teacher.format if teacher.format != ZARR else Format("zarr", 60, {"K": count, "N": 6})
    plan = dataclasses.replace(teacher, shards=(tokens,), format=layout)
    values = {
        **teacher_values(TOKENS[0]),
        "bev_index": np.arange(count, dtype=np.int32),
        "bev_values": np.random.default_rng(0).normal(size=(count, 3)).astype(np.float16),
        "bev_weights": np.random.default_rng(1).uniform(size=(count, 2)).astype(np.float32),
    }
    entry = entry_of(TOKENS[0])
    tracemalloc.start()
    with open_shard(tmp_path, plan.shard_plans()[0]) as writer:
        for token in tokens:
            writer.write(dataclasses.replace(entry, token=token), values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert writer.summary["bytes"] > 60 * 200_000 and peak < 3_000_000


# --- entries


@pytest.mark.parametrize("token", ["", "abc", "F" * 32, "f" * 33, "../" + "f" * 29, "f" * 31 + "\n", "f" * 32 + "\n"])
def test_a_token_that_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(StoreError, match="not 32 lower-case hex"):
        dataclasses.replace(entry_of(TOKENS[0]), token=token)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 2},
        {"timestamp_us": 2**63},
        {"digest": "0" * 15},
        {"digest": "G" * 16},
        {"class_counts": (0,) * 9 + (65536,)},
        {"class_counts": (-1,) + (0,) * 9},
    ],
)
def test_an_entry_that_the_index_cannot_hold_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="do not fit the index"):
        dataclasses.replace(entry_of(TOKENS[0]), **changes)


@pytest.mark.parametrize("changes", [{"scene": "c" * 32}, {"class_counts": (0,) * 9}])
def test_an_entry_that_does_not_fit_the_plan_is_named_at_the_end(tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = teacher_plan(shards=((TOKENS[0],),))
    begin(tmp_path, plan)
    with open_shard(tmp_path, plan.shard_plans()[0]) as writer:
        writer.write(dataclasses.replace(entry_of(TOKENS[0]), **changes), teacher_values(TOKENS[0]))
    with pytest.raises(StoreError, match=rf"frame {TOKENS[0]}: scene .* expected one of 2 scenes, and 10"):
        finish(tmp_path, plan)


def test_a_field_without_bytes_is_refused(tmp_path: Path) -> None:
    """A length of 0 is how the index says that a frame lacks the field."""
    shard = frame_plan().shard_plans()[0]

    def attempt() -> None:
        with open_shard(tmp_path, shard) as writer:
            writer.write(entry_of(shard.tokens[0]), {**frame_values(shard.tokens[0]), "cam_front": b""})

    with pytest.raises(StoreError, match=r"\['cam_front\.jpg'\] would hold no bytes; leave fields out"):
        attempt()


def test_writers_are_context_managers_of_one_shard(tmp_path: Path, shard: ShardPlan) -> None:
    writer: ShardWriter = open_shard(tmp_path, shard)
    assert writer.summary == {} and tree(tmp_path) == {}
