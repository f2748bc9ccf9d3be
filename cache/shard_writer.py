"""Writing one shard, whatever its format: frames in, files and a commit record out.

`open_shard` gives the writer of the plan's format. A block that ends without an error has committed the shard; one that
does not leaves nothing visible.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO, Self

import google_crc32c

from cache.commit import commit_shard, make_way
from cache.errors import StoreError
from cache.fields import TOKEN_PATTERN, FieldSpec
from cache.manifest import StoredFile
from cache.plan import FrameEntry, ShardPlan
from cache.roots import Root, open_root


def open_shard(place: Any, plan: ShardPlan) -> ShardWriter:
    """The writer of one shard; a context manager."""
    if plan.format.name == "zarr":
        from cache.zarr_writer import ZarrShardWriter

        return ZarrShardWriter(open_root(place), plan)
    from cache.tar_writer import TarShardWriter  # here: webdataset imports torch, which readers do without

    return TarShardWriter(open_root(place), plan)


class HashedFile:
    """Passes writes on and keeps their count and sha256, so that a file is never read back to be hashed."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Hands what was written to the system, which may have no room for it."""
        self._file.flush()

    def stored(self) -> StoredFile:
        """Name, size and digest of what was written."""
        return StoredFile(self._name, self.size, self._digest.hexdigest())


class ShardWriter(ABC):
    """Context manager over one shard. After the block, `summary` has frames, bytes, quarantined, first_problem."""

    def __init__(self, root: Root, plan: ShardPlan) -> None:
        self._root, self._plan = root, plan
        self._fields: dict[str, FieldSpec] = {spec.name: spec for spec in plan.fields}
        self._frames: list[dict[str, Any]] = []
        self._quarantined: list[dict[str, str]] = []
        self._left = list(plan.tokens)
        self._files = contextlib.ExitStack()
        self._hashed_files: list[HashedFile] = []
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with self._files:  # closes what was opened where opening a later file fails
            self._open()
            self._files = self._files.pop_all()
        return self

    def write(self, entry: FrameEntry, values: Mapping[str, Any]) -> None:
        """Appends one frame, the plan's next; values by field name, fields that the frame does not have left out.

        Raises StoreError for a frame that is not the plan's next, a field the store does not declare, a value that does
        not fit its declaration, sizes that disagree between fields, and a value without bytes.
        """
        if not TOKEN_PATTERN.fullmatch(entry.token):
            raise StoreError(f"frame token {entry.token!r} is not 32 lower-case hex digits")
        if self._left[:1] != [entry.token]:
            raise StoreError(
                f"shard {self._plan.number}: frame {entry.token} is not the plan's next, {self._left[:1] or 'none'}"
            )
        unknown = sorted(set(values) - set(self._fields))
        if unknown:
            raise StoreError(
                f"frame {entry.token}: fields {unknown} are not declared, expected some of {sorted(self._fields)}"
            )
        sizes: dict[str, int] = {}
        for name, value in values.items():
            if self._fields[name].is_array:
                for letter, size in self._fields[name].sizes_to_write(value).items():
                    if sizes.setdefault(letter, size) != size:
                        raise StoreError(
                            f"frame {entry.token}: {name} has {size} of {letter}, another field {sizes[letter]}"
                        )
        members = self._append(entry, values, sizes)
        self._frames.append({**entry.to_dict(), "sizes": sizes, "members": members})
        self._left.pop(0)

    def quarantine(self, token: str, reason: str) -> None:
        """Leaves out one of the plan's frames and records why; frames before it may still be written."""
        if token not in self._left:
            raise StoreError(f"shard {self._plan.number}: frame {token} is not among the planned ones that are left")
        self._left.remove(token)
        self._quarantined.append({"token": token, "reason": reason})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            self._files.__exit__(kind, error, trace)  # every file's own block sees the error and leaves nothing
            return
        with self._files:
            try:
                if self._left:
                    raise StoreError(f"shard {self._plan.number}: {len(self._left)} planned frames were not written")
                files = self._close()
                position = {token: i for i, token in enumerate(self._plan.tokens)}
                quarantined = sorted(self._quarantined, key=lambda row: position[row["token"]])
                content: dict[str, Any] = {"files": files, "frames": self._frames, "quarantined": quarantined}
                for file in self._hashed_files:
                    file.flush()  # a disk that is full now leaves none of several files behind
                make_way(self._root, self._plan, **content)
            except BaseException:
                self._abandon()
                raise
        self.summary = commit_shard(self._root, self._plan, **content)

    def _hashed(self, name: str) -> HashedFile:
        """A new file of the shard."""
        file = HashedFile(name, self._files.enter_context(self._root.write(name)))
        self._hashed_files.append(file)
        return file

    @abstractmethod
    def _open(self) -> None:
        """Opens the shard's files."""

    @abstractmethod
    def _append(self, entry: FrameEntry, values: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, list[int]]:
        """Writes a checked frame; returns {field: [offset, length, crc32c]}."""

    @abstractmethod
    def _close(self) -> list[StoredFile]:
        """Ends the files' content; returns them, the fields' own files first and in the fields' order."""

    @abstractmethod
    def _abandon(self) -> None:
        """Called before the files are dropped because of an error."""


def location(offset: int, data: bytes) -> list[int]:
    """How a record names some bytes of a file."""
    return [offset, len(data), google_crc32c.value(data)]
