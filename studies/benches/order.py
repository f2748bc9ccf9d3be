"""What an order costs: time to a run's first step in the middle of an epoch, time per step and per jump, memory.

Of every kind of order, and of the alternative to a stored permutation. Nothing is read: frames are numbers, 400 of them
a shard.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from studies.benches.order_feistel import feistel_entries
from trainer.epoch_order import Frames, OrderConfig
from trainer.run_order import RunOrder

ABOUT = "orders of a million frames: first step in ms, a step and a jump in us, memory in MB"
FRAMES_PER_SHARD, CLASSES, WORLD = 400, 10, 8

Steps = Callable[[int], np.ndarray]  # global step -> entries of one rank


def run(
    work: Path, console: Console, *, frames: int = 1_000_000, batch: int = 64, steps: int = 1000, repeats: int = 3
) -> dict[str, Any]:
    """Medians over `repeats`. first_ms: from frames to the first rank's part of a step in the middle of the first
    epoch; step_us: each of `steps` steps after it; jump_us: each of as many steps anywhere in the epoch; peak_mb and
    kept_mb: what the first step takes, and what stays, beside the frames' own columns.
    """
    there = _frames(frames)
    rows = []
    for name, begin in _contenders(there, batch).items():
        times = [_times(begin, frames // batch, steps) for _ in range(repeats)]
        row: dict[str, Any] = {"order": name, "frames": frames}
        row |= {key: median(one[key] for one in times) for key in times[0]}
        row |= _memory(begin, frames // batch)
        console.print(
            f"{name:<16} first step {row['first_ms']:8.1f} ms, a step {row['step_us']:7.1f} us, a jump "
            f"{row['jump_us']:8.1f} us, memory {row['kept_mb']:6.1f} MB, at most {row['peak_mb']:6.1f} MB",
            soft_wrap=True,
        )
        rows.append(row)
    return {"orders": rows}


def _frames(n: int) -> Frames:
    """n labelled frames that show four of ten classes in the mean, some often and some seldom."""
    chance = np.linspace(0.1, 0.7, CLASSES)
    counts = (np.random.default_rng(0).random((n, CLASSES)) < chance).astype(np.uint16)
    return Frames(n, 0, (np.arange(n) // FRAMES_PER_SHARD).astype(np.uint32), counts, "0" * 64)


def _contenders(frames: Frames, batch: int) -> dict[str, Callable[[], Steps]]:
    """By name what begins a run and returns its steps."""
    configs = {
        "global": OrderConfig(),
        "blocks": OrderConfig(shuffle="blocks"),
        "blocks of 50": OrderConfig(shuffle="blocks", block_frames=50, window=64),
        "cbgs": OrderConfig(balance="cbgs"),
        "cbgs, blocks": OrderConfig(balance="cbgs", shuffle="blocks"),
    }

    def ours(config: OrderConfig) -> Steps:
        order = RunOrder(frames, config, 0, batch)
        return lambda step: order.rank_step(step, 0, WORLD).entries

    def feistel() -> Steps:
        part = np.arange(-(-batch // WORLD))
        return lambda step: feistel_entries(step * batch + part, len(frames), 0, 0)

    out: dict[str, Callable[[], Steps]] = {name: _bound(ours, config) for name, config in configs.items()}
    return {**out, "not stored": feistel}


def _bound(ours: Callable[[OrderConfig], Steps], config: OrderConfig) -> Callable[[], Steps]:
    return lambda: ours(config)


def _times(begin: Callable[[], Steps], per_epoch: int, steps: int) -> dict[str, float]:
    start = time.perf_counter()
    entries = begin()
    middle = per_epoch // 2
    entries(middle)
    first = time.perf_counter() - start
    steps = max(1, min(steps, per_epoch - middle - 1))
    begun = time.perf_counter()
    for step in range(middle + 1, middle + 1 + steps):
        entries(min(step, per_epoch - 1))
    onwards = time.perf_counter() - begun
    places = np.random.default_rng(1).integers(0, per_epoch, steps).tolist()
    begun = time.perf_counter()
    for step in places:
        entries(step)
    jumping = time.perf_counter() - begun
    return {"first_ms": 1e3 * first, "step_us": 1e6 * onwards / steps, "jump_us": 1e6 * jumping / steps}


def _memory(begin: Callable[[], Steps], per_epoch: int) -> dict[str, float]:
    tracemalloc.start()
    try:
        entries = begin()
        entries(per_epoch // 2)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"kept_mb": kept / 2**20, "peak_mb": peak / 2**20}
