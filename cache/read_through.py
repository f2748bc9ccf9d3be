"""A root read through a local folder: every object is fetched once, whole, checked, and then read from the local disk.

For stores on S3 and the like, and for slow network disks. Many processes share one folder, and one limit, whatever
stores they read; the least recently used objects make room. Costs one fetch of an object per eviction, and some 10 us a
read over a LocalRoot: each read opens the file, since an evicted file's space is free only when nobody has it open.
The limit should hold what is read in turn: below that, every read of another object may fetch that whole object again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cache.errors import ConfigError, CorruptError, StoreError
from cache.files import no_space_as_error
from cache.roots import Root, checked_name, read_at
from cache.shared_folder import SharedFolder

CHUNK = 8 << 20
PARALLEL = 4  # chunks under way at once: one stream of S3 gives a fraction of what the network does
WAIT_S = 120.0
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class _Wanted(NamedTuple):
    """What a name stands for now. version: of an object that nobody promised a digest of."""

    key: str
    size: int
    sha256: str | None
    version: str | None


class ReadThrough:
    """`root`, its objects kept under `folder` up to `limit_bytes`.

    expected: {name: (size, sha256)} as a manifest says; such objects are checked when they are fetched, and are the
    same wherever they come from. Others are looked up anew by each ReadThrough, so a rewritten manifest is seen.
    wait_s: for how long to wait for another process that makes no progress.

    Raises ConfigError where an object is larger than the limit: at once for expected ones, else when it is read.
    """

    def __init__(
        self,
        root: Root,
        folder: str | Path,
        limit_bytes: int,
        *,
        expected: Mapping[str, tuple[int, str]] | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        if limit_bytes <= 0:
            raise ConfigError(f"a local cache of {limit_bytes} bytes holds nothing; raise --local-cache-limit")
        self.root = root
        self.files = SharedFolder(Path(folder), limit_bytes, wait_s)
        self.hits = self.fetches = self.fetched_bytes = 0  # of this process
        self._expected: dict[str, tuple[int, str]] = {}
        self._wanted: dict[str, _Wanted] = {}
        self.expect(expected or {})

    def __str__(self) -> str:
        return str(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.root, self.files.folder, self.files.limit_bytes, self._expected, self.files.wait_s)

    @property
    def url(self) -> str:
        """The root's own, without the cache."""
        return self.root.url

    def expect(self, objects: Mapping[str, tuple[int, str]]) -> None:
        """Adds what a manifest says of objects: {name: (size, sha256)}. Raises ConfigError where one can't be held."""
        for name, (size, digest) in objects.items():
            if not re.fullmatch("[0-9a-f]{64}", digest) or size < 0:  # it becomes part of a path
                raise StoreError(
                    f"{self.root}/{name}: {digest!r} is no sha256 of {size} bytes; the manifest is damaged"
                )
            self._must_fit(name, size)
        self._expected.update(objects)
        for name in objects:
            self._wanted.pop(name, None)

    def read(self, name: str) -> bytes:
        """The whole object, checked against its promised digest where there is one: a copy gone bad is fetched again,
        since not every document tells by itself that it is damaged."""
        data = self._read(name, 0, None)
        promised = self._expected.get(name)
        if promised is not None and hashlib.sha256(data).hexdigest() != promised[1]:
            self.discard(name)
            data = self._read(name, 0, None)
        return data

    def read_range(self, name: str, start: int, length: int) -> bytes:
        return self._read(name, start, length)

    def open_file(self, name: str) -> BufferedReader:
        """The local copy, fetched if need be: open, so that it stays whole when another process evicts it."""
        return os.fdopen(self._descriptor(name), "rb")

    def local_path(self, name: str) -> Path | None:
        """The root's own: a path into the local cache may lead nowhere as soon as it is handed out."""
        return self.root.local_path(name)

    def discard(self, name: str) -> bool:
        """Forgets the local copy, of which some checksum failed; the next read fetches it again."""
        wanted = self._wanted.pop(name, None)
        if wanted is not None:
            self.files.discard(wanted.key)
        return wanted is not None

    def size(self, name: str) -> int | None:
        return self.root.size(name)

    def version(self, name: str) -> str:
        return self.root.version(name)

    def modified(self, name: str) -> float:
        return self.root.modified(name)

    def sizes(self) -> dict[str, int]:
        return self.root.sizes()

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        with self.root.write(name) as file:
            yield file
        self._changed(name)

    def put_new(self, name: str, data: bytes) -> None:
        self.root.put_new(name, data)
        self._changed(name)

    def remove(self, name: str) -> None:
        self.root.remove(name)
        self._changed(name)

    def close(self) -> None:
        """No file stays open; objects without a promised digest are looked up anew."""
        for name in [name for name, wanted in self._wanted.items() if wanted.version is not None]:
            self._wanted.pop(name, None)
        self.root.close()

    def _changed(self, name: str) -> None:
        self.discard(name)
        self._expected.pop(name, None)

    def _must_fit(self, name: str, size: int) -> None:
        limit = self.files.limit_bytes
        if size > limit:
            raise ConfigError(
                f"{self.root}/{name}: {size} bytes do not fit into a local cache of {limit} bytes; "
                f"give --local-cache-limit at least {size}, better several times as much"
            )

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        descriptor = self._descriptor(name)
        try:
            return read_at(descriptor, start, os.fstat(descriptor).st_size if length is None else length)
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EIO:
                self.discard(name)
            raise StoreError(f"{self.files.folder}: {name} cannot be read ({error}); check that disk") from error
        finally:
            os.close(descriptor)

    def _descriptor(self, name: str) -> int:
        for _ in range(3):
            wanted = self._wanted.get(name) or self._look_up(name)
            descriptor = self.files.open(wanted.key)
            if descriptor is not None and os.fstat(descriptor).st_size == wanted.size:
                self.hits += 1
                return descriptor
            if descriptor is not None:  # cut short by whatever befell the disk
                os.close(descriptor)
                self.files.discard(wanted.key)
            self._must_fit(name, wanted.size)
            try:
                return self.files.make(wanted.key, wanted.size, partial(self._fetch, name, wanted))
            except _ReplacedError:
                self._wanted.pop(name, None)
        raise StoreError(f"{self.root}/{name}: was rewritten while it was fetched, three times; let its writer finish")

    def _look_up(self, name: str) -> _Wanted:
        tail = checked_name(name).replace("/", "+")[-100:]  # for those who look into the folder
        if name in self._expected:
            size, digest = self._expected[name]
            wanted = _Wanted(f"{digest}-{tail}", size, digest, None)
        else:
            version, found = self.root.version(name), self.root.size(name)
            if found is None:
                raise FileNotFoundError(f"{self.root}/{name}")
            identity = hashlib.sha256("\n".join([self.root.url, name, version]).encode()).hexdigest()
            wanted = _Wanted(f"{identity}-{tail}", found, None, version)
        self._wanted[name] = wanted
        return wanted

    def _fetch(self, name: str, wanted: _Wanted, file: int) -> None:
        """Writes the object to a descriptor and checks it."""
        digest = hashlib.sha256()
        with contextlib.closing(self._chunks(name, wanted.size)) as chunks:
            for start, data in chunks:
                _write_at(file, start, data, self.files.folder)
                digest.update(data)
        if wanted.sha256 not in (None, digest.hexdigest()):
            raise CorruptError(
                f"{self.root}/{name}: sha256 {digest.hexdigest()} arrived, the manifest says {wanted.sha256}; "
                "verify that store, or open it again if it was rewritten"
            )
        if wanted.version is not None and wanted.size > CHUNK and self.root.version(name) != wanted.version:
            raise _ReplacedError
        self.fetches += 1
        self.fetched_bytes += wanted.size

    def _chunks(self, name: str, size: int) -> Generator[tuple[int, bytes], None, None]:
        """The object's bytes in order, with their offsets, the next ones already under way."""
        pending: deque[tuple[int, int, Future[bytes]]] = deque()
        pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="bevcask-fetch")
        try:
            starts = iter(range(0, size, CHUNK))
            while True:
                while len(pending) < PARALLEL and (start := next(starts, None)) is not None:
                    length = min(CHUNK, size - start)
                    pending.append((start, length, pool.submit(self.root.read_range, name, start, length)))
                if not pending:
                    return
                start, length, future = pending.popleft()
                data = future.result()
                if len(data) != length:
                    raise CorruptError(
                        f"{self.root}/{name}: {start + len(data)} bytes, expected {size}; verify that store"
                    )
                yield start, data
        finally:
            pool.shutdown(cancel_futures=True)


class _ReplacedError(Exception):
    """The object changed while it was fetched."""


def _rebuilt(
    root: Root, folder: Path, limit_bytes: int, expected: dict[str, tuple[int, str]], wait_s: float
) -> ReadThrough:
    return ReadThrough(root, folder, limit_bytes, expected=expected, wait_s=wait_s)


def _write_at(descriptor: int, start: int, data: bytes, folder: Path) -> None:
    left = memoryview(data)
    try:
        with no_space_as_error(folder):
            while left:
                written = os.pwrite(descriptor, left, start)
                left, start = left[written:], start + written
    except OSError as error:
        raise StoreError(f"{folder}: the local cache cannot be written ({error}); check that disk") from error


def bytes_of(text: str) -> int:
    """'200GB', '1.5 TiB' or '1000000' as bytes. Raises ConfigError where it is none of these."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{text!r} is no size; write it like 200GB, 1.5TiB or 1000000 (bytes)")
    return int(float(match[1]) * _UNITS[match[2]])
