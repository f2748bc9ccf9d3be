"""Where a store lies: a folder, or any fsspec URL (s3://, gs://, memory://), behind a small protocol of named objects.

A local object appears by rename, a remote one by a single PUT, so no reader ever meets half of one. Names are relative,
of plain characters and checked on every call: they come from manifests, which are never trusted as paths.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from cache.errors import StoreError
from cache.files import atomic_write, no_space_as_error

try:
    import resource
except ImportError:  # not on Windows
    MAX_OPEN = 256
else:  # a quarter of what the process may have open: opening anew doubles the time of a small read
    MAX_OPEN = max(64, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
_LARGE = 16 << 20
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")


class Root(Protocol):
    """Named objects under one place. Missing objects raise FileNotFoundError; what else goes wrong is a StoreError.

    Safe to share between threads, usable after a fork, and picklable: a worker process gets a root of its own.
    """

    @property
    def url(self) -> str:
        """What `open_root` makes this root from again, in another process."""

    def read(self, name: str) -> bytes:
        """The whole object."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer where the object ends before, none where it ends before `start`."""

    def size(self, name: str) -> int | None:
        """Bytes of the object, None where there is none."""

    def version(self, name: str) -> str:
        """A text that changes when the object is replaced by another (ETag, or time and size)."""

    def modified(self, name: str) -> float:
        """When the object was last written, seconds since 1970; inf where nobody says."""

    def sizes(self) -> dict[str, int]:
        """Every object's name and bytes, other writers' partial files included."""

    def open_file(self, name: str) -> BufferedReader | None:
        """The object as an open file that may be memory-mapped and stays as it is whatever becomes of its name; None
        where the root has no files. To be closed by the caller.
        """

    def local_path(self, name: str) -> Path | None:
        """Where the object itself lies, or would, to be linked to; None where the root is no folder."""

    def write(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A binary file whose content becomes the object, at once, when the block ends without an error."""

    def put_new(self, name: str, data: bytes) -> None:
        """Makes the object; FileExistsError where there is one already, which then stays as it is.

        Over a network the one already there may be ours, from a first try whose answer was lost: compare the bytes.
        """

    def remove(self, name: str) -> None:
        """Removes the object if it is there."""

    def expect(self, objects: Mapping[str, tuple[int, str]]) -> None:
        """Says what a manifest promises of objects, {name: (size, sha256)}, to a root that keeps checked copies."""

    def discard(self, name: str) -> bool:
        """Drops the root's own copy of an object of which a checksum failed; whether there was one, so that reading
        again may help.
        """

    def close(self) -> None:
        """Lets go of open files; the next read opens them again."""


def open_root(place: str | Path | Root) -> Root:
    """The root at a path or fsspec URL; a Root comes back as it is.

    Raises ConfigError where the URL's protocol is unknown or its package is not installed.
    """
    if isinstance(place, Path) or (isinstance(place, str) and "://" not in place):
        return LocalRoot(Path(place))
    if isinstance(place, str):
        protocol, _, path = place.partition("://")
        if protocol in ("file", "local"):
            return LocalRoot(Path(path))
        from cache.remote_root import FsspecRoot  # here: local stores, the common case, open without fsspec

        return FsspecRoot(place)
    return place


def join(place: str | Path, *parts: str) -> str | Path:
    """A place below a path or URL."""
    if isinstance(place, str) and "://" in place:
        return "/".join([place.rstrip("/"), *parts])
    return Path(place).joinpath(*parts)


def checked_name(name: str) -> str:
    """`name` where it is a plain relative name; StoreError otherwise (absolute, `..`, hidden, odd characters)."""
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise StoreError(f"object name {name!r} is not a plain relative path; the store is damaged or forged")
    return name


def removable_name(name: str) -> str:
    """`name` where it leads to something below a root: a damaged store's leftovers may have any name, but not `..`."""
    if "\0" in name or {"", ".", ".."} & set(name.split("/")):
        raise StoreError(f"object name {name!r} leads outside its root, so it is not removed")
    return name


def read_at(descriptor: int, start: int, length: int) -> bytes:
    """`length` bytes from `start` of an open file, fewer where it ends before. Raises OSError, OverflowError."""
    if length > _LARGE:  # a damaged length must not make pread allocate more than there is
        length = max(0, min(length, os.fstat(descriptor).st_size - start))
    data = os.pread(descriptor, length, start)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), start + len(data))):
        data += more  # pread gives 2 GiB at most
    return data


def _open_at_once(path: Path) -> int:
    """O_NONBLOCK: a pipe in a file's place would wait for a writer; now it cannot be read, which is told."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


class _Descriptor:
    """An open file's number. It is closed when the last thread that holds it lets go, never under somebody's read: the
    next file opened would take the number over, and the read give that one's bytes.
    """

    __slots__ = ("number",)

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = _open_at_once(path)

    def __del__(self, close: Any = os.close) -> None:
        if self.number >= 0:
            close(self.number)


class _Written:
    """A file being written. Its own errors name it; those that a caller's block raises for other reasons do not."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        return self._told(self._file.write, data)

    def flush(self) -> None:
        self._told(self._file.flush)

    def _told(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with no_space_as_error(self._path):
                return call(*arguments)
        except OSError as error:
            raise _unwritable(self._path, error) from error


_ROOTS: weakref.WeakSet[LocalRoot] = weakref.WeakSet()


class LocalRoot:
    """A folder. Reads by pread on descriptors that stay open (the first MAX_OPEN). No lock on any path of reading.

    What this root writes or removes is seen by its next read; what others replace is seen where the file is opened
    again, and until then the old file is read, whole. Links to folders are not followed by `sizes`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, _Descriptor] = {}
        self._changes = 0
        _ROOTS.add(self)

    def __str__(self) -> str:
        return str(self.folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalRoot, (self.folder,)

    @property
    def url(self) -> str:
        return str(self.folder.absolute())

    def _path(self, name: str) -> Path:
        return self.folder / checked_name(name)

    def read(self, name: str) -> bytes:
        with self._told(name):
            return self._path(name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        try:
            opened = self._kept.get(name) or self._open(name)
            return read_at(opened.number, start, length)
        except (OSError, OverflowError) as error:
            raise self._as_told(name, error) from error

    def _open(self, name: str) -> _Descriptor:
        """A descriptor, kept for the next read unless there are too many or the object was replaced meanwhile."""
        changes = self._changes
        try:
            opened = _Descriptor(self._path(name))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            for root in list(_ROOTS):  # the process may open no more: what all roots keep open is given back
                root.close()
            opened = _Descriptor(self._path(name))
        if len(self._kept) < MAX_OPEN:
            self._kept[name] = opened
            if changes != self._changes:
                self._kept.pop(name, None)
        return opened

    def size(self, name: str) -> int | None:
        try:
            return self._stat(name).st_size
        except FileNotFoundError:
            return None

    def version(self, name: str) -> str:
        found = self._stat(name)
        return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"

    def modified(self, name: str) -> float:
        found = self._stat(name)
        return max(found.st_mtime, found.st_ctime)  # a new hard link to an old file is new, too

    def _stat(self, name: str) -> os.stat_result:
        with self._told(name):
            found = self._path(name).stat()
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(name)
            return found

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, _, files in os.walk(self.folder):
            for file in files:
                path = Path(folder, file)
                with contextlib.suppress(FileNotFoundError):  # another writer's partial file, renamed meanwhile
                    found[path.relative_to(self.folder).as_posix()] = path.lstat().st_size
        return dict(sorted(found.items()))

    def open_file(self, name: str) -> BufferedReader:
        with self._told(name):
            descriptor = _open_at_once(self._path(name))
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise FileNotFoundError(name)
            return os.fdopen(descriptor, "rb")

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        path = self._path(name)
        in_block = False
        try:
            with atomic_write(path) as file:
                in_block = True
                yield cast(BinaryIO, _Written(file, path))
                in_block = False
        except OSError as error:
            if in_block:  # the caller's own
                raise
            raise _unwritable(path, error) from error
        finally:
            self._forget(name)

    def put_new(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if path.exists():
            raise FileExistsError(name)
        try:
            with atomic_write(path, replace=False) as file:
                file.write(data)
        except OSError as error:
            if path.exists():
                raise FileExistsError(name) from None
            raise _unwritable(path, error) from error

    def remove(self, name: str) -> None:
        path = self.folder / removable_name(name)
        folder = self.folder.resolve()
        if folder != path.parent.resolve() and folder not in path.parent.resolve().parents:
            raise StoreError(f"{path}: lies outside {self.folder}, so it is not removed")
        with self._told(name), contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._forget(name)

    def expect(self, objects: Mapping[str, tuple[int, str]]) -> None:
        """No copies are kept."""

    def discard(self, name: str) -> bool:
        return False

    def close(self) -> None:
        self._changes += 1
        self._kept.clear()

    def _forget(self, name: str) -> None:
        """A replaced object is another file: its descriptor would go on showing the old one."""
        self._changes += 1  # first: who is just opening the old file then keeps it no longer than its own read
        self._kept.pop(name, None)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._as_told(name, error) from error

    def _as_told(self, name: str, error: OSError | OverflowError) -> Exception:
        if isinstance(error, _NOT_THERE):
            return FileNotFoundError(errno.ENOENT, "no such object", f"{self.folder}/{name}")
        return StoreError(f"{self.folder}/{name}: {error}; check the disk and the file's rights")


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be written ({error.strerror or error}); check the folder's rights and the disk")
