"""Part 6, what the loader promises: memory stays flat, a step from the store is faster than one with a teacher in the
loop, readers scale, and faults of shards end a run in time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console

from studies.benches.registry import run_bench
from studies.claims.claim import ROOT, Claim, expect

SPEEDUP, STALL = 1.5, 0.02  # goals at full size on a GPU
FAULTS = ("tests/trainer/test_loader_faults.py", "tests/trainer/test_loader.py", "tests/trainer/test_prefetch.py")


def memory_is_flat(work: Path) -> str:
    """Resident memory of the trainer and of its loader alone over three epochs, by two figures each."""
    f = run_bench("memory", work / "bench", Console(stderr=True), {})
    found = "; ".join(
        f"{kind} {f[kind]['median_mb']:.0f} MB, third epoch over the second {f[kind]['grown']:+.2%}, slope "
        f"{f[kind]['slope']:+.2%} an epoch"
        for kind in ("loader", "trainer")
    )
    return expect(f["loader"]["flat"] and f["trainer"]["flat"], found, f"both at most {f['bound']:.0%} of the median")


def a_cached_step_is_faster(work: Path) -> str:
    """A step from the store against one with the teacher in the loop: the full pair beside a GPU, else the tiny one,
    which must be faster at all."""
    full = torch.cuda.is_available()
    f = run_bench("step", work / "bench", Console(stderr=True), {"pair": "full" if full else "tiny"})
    found = (
        f"{f['teacher']} teaches {f['student']} on {f['device']}: online {f['online_step_s']:.3f} s, cached "
        f"{f['cached_step_s']:.3f} s, {f['speedup']:.2f} times; peak {f['online_peak_bytes'] / 1e6:.0f} and "
        f"{f['cached_peak_bytes'] / 1e6:.0f} MB; stall {f['stall_fraction']:.1%}"
    )
    held = f["speedup"] >= SPEEDUP and f["stall_fraction"] < STALL if full else f["speedup"] > 1
    return expect(held, found, f"{SPEEDUP} times and {STALL:.0%} at full size on a GPU, more than 1 else")


def readers_scale(work: Path) -> str:
    """Frames per second of the loader alone for 1, 2 and 4 readers: threads are no slower than processes, and two are
    faster than one."""
    f = run_bench("loader", work / "bench", Console(stderr=True), {})
    threads, processes = f["threads"], f["processes"]
    found = f"threads {threads}, processes {processes} frames/s by readers; {f['machine']['cores']} cores"
    best = max(threads.values()) >= max(processes.values())
    return expect(best and threads["2"] > threads["1"], found, "threads ahead, two ahead of one")


def faults_end_a_run_in_time(work: Path) -> str:
    """The tests of deleted, damaged and hanging shards, on one rank and on two, and of what Ctrl-C leaves."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", *FAULTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    return expect(done.returncode == 0, last, "all of them pass")


CLAIMS = (
    Claim(6, "loader-faults", 1200, faults_end_a_run_in_time),
    Claim(6, "loader-readers", 3600, readers_scale),
    Claim(6, "loader-step", 3600, a_cached_step_is_faster),
    Claim(6, "loader-memory", 3600, memory_is_flat),
)
