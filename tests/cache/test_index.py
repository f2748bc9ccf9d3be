"""The index columns: what they hold, how a token leads to its row, and every damage that is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import CorruptError, StoreError
from cache.files import sha256
from cache.index import COLUMN_FILES, FrameIndex
from cache.npy import encode_npy
from cache.plan import FrameEntry
from cache.roots import open_root
from tests.cache.test_npy import claim, npy

SCENES = ["0" * 32, "a" * 32, "b" * 32]
FIELDS, LETTERS = ["b", "a"], ["N", "K"]


def frame(token: str, members: dict[str, list[int]], **changes: Any) -> dict[str, Any]:
    """A frame of a shard's record, values at their largest."""
    values = {
        "token": token,
        "scene": SCENES[2],
        "timestamp_us": -(2**63) + 1,
        "kind": 1,
        "class_counts": [65535, 0],
        "digest": token[:8] + "f" * 8,
        "sizes": {"K": 2**32 - 1},
        "members": members,
    }
    return {**values, **changes}


RECORDS: list[dict[str, Any]] = [
    {
        "shard": 0,
        "frames": [
            frame("f" * 32, {"a": [1, 2, 3], "b": [4, 5, 6]}, scene=SCENES[0], kind=0, sizes={"N": 7, "K": 0}),
            frame("0" * 31 + "1", {"b": [2**63, 2**32 - 1, 2**32 - 1]}, timestamp_us=2**63 - 1),
        ],
    },
    {"shard": 1, "frames": []},
    {"shard": 7, "frames": [frame("0" * 32, {"a": [2**62, 2**31, 0]})]},
]
COLUMNS = sorted(FrameIndex.__dataclass_fields__)
ROWS = [frame for record in RECORDS for frame in record["frames"]]


def build(records: list[dict[str, Any]] = RECORDS) -> FrameIndex:
    return FrameIndex.from_records(records, FIELDS, LETTERS, SCENES, 2)


def write(folder: Path, records: list[dict[str, Any]] = RECORDS) -> dict[str, dict[str, Any]]:
    return build(records).write(open_root(folder))


def reopen(folder: Path, digests: dict[str, dict[str, Any]]) -> FrameIndex:
    return FrameIndex.open(open_root(folder), digests, num_fields=2, num_letters=2, num_classes=2)


def replace(folder: Path, digests: dict[str, dict[str, Any]], name: str, data: bytes) -> None:
    """Another column under a digest that agrees, as a forger would."""
    (folder / "index" / name).write_bytes(data)
    digests[name] = {"size": len(data), "sha256": sha256(data)}


def test_every_value_comes_back_at_full_width(tmp_path: Path) -> None:
    index = reopen(tmp_path, write(tmp_path))
    assert len(index) == 3
    assert [row.tobytes().hex() for row in index.token] == [frame["token"] for frame in ROWS]
    assert [row.tobytes().hex() for row in index.digest] == [frame["digest"] for frame in ROWS]
    assert index.order.tolist() == [2, 1, 0]
    assert index.scene.tolist() == [0, 2, 2]
    assert index.timestamp_us.tolist() == [-(2**63) + 1, 2**63 - 1, -(2**63) + 1]
    assert index.kind.tolist() == [0, 1, 1]
    assert index.shard.tolist() == [0, 0, 7]
    assert index.class_counts.tolist() == [[65535, 0]] * 3
    assert index.sizes.tolist() == [[7, 0], [0, 2**32 - 1], [0, 2**32 - 1]]
    assert index.offset.tolist() == [[4, 1], [2**63, 0], [0, 2**62]]
    assert index.length.tolist() == [[5, 2], [2**32 - 1, 0], [0, 2**31]]
    assert index.crc32c.tolist() == [[6, 3], [2**32 - 1, 0], [0, 0]]


def test_entries_are_those_of_the_records(tmp_path: Path) -> None:
    index = reopen(tmp_path, write(tmp_path))
    names = [field.name for field in dataclasses.fields(FrameEntry)]
    for row, expected in enumerate(ROWS):
        found = index.entry(row, SCENES).to_dict()
        assert found == {name: expected[name] for name in names}


def test_columns_are_mapped_and_cannot_be_written_to(tmp_path: Path) -> None:
    index = reopen(tmp_path, write(tmp_path))
    maps = Path("/proc/self/maps").read_text()
    for name, column in vars(index).items():
        assert f"{tmp_path}/index/{name}.npy" in maps and not column.flags.writeable


def test_columns_on_a_root_without_files_are_loaded(tmp_path: Path) -> None:
    root = open_root(f"memory://{tmp_path.name}/index-test")
    digests = build().write(root)
    index = FrameIndex.open(root, digests, num_fields=2, num_letters=2, num_classes=2)
    for name, column in vars(build()).items():
        assert np.array_equal(getattr(index, name), column) and not getattr(index, name).flags.writeable
    with root.write("index/kind.npy") as file:
        file.write(b"x")
    with pytest.raises(CorruptError, match=r"kind\.npy: 1 bytes do not match"):
        FrameIndex.open(root, digests, num_fields=2, num_letters=2, num_classes=2)
    root.remove("index/kind.npy")
    with pytest.raises(CorruptError, match=r"kind\.npy: missing"):
        FrameIndex.open(root, digests, num_fields=2, num_letters=2, num_classes=2)


def test_equal_records_give_equal_files_that_stock_numpy_reads(tmp_path: Path) -> None:
    assert write(tmp_path / "a") == write(tmp_path / "b")
    assert np.load(tmp_path / "a" / "index" / "shard.npy", allow_pickle=False).tolist() == [0, 0, 7]
    assert set(COLUMN_FILES) == {path.name for path in (tmp_path / "a" / "index").iterdir()}


def test_no_frames_are_an_index_of_length_zero(tmp_path: Path) -> None:
    index = reopen(tmp_path, write(tmp_path, [{"shard": 0, "frames": []}]))
    assert len(index) == 0 and index.offset.shape == (0, 2) and index.row_of("0" * 32) is None
    assert index.rows_of(np.zeros((3, 16), np.uint8)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("changes", [{"scene": "c" * 32}, {"class_counts": [1]}, {"class_counts": [1, 2, 3]}])
def test_frames_that_the_plan_does_not_know_are_named(changes: dict[str, Any]) -> None:
    records = [{"shard": 0, "frames": [frame("e" * 32, {}, **changes)]}]
    with pytest.raises(StoreError, match=f"frame {'e' * 32}: .* expected one of 3 scenes, and 2 classes"):
        build(records)


# --- a token's row

TOKEN = st.binary(min_size=16, max_size=16) | st.sampled_from(
    [bytes(16), b"\xff" * 16, b"\x80" + bytes(15), b"a" + bytes(15), b"a" + bytes(14) + b"\x01", bytes(15) + b"a"]
)


@given(st.lists(TOKEN, unique=True, max_size=30), st.lists(TOKEN, max_size=10))
def test_rows_are_those_a_dict_gives(tokens: list[bytes], others: list[bytes]) -> None:
    """Zero bytes at the end included, which numpy's own byte strings drop."""
    frames = [frame(token.hex(), {}) for token in tokens]
    index = build([{"shard": 0, "frames": frames[:7]}, {"shard": 1, "frames": frames[7:]}])
    rows = {token: row for row, token in enumerate(tokens)}
    wanted = [*tokens, *others]
    expected = [rows.get(token) for token in wanted]
    assert [index.row_of(token.hex()) for token in wanted] == expected
    asked = np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, 16)
    assert index.rows_of(asked).tolist() == [-1 if row is None else row for row in expected]
    assert [tokens[row] for row in index.order] == sorted(tokens)


@pytest.mark.parametrize("text", ["", "0", "0" * 31, "0" * 33, "F" * 32, " " + "0" * 32, "0 " * 32, "g" * 32, "x", "ü"])
def test_what_is_no_token_has_no_row(text: str) -> None:
    assert build().row_of(text) is None


@pytest.mark.parametrize(
    "order",
    [[0, 1, 2], [1, 2, 0], [2, 2, 0], [2, 1, 1], [2, 1, 3], [2, 1, 2**32 - 1], [0, 0, 0]],
)
def test_a_forged_order_is_refused(tmp_path: Path, order: list[int]) -> None:
    digests = write(tmp_path)
    replace(tmp_path, digests, "order.npy", encode_npy(np.array(order, np.uint32)))
    with pytest.raises(CorruptError, match="a token stands twice or out of order"):
        reopen(tmp_path, digests)


def test_a_token_that_stands_twice_is_refused_whatever_the_order_says(tmp_path: Path) -> None:
    digests = write(tmp_path)
    token = np.array(build().token)
    token[1] = token[2]
    replace(tmp_path, digests, "token.npy", encode_npy(token))
    for order in ([1, 2, 0], [2, 1, 0]):
        replace(tmp_path, digests, "order.npy", encode_npy(np.array(order, np.uint32)))
        with pytest.raises(CorruptError, match="a token stands twice or out of order"):
            reopen(tmp_path, digests)


# --- damage


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_missing_cut_flipped_or_unnamed_is_refused(tmp_path: Path, column: str) -> None:
    digests = write(tmp_path)
    path = tmp_path / "index" / f"{column}.npy"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 1
    for data in (good[:-1], good + b"\0", bytes(flipped), b""):
        path.write_bytes(data)
        with pytest.raises(CorruptError, match=rf"{column}\.npy: .*do not match the manifest's digest"):
            reopen(tmp_path, digests)
    path.unlink()
    with pytest.raises(CorruptError, match=rf"{column}\.npy: missing"):
        reopen(tmp_path, digests)
    path.mkdir()
    with pytest.raises(CorruptError, match=rf"{column}\.npy: "):
        reopen(tmp_path, digests)
    path.rmdir()
    path.write_bytes(good)
    with pytest.raises(CorruptError, match=rf"{column}\.npy: missing"):
        reopen(tmp_path, {name: row for name, row in digests.items() if name != path.name})
    assert len(reopen(tmp_path, digests)) == 3


@pytest.mark.parametrize("column", COLUMNS)
def test_a_forged_column_of_another_dtype_rank_or_width_is_refused(tmp_path: Path, column: str) -> None:
    digests = write(tmp_path)
    good = np.array(getattr(reopen(tmp_path, digests), column))
    forged = [good.astype(np.float64), good.astype(np.int16), good[:, None], good[:-1], good[..., :1]]
    forged += [np.array(good.flat[0]), np.zeros((3, 0), good.dtype), np.zeros((0,), good.dtype)]
    if good.ndim == 2:
        forged += [good[:, 0], np.concatenate([good, good], axis=1), np.ascontiguousarray(good.T)]
    for array in forged:
        if (array.shape, array.dtype) == (good.shape, good.dtype):
            continue
        replace(tmp_path, digests, f"{column}.npy", encode_npy(array))
        with pytest.raises(CorruptError, match=r"\.npy: found .*, expected"):
            reopen(tmp_path, digests)


@pytest.mark.parametrize("counts", [{"num_fields": 3}, {"num_letters": 1}, {"num_classes": 0}, {"num_fields": 0}])
def test_columns_of_other_widths_than_the_manifest_says_are_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    digests = write(tmp_path)
    with pytest.raises(CorruptError, match=r"\.npy: found .*, expected"):
        FrameIndex.open(open_root(tmp_path), digests, **{"num_fields": 2, "num_letters": 2, "num_classes": 2, **counts})


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(npy(claim("'|O'", shape="(3,)"), b"cos\nsystem\n(S'true'\ntR."), id="pickle"),
        pytest.param(npy(claim("'<u4'", shape="(300000000000,)"), bytes(12)), id="a terabyte"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(b"", id="empty"),
    ],
)
@pytest.mark.parametrize("column", ["shard", "token", "order"])
def test_a_forged_column_that_lies_about_itself_is_refused(tmp_path: Path, column: str, data: bytes) -> None:
    digests = write(tmp_path)
    replace(tmp_path, digests, f"{column}.npy", data)
    with pytest.raises(CorruptError, match=rf"{column}\.npy"):
        reopen(tmp_path, digests)
