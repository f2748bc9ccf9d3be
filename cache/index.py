"""The frame index: fixed-width binary columns `index/*.npy`, one row a frame, memory-mapped by readers.

A JSON index of a million frames takes 20 s and 3 GB to load; these columns cost a map and a page fault a row.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import CorruptError
from cache.fields import decode_npy, encode_npy
from cache.files import file_sha256, sha256, write_bytes

KIND_LABELLED = 0
KIND_UNLABELLED = 1
_COLUMNS: dict[str, tuple[str, int]] = {  # name -> dtype, rank
    "token": ("|u1", 2),
    "scene": ("<u4", 1),
    "timestamp_us": ("<i8", 1),
    "kind": ("|u1", 1),
    "shard": ("<u4", 1),
    "class_counts": ("<u2", 2),
    "offset": ("<u8", 2),
    "length": ("<u8", 2),
    "crc32c": ("<u4", 2),
}


@dataclass(frozen=True)
class FrameIndex:
    """Columns over N frames and M fields: token (N, 16) uint8 (the hex digits' bytes), scene (N,) index into the
    manifest's scenes, timestamp_us, kind, shard (N,), class_counts (N, 10), and offset, length, crc32c (N, M) of every
    member; a length of 0 means that the frame does not have the field.
    """

    token: np.ndarray
    scene: np.ndarray
    timestamp_us: np.ndarray
    kind: np.ndarray
    shard: np.ndarray
    class_counts: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc32c: np.ndarray

    def __len__(self) -> int:
        return len(self.token)

    def tokens(self) -> list[str]:
        """Every frame's token, in row order."""
        return [row.tobytes().hex() for row in self.token]

    @classmethod
    def from_records(cls, records: Sequence[dict[str, Any]], field_names: Sequence[str]) -> FrameIndex:
        """Columns from shard records (`cache.commit`), frames in shard order."""
        rows = [(record["shard"], frame) for record in records for frame in record["frames"]]
        members = np.zeros((len(rows), len(field_names), 3), np.uint64)
        for i, (_, frame) in enumerate(rows):
            for j, name in enumerate(field_names):
                members[i, j] = frame["members"].get(name, (0, 0, 0))
        token_bytes = b"".join(bytes.fromhex(frame["token"]) for _, frame in rows)
        return cls(
            token=np.frombuffer(token_bytes, np.uint8).reshape(-1, 16),
            scene=np.array([frame["scene"] for _, frame in rows], np.uint32),
            timestamp_us=np.array([frame["timestamp_us"] for _, frame in rows], np.int64),
            kind=np.array([frame["kind"] for _, frame in rows], np.uint8),
            shard=np.array([shard for shard, _ in rows], np.uint32),
            class_counts=np.array([frame["class_counts"] for _, frame in rows], np.uint16).reshape(
                -1, len(DETECTION_CLASSES)
            ),
            offset=members[..., 0],
            length=members[..., 1],
            crc32c=members[..., 2].astype(np.uint32),
        )

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Writes the columns; returns {file name: {"size", "sha256"}} for the manifest."""
        digests = {}
        for name, (dtype, _) in _COLUMNS.items():
            data = encode_npy(getattr(self, name).astype(dtype))
            write_bytes(folder / f"{name}.npy", data)
            digests[f"{name}.npy"] = {"size": len(data), "sha256": sha256(data)}
        return digests

    @classmethod
    def open(cls, folder: Path, digests: dict[str, dict[str, Any]]) -> FrameIndex:
        """Memory-maps the columns; CorruptError where a file is missing or is not the one the manifest names."""
        columns = {}
        for name, (dtype, rank) in _COLUMNS.items():
            path = folder / f"{name}.npy"
            expected = digests.get(path.name)
            if expected is None or not path.is_file():
                raise CorruptError(f"{path}: missing; the store is damaged, run the caching command again")
            size = path.stat().st_size
            if size != expected["size"] or file_sha256(path) != expected["sha256"]:
                raise CorruptError(
                    f"{path}: {size} bytes do not match the manifest's digest; run the caching command again"
                )
            column = _map_column(path) if size else np.zeros(0)
            if column.dtype != np.dtype(dtype) or column.ndim != rank:
                raise CorruptError(
                    f"{path}: found {column.dtype} of rank {column.ndim}, expected {dtype} of rank {rank}"
                )
            columns[name] = column
        shapes = {name: column.shape for name, column in columns.items()}
        rows, members = shapes["offset"]
        widths = {
            "token": 16,
            "class_counts": len(DETECTION_CLASSES),
            "offset": members,
            "length": members,
            "crc32c": members,
        }
        for name, shape in shapes.items():
            expected_shape = (rows, widths[name]) if name in widths else (rows,)
            if shape != expected_shape:
                raise CorruptError(
                    f"{folder / name}.npy: shape {shape}, expected {expected_shape}; run the caching command again"
                )
        return cls(**columns)


def _map_column(path: Path) -> np.ndarray:
    """The column over the mapped file: pages are read when rows are, and the mapping outlives the descriptor."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return decode_npy(memoryview(mapped), str(path))
