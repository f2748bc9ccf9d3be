"""Damage and forgery anywhere in a store, either format: an error that names it, never another value, never memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.commit import begin
from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec
from cache.plan import StorePlan
from cache.shard_writer import open_shard
from cache.store import FrameStore, Store, TeacherStore
from tests.cache.stores import (
    FORMATS,
    GRID,
    KINDS,
    TOKENS,
    assert_equal,
    entry_of,
    forge_column,
    forge_manifest,
    plan_of,
    shard_files,
    tar_path,
    teacher_plan,
    teacher_values,
    tree,
    values_of,
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


def open_kind(root: Path, plan: StorePlan) -> Store:
    return FrameStore(root) if plan.kind == "frames" else TeacherStore(root)


def test_a_flipped_byte_anywhere_is_an_error_or_changes_nothing_that_is_read(copy: Path, plan: StorePlan) -> None:
    """Over all files that a reader reads: a random choice of bytes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    good, manifest = read_all(Store(copy)), Store(copy).manifest.to_dict()
    refused = []
    for name, data in tree(copy).items():
        if name.startswith(("records/", "plan")) or name.endswith("zarr.json"):
            continue  # not a reader's files
        shard = name.startswith(("shards/", "data.zarr/"))
        count = 40 if name.startswith("shards/") else 2 if shard else 8
        for position in {rng.randrange(len(data)) for _ in range(count)}:
            broken = bytearray(data)
            broken[position] ^= 1 << rng.randrange(8)
            (copy / name).write_bytes(broken)
            try:
                store = Store(copy)
                found = read_all(store)
            except StoreError as error:  # not Corrupt where a digit of the version flipped
                refused.append((name, error))
            else:
                assert found == good and store.manifest.to_dict() == manifest
                assert shard  # a tar's headers and padding, and Zarr's own index and checksums, are for others
        (copy / name).write_bytes(data)
    assert len(refused) > 100
    for name, error in refused:
        assert isinstance(error, CorruptError) or name == "manifest.json"
        assert name in str(error) and "\n" not in str(error), "the message names the file"


def test_every_field_of_a_frame_is_checked_and_the_others_are_read(copy: Path, plan: StorePlan) -> None:
    store = Store(copy)
    files = shard_files(copy, 1)
    for position, spec in enumerate(store.manifest.fields):
        if store.has(2, spec.name):
            path = files[position if len(files) > 1 else 0]
            data = path.read_bytes()
            broken = bytearray(data)
            broken[int(store.index.offset[2, position]) + int(store.index.length[2, position]) // 2] ^= 0x10
            path.write_bytes(broken)
            with pytest.raises(
                CorruptError, match=rf"{path.name}: {TOKENS[2]}\.{spec.member}: checksum differs; delet"
            ):
                store.read(2, spec.name)
            others = [s.name for s in store.manifest.fields if s.name != spec.name and store.has(2, s.name)]
            assert all(store.read(2, other) is not None for other in others)
            path.write_bytes(data)


def test_every_read_is_checked_not_only_the_first(damaged: Path) -> None:
    store = FrameStore(damaged)
    store.points(0)
    with open(tar_path(damaged, 0), "r+b") as file:
        file.seek(int(store.index.offset[0, 0]))
        file.write(b"#")
    with pytest.raises(CorruptError):
        store.frame(0)
    store.points(0)


@pytest.mark.parametrize("opened", [False, True], ids=["before its first read", "while it is open"])
def test_a_truncated_file_is_an_error(copy: Path, plan: StorePlan, opened: bool) -> None:
    store, spec = Store(copy), plan.fields[0]
    if opened:
        store.read(2, spec.name)
    path = shard_files(copy, 1)[0]
    os.truncate(path, int(store.index.offset[3, 0]) + 3)
    with pytest.raises(CorruptError, match=rf"{path.name}: {TOKENS[3]}\.{spec.member}: 3 of \d+ bytes; delete"):
        store.read(3, spec.name)
    assert_equal(store.read(0, spec.name), values_of(plan, TOKENS[0])[spec.name])  # other shards are as good as ever


def test_a_missing_file_is_an_error_that_names_it(copy: Path, plan: StorePlan) -> None:
    path, name = shard_files(copy, 1)[0], plan.fields[0].name
    path.unlink()
    store = Store(copy)
    with pytest.raises(CorruptError, match=rf"{path.name}: missing; restore it or run the caching command again"):
        store.read(2, name)
    store.read(0, name)


@pytest.mark.parametrize("layout", FORMATS, ids=[layout.name for layout in FORMATS])
def test_two_shards_exchanged_are_an_error(tmp_path: Path, layout: Any) -> None:
    """All of equal sizes, so that only the content tells."""
    fields = (FieldSpec("code", "npy", "uint8", ("16",)),)
    plan = teacher_plan(fields=fields, format=layout)
    for shard in begin(tmp_path, plan):
        with open_shard(tmp_path, shard) as writer:
            for token in shard.tokens:
                writer.write(entry_of(token), {"code": np.frombuffer(bytes.fromhex(token), np.uint8)})
    write_store(tmp_path, plan)
    assert Store(tmp_path).read(0, "code").tobytes().hex() == TOKENS[0]
    one, other = (shard_files(tmp_path, shard)[0] for shard in (0, 1))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    store = Store(tmp_path)
    for row in range(4):
        with pytest.raises(CorruptError, match="checksum differs"):
            store.read(row, "code")


def test_the_named_remedies_work(copy: Path, plan: StorePlan, whole: Path) -> None:
    """`delete that file and run the caching command again`, and the latter alone for all else."""
    shard_files(copy, 0)[0].unlink()
    with open(shard_files(copy, 1)[-1], "ab") as file:
        file.write(b"\0")
    (copy / "index" / "kind.npy").write_bytes(b"")
    (copy / "manifest.json").write_bytes(b"")
    write_store(copy, plan)
    assert tree(copy) == tree(whole)


# --- forged indices and manifests, their digests made to agree


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
        ("scene", setting(0, value=2**32 - 1), "unknown scene"),
        ("token", lambda array: array[[0, 0, 2, 3, 4, 5]], "a token stands twice"),
        ("token", lambda array: array[::-1], "a token stands twice or out of order"),
        ("offset", lambda array: array[:, :-1], r"offset\.npy: found"),
        ("sizes", lambda array: array[:, :-1], r"sizes\.npy: found"),
        ("class_counts", lambda array: array[:, :-1], r"class_counts\.npy: found"),
    ],
)
def test_an_index_that_contradicts_the_manifest_does_not_open(
    copy: Path, column: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    forge_column(copy, column, lambda array: np.ascontiguousarray(change(array)))
    with pytest.raises(CorruptError, match=message):
        Store(copy)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("offset", setting(0, 0, value=2**64 - 1)),
        ("offset", setting(0, 0, value=2**63)),
        ("offset", setting(0, 0, value=1)),
        ("length", setting(0, 0, value=2**32 - 1)),
        ("length", setting(0, 0, value=2**31)),
        ("length", setting(0, 0, value=1)),
        ("crc32c", lambda array: array ^ np.uint32(1)),
    ],
)
def test_a_forged_place_reads_nothing_else_and_takes_no_memory(
    copy: Path, plan: StorePlan, column: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    forge_column(copy, column, change)
    store = Store(copy)
    tracemalloc.start()
    with pytest.raises(CorruptError):
        store.read(0, plan.fields[0].name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("size", [2**60, 100, 0])
def test_a_forged_file_size_takes_no_memory(copy: Path, plan: StorePlan, size: int) -> None:
    forge_column(copy, "length", setting(0, 0, value=2**32 - 1))
    forge_manifest(copy, lambda values: values["shards"][0]["files"][0].__setitem__(1, size))
    store = Store(copy)
    tracemalloc.start()
    with pytest.raises(CorruptError, match=r"of 4294967295 bytes"):
        store.read(0, plan.fields[0].name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("size", [0, 1, 89, 91, 2**31, 2**32 - 1])
def test_forged_sizes_are_refused_and_take_no_memory(copy: Path, plan: StorePlan, size: int) -> None:
    forge_column(copy, "sizes", lambda array: np.full_like(array, size))
    store = Store(copy)
    # a Zarr chunk has room for sizes up to the capacity: such a forgery is for verify, which has the record
    room = {letter: plan.format.capacity.get(letter, -1) for letter in plan.letters}
    tracemalloc.start()
    for name in (spec.name for spec in plan.fields if any(size > room.get(letter, size) for letter in spec.shape)):
        with pytest.raises(CorruptError, match=name):
            store.read(0, name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_fields_and_index_must_count_alike(copy: Path) -> None:
    forge_manifest(copy, lambda values: values["fields"].pop())
    with pytest.raises(CorruptError, match=r"index/.*npy: found .*, expected"):
        Store(copy)


def test_a_file_outside_the_store_is_never_opened(damaged: Path) -> None:
    shutil.copy(tar_path(damaged, 0), damaged.parent / "secret.tar")
    forge_manifest(damaged, lambda values: values["shards"][0]["files"][0].__setitem__(0, "shards/../../secret.tar"))
    with pytest.raises(CorruptError, match="damaged or forged"):
        FrameStore(damaged)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("bev"),
        lambda header: header.update(bev=5),
        lambda header: header["bev"].update(channels=4),
        lambda header: header["bev"].update(height=16, width=8),
        lambda header: header["bev"].update(selectors=1),
        lambda header: header["bev"].update(channels=-1),
        lambda header: header["bev"].update(channels=10**12),
        lambda header: header["bev"].update(dtype="u8"),
        lambda header: header["bev"].update(dtype="float64"),
        lambda header: header["bev"].update(layout="dense"),
        lambda header: header.pop("grid"),
        lambda header: header.update(grid=[1]),
        lambda header: header["grid"].update(cell_m=0.3),
        lambda header: header["grid"].update(cell_m=2),
        lambda header: header.pop("coverage"),
        lambda header: header.update(coverage="gaussian"),
        lambda header: header["coverage"]["selectors"].pop(),
    ],
)
def test_a_header_that_contradicts_the_fields_is_refused(
    zarr_root: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    root = Path(shutil.copytree(zarr_root, tmp_path / "forged"))
    forge_manifest(root, lambda values: change(values["header"]))
    with pytest.raises(CorruptError, match=r"header"):
        TeacherStore(root).cells(0)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of a JSON value at which something can be replaced."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(leaf for key, inner in items for leaf in leaves(inner, (*place, key)))]


ODD = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e300, float("inf"), float("nan"), "", "x", "../x", "0", [], {}, [[]]]


@pytest.mark.parametrize("kind", KINDS, ids=[f"{kind}-{layout.name}" for kind, layout in KINDS])
def test_a_consistently_forged_manifest_gives_values_or_a_clear_error(
    kind: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Anything anywhere in it, under a seal that holds: the only errors are ours, and memory stays bounded."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    plan = plan_of(*kind)
    source = {"frames": "frames_root", "teacher": "teacher_root"}[plan.kind]
    root = Path(shutil.copytree(request.getfixturevalue("zarr_root" if plan.format.rows else source), tmp_path / "s"))
    original = (root / "manifest.json").read_bytes()
    places = [place for place in leaves(json.loads(original)) if place]
    refused: list[str] = []
    for _ in range(60):
        (root / "manifest.json").write_bytes(original)
        place, value = rng.choice(places), rng.choice(ODD)

        def put(values: dict[str, Any]) -> None:
            inner: Any = values
            for key in place[:-1]:  # noqa: B023 (called within the same turn)
                inner = inner[key]
            inner[place[-1]] = value  # noqa: B023

        tracemalloc.start()
        try:
            if place == ("digest",):
                continue
            forge_manifest(root, put)
            store = open_kind(root, plan)
            read_all(store)
            if isinstance(store, TeacherStore):
                store.cells(0)
        except StoreError as error:
            refused.append(str(error))
        except Exception as error:
            raise AssertionError(f"{place} = {value!r} gave {type(error).__name__}: {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 50_000_000, (place, value)
    assert len(refused) > 5 and not any("\n" in message for message in refused)


# --- what another program may write, checksums and all


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index[::-1].copy(),
        lambda index: index - index[0] - 1,
        lambda index: index + GRID.height * GRID.width - index[-1],
        lambda index: np.repeat(index[:1], len(index)),
    ],
)
@pytest.mark.parametrize("layout", FORMATS, ids=[layout.name for layout in FORMATS])
def test_cells_out_of_order_or_outside_the_grid_are_refused(
    tmp_path: Path, layout: Any, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    plan = teacher_plan(shards=((TOKENS[0],),), format=layout)
    values = teacher_values(TOKENS[0])
    begin(tmp_path, plan)
    with open_shard(tmp_path, plan.shard_plans()[0]) as writer:
        writer.write(entry_of(TOKENS[0]), {**values, "bev_index": change(values["bev_index"])})
    write_store(tmp_path, plan)
    with pytest.raises(CorruptError, match=r"bev_index.*: cells out of order or outside 8 x 16; cache the teacher"):
        TeacherStore(tmp_path).cells(0)
