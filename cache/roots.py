"""Where a store lies: a folder, or any fsspec URL (s3://, gs://, memory://), behind one small protocol of named objects.

A local object appears by rename, a remote one by a single PUT, so no reader ever meets half of one. Names are relative,
of plain characters and checked on every call: they come from manifests, which are never trusted as paths.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cache.errors import ConfigError, StoreError
from cache.files import PARTIAL, atomic_write, no_space_as_error

MAX_OPEN = 256
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")


class Root(Protocol):
    """Named objects under one place. Missing objects raise FileNotFoundError; what else goes wrong is a StoreError."""

    @property
    def url(self) -> str:
        """What `open_root` makes this root from again, in another process."""

    def read(self, name: str) -> bytes:
        """The whole object."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer where the object ends before."""

    def size(self, name: str) -> int | None:
        """Bytes of the object, None where there is none."""

    def sizes(self) -> dict[str, int]:
        """Every object's name and bytes, other writers' partial files included."""

    def local_path(self, name: str) -> Path | None:
        """A file that holds the object and may be memory-mapped, None where the root has no such thing."""

    def write(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A binary file whose content becomes the object, at once, when the block ends without an error."""

    def put_new(self, name: str, data: bytes) -> None:
        """Makes the object; FileExistsError where there is one already, which then stays as it is."""

    def remove(self, name: str) -> None:
        """Removes the object if it is there."""

    def close(self) -> None:
        """Lets go of open files; the next read opens them again."""


def open_root(place: str | Path | Root) -> Root:
    """The root at a path or fsspec URL; a Root comes back as it is.

    Raises ConfigError where the URL's protocol is unknown or its package is not installed.
    """
    if isinstance(place, Path) or (isinstance(place, str) and "://" not in place):
        return LocalRoot(Path(place))
    if isinstance(place, str):
        return LocalRoot(Path(place.removeprefix("file://"))) if place.startswith("file://") else FsspecRoot(place)
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


class LocalRoot:
    """A folder. Reads by pread on descriptors that stay open (the first MAX_OPEN); safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._descriptors)  # a root that is dropped unclosed leaks nothing

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def url(self) -> str:
        return str(self.folder.absolute())

    def _path(self, name: str) -> Path:
        return self.folder / checked_name(name)

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        with self._lock:
            descriptor = self._descriptors.get(name)
            keep = descriptor is None and len(self._descriptors) < MAX_OPEN
            if keep:
                descriptor = self._descriptors[name] = os.open(self._path(name), os.O_RDONLY)
        if descriptor is not None:
            return os.pread(descriptor, length, start)
        descriptor = os.open(self._path(name), os.O_RDONLY)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int | None:
        try:
            return self._path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, _, files in os.walk(self.folder):
            for file in files:
                path = Path(folder, file)
                with contextlib.suppress(FileNotFoundError):  # another writer's partial file, renamed meanwhile
                    found[path.relative_to(self.folder).as_posix()] = path.lstat().st_size
        return dict(sorted(found.items()))

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    def write(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        self._forget(name)
        return atomic_write(self._path(name))

    def put_new(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if path.exists():
            raise FileExistsError(name)
        with atomic_write(path, replace=False) as file:
            file.write(data)

    def remove(self, name: str) -> None:
        self._forget(name)
        # a damaged store's leftovers may have any name: what is removed must only lie inside the folder
        path = self.folder / name
        if (
            self.folder.resolve() not in path.parent.resolve().parents
            and self.folder.resolve() != path.parent.resolve()
        ):
            raise StoreError(f"{path}: lies outside {self.folder}, so it is not removed")
        path.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            _close_all(self._descriptors)

    def _forget(self, name: str) -> None:
        """A rewritten object is another file: its descriptor would go on showing the old one."""
        with self._lock:
            descriptor = self._descriptors.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


class FsspecRoot:
    """Any fsspec file system. Objects are written by one PUT from a local temporary file, and their size is checked.

    Credentials and endpoints come from the environment, as each file system documents (AWS_ENDPOINT_URL for s3).
    """

    def __init__(self, url: str) -> None:
        import fsspec  # here: local stores, the common case, open without it

        self.url = url.rstrip("/")
        try:
            self._fs, self._base = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{url}: {error}; install the package it names (s3: pip install 'bevcask[s3]')") from None

    def __str__(self) -> str:
        return self.url

    def _object(self, name: str) -> str:
        return f"{self._base}/{checked_name(name)}"

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """File systems raise errors of many kinds: all but 'not there', 'there already' and ours become StoreError."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, StoreError):
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise StoreError(f"{self.url}/{name}: {text}; check the address, its credentials and network") from error

    def read(self, name: str) -> bytes:
        with self._told(name):
            return bytes(self._fs.cat_file(self._object(name)))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        with self._told(name):
            return bytes(self._fs.cat_file(self._object(name), start=start, end=start + length)) if length else b""

    def size(self, name: str) -> int | None:
        try:
            with self._told(name):
                return int(self._fs.info(self._object(name))["size"])
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        with self._told(""):
            self._fs.invalidate_cache()
            try:
                found: dict[str, Any] = self._fs.find(self._base, detail=True)
            except FileNotFoundError:
                return {}
        base = self._base.strip("/") + "/"
        return {path.lstrip("/").removeprefix(base): int(about["size"]) for path, about in sorted(found.items())}

    def local_path(self, name: str) -> Path | None:
        return None

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        path = self._object(name)
        with tempfile.NamedTemporaryFile(prefix="bevcask-", suffix=PARTIAL) as file:
            with no_space_as_error(Path(file.name)):
                yield file  # type: ignore[misc]
                file.flush()
            size = file.tell()
            with self._told(name):
                self._fs.put_file(file.name, path)
                self._fs.invalidate_cache(path)
                found = int(self._fs.info(path)["size"])
        if found != size:
            raise StoreError(f"{self.url}/{name}: {found} of {size} bytes arrived; run the same command again")

    def put_new(self, name: str, data: bytes) -> None:
        with self._told(name):
            try:
                self._fs.pipe_file(self._object(name), data, mode="create")
            except Exception as error:
                if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error):
                    raise FileExistsError(name) from None
                raise

    def remove(self, name: str) -> None:
        with self._told(name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._base}/{name}")

    def close(self) -> None:
        """Nothing stays open."""
