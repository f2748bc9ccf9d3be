"""The index columns: what they hold, that they are mapped and not loaded, and every damage that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import CorruptError
from cache.fields import encode_npy
from cache.files import sha256
from cache.index import FrameIndex
from tests.cache.test_fields import claim, npy

RECORDS: list[dict[str, Any]] = [
    {
        "shard": 0,
        "frames": [
            {
                "token": f"{i:032x}",
                "scene": 2**32 - 1 - i,
                "timestamp_us": -(2**62) + i,
                "kind": i % 2,
                "class_counts": [i, *range(9)],
                "members": {"b": [512 + i, 2**40, 2**32 - 1]} if i else {"a": [1, 2, 3], "b": [4, 5, 6]},
            }
            for i in range(2)
        ],
    },
    {"shard": 1, "frames": []},
    {
        "shard": 7,
        "frames": [
            {
                "token": "f" * 32,
                "scene": 0,
                "timestamp_us": 0,
                "kind": 0,
                "class_counts": [65535] * 10,
                "members": {"a": [2**62, 2**62, 0]},
            }
        ],
    },
]
FIELDS = ["b", "a"]


def write(folder: Path, records: list[dict[str, Any]] = RECORDS) -> dict[str, dict[str, Any]]:
    return FrameIndex.from_records(records, FIELDS).write(folder)


def replace(folder: Path, digests: dict[str, dict[str, Any]], name: str, data: bytes) -> None:
    """Another column under a digest that agrees, as a forger would."""
    (folder / name).write_bytes(data)
    digests[name] = {"size": len(data), "sha256": sha256(data)}


def test_every_value_comes_back_at_full_width(tmp_path: Path) -> None:
    index = FrameIndex.open(tmp_path, write(tmp_path))
    assert len(index) == 3
    assert index.tokens() == ["0" * 32, "0" * 31 + "1", "f" * 32]
    assert index.scene.tolist() == [2**32 - 1, 2**32 - 2, 0]
    assert index.timestamp_us.tolist() == [-(2**62), -(2**62) + 1, 0]
    assert index.kind.tolist() == [0, 1, 0]
    assert index.shard.tolist() == [0, 0, 7]
    assert index.class_counts.tolist() == [[0, *range(9)], [1, *range(9)], [65535] * 10]
    assert index.offset.tolist() == [[4, 1], [513, 0], [0, 2**62]]
    assert index.length.tolist() == [[5, 2], [2**40, 0], [0, 2**62]]
    assert index.crc32c.tolist() == [[6, 3], [2**32 - 1, 0], [0, 0]]


def test_columns_are_mapped_and_cannot_be_written_to(tmp_path: Path) -> None:
    index = FrameIndex.open(tmp_path, write(tmp_path))
    maps = Path("/proc/self/maps").read_text()
    for name, column in vars(index).items():
        assert f"{tmp_path / name}.npy" in maps and not column.flags.writeable


def test_equal_records_give_equal_files_that_stock_numpy_reads(tmp_path: Path) -> None:
    assert write(tmp_path / "a") == write(tmp_path / "b")
    assert np.load(tmp_path / "a" / "shard.npy", allow_pickle=False).tolist() == [0, 0, 7]


def test_no_frames_are_an_index_of_length_zero(tmp_path: Path) -> None:
    index = FrameIndex.open(tmp_path, write(tmp_path, []))
    assert len(index) == 0 and index.tokens() == [] and index.offset.shape == (0, 2)


COLUMNS = sorted(FrameIndex.__dataclass_fields__)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_missing_cut_flipped_or_unnamed_is_refused(tmp_path: Path, column: str) -> None:
    digests = write(tmp_path)
    path = tmp_path / f"{column}.npy"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 1
    for data in (good[:-1], good + b"\0", bytes(flipped), b""):
        path.write_bytes(data)
        with pytest.raises(CorruptError, match=rf"{column}\.npy: .*do not match the manifest's digest"):
            FrameIndex.open(tmp_path, digests)
    path.unlink()
    with pytest.raises(CorruptError, match=rf"{column}\.npy: missing"):
        FrameIndex.open(tmp_path, digests)
    path.write_bytes(good)
    with pytest.raises(CorruptError, match=rf"{column}\.npy: missing"):
        FrameIndex.open(tmp_path, {name: row for name, row in digests.items() if name != path.name})
    assert len(FrameIndex.open(tmp_path, digests)) == 3


@pytest.mark.parametrize("column", COLUMNS)
def test_a_forged_column_of_another_dtype_rank_or_shape_is_refused(tmp_path: Path, column: str) -> None:
    digests = write(tmp_path)
    good = getattr(FrameIndex.open(tmp_path, digests), column)
    forged = [good.astype(np.float64), good[:, None], good[:-1], good[..., :1] if good.ndim == 2 else good[:1]]
    if good.ndim == 2:
        forged += [good[:, 0], np.concatenate([good, good], axis=1)]
    for array in forged:
        replace(tmp_path, digests, f"{column}.npy", encode_npy(np.array(array)))
        with pytest.raises(CorruptError, match=r"\.npy: (found|shape) "):
            FrameIndex.open(tmp_path, digests)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(npy(claim("'|O'", shape="(3,)"), b"cos\nsystem\n(S'true'\ntR."), id="pickle"),
        pytest.param(npy(claim("'<u4'", shape="(300000000000,)"), bytes(12)), id="a terabyte"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_forged_column_that_lies_about_itself_is_refused(tmp_path: Path, data: bytes) -> None:
    digests = write(tmp_path)
    replace(tmp_path, digests, "shard.npy", data)
    with pytest.raises(CorruptError, match=r"shard\.npy"):
        FrameIndex.open(tmp_path, digests)
