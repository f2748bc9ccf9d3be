"""A root behind any fsspec URL (s3://, gs://, memory://): objects written by one PUT, read whole or by ranges.

Credentials and endpoints come from the environment, as each file system documents (AWS_ENDPOINT_URL for s3). Every
call on an asynchronous file system (s3, gs, az, http) ends within a bounded time: the libraries' own retries add up to
many minutes at an address that accepts connections and never answers.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from cache.errors import ConfigError, StoreError
from cache.files import no_space_as_error
from cache.roots import checked_name, removable_name

CALL_SECONDS = 60.0  # for any one call, retries included,
SLOWEST_BYTES_PER_S = 1e6  # and the time its bytes take at this rate
LISTING_SECONDS = 600.0
SMALL = 4 << 20  # bytes; read whole by one request
_MEMORY = threading.Lock()  # memory:// checks and writes in two steps


class FsspecRoot:
    """Any fsspec file system. What is written goes to a local temporary file, is sent, and its size there is checked.

    call_seconds: bound for one call, retries included; reading or writing n bytes gets n / SLOWEST_BYTES_PER_S more.
    """

    def __init__(self, url: str, call_seconds: float = CALL_SECONDS) -> None:
        self.url = url.rstrip("/")
        self.call_seconds = call_seconds
        self._connect()

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return FsspecRoot, (self.url, self.call_seconds)

    def _connect(self) -> None:
        import fsspec.asyn

        try:
            self._fs, self._base = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"{self.url}: {error}; install the package it names (s3: pip install -c constraints.txt -e '.[s3]')"
            ) from None
        self._sync, self._timeout = fsspec.asyn.sync, fsspec.exceptions.FSTimeoutError
        self._process = os.getpid()

    def _call(self, method: str, *arguments: Any, seconds: float = 0.0, **options: Any) -> Any:
        """A call of the file system, within `call_seconds` and `seconds` more."""
        if self._process != os.getpid():
            self._connect()  # after a fork the parent's connections and their thread are gone
        if not getattr(self._fs, "async_impl", False):
            return getattr(self._fs, method)(*arguments, **options)
        seconds += self.call_seconds
        try:
            return self._sync(self._fs.loop, getattr(self._fs, f"_{method}"), *arguments, timeout=seconds, **options)
        except self._timeout:
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None

    def _object(self, name: str) -> str:
        return f"{self._base}/{checked_name(name)}"

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """File systems raise errors of many kinds: all but 'not there', 'there already' and ours become StoreError."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, StoreError, ConfigError):
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise StoreError(f"{self.url}/{name}: {text}; check the address, its credentials and network") from error

    def read(self, name: str) -> bytes:
        first = self.read_range(name, 0, SMALL)
        if len(first) < SMALL:
            return first
        with self._told(name):
            seconds = (self.size(name) or 0) / SLOWEST_BYTES_PER_S
            return bytes(self._call("cat_file", self._object(name), seconds=seconds))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        path = self._object(name)
        if start < 0 or length < 0:  # negative numbers count from the object's end in fsspec
            raise StoreError(f"{self.url}/{name}: no range of {length} bytes from {start}; the index is damaged")
        with self._told(name):
            try:
                if length:
                    seconds = length / SLOWEST_BYTES_PER_S
                    return bytes(self._call("cat_file", path, start=start, end=start + length, seconds=seconds))
            except OSError as error:
                # S3 refuses a range that starts past the end (InvalidRange)
                if "range" not in f"{error} {error.__cause__}".lower() or start < (self.size(name) or 0):
                    raise
            if self.size(name) is None:
                raise FileNotFoundError(f"{self.url}/{name}")
            return b""

    def _info(self, name: str) -> dict[str, Any] | None:
        try:
            with self._told(name):
                found: dict[str, Any] = self._call("info", self._object(name))
        except FileNotFoundError:
            return None
        return found if found["type"] == "file" else None  # 'folders' are names of other objects

    def size(self, name: str) -> int | None:
        found = self._info(name)
        return None if found is None else int(found["size"])

    def version(self, name: str) -> str:
        found = self._info(name)
        if found is None:
            raise FileNotFoundError(f"{self.url}/{name}")
        return "-".join(str(found[key]) for key in sorted(found))

    def modified(self, name: str) -> float:
        found = self._info(name)
        if found is None:
            raise FileNotFoundError(f"{self.url}/{name}")
        times = (found.get(key) for key in ("LastModified", "last_modified", "updated", "mtime", "created"))
        when = next((time for time in times if time is not None), math.inf)
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, datetime):
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        return float(when)

    def sizes(self) -> dict[str, int]:
        with self._told(""):
            try:
                self._call("info", self._base)  # soon says whether anybody answers: a long listing may take its time
                found: dict[str, Any] = self._call("find", self._base, detail=True, seconds=LISTING_SECONDS)
            except FileNotFoundError:
                return {}
        base = self._base.strip("/") + "/"
        return {path.lstrip("/").removeprefix(base): int(about["size"]) for path, about in sorted(found.items())}

    def open_file(self, name: str) -> BufferedReader | None:
        return None

    def local_path(self, name: str) -> Path | None:
        return None

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        path = self._object(name)
        with tempfile.TemporaryFile(prefix="bevcask-") as file:  # without a name: nothing is left of a killed process
            with no_space_as_error(Path(tempfile.gettempdir())):
                yield file
                file.flush()
            size = file.seek(0, os.SEEK_END)
            with self._told(name), self._place_there():
                if self._in_memory:  # its put_file shows the object before it is whole
                    file.seek(0)
                    self._call("pipe_file", path, file.read())
                else:
                    self._call("put_file", f"/dev/fd/{file.fileno()}", path, seconds=size / SLOWEST_BYTES_PER_S)
            found = self.size(name)
        if found != size:
            raise StoreError(f"{self.url}/{name}: {found} of {size} bytes arrived; run the same command again")

    @property
    def _in_memory(self) -> bool:
        return self._fs.protocol == "memory"

    def put_new(self, name: str, data: bytes) -> None:
        path = self._object(name)
        with self._told(name), self._place_there(), _MEMORY if self._in_memory else contextlib.nullcontext():
            if self.size(name) is not None:  # also for servers that take no condition with a PUT
                raise FileExistsError(f"{self.url}/{name}")
            self._call("pipe_file", path, data, mode="create", seconds=len(data) / SLOWEST_BYTES_PER_S)

    @contextlib.contextmanager
    def _place_there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}: {error}; make the bucket or container first") from error

    def remove(self, name: str) -> None:
        path = f"{self._base}/{removable_name(name)}"
        with self._told(name), contextlib.suppress(FileNotFoundError):
            self._call("rm_file", path)

    def expect(self, objects: Mapping[str, tuple[int, str]]) -> None:
        """No copies are kept."""

    def discard(self, name: str) -> bool:
        return False

    def close(self) -> None:
        """Nothing stays open."""
