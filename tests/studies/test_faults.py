"""The fault benchmark, a little of each part; what it is there to notice, it notices."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from rich.console import Console

from cache import files
from cache.errors import BevcaskError, ConfigError, OutOfSpaceError
from cache.shard_writer import HashedFile
from studies.benches import faults
from studies.benches.fault_kills import kill_many
from studies.benches.fault_stores import small_stores
from studies.benches.fault_writes import Fault, fail_every_call, fail_every_write, injected

STORES = small_stores()


@pytest.fixture(autouse=True)
def _quick_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)


@pytest.mark.parametrize(
    ("name", "every", "first"), [("frames", 23, 3), ("teacher-webdataset", 9, 1), ("teacher-zarr", 71, 0)]
)
def test_failing_writes_leave_nothing_half_written_and_a_rerun_converges(
    tmp_path: Path, name: str, every: int, first: int
) -> None:
    tally = fail_every_write(STORES[name], tmp_path, every=every, first=first)
    print(tally.to_dict())
    assert not tally.failures and tally.faults > 10
    assert set(tally.steps) == {"create", "write", "fsync", "replace", "link", "unlink", "mkdir", "open"}
    assert tally.told["OutOfSpaceError"] > 3 and tally.told["StoreError"] > 0
    assert not [told for told in tally.told if told.startswith("bare")]  # every one names file and remedy


def test_failing_calls_of_a_remote_root_leave_nothing_half_written(tmp_path: Path) -> None:
    tally = fail_every_call(STORES["teacher-webdataset"], tmp_path, every=9)
    print(tally.to_dict())
    assert not tally.failures and tally.faults > 8 and set(tally.told) <= {"StoreError", "went on"}


def test_injection_reaches_every_write(tmp_path: Path) -> None:
    """A fault at any call is seen, a short write is made good by Python's buffering, and all is as before after."""
    data, calls = os.urandom(100_000), (os.replace, os.link, os.mkdir)
    with injected(Fault(short=True)) as fault:
        files.write_bytes(tmp_path / "short", data)
    assert (tmp_path / "short").read_bytes() == data and fault.calls.count("write") > 1
    with injected(Fault()) as fault:
        files.write_bytes(tmp_path / "whole", data)
    assert fault.calls == ["mkdir", "create", "write", "fsync", "replace", "open", "fsync"]
    for at, call in enumerate(fault.calls[1:], start=1):  # the folder is there, so that mkdir may fail
        with injected(Fault(at)) as one, pytest.raises(OutOfSpaceError):
            files.write_bytes(tmp_path / f"failed-{at}", data)
        assert one.hit and one.calls[at] == call
    assert not hasattr(files, "open") and calls == (os.replace, os.link, os.mkdir)


def test_a_writer_that_shows_unfinished_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def in_place(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with files.no_space_as_error(path), getattr(files, "open", open)(path, "xb") as file:
            yield file

    monkeypatch.setattr("cache.roots.atomic_write", in_place)
    tally = fail_every_write(STORES["teacher-webdataset"], tmp_path, every=5)
    assert any("not whole" in line for line in tally.failures)


def test_killed_writers_leave_no_trace_after_a_rerun(tmp_path: Path) -> None:
    tally = kill_many(tmp_path, 4, seed=int.from_bytes(os.urandom(4), "little"))
    print(tally.to_dict())
    assert not tally.failures
    assert tally.kills >= 4 and tally.identical == tally.reruns >= 3 and tally.looks > 10 and tally.opened > 0


def test_a_kill_that_leaves_other_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers that put their process into the payload: a rerun keeps the dead one's shards, so bytes differ."""
    real = HashedFile.stored
    monkeypatch.setattr(HashedFile, "stored", lambda self: self.write(str(os.getpid()).encode()) and real(self))
    assert kill_many(tmp_path, 30, seed=1).failures


def test_the_benchmark_counts_and_fails_where_something_was_not_as_it_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=400)
    out = faults.run(tmp_path, console, corruptions=3, seed=1, parts="corruptions")
    assert out["corruptions"]["corruptions"] == out["corruptions"]["found"] == 3
    assert "3 of 3 found by verify" in console.file.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setattr("studies.benches.fault_reading.verify", lambda *args, **options: [])
    with pytest.raises(BevcaskError, match="not found"):
        faults.run(tmp_path, console, corruptions=2, seed=1, parts="corruptions")
    assert (tmp_path / "counts.json").exists()
    with pytest.raises(ConfigError, match="unknown"):
        faults.run(tmp_path, console, parts="weather")
