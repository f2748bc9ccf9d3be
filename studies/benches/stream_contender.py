"""What takes part in the stream benchmark, and how each is timed: whole epochs, with the workers already running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
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


def timed(opened: AbstractContextManager[Epoch], setting: Setting, name: str, epochs: int) -> float:
    """Frames per second over `epochs` whole epochs, after one that starts the workers and is not counted."""
    with opened as epoch:
        run_epoch(epoch(0), setting, name)
        seconds = [run_epoch(epoch(number), setting, name) for number in range(1, epochs + 1)]
    return epochs * setting.frames / sum(seconds)


def delivered(opened: AbstractContextManager[Epoch], setting: Setting) -> tuple[dict[int, int], list[int]]:
    """One epoch looked into: a checksum of every frame's content, and the order in which frames came."""
    found: dict[int, int] = {}
    order: list[int] = []
    with opened as epoch:
        for batch in epoch(0):
            found |= contents(batch, setting)
            order += batch["frame"].tolist()
    return found, order
