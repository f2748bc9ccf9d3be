"""SIGKILL of real caching runs on a LocalCluster: the whole run (client, scheduler, workers), or one worker of it.

A small world is simulated once; `cache-frames` (tar shards with clouds) and `cache-teacher` (Zarr) run over it with two
worker processes each, in a process group of their own. After the whole run was killed the same command is run again;
after a worker was killed, Dask must end the run by itself. Either way every byte is that of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # a dependency of distributed

from cache.errors import StoreError
from cache.files import PARTIAL
from cache.layout import frames_place, teacher_place
from cache.store import FrameStore, TeacherStore
from cache.verify import verify
from studies.benches.fault_stores import tree

ROOT = Path(__file__).parents[2]
NAME, VERSION = "killed", "v1.0-trainval"
LIMIT_S = 600.0
COMMANDS = {
    "cache-frames": "from pipeline.frames import FrameOptions, cache_frames as run; "
    "run(Path(data), version, Path(cache), options=FrameOptions(image_scale=0.1, points=True, sweeps=1), workers=2)",
    "cache-teacher": "from pipeline.teacher import TeacherOptions, cache_teacher as run; "
    "run(Path(cache), name, options=TeacherOptions(format='zarr', capacity={'K': 4000, 'N': 600}), workers=2)",
}


@dataclass
class ClusterTally:
    """Runs that were killed as a whole, and workers that were; a line for each failure."""

    runs_killed: int = 0
    workers_killed: int = 0
    identical: int = 0
    looks: int = 0
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def kill_runs(
    work: Path, runs: int, workers: int, *, seed: int, advance: Callable[[], None] = lambda: None
) -> ClusterTally:
    """Kills `runs` runs and the workers of `workers` more, the two commands in turn."""
    from pipeline.simulator import simulate

    rng, tally = random.Random(seed), ClusterTally()
    data = work / "world"
    if not (data / VERSION).is_dir():
        simulate(data, version=VERSION, scenes={"train": 4, "val": 2}, frames=2, sweeps=1, seed=0, workers=1)
    reference = work / "undisturbed"
    shutil.rmtree(reference, ignore_errors=True)
    lasts = {}
    for command in COMMANDS:
        start = time.monotonic()
        process = _start(command, data, reference)
        if process.wait(LIMIT_S):
            raise StoreError(f"{command} failed by itself, undisturbed; run it alone to see why")
        lasts[command] = time.monotonic() - start
    turn = 0
    while tally.runs_killed + tally.workers_killed < runs + workers and not tally.failures:
        command = list(COMMANDS)[turn % len(COMMANDS)]
        turn += 1
        cache = work / "killed"
        shutil.rmtree(cache, ignore_errors=True)
        if command == "cache-teacher":
            shutil.copytree(frames_place(reference), frames_place(cache))
        place, whole_place = (
            (frames_place(cache), frames_place(reference))
            if command == "cache-frames"
            else (teacher_place(cache, NAME), teacher_place(reference, NAME))
        )
        whole = tree(Path(whole_place))
        only_worker = tally.runs_killed >= runs
        # imports take most of a run: kills fall where shards are written, from the plan on
        moment = rng.uniform(0.0, 0.5 * lasts[command])
        hit = _kill(_start(command, data, cache), Path(place), whole, moment, only_worker, rng, tally)
        if hit:
            tally.runs_killed += not only_worker
            tally.workers_killed += only_worker
            advance()
        if not only_worker and _start(command, data, cache).wait(LIMIT_S):
            tally.failures.append(f"{command} (seed {seed}, turn {turn}): the rerun failed")
        same = tree(Path(place)) == whole and not verify(place)
        tally.identical += same and hit
        if not same:
            tally.failures.append(f"{command} (seed {seed}, turn {turn}): ends in other bytes")
    return tally


def _start(command: str, data: Path, cache: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, so that all of it can be killed and nothing else."""
    code = (
        f"import sys; from pathlib import Path; data, cache, version, name = sys.argv[1:]\n"
        f"if __name__ == '__main__':\n    {COMMANDS[command]}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(cache), VERSION, NAME],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill(
    process: subprocess.Popen[bytes],
    place: Path,
    whole: dict[str, bytes],
    moment: float,
    only_worker: bool,
    rng: random.Random,
    tally: ClusterTally,
) -> bool:
    """Kills `moment` seconds after the plan was written, and looks at what is visible until the end. Whether it hit."""
    start, seen, hit = time.monotonic(), None, False
    while process.poll() is None:
        now = time.monotonic()
        if seen is None and (place / "plan.json").exists():
            seen = now
        if seen is not None and now - seen > moment and not hit:
            if not only_worker:
                os.killpg(process.pid, signal.SIGKILL)  # the session that _start made: client and workers
                process.wait()
                hit = True
                break
            hit = kill_worker(process.pid, rng)
        problem = _look(place, whole)
        tally.looks += 1
        if problem:
            tally.failures.append(problem)
        if problem or now - start > LIMIT_S:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.02)
    if only_worker and process.returncode:
        tally.failures.append(f"{place}: the run ended with status {process.returncode} after a worker was killed")
    problem = _look(place, whole)
    if problem:
        tally.failures.append(problem)
    return hit


def kill_worker(client: int, rng: random.Random) -> bool:
    """Kills one of a run's workers: children of the client that work, and are not multiprocessing's own helpers.
    Whether there was one."""
    workers = []
    for child in psutil.Process(client).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                workers.append(child)
        except psutil.Error:
            continue
    if not workers:
        return False
    try:
        rng.choice(workers).kill()
    except psutil.Error:
        return False
    return True


def _look(place: Path, whole: dict[str, bytes]) -> str:
    """What is visible and must not be, "" for nothing: a file that is neither partial nor whole, a store that opens
    and is not the true one."""
    for where, _, names in os.walk(place):
        for name in names:
            inside = Path(where, name).relative_to(place).as_posix()
            try:
                if not name.endswith(PARTIAL) and Path(where, name).read_bytes() != whole.get(inside):
                    return f"{place}/{inside} is visible and not whole"
            except FileNotFoundError:
                continue
    try:
        store = (TeacherStore if place.name == NAME else FrameStore)(place)
    except StoreError:
        return ""
    for row in range(len(store)):
        for spec in store.manifest.fields:
            if store.has(row, spec.name):
                store.read(row, spec.name)
    store.close()
    return ""
