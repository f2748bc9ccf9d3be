"""Writes a WebDataset shard: a plain USTAR tar that stock webdataset and `tar tf` read, members of a frame adjacent.

Imported by writers only, because webdataset imports torch. Deterministic: fixed time, user and mode, sorted members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from webdataset import TarWriter

from cache.errors import StoreError
from cache.manifest import StoredFile
from cache.plan import FrameEntry
from cache.shard_writer import ShardWriter, location

BLOCK = 512


def tar_name(number: int) -> str:
    """The shard's file."""
    return f"shards/{number:05d}.tar"


class TarShardWriter(ShardWriter):
    """One tar file."""

    def _open(self) -> None:
        self._file = self._hashed(tar_name(self._plan.number))
        self._position = 0
        self._tar = TarWriter(
            self._file, user="bevcask", group="bevcask", mode=0o444, mtime=0, compress=False, encoder=False
        )

    def _append(self, entry: FrameEntry, values: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, list[int]]:
        members = {
            self._fields[name].member: (name, self._fields[name].encode(value)) for name, value in values.items()
        }
        empty = sorted(member for member, (_, data) in members.items() if not data)
        if empty:
            raise StoreError(
                f"frame {entry.token}: {empty} would hold no bytes; leave fields out that a frame does not have"
            )
        self._tar.write({"__key__": entry.token, **{member: data for member, (_, data) in members.items()}})
        locations = {}
        # sorted: TarWriter's own order; USTAR headers take exactly one block at these name lengths
        for member in sorted(members):
            name, data = members[member]
            locations[name] = location(self._position + BLOCK, data)
            self._position += BLOCK + -(-len(data) // BLOCK) * BLOCK
        if self._position != self._tar.tarstream.offset:
            raise StoreError(
                f"shard {self._plan.number}: members do not lie where expected; this webdataset release writes another "
                "tar layout, install the pinned one"
            )
        return locations

    def _close(self) -> list[StoredFile]:
        self._tar.close()
        return [self._file.stored()]

    def _abandon(self) -> None:
        self._tar.tarstream.fileobj.closed = True  # else tarfile's stream writes to the closed file when collected
