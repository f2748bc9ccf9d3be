"""Writes that fail: every system call of writing a store, one after the other, and every call to a remote root.

On a folder the files of `cache.files` are opened over a raw file of ours, below Python's buffering, so that a write
can take part of its bytes (as a kernel does) or fail; mkdir, open, fsync, rename, link and unlink are wrapped in `os`.
At an fsspec root every call of the file system fails, before it has done anything or after (a lost answer). Not
covered: the local temporary file of a remote write, and calls inside a file system's own library.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from cache import files
from cache.errors import BevcaskError
from cache.files import PARTIAL
from cache.remote_root import FsspecRoot
from cache.roots import open_root
from cache.verify import verify
from studies.benches.fault_reading import read_all
from studies.benches.fault_stores import SmallStore, expected_reads, tree

CALLS = ("mkdir", "open", "fsync", "replace", "link", "unlink")
# name -> errno, whether every call from there on fails, whether a write first takes some of its bytes
FAULTS = {
    "ENOSPC": (errno.ENOSPC, True, False),
    "EIO": (errno.EIO, False, False),
    "short, then ENOSPC": (errno.ENOSPC, True, True),
}


@dataclass
class Fault:
    """Counts calls, and fails the one numbered `at` (from 0); None: counts only. short: every write takes part of its
    bytes, and none fails."""

    at: int | None = None
    number: int = errno.ENOSPC
    lasting: bool = False
    partly: bool = False
    short: bool = False
    calls: list[str] = field(default_factory=list)
    hit: bool = False

    def step(self, call: str) -> None:
        """Raises where this call is to fail. A disk that is full can still delete, rename and sync."""
        here = len(self.calls)
        self.calls.append(call)
        if self.at is None or here < self.at:
            return
        if here == self.at or (self.lasting and call == "write"):
            self.hit = True
            raise OSError(self.number, os.strerror(self.number))


class _Raw(io.FileIO):
    """A file whose writes may take part of their bytes or fail."""

    def __init__(self, path: Any, mode: str, fault: Fault) -> None:
        super().__init__(path, mode)
        self._fault = fault

    def write(self, data: Any) -> int:
        some = max(1, len(memoryview(data)) // 2)
        try:
            self._fault.step("write")
        except OSError:
            if self._fault.partly:
                super().write(memoryview(data)[:some])
            raise
        return super().write(memoryview(data)[:some] if self._fault.short else data)


@contextlib.contextmanager
def injected(fault: Fault) -> Iterator[Fault]:
    """Within the block, writing to folders goes through `fault`."""
    real = {name: getattr(os, name) for name in CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name != "open" or args[1] == os.O_RDONLY:  # a folder, to be synced; files are opened by `opened`
                fault.step(name)
            return real[name](*args, **options)

        return call

    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode != "xb":
            return open(path, mode, *args, **options)
        fault.step("create")
        return io.BufferedWriter(_Raw(path, mode, fault))

    files.open = opened  # type: ignore[attr-defined]
    for name in CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield fault
    finally:
        del files.open  # type: ignore[attr-defined]
        for name in CALLS:
            setattr(os, name, real[name])


@dataclass
class WriteTally:
    """steps: calls of an undisturbed run, by kind; faults: runs that were made to fail; a line for each failure."""

    steps: dict[str, int]
    faults: int = 0
    told: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "faults": self.faults, "told": dict(self.told), "failures": self.failures}


def fail_every_write(store: SmallStore, work: Path, *, every: int = 1, first: int = 0) -> WriteTally:
    """Each `every`-th call of writing a store into a folder fails in each way; then nothing half-written is visible,
    and the same command ends in the same bytes. `first` is where to start."""
    reference = work / "undisturbed"
    shutil.rmtree(reference, ignore_errors=True)
    with injected(Fault()) as counted:
        store.write(reference)
    whole, expected = tree(reference), expected_reads(store, reference)
    tally = WriteTally(dict(sorted(Counter(counted.calls).items())))
    with injected(Fault(short=True)):
        store.write(_fresh(work))
    _note(tally, "every write short", "" if tree(work / "store") == whole else "other bytes")
    for name, (number, lasting, partly) in FAULTS.items():
        for at in range(first, len(counted.calls), every):
            if partly and counted.calls[at] != "write":
                continue
            folder, fault = _fresh(work), Fault(at, number, lasting, partly)
            told = ""
            try:
                with injected(fault):
                    store.write(folder)
            except BevcaskError as error:
                told = type(error).__name__
            except OSError as error:
                told = f"bare {type(error).__name__} {errno.errorcode.get(error.errno or 0)}"
            tally.told[told or "went on"] += 1
            problem = "" if fault.hit else "the fault was never met"
            problem = problem or half_written(store, folder, whole, expected)
            store.write(folder)
            problem = problem or ("" if tree(folder) == whole else "the rerun ends in other bytes")
            _note(tally, f"{store.name}: {name} at call {at} ({counted.calls[at]})", problem)
    return tally


def half_written(
    store: SmallStore, folder: Path, whole: Mapping[str, bytes], expected: Mapping[str, Mapping[str, Any]]
) -> str:
    """What a reader could see that is not as it will be, "" for nothing: partial files aside, every file is whole; the
    store is refused as long as there is no manifest, and right from then on."""
    for name, data in tree(folder).items() if folder.exists() else ():
        if not name.endswith(PARTIAL) and data != whole.get(name):
            return f"{name} is visible and not whole"
    outcome, detail = read_all(store, folder, expected)
    if outcome != ("right" if (folder / "manifest.json").exists() else "refused"):
        return f"reading is {outcome}: {detail}"
    return ""


def fail_every_call(store: SmallStore, work: Path, *, every: int = 1) -> WriteTally:
    """The same at memory://, for every call of the file system, before and after it took place."""
    place = "memory://faults/store"
    reference = work / "remote-undisturbed"
    shutil.rmtree(reference, ignore_errors=True)
    store.write(reference)
    whole, expected = tree(reference), expected_reads(store, reference)
    real = FsspecRoot._call
    calls: list[str] = []
    at, after = -1, False

    def call(self: FsspecRoot, method: str, *args: Any, **options: Any) -> Any:
        calls.append(method)
        here = len(calls) - 1 == at
        if here and not after:
            raise OSError(errno.EIO, "no answer")
        result = real(self, method, *args, **options)
        if here:
            raise OSError(errno.EIO, "the answer was lost")
        return result

    def run(fail_at: int, fail_after: bool) -> str:
        nonlocal at, after
        at, after = fail_at, fail_after
        calls.clear()
        memory = fsspec.filesystem("memory")
        if memory.exists("/faults"):
            memory.rm("/faults", recursive=True)
        FsspecRoot._call = call  # type: ignore[method-assign]
        try:
            store.write(place)
        except BevcaskError as error:
            return type(error).__name__
        except OSError as error:
            return f"bare {type(error).__name__}"
        finally:
            FsspecRoot._call = real  # type: ignore[method-assign]
        return "went on"

    run(-1, False)
    steps = list(calls)
    tally = WriteTally(dict(sorted(Counter(steps).items())))
    for fail_after in (False, True):
        for number in range(0, len(steps), every):
            tally.told[run(number, fail_after)] += 1
            problem = _half_sent(store, place, whole, expected)
            store.write(place)
            root = open_root(place)
            same = {name: root.read(name) for name in root.sizes()} == whole
            when = "after" if fail_after else "before"
            _note(
                tally,
                f"{store.name} at memory://: {when} call {number} ({steps[number]})",
                problem or ("" if same and not verify(place) else "the rerun ends in other bytes"),
            )
    return tally


def _half_sent(
    store: SmallStore, place: str, whole: Mapping[str, bytes], expected: Mapping[str, Mapping[str, Any]]
) -> str:
    root = open_root(place)
    sizes = root.sizes()
    for name in sizes:
        if root.read(name) != whole.get(name):
            return f"{name} is visible and not whole"
    outcome, detail = read_all(store, place, expected)
    return "" if outcome == ("right" if "manifest.json" in sizes else "refused") else f"reading is {outcome}: {detail}"


def _note(tally: WriteTally, label: str, problem: str) -> None:
    tally.faults += 1
    if problem:
        tally.failures.append(f"{label}: {problem}")


def _fresh(work: Path) -> Path:
    shutil.rmtree(work / "store", ignore_errors=True)
    return work / "store"
