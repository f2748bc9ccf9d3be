"""Files under a size limit, made once and shared by many processes of one machine, least recently used evicted first.

The folder is the whole state: `objects/` holds complete files, `fetching/` those being made, at their full size from
the start, and a file's time of modification is its last use. Every decision is taken under a flock on `lock`, held for
milliseconds and never while a file is made; who makes a file holds a flock on it. The kernel lets go of both when their
holder dies, however it dies, and what it left in `fetching/` is removed by the next who needs room. Waiting is bounded.

Why nobody ever sees half a file, nor one change:
* A file is written by the process that made it, through the descriptor that made it, before it is renamed. What another
  left is removed, never cut or filled again. Evicting and discarding take a name, not the bytes of who has it open.
* Under `lock`: looking for the complete file, making one in `fetching/` together with its flock, removing a dead one,
  the rename, evicting. So nobody can complete a file between our not finding it and our claiming its name, and a file
  in `fetching/` without a flock has lost its maker. Killed before the rename it leaves that, after it a complete file.
* A maker that fails unlinks its file without `lock`, but with its flock: who gets that flock later looks whether the
  name still leads to the file, and leaves it alone if not.
* Somebody may remove the whole folder, and then two locks may be held at once: so a lock counts only if its name leads
  to it, and a file gets its final name only if its first one leads to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cache.errors import BevcaskError, StoreError
from cache.files import no_space_as_error

_HELD: set[int] = set()  # descriptors with a flock: a forked child must not keep its parent's locks alive
_LONGEST = 10  # times `wait_s`: the bound on waiting in all, for who others always outrun
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class SharedFolder:
    """A folder of files of at most `limit_bytes` together, those being made included.

    An evicted file that some process still has open takes its space until that closes it. wait_s: for how long to wait
    for another process that makes no progress.
    """

    def __init__(self, folder: Path, limit_bytes: int, wait_s: float) -> None:
        self.folder = folder.absolute()
        self.limit_bytes = limit_bytes
        self.wait_s = wait_s
        self._objects, self._fetching = self.folder / "objects", self.folder / "fetching"
        self._prefix = f"{self._objects}/"

    def path(self, key: str) -> Path:
        """Where the complete file lies, or would."""
        return self._objects / key

    def open(self, key: str) -> int | None:
        """A descriptor to read the file with, the caller's to close; None where the folder does not have it."""
        try:
            descriptor = os.open(self._prefix + key, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._as_told(error) from error
        _mark_used(descriptor)
        return descriptor

    def make(self, key: str, size: int, fill: Callable[[int], None]) -> int:
        """As `open`; where the file is not there, `fill` writes its `size` bytes to a descriptor, in one process only.

        size: at most `limit_bytes`. Raises what `fill` raises, OutOfSpaceError where the disk is full, and StoreError,
        saying for whom it waited, where neither the file nor room for it is to be had within the bounds on waiting.
        """
        partial = self._fetching / key
        with self._told(), no_space_as_error(partial):
            descriptor, mine = self._open_or_claim(key, size)
        if not mine:
            return descriptor
        try:
            fill(descriptor)
            with self._told(), no_space_as_error(partial):
                os.fsync(descriptor)  # after a power cut a name must not lead to zeros
                self._complete(key, descriptor)
        except BaseException:
            _abandon(partial, descriptor)
            raise
        return descriptor

    def discard(self, key: str) -> None:
        """Removes the complete file if it is there."""
        self.path(key).unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of all files, those being made included."""
        fetching, objects = _list(self._fetching), _list(self._objects)
        return sum(found.st_size for found in (fetching | objects).values())

    def _open_or_claim(self, key: str, size: int) -> tuple[int, bool]:
        """A descriptor of the complete file and False, or of an own one to fill and True; waits for either."""
        began = progress_at = time.monotonic()
        seen, pause_s = None, 0.002
        while True:
            with self._locked():
                complete = self.open(key)
                if complete is not None:
                    return complete, False
                try:
                    return self._claim(key, size), True
                except _NotYet as reason:
                    why = str(reason)
                state = {name: found.st_mtime_ns for name, found in _list(self._fetching).items()}
            now = time.monotonic()
            if state != seen:
                seen, progress_at = state, now
            if now - progress_at > self.wait_s or now - began > _LONGEST * self.wait_s:
                raise StoreError(
                    f"{self.folder}: waited {now - began:.0f} s for {key}, because {why}; end that process if it "
                    "hangs, or raise --local-cache-limit"
                )
            time.sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)

    def _claim(self, key: str, size: int) -> int:
        """A locked descriptor of a new file of `size` in `fetching/`, after evicting; _NotYet where it cannot be.

        Under the folder's lock, and only where no complete file was found under it.
        """
        partial = self._fetching / key
        for folder in (self._objects, self._fetching):
            folder.mkdir(parents=True, exist_ok=True)
        if not self._remove_dead(key):
            raise _NotYet(f"{_holder(partial)} is fetching it")
        self._make_room(size)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if not _try_lock(descriptor):
                raise _NotYet("the folder was removed, and is being made again by others")
            os.ftruncate(descriptor, size)
        except BaseException:
            _abandon(partial, descriptor)
            raise
        return descriptor

    def _complete(self, key: str, descriptor: int) -> None:
        """Gives a filled file its name. Where somebody has cleared the folder away meanwhile it goes without."""
        with self._locked():
            if _leads_to(self._fetching / key, descriptor):
                _mark_used(descriptor)
                (self._fetching / key).rename(self.path(key))
            _unlock(descriptor)

    def _make_room(self, size: int) -> None:
        """Evicts until `size` bytes more are within the limit; _NotYet, and nothing evicted, where they cannot be."""
        being_made = {name: found for name, found in _list(self._fetching).items() if not self._remove_dead(name)}
        objects = _list(self._objects)
        taken = sum(found.st_size for found in being_made.values())
        if taken + size > self.limit_bytes:
            first = min(being_made)
            holder = _holder(self._fetching / first)
            raise _NotYet(f"{taken} of {self.limit_bytes} bytes are being fetched by others ({first} by {holder})")
        excess = taken + size + sum(found.st_size for found in objects.values()) - self.limit_bytes
        for name in sorted(objects, key=lambda name: (objects[name].st_mtime_ns, name)):
            if excess <= 0:
                break
            self.discard(name)
            excess -= objects[name].st_size

    def _remove_dead(self, name: str) -> bool:
        """Removes a file in `fetching/` whose maker is gone; whether none is there now. Under the folder's lock."""
        partial = self._fetching / name
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            dead = _try_lock(descriptor)
            if dead:
                _remove_own(partial, descriptor)
            return dead
        finally:
            _release(descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder's lock, waited for with a bound."""
        path, descriptor = self.folder / "lock", self._open_lock()
        until, pause_s = time.monotonic() + self.wait_s, 0.001
        try:
            while not (_try_lock(descriptor) and _leads_to(path, descriptor)):
                if time.monotonic() > until:
                    raise StoreError(
                        f"{path}: waited {self.wait_s:.0f} s for {_holder(path)}, which holds it for milliseconds as a "
                        "rule; end that process if it hangs"
                    )
                time.sleep(pause_s)
                pause_s = min(0.02, pause_s * 1.5)
                stale, descriptor = descriptor, self._open_lock()
                _release(stale)
            yield
        finally:
            _release(descriptor)

    def _open_lock(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong in the folder is a StoreError: FileNotFoundError would say that there is no such object."""
        try:
            yield
        except OSError as error:
            raise self._as_told(error) from error

    def _as_told(self, error: OSError) -> StoreError:
        advice = "choose a folder on a local disk" if error.errno in _NO_LOCKS else "check the folder and its disk"
        return StoreError(f"{self.folder}: the local cache fails ({error}); {advice}")


class _NotYet(BevcaskError):
    """Why a file cannot be claimed now."""


def _list(folder: Path) -> dict[str, os.stat_result]:
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def _mark_used(descriptor: int) -> None:
    now = time.time_ns()  # finer than the kernel's own 'now', a tick of 4 ms
    try:
        os.utime(descriptor, ns=(now, now))
    except PermissionError:  # another user's file
        return


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether a name is that of an open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_own(partial: Path, descriptor: int) -> None:
    """Removes a file being made of which the caller holds the flock: until it lets go nobody else takes the name."""
    if _leads_to(partial, descriptor):
        partial.unlink(missing_ok=True)


def _abandon(partial: Path, descriptor: int) -> None:
    """Removes and closes what could not be made; why it could not matters more than what goes wrong here."""
    with contextlib.suppress(OSError):
        _remove_own(partial, descriptor)
    _release(descriptor)


def _try_lock(descriptor: int) -> bool:
    _HELD.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        _HELD.discard(descriptor)
        if isinstance(error, BlockingIOError):
            return False
        raise
    return True


def _unlock(descriptor: int) -> None:
    """Explicitly, not by closing: a child forked in between may have the descriptor, too."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    _HELD.discard(descriptor)


def _release(descriptor: int) -> None:
    _unlock(descriptor)
    os.close(descriptor)


def _close_inherited() -> None:
    for descriptor in _HELD:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _holder(locked: int | Path) -> str:
    """The process that holds a flock, as far as the kernel tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = str(os.stat(locked).st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return f"process {words[4]}"
    return "another process"
