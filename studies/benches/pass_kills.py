"""SIGKILL of the parts of one teacher pass: its workers again and again, then the scheduler, then the client.

The pass is the full-size pillar teacher over small shards, so that it lasts long enough to be hit many times. After
each of the three a rerun must end in the bytes of a pass that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cache.errors import StoreError
from cache.layout import teacher_place
from cache.verify import verify
from models.build import build_detector, save_weights
from pipeline.frames import FrameOptions, cache_frames
from pipeline.simulator import simulate
from studies.benches.fault_cluster import ROOT, kill_worker
from studies.benches.fault_stores import tree

VERSION, NAME = "v1.0-trainval", "t"
PRESET = "centerpoint-pillar-0.2"
LIMIT_S = 1200.0
_PASS = """
import sys
from pathlib import Path
from pipeline.engine import Cluster
from pipeline.teacher import TeacherOptions, cache_teacher
cache, weights, scheduler = sys.argv[1:]
if __name__ == "__main__":
    cache_teacher(Path(cache), "t", teacher="own", checkpoint=Path(weights), options=TeacherOptions(batch=1), workers=2,
                  cluster=Cluster(scheduler) if scheduler else None)
"""


@dataclass
class PassTally:
    """Kills by what was killed; how often a rerun ended in the undisturbed bytes; a line for what was not so."""

    workers: int = 0
    schedulers: int = 0
    clients: int = 0
    identical: int = 0
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def kill_pass(work: Path, worker_kills: int = 20, scenes: int = 10, seed: int = 0) -> PassTally:
    """Runs the three and counts. Scenes of two frames are shards; about ten minutes on two cores."""
    rng, tally, cache = random.Random(seed), PassTally(), work / "cache"
    weights = work / "teacher.safetensors"
    if not (work / "data").is_dir():
        split = {"train": scenes - scenes // 3, "val": scenes // 3}
        simulate(work / "data", version=VERSION, scenes=split, frames=2, sweeps=1, seed=0)
    cache_frames(work / "data", VERSION, cache, options=FrameOptions(image_scale=0.1, points=True, sweeps=1))
    if not weights.is_file():
        torch.manual_seed(0)
        save_weights(build_detector({"preset": PRESET}), weights)
    place = Path(teacher_place(cache, NAME))
    shutil.rmtree(place, ignore_errors=True)
    if _start(cache, weights).wait(LIMIT_S):
        raise StoreError("the pass failed by itself, undisturbed; run cache-teacher alone to see why")
    whole = tree(place)

    def same(what: str) -> None:
        if tree(place) == whole and not verify(place):
            tally.identical += 1
        else:
            tally.failures.append(f"{what}: the store ends in other bytes")

    shutil.rmtree(place)
    tally.workers = _kill_workers(cache, weights, worker_kills, rng)
    if _start(cache, weights).wait(LIMIT_S):
        tally.failures.append("workers killed: the rerun failed")
    same(f"{tally.workers} workers killed")

    shutil.rmtree(place)
    tally.schedulers = _kill_scheduler(cache, weights, place, tally)
    if _start(cache, weights).wait(LIMIT_S):
        tally.failures.append("scheduler killed: the rerun failed")
    same("scheduler killed")

    shutil.rmtree(place)
    client = _start(cache, weights)
    _wait_for_shards(place, 2, client)
    if client.poll() is None:
        os.killpg(client.pid, signal.SIGKILL)
        tally.clients += 1
    client.wait()
    if _start(cache, weights).wait(LIMIT_S):
        tally.failures.append("client killed: the rerun failed")
    same("client killed")
    return tally


def _kill_workers(cache: Path, weights: Path, kills: int, rng: random.Random) -> int:
    """Kills of workers while passes run; a pass that gives up, or ends, is started again until there were enough."""
    killed, start = 0, time.monotonic()
    process = _start(cache, weights)
    while killed < kills and time.monotonic() - start < LIMIT_S:
        if process.poll() is not None:
            if process.returncode == 0:  # done: from the beginning
                shutil.rmtree(teacher_place(cache, NAME))
            process = _start(cache, weights)
        time.sleep(rng.uniform(0.5, 6.0))
        killed += kill_worker(process.pid, rng)
    process.wait(LIMIT_S)
    return killed


def _kill_scheduler(cache: Path, weights: Path, place: Path, tally: PassTally) -> int:
    """A pass on a scheduler of its own, which is killed: the client must end with an error, not wait for ever."""
    port = 20000 + os.getpid() % 20000
    address = f"tcp://127.0.0.1:{port}"
    tool = [sys.executable, "-m"]
    parts = [_quiet([*tool, "distributed.cli.dask_scheduler", "--port", str(port), "--no-dashboard"])]
    parts += [
        _quiet([*tool, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]) for _ in range(2)
    ]
    client = _start(cache, weights, address)
    try:
        _wait_for_shards(place, 2, client)
        parts[0].kill()
        try:
            if client.wait(180) == 0:
                tally.failures.append("scheduler killed: the client ended as if nothing had been")
        except subprocess.TimeoutExpired:
            tally.failures.append("scheduler killed: the client still waited after 180 s")
    finally:
        for process in (client, *parts):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return 1


def _wait_for_shards(place: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many shards are committed, or the process ends."""
    start = time.monotonic()
    while len(list(place.glob("records/*.json"))) < count and process.poll() is None:
        if time.monotonic() - start > LIMIT_S:
            raise StoreError(f"no {count} shards in {LIMIT_S:.0f} s; run the pass alone to see why")
        time.sleep(0.05)


def _start(cache: Path, weights: Path, scheduler: str = "") -> subprocess.Popen[bytes]:
    return _quiet([sys.executable, "-c", _PASS, str(cache), str(weights), scheduler])


def _quiet(command: list[str]) -> subprocess.Popen[bytes]:
    """In a session of its own, so that all of it can be killed and nothing else."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
