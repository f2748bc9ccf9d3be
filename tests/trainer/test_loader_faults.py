"""What goes wrong with shards while a run trains on them: an error that names file and frame, in time, and nothing left
behind. Every test has a time limit: none may hang."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.errors import CorruptError, StoreError
from cache.roots import LocalRoot
from studies import ranks
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from trainer import loader, watch
from trainer.checkpoints import list_checkpoints
from trainer.loader import StuckError
from trainer.loader_options import STUCK_AFTER
from trainer.loop import train
from trainer.observer import StepReport
from trainer.preemption import PreemptedError
from trainer.recipe import Recipe, make_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    write_frames(tmp_path / "cache", size=(64, 36), points=False)
    write_teacher(tmp_path / "cache")
    return tmp_path / "cache"


def recipe() -> Recipe:
    values: dict[str, Any] = {
        "model": TINY_STUDENT,
        "data": {"teacher": "demo"},
        "train": {"steps": 200, "batch": 2, "lr": 1e-3, "checkpoint_every": 1000},
        "terms": [{"name": "bevdistill_dense"}],
    }
    return make_recipe(values, "test", "faults")


def at_step(number: int, act: Callable[[], None]) -> Callable[[StepReport], None]:
    def listener(report: StepReport) -> None:
        if report.done == number:
            act()
        time.sleep(0.02)

    return listener


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("loader", "prefetch"))]


def shard_of(stores: Path, store: str) -> Path:
    return next((stores / store / "shards").glob("00001*.tar"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("store", ["frames", "teachers/demo"])
def test_a_shard_that_is_deleted_ends_the_run_naming_it(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setattr(watch, "PRESENT_S", 0.05)
    shard = shard_of(stores, store)
    with pytest.raises(CorruptError, match=rf"{shard}: [0-9a-f]{{32}}\.\S+: that file was deleted; restore it"):
        train(recipe(), stores, tmp_path / "run", progress=at_step(3, shard.unlink))
    assert loader_threads() == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("store", ["frames", "teachers/demo"])
def test_a_shard_whose_bytes_change_ends_the_run_naming_it(stores: Path, tmp_path: Path, store: str) -> None:
    shard = shard_of(stores, store)

    def corrupt() -> None:
        with open(shard, "r+b") as file:
            file.seek(0)
            file.write(b"\xa5" * shard.stat().st_size)

    with pytest.raises(CorruptError, match=rf"{shard}: [0-9a-f]{{32}}\.\S+: checksum differs"):
        train(recipe(), stores, tmp_path / "run", progress=at_step(3, corrupt))
    assert loader_threads() == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("store", ["frames", "teachers/demo"])
def test_a_shard_whose_reads_hang_ends_the_run_within_the_time_given(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv(STUCK_AFTER, "0.5")
    shard, hung, began = shard_of(stores, store), threading.Event(), list[float]()
    read_range = LocalRoot.read_range

    def slow(self: LocalRoot, name: str, start: int, length: int) -> bytes:
        if began and self.folder / name == shard:
            hung.wait(30)
        return read_range(self, name, start, length)

    monkeypatch.setattr(LocalRoot, "read_range", slow)
    with pytest.raises(StuckError, match=rf"stuck: \d s at stage read, {shard}: [0-9a-f]{{32}}\.\S+; check that disk"):
        train(recipe(), stores, tmp_path / "run", progress=at_step(3, lambda: began.append(time.monotonic())))
    assert time.monotonic() - began[0] < 10
    hung.set()
    for thread in threading.enumerate():
        if thread.name.startswith("loader"):
            thread.join(10)
    assert loader_threads() == []


@pytest.mark.timeout(60)
def test_reads_that_are_slow_but_go_on_do_not_end_the_run(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STUCK_AFTER, "1")
    read_range, slept = LocalRoot.read_range, list[float]()

    def slow(self: LocalRoot, name: str, start: int, length: int) -> bytes:
        if name.startswith("shards"):
            time.sleep(0.1)
            slept.append(0.1)
        return read_range(self, name, start, length)

    monkeypatch.setattr(LocalRoot, "read_range", slow)
    short = recipe().model_copy(update={"train": recipe().train.model_copy(update={"steps": 3})})
    assert train(short, stores, tmp_path / "run", progress=lambda report: None).steps == 3
    assert sum(slept) > 1


@pytest.mark.timeout(60)
def test_an_error_that_names_no_frame_comes_with_it(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_range = LocalRoot.read_range

    def refused(self: LocalRoot, name: str, start: int, length: int) -> bytes:
        if self.folder.name == "demo" and threading.current_thread().name.startswith("loader"):
            raise StoreError("the network said no")
        return read_range(self, name, start, length)

    monkeypatch.setattr(LocalRoot, "read_range", refused)
    shards = stores / "teachers" / "demo" / "shards"
    with pytest.raises(
        StoreError, match=rf"said no \(the loader was at stage read, {shards}/0000[01]\.tar: [0-9a-f]{{32}}"
    ):
        train(recipe(), stores, tmp_path / "run", progress=lambda report: None)


@pytest.mark.timeout(150)
def test_a_rank_whose_reads_hang_ends_every_rank_naming_the_shard(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_of(stores, "frames")
    monkeypatch.setitem(ranks.ENVIRONMENT, "HANGING", str(shard))
    monkeypatch.setitem(ranks.ENVIRONMENT, STUCK_AFTER, "2")
    (tmp_path / "run.json").write_text(json.dumps(recipe().to_dict()))
    options = ["--recipe", tmp_path / "run.json", "--cache", stores, "--run-dir", tmp_path / "run", "--threads", 1]
    command = ranks.torchrun(2, "tests.trainer.hanging_rank", *map(str, options))
    done = ranks.run_to_end(command, 120)
    assert done.returncode != 0
    named = rf"the loader is stuck: \d+ s at stage read, {shard}: [0-9a-f]{{32}}\.\S+; check that disk"
    assert re.search(rf"(?m)^{named}", done.stderr), done.stderr  # rank 1's own words
    assert re.search(rf"(?m)^rank 1 of 2: {named}", done.stderr), done.stderr  # and rank 0's


@pytest.mark.timeout(120)
def test_ctrl_c_leaves_no_process_no_thread_and_no_shared_memory(stores: Path, tmp_path: Path) -> None:
    long = recipe().to_dict()
    long["train"] |= {"steps": 100_000, "log_every": 1}
    (tmp_path / "long.json").write_text(json.dumps(long))
    run = tmp_path / "run"
    before = set(ranks.ownerless_shared_memory())
    options = ["--recipe", tmp_path / "long.json", "--cache", stores, "--run", run, "--loader-threads", 3]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "invoke", "train", *map(str, options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_bytes().splitlines()) < 3:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    finally:
        process.poll() is None and process.kill()
    assert process.returncode != 0, said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left in its group
    assert set(ranks.ownerless_shared_memory()) <= before


@pytest.mark.timeout(60)
def test_a_read_that_hangs_does_not_keep_a_run_from_stopping(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM long before the watchdog's time: the run saves what it has done, and says so."""
    hung, waited = threading.Event(), threading.Event()
    read_range, begun = LocalRoot.read_range, threading.Event()

    def slow(self: LocalRoot, name: str, start: int, length: int) -> bytes:
        if begun.is_set():
            waited.set()
            hung.wait(300)
        return read_range(self, name, start, length)

    def stop() -> None:
        waited.wait(30)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LocalRoot, "read_range", slow)
    monkeypatch.setattr(loader, "CLOSE_S", 0.5)
    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(PreemptedError, match=r"asked to stop: saved after step \d+ of 200"):
        train(recipe(), stores, tmp_path / "run", progress=at_step(3, begun.set))
    hung.set()
    stopping.join()
    assert len(list_checkpoints(tmp_path / "run")) == 1
