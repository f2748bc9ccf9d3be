"""The frame index: fixed-width binary columns `index/*.npy`, one row a frame, memory-mapped by readers.

A JSON index of a million frames takes 20 s and 3 GB to load; these columns cost a map and a page fault a row.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import CorruptError, StoreError
from cache.fields import TOKEN_PATTERN
from cache.files import file_sha256, sha256
from cache.npy import decode_npy, encode_npy
from cache.plan import FrameEntry
from cache.roots import Root

KIND_LABELLED = 0
KIND_UNLABELLED = 1
TOKEN_BYTES = 16
DIGEST_BYTES = 8
_COLUMNS: dict[str, tuple[str, str]] = {  # name -> dtype, what its second axis runs over
    "token": ("|u1", "token bytes"),
    "order": ("<u4", ""),
    "digest": ("|u1", "digest bytes"),
    "scene": ("<u4", ""),
    "timestamp_us": ("<i8", ""),
    "kind": ("|u1", ""),
    "class_counts": ("<u2", "classes"),
    "shard": ("<u4", ""),
    "sizes": ("<u4", "letters"),
    "offset": ("<u8", "fields"),
    "length": ("<u4", "fields"),
    "crc32c": ("<u4", "fields"),
}
COLUMN_FILES = tuple(f"{name}.npy" for name in _COLUMNS)


@dataclass(frozen=True)
class FrameIndex:
    """Columns over N frames, M fields, L letters of their shapes and the data set's classes.

    token (N, 16) uint8, the hex digits' bytes; order (N,) rows by rising token; digest (N, 8) of token, time and poses;
    scene (N,) index into the manifest's scenes; timestamp_us, kind, shard (N,); class_counts (N, classes) annotated
    boxes; sizes (N, L); offset, length, crc32c (N, M) of each field's bytes in its file, where a length of 0 means that
    the frame does not have the field.
    """

    token: np.ndarray
    order: np.ndarray
    digest: np.ndarray
    scene: np.ndarray
    timestamp_us: np.ndarray
    kind: np.ndarray
    class_counts: np.ndarray
    shard: np.ndarray
    sizes: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc32c: np.ndarray

    def __len__(self) -> int:
        return len(self.token)

    def row_of(self, token: str) -> int | None:
        """Row of a token, None where it is not there; 20 comparisons for a million frames."""
        if not TOKEN_PATTERN.fullmatch(token):
            return None
        wanted = bytes.fromhex(token)
        at = bisect.bisect_left(self.order, wanted, key=lambda row: self.token[row].tobytes())
        if at < len(self) and self.token[self.order[at]].tobytes() == wanted:
            return int(self.order[at])
        return None

    def rows_of(self, tokens: np.ndarray) -> np.ndarray:
        """(n,) int64 rows of tokens (n, 16) uint8, -1 where they are not there."""
        have = np.ascontiguousarray(self.token[self.order]).view(f"S{TOKEN_BYTES}").ravel()
        wanted = np.ascontiguousarray(tokens).view(f"S{TOKEN_BYTES}").ravel()
        at = np.minimum(np.searchsorted(have, wanted), max(len(self) - 1, 0))
        found = have[at] == wanted if len(self) else np.zeros(len(wanted), bool)
        return np.where(found, self.order[at] if len(self) else -1, -1).astype(np.int64)

    @classmethod
    def from_records(
        cls,
        records: Iterable[dict[str, Any]],
        field_names: Sequence[str],
        letters: Sequence[str],
        scene_tokens: Sequence[str],
        num_classes: int,
    ) -> FrameIndex:
        """Columns from shard records (`cache.commit`), frames in shard order; one record at a time is held.

        Raises StoreError for a frame of no known scene or with counts of another number of classes.
        """
        scene_number = {token: number for number, token in enumerate(scene_tokens)}
        parts = []
        for record in records:
            frames = record["frames"]
            for frame in frames:
                if frame["scene"] not in scene_number or len(frame["class_counts"]) != num_classes:
                    raise StoreError(
                        f"frame {frame['token']}: scene {frame['scene']} with counts of {len(frame['class_counts'])} "
                        f"classes; expected one of {len(scene_number)} scenes, and {num_classes} classes; run verify"
                    )
            members = np.array(
                [[frame["members"].get(name, (0, 0, 0)) for name in field_names] for frame in frames], np.uint64
            ).reshape(len(frames), len(field_names), 3)
            token_bytes = b"".join(bytes.fromhex(frame["token"]) for frame in frames)
            digest_bytes = b"".join(bytes.fromhex(frame["digest"]) for frame in frames)
            parts.append(
                {
                    "token": np.frombuffer(token_bytes, np.uint8).reshape(-1, TOKEN_BYTES),
                    "digest": np.frombuffer(digest_bytes, np.uint8).reshape(-1, DIGEST_BYTES),
                    "scene": np.array([scene_number[frame["scene"]] for frame in frames], np.uint32),
                    "timestamp_us": np.array([frame["timestamp_us"] for frame in frames], np.int64),
                    "kind": np.array([frame["kind"] for frame in frames], np.uint8),
                    "class_counts": _table([frame["class_counts"] for frame in frames], num_classes, np.uint16),
                    "shard": np.full(len(frames), record["shard"], np.uint32),
                    "sizes": _table(
                        [[frame["sizes"].get(letter, 0) for letter in letters] for frame in frames],
                        len(letters),
                        np.uint32,
                    ),
                    "offset": members[..., 0],
                    "length": members[..., 1].astype(np.uint32),
                    "crc32c": members[..., 2].astype(np.uint32),
                }
            )
        if not parts:
            raise ValueError("no records to make an index of")
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return cls(order=order_of(columns["token"]), **columns)

    def write(self, root: Root, suffix: str = "") -> dict[str, dict[str, Any]]:
        """Writes the columns, `index/<column><suffix>.npy`; returns {file name: {"size", "sha256"}} for a manifest."""
        digests = {}
        for plain, data in self.to_files().items():
            name = f"{column_of(plain)}{suffix}.npy"
            with root.write(f"index/{name}") as file:
                file.write(data)
            digests[name] = {"size": len(data), "sha256": sha256(data)}
        return digests

    def to_files(self) -> dict[str, bytes]:
        """The columns' files by name."""
        return {f"{name}.npy": encode_npy(getattr(self, name).astype(dtype)) for name, (dtype, _) in _COLUMNS.items()}

    def entry(self, row: int, scene_tokens: Sequence[str]) -> FrameEntry:
        """What another store of the same frames says of this one."""
        return FrameEntry(
            token=self.token[row].tobytes().hex(),
            scene=scene_tokens[int(self.scene[row])],
            timestamp_us=int(self.timestamp_us[row]),
            kind=int(self.kind[row]),
            class_counts=tuple(int(count) for count in self.class_counts[row]),
            digest=self.digest[row].tobytes().hex(),
        )

    @classmethod
    def open(
        cls, root: Root, digests: dict[str, dict[str, Any]], *, num_fields: int, num_letters: int, num_classes: int
    ) -> FrameIndex:
        """Maps the columns (loads them where the root cannot be mapped).

        CorruptError where a file is missing, is not the one the manifest names, or columns do not fit each other.
        """
        files = {column_of(file): file for file in digests}
        columns = {
            name: _open_column(root, f"index/{files.get(name, f'{name}.npy')}", digests.get(files.get(name, "")))
            for name in _COLUMNS
        }
        widths = {
            "token bytes": TOKEN_BYTES,
            "digest bytes": DIGEST_BYTES,
            "classes": num_classes,
            "letters": num_letters,
            "fields": num_fields,
        }
        rows = columns["token"].size // TOKEN_BYTES
        for name, (dtype, second) in _COLUMNS.items():
            expected = (rows, widths[second]) if second else (rows,)
            if columns[name].dtype != np.dtype(dtype) or columns[name].shape != expected:
                raise CorruptError(
                    f"{root}/index/{name}.npy: found {columns[name].dtype} {columns[name].shape}, expected {dtype} "
                    f"{expected}; run the caching command again"
                )
        index = cls(**columns)
        if not _is_strict_order(index.token, index.order):
            raise CorruptError(f"{root}/index: a token stands twice or out of order; run the caching command again")
        return index


def column_of(file: str) -> str:
    """The column that a file of the index holds: `token` for `token.npy`, and for `token.next.npy`, which stands in for
    it while a store grows."""
    return file.partition(".")[0]


def _table(rows: list[list[int]], width: int, dtype: type[np.generic]) -> np.ndarray:
    return np.array(rows, dtype).reshape(len(rows), width)


def order_of(token: np.ndarray) -> np.ndarray:
    """The `order` column of tokens (N, 16): rows by rising token, (N,) uint32."""
    high, low = _halves(token)
    return np.lexsort((low, high)).astype(np.uint32)


def _halves(token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens as two numbers each, which compare as the tokens do."""
    both = np.ascontiguousarray(token).view(">u8").astype(np.uint64)
    return both[:, 0], both[:, 1]


def _is_strict_order(token: np.ndarray, order: np.ndarray) -> bool:
    if len(order) and int(order.max()) >= len(token):
        return False
    high, low = _halves(token[order])
    return bool(((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))).all())


def _open_column(root: Root, name: str, expected: dict[str, Any] | None) -> np.ndarray:
    path: Path | None = None
    data = b""
    try:
        path = root.local_path(name) if expected is not None else None
        size = root.size(name) if path is not None else None  # first: what is no file, or endless, is not hashed
        if expected is None or (path is not None and size is None):
            raise FileNotFoundError
        if path is not None:
            digest = file_sha256(path) if size == expected["size"] else ""
        else:
            data = root.read_range(name, 0, expected["size"] + 1)
            size, digest = len(data), sha256(data)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CorruptError(f"{root}/{name}: missing; the store is damaged, run the caching command again") from None
    if size != expected["size"] or digest != expected["sha256"]:
        raise CorruptError(
            f"{root}/{name}: {size} bytes do not match the manifest's digest; run the caching command again"
        )
    return decode_npy(data, f"{root}/{name}") if path is None else _map_column(path)


def _map_column(path: Path) -> np.ndarray:
    """The column over the mapped file: pages are read when rows are, and the mapping outlives the descriptor."""
    if not path.stat().st_size:
        raise CorruptError(f"{path}: no bytes, expected a column; run the caching command again")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return decode_npy(memoryview(mapped), str(path))


assert [column.name for column in fields(FrameIndex)] == list(_COLUMNS)
