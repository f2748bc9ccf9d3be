"""Durable, atomic files: write `*.partial`, fsync, rename, fsync the folder. A reader sees the old file or the new one.

ENOSPC and quota errors become OutOfSpaceError, and the partial file is removed, so nothing half-written stays behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cache.errors import OutOfSpaceError, StoreError

PARTIAL = ".partial"
_DIGEST_LINE = re.compile(rb'^ "digest": "([0-9a-f]{64})",\n', re.MULTILINE)  # one space: of the outermost object
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_write(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends without an error, and then survives a power cut.

    replace: whether it takes the place of a file that is there; if not, FileExistsError, also where another process was
    faster. The partial file's name is its writer's alone: a task that the scheduler started twice must not write into
    the file that its twin is about to rename.
    """
    partial = path.with_name(f"{path.name}.{os.getpid():x}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        with no_space_as_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(partial, path)
            else:
                os.link(partial, path)
                partial.unlink()
            fsync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def no_space_as_error(path: Path) -> Iterator[None]:
    """Turns 'no space left' into OutOfSpaceError with the path and the remedy; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutOfSpaceError(
                f"{path}: {os.strerror(error.errno)} while writing; free space (or choose another folder) and run the "
                "same command again: what was committed is kept"
            ) from error
        raise


def fsync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """`data` at `path`, atomically."""
    with atomic_write(path) as file:
        file.write(data)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and a fixed layout, so that equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """`value` as canonical JSON at `path`, atomically."""
    write_bytes(path, canonical_json(value))


def read_json(path: Path, what: str) -> Any:
    """The JSON at `path`; StoreError naming the path and `what` it should be where it is missing or does not parse."""
    try:
        return parse_json(path.read_bytes(), path, what)
    except FileNotFoundError:
        raise StoreError(f"{path}: not found, expected {what}") from None
    except (NotADirectoryError, IsADirectoryError) as error:
        raise StoreError(f"{path}: not readable as {what} ({error})") from None


def parse_json(data: bytes, where: object, what: str) -> Any:
    """The value of JSON bytes; StoreError naming where they lie and `what` they should be where they do not parse."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where}: not readable as {what} ({error})") from None


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Hex digest of a JSON-like value, independent of key order."""
    return sha256(canonical_json(value))


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with a digest over the rest, so that a damaged digit in a JSON file is noticed as one in a shard is."""
    return {**values, "digest": digest_of(values)}


def has_valid_seal(data: bytes) -> bool:
    """Whether `data` is the canonical JSON of what `seal` gave, told from the bytes.

    Encoding the values again would take 2 s for the manifest of a million frames; this takes milliseconds.
    """
    found = _DIGEST_LINE.search(data)
    if found is None:
        return False
    rest = data[: found.start()] + data[found.end() :]
    return sha256(rest) == found[1].decode()
