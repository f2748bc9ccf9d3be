"""SIGKILL at random moments of writing a store, while a reader keeps opening it; then the same command again.

The writer is a fork that pauses and says so before each step (a write, sync, rename or link), so that kills fall evenly
over a run however busy the machine is: a moment after a random step. A kill may hit the rerun too, up to `AGAIN` times;
the last run is left alone and must end in the bytes of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.files import PARTIAL
from cache.shard_writer import HashedFile
from cache.verify import verify
from studies.benches.fault_reading import read_all
from studies.benches.fault_stores import SmallStore, expected_reads, small_stores, tree
from studies.benches.fault_writes import half_written

PAUSE_S = 0.002
AGAIN = 2
LIMIT_S = 120.0


@dataclass
class KillTally:
    """kills: processes that a SIGKILL ended; looks: times that a reader looked meanwhile, of which `opened` saw a whole
    store; moments: records that were there at a kill; a line for each failure."""

    kills: int = 0
    reruns: int = 0
    identical: int = 0
    looks: int = 0
    opened: int = 0
    moments: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "moments": {str(key): count for key, count in sorted(self.moments.items())}}


def kill_many(work: Path, count: int, *, seed: int, advance: Callable[[], None] = lambda: None) -> KillTally:
    """Kills until `count` have hit a writer, the stores in turn."""
    rng, tally = random.Random(seed), KillTally()
    references = []
    for name, store in small_stores().items():
        place = work / f"undisturbed-{name}"
        shutil.rmtree(place, ignore_errors=True)
        store.write(place)
        references.append((store, tree(place), expected_reads(store, place)))
    steps = {}  # of a run that nobody kills
    for store, whole, expected in references:
        shutil.rmtree(work / "killed", ignore_errors=True)
        steps[store.name] = _write_and_look(store, work / "killed", None, tally, whole, expected)[1]
    turn = 0
    while tally.kills < count and not tally.failures:
        store, whole, expected = references[turn % len(references)]
        turn += 1
        folder = work / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        for _ in range(rng.randint(1, AGAIN)):
            moment = rng.randrange(steps[store.name]), rng.uniform(0, 2 * PAUSE_S)
            if _write_and_look(store, folder, moment, tally, whole, expected)[0]:
                tally.kills += 1
                tally.moments[len(list(folder.glob("records/*.json")))] += 1
                advance()
            problem = half_written(store, folder, whole, expected)
            if problem:
                tally.failures.append(f"{store.name} (seed {seed}, turn {turn}): {problem}")
        store.write(folder)
        tally.reruns += 1
        same = tree(folder) == whole and not verify(folder)
        tally.identical += same
        if not same:
            tally.failures.append(f"{store.name} (seed {seed}, turn {turn}): the rerun ends in other bytes")
    shutil.rmtree(work / "killed", ignore_errors=True)
    return tally


def _write_and_look(
    store: SmallStore,
    folder: Path,
    moment: tuple[int, float] | None,
    tally: KillTally,
    whole: Mapping[str, bytes],
    expected: Mapping[str, Mapping[str, Any]],
) -> tuple[bool, int]:
    """One writer, a reader beside it, and at `moment` (steps, then seconds) a kill. Whether that hit, and the steps."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _write_slowly(store, folder, write_end)
    os.close(write_end)
    os.set_blocking(read_end, False)
    start, steps = time.monotonic(), 0
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        with contextlib.suppress(BlockingIOError):
            steps += len(os.read(read_end, 1 << 12))
        if moment is not None and steps > moment[0]:
            time.sleep(moment[1])
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        problem = look(store, folder, whole, expected, tally)
        if problem:
            tally.failures.append(f"{store.name}: a reader beside the writer: {problem}")
        if problem or time.monotonic() - start > LIMIT_S:
            moment = (-1, 0.0)
    with contextlib.suppress(BlockingIOError):
        steps += len(os.read(read_end, 1 << 12))
    os.close(read_end)
    if not os.WIFSIGNALED(ended[1]) and os.WEXITSTATUS(ended[1]):
        tally.failures.append(f"{store.name}: the writer failed by itself")
    return os.WIFSIGNALED(ended[1]), steps


def look(
    store: SmallStore,
    folder: Path,
    whole: Mapping[str, bytes],
    expected: Mapping[str, Mapping[str, Any]],
    tally: KillTally,
) -> str:
    """What a reader sees at this moment that it must not, "" for nothing."""
    tally.looks += 1
    finished = (folder / "manifest.json").exists()  # first: a store that was finished before must open
    for where, _, names in os.walk(folder):
        for name in names:
            if name.endswith(PARTIAL):
                continue
            try:
                data = Path(where, name).read_bytes()
            except FileNotFoundError:
                continue
            if data != whole.get(Path(where, name).relative_to(folder).as_posix()):
                return f"{name} is visible and not whole"
    outcome, detail = read_all(store, folder, expected)
    tally.opened += outcome == "right"
    if outcome == "wrong" or (finished and outcome != "right"):
        return f"reading is {outcome}: {detail}"
    return ""


def _write_slowly(store: SmallStore, folder: Path, told: int) -> None:
    """In the fork: the whole run, a byte to `told` and a pause before each of its steps."""
    try:

        def slowed(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **options: Any) -> Any:
                os.write(told, b".")
                time.sleep(PAUSE_S)
                return call(*args, **options)

            return run

        write = HashedFile.write

        def flushed_write(self: HashedFile, data: bytes) -> int:
            written = write(self, data)
            self.flush()  # what is written is on the disk, where a reader could see it
            return written

        HashedFile.write = slowed(flushed_write)  # type: ignore[method-assign]
        os.replace, os.link = slowed(os.replace), slowed(os.link)
        os.fsync = slowed(lambda descriptor: os.fstat(descriptor) and None)  # a killed process loses nothing by it
        store.write(folder)
        os._exit(0)
    except BaseException:
        os._exit(1)
