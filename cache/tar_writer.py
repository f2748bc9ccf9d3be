"""Writes one shard: a plain USTAR tar that stock webdataset and `tar tf` read, members of a frame adjacent.

Imported by writers only, because webdataset imports torch. Deterministic: fixed time, user and mode, sorted members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import google_crc32c
from webdataset import TarWriter

from cache.errors import StoreError
from cache.fields import TOKEN_PATTERN, FieldSpec
from cache.files import atomic_write

BLOCK = 512


@dataclass(frozen=True)
class MemberLocation:
    """Where one member's bytes lie in the shard, and their crc32c."""

    offset: int
    length: int
    crc32c: int

    def to_list(self) -> list[int]:
        return [self.offset, self.length, self.crc32c]


class _HashingFile:
    """Passes writes on and keeps their count and sha256, so that a shard is never read back to be hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


class ShardWriter:
    """Context manager over one shard file; it appears at `path` only when the block ends without an error."""

    def __init__(self, path: Path, fields: Mapping[str, FieldSpec]) -> None:
        self.path = path
        self._fields = fields
        self._position = 0
        self._tokens: set[str] = set()

    def __enter__(self) -> Self:
        self._atomic = atomic_write(self.path)
        self._file = _HashingFile(self._atomic.__enter__())
        self._tar = TarWriter(
            self._file, user="bevcask", group="bevcask", mode=0o444, mtime=0, compress=False, encoder=False
        )
        return self

    def write(self, token: str, values: Mapping[str, Any]) -> dict[str, MemberLocation]:
        """Appends one frame; `values` by field name. Returns where each field's bytes went.

        Raises StoreError for a token that is not 32 hex digits or comes twice, a field the store does not declare, and
        a member without bytes (a length of 0 means "not there" in the index).
        """
        if not TOKEN_PATTERN.fullmatch(token):
            raise StoreError(f"frame token {token!r} is not 32 lower-case hex digits")
        if token in self._tokens:
            raise StoreError(f"frame {token} is written twice to {self.path}")
        unknown = sorted(set(values) - set(self._fields))
        if unknown:
            raise StoreError(
                f"frame {token}: fields {unknown} are not declared, expected some of {sorted(self._fields)}"
            )
        members = {
            self._fields[name].member: (name, self._fields[name].encode(value)) for name, value in values.items()
        }
        empty = sorted(member for member, (_, data) in members.items() if not data)
        if empty:
            raise StoreError(f"frame {token}: {empty} would hold no bytes; leave fields out that a frame does not have")
        self._tokens.add(token)
        self._tar.write({"__key__": token, **{member: data for member, (_, data) in members.items()}})
        locations = {}
        for member in sorted(
            members
        ):  # TarWriter's own order; USTAR headers take exactly one block at these name lengths
            name, data = members[member]
            offset = self._position + BLOCK
            locations[name] = MemberLocation(offset, len(data), google_crc32c.value(data))
            self._position = offset + -(-len(data) // BLOCK) * BLOCK
        if self._position != self._tar.tarstream.offset:
            raise StoreError(
                f"{self.path}: members do not lie where expected; this webdataset release writes another tar layout"
            )
        return locations

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._tar.close()
            except BaseException as close_error:  # raised again below, once the partial file is gone
                kind, error, trace = type(close_error), close_error, close_error.__traceback__
        if error is not None:
            self._tar.tarstream.fileobj.closed = True  # else tarfile's stream writes to the closed file when collected
        self._atomic.__exit__(kind, error, trace)
        if error is not None:
            raise error

    @property
    def size(self) -> int:
        """Bytes of the finished shard."""
        return self._file.size

    @property
    def sha256(self) -> str:
        """Hex digest of the finished shard."""
        return self._file.digest.hexdigest()
