"""Writes a shard of the Zarr format: one Zarr v3 shard file a field, one inner chunk a frame, rows in the plan's order.

Frames are encoded one at a time, so a shard needs the memory of a frame. The bytes are those of the specification's
`sharding_indexed` codec (chunks, then an index of offsets and lengths, then its crc32c), which the tests read with
stock zarr. Unused rows of a shard are written too: zarr reads what is not there as zeros, silently.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from cache.errors import StoreError
from cache.fields import FieldSpec
from cache.manifest import StoredFile
from cache.plan import FrameEntry
from cache.shard_files import FOLDER, side_fields
from cache.shard_writer import HashedFile, ShardWriter, location


class ZarrShardWriter(ShardWriter):
    """One file for each field, and one for each side array."""

    def _open(self) -> None:
        self._arrays = {spec.name: _ShardFile(self._hashed(self._name(spec))) for spec in self._plan.fields}
        self._letters = tuple(self._plan.format.capacity)

    def _name(self, spec: FieldSpec) -> str:
        return f"{FOLDER}/{spec.name}/c/{self._plan.number}" + "/0" * len(spec.shape)

    def _append(self, entry: FrameEntry, values: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, list[int]]:
        missing = sorted(set(self._fields) - set(values))
        if missing:
            raise StoreError(f"frame {entry.token}: {missing} are missing; in a Zarr store every frame has every field")
        capacity = self._plan.format.capacity
        # all first, so that a field that is refused leaves no other array a frame ahead
        encoded = {name: spec.encode_padded(values[name], capacity) for name, spec in self._fields.items()}
        return {name: self._arrays[name].append(data) for name, data in encoded.items()}

    def _close(self) -> list[StoredFile]:
        rows, used = self._plan.format.rows, len(self._frames)
        for name, spec in self._fields.items():
            empty = spec.encode_padded(
                np.zeros(spec.shape_under(self._plan.format.capacity), spec.dtype), self._plan.format.capacity
            )
            for _ in range(rows - used):
                self._arrays[name].append(empty)
            self._arrays[name].close()
        files = [self._arrays[spec.name].file.stored() for spec in self._plan.fields]
        for spec in side_fields(self._letters):
            file = self._hashed(self._name(spec))
            file.write(side_chunk(spec, self._frames, rows))
            files.append(file.stored())
        return files

    def _abandon(self) -> None:
        pass


def side_chunk(spec: FieldSpec, frames: Sequence[Mapping[str, Any]], rows: int) -> bytes:
    """A side array's only chunk of a shard, with its checksum. frames: as in the shard's record; rows: of the shard."""
    column = np.zeros((rows, *spec.shape_under({})), np.dtype(spec.dtype).newbyteorder("<"))
    if frames:
        column[: len(frames)] = _side_values(spec.name, frames)
    data = column.tobytes()
    return data + checksum(data)


def _side_values(name: str, frames: Sequence[Mapping[str, Any]]) -> Any:
    if name == "valid":
        return True
    if name == "token":
        return [list(bytes.fromhex(frame["token"])) for frame in frames]
    if name == "timestamp_us":
        return [frame["timestamp_us"] for frame in frames]
    return [frame["sizes"].get(name.removeprefix("size_").upper(), 0) for frame in frames]


class _ShardFile:
    """A `sharding_indexed` file that grows chunk by chunk."""

    def __init__(self, file: HashedFile) -> None:
        self.file = file
        self._index: list[tuple[int, int]] = []

    def append(self, data: bytes) -> list[int]:
        """Writes a chunk and its checksum; returns where the chunk's own bytes lie."""
        offset = self.file.size
        self.file.write(data + checksum(data))
        self._index.append((offset, len(data) + 4))
        return location(offset, data)

    def close(self) -> None:
        """Writes the index."""
        index = b"".join(struct.pack("<QQ", *entry) for entry in self._index)
        self.file.write(index + checksum(index))


def checksum(data: bytes) -> bytes:
    """What Zarr's crc32c codec appends."""
    return struct.pack("<I", google_crc32c.value(data))
