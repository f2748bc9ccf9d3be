"""What takes part in the stream benchmark, and how each is timed: whole epochs, with the workers already running."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache.errors import BevcaskError
from studies.benches.stream_batch import Batch, Sample, Setting, contents

Epoch = Callable[[int], Iterator[Batch]]  # number of the epoch -> its batches, every frame once, in random order


class Peer(Protocol):
    """Another library's reader."""

    name: str
    package: str  # what must be importable; "" where it comes with our own dependencies

    def write(self, folder: Path, samples: Iterable[Sample], setting: Setting) -> None:
        """Stores the samples under `folder` as the library's documentation advises."""

    def open(self, folder: Path, setting: Setting) -> AbstractContextManager[Epoch]:
        """Starts reading what `write` stored; workers end with the context."""


def run_epoch(epoch: Iterator[Batch], setting: Setting, name: str) -> float:
    """Seconds from asking for the first batch to having the last. BevcaskError where frames are missing or doubled."""
    start = time.perf_counter()
    frames = sum(len(batch["frame"]) for batch in epoch)
    seconds = time.perf_counter() - start
    if frames != setting.frames:
        raise BevcaskError(f"{name}: an epoch of {setting.name} gave {frames} frames, expected {setting.frames}")
    return seconds


@dataclass(frozen=True)
class Turn:
    """What one turn measured: frames per second, and processor time per frame over all processes (None off Linux)."""

    frames_per_s: float
    cpu_us: float | None


def timed(opened: AbstractContextManager[Epoch], setting: Setting, name: str, epochs: int) -> Turn:
    """`epochs` whole epochs, after one that starts the workers and is not counted."""
    with opened as epoch:
        run_epoch(epoch(0), setting, name)
        before = cpu_seconds()
        seconds = sum(run_epoch(epoch(number), setting, name) for number in range(1, epochs + 1))
        after = cpu_seconds()
    frames = epochs * setting.frames
    return Turn(frames / seconds, None if before is None or after is None else 1e6 * (after - before) / frames)


def cpu_seconds() -> float | None:
    """Processor time so far of this process and of the workers that it has now."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime
    return total


def delivered(opened: AbstractContextManager[Epoch], setting: Setting) -> tuple[dict[int, int], list[int]]:
    """One epoch looked into: a checksum of every frame's content, and the order in which frames came."""
    found: dict[int, int] = {}
    order: list[int] = []
    with opened as epoch:
        for batch in epoch(0):
            found |= contents(batch, setting)
            order += batch["frame"].tolist()
    return found, order
