"""A training step from the store against the same step with the teacher in the loop: seconds, waiting, memory.

A BEVDistill pair (`studies.benches.step_pair` says how the online side is built). Turns alternate in one process, so
that what else the machine does meets both; medians over all steps of all turns. The online side does the least that the
dense term needs, so the speed-up is a lower bound for recipes with more terms. Peaks are of processes of their own: on
a CPU the most resident memory, on a GPU the most memory that tensors took on it. `--option pair=full` is nuScenes'
size, for a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from cache.errors import BevcaskError, ConfigError
from studies.benches.resident import peak_resident
from studies.benches.step_pair import PAIRS, Kind, Side, Turn, device_of, make_pair, open_pair

ABOUT = "a step from the teacher's store against one with the teacher in the loop: seconds, stall, peak memory"
ROOT = Path(__file__).parents[2]
KINDS: tuple[Kind, ...] = ("cached", "online")


def run(
    work: Path,
    console: Console,
    *,
    pair: str = "tiny",
    student: str = "",
    teacher: str = "",
    steps: int = 10,
    rounds: int = 3,
    batch: int = 0,
    threads: int = 0,
    torch_threads: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """online_step_s, cached_step_s, speedup, stall_fraction (cached) and online_stall_fraction, online_peak_bytes,
    cached_peak_bytes.

    pair: tiny or full; student, teacher: other presets in it; steps: of a turn, beside one that is not counted; batch:
    frames a step; threads: of the loader (default: 1 on a CPU, else 8); torch_threads: 0 is torch's choice.
    """
    if pair not in PAIRS or rounds < 1 or steps < 1:
        raise ConfigError(
            f"pair {pair!r}, rounds {rounds}, steps {steps}: expected one of {', '.join(PAIRS)}, 1 or more"
        )
    changes: dict[str, Any] = {"student": student, "teacher": teacher, "batch": batch}
    chosen = dataclasses.replace(PAIRS[pair], **{name: value for name, value in changes.items() if value})
    target = device_of(device)
    readers = threads or (1 if target.type == "cpu" else min(8, os.cpu_count() or 1))
    if torch_threads:
        torch.set_num_threads(torch_threads)
    folder = work / f"{pair}-{chosen.teacher}"
    console.print(f"[dim]{chosen.teacher} teaches {chosen.student} on {target.type}: preparing the stores ...[/dim]")
    made = make_pair(folder, chosen, target.type)
    sides = {kind: Side(made, kind, target) for kind in KINDS}
    turns: dict[Kind, list[Turn]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
            sides[kind].run(1, readers)
            turns[kind].append(sides[kind].run(steps, readers))
            median = statistics.median(turns[kind][-1].steps_s)
            console.print(f"[dim]round {number + 1}, {kind}: {median:.4f} s a step[/dim]")
    took = {kind: statistics.median(s for turn in turns[kind] for s in turn.steps_s) for kind in KINDS}
    waited = {
        kind: sum(t.waited_s for t in turns[kind]) / sum(s for t in turns[kind] for s in t.steps_s) for kind in KINDS
    }
    asked = json.dumps({"pair": pair, "changes": changes, "device": target.type, "readers": readers})
    peaks = {kind: _peak(folder, kind, asked, torch.get_num_threads()) for kind in KINDS}
    out: dict[str, Any] = {
        "online_step_s": took["online"],
        "cached_step_s": took["cached"],
        "speedup": took["online"] / took["cached"],
        "online_peak_bytes": peaks["online"],
        "cached_peak_bytes": peaks["cached"],
        "stall_fraction": waited["cached"],
        "online_stall_fraction": waited["online"],
        "pair": pair,
        "teacher": chosen.teacher,
        "student": chosen.student,
        "batch": chosen.batch,
        "device": torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu",
        "readers": readers,
        "torch_threads": torch.get_num_threads(),
        "rounds_speedup": [
            statistics.median(online.steps_s) / statistics.median(cached.steps_s)
            for online, cached in zip(turns["online"], turns["cached"], strict=True)
        ],
    }
    console.print(_table(out))
    return out


def _table(out: dict[str, Any]) -> Table:
    title = f"{out['teacher']} teaches {out['student']}, {out['batch']} frames a step"
    table = Table("", "from the store", "teacher in the loop", "ratio", title=title)
    cached, online = out["cached_step_s"], out["online_step_s"]
    table.add_row("seconds a step", f"{cached:.4f}", f"{online:.4f}", f"{out['speedup']:.2f}")
    cached, online = out["cached_peak_bytes"], out["online_peak_bytes"]
    table.add_row("peak memory, MB", f"{cached / 1e6:.0f}", f"{online / 1e6:.0f}", f"{online / cached:.2f}")
    table.add_row("waiting for data", f"{out['stall_fraction']:.1%}", f"{out['online_stall_fraction']:.1%}", "")
    return table


def _peak(folder: Path, kind: Kind, asked: str, threads: int) -> int:
    """Peak bytes of some steps of one side, in a process that does nothing else."""
    command = [sys.executable, "-m", "studies.benches.step", str(folder), kind, asked, str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BevcaskError(f"bench step: the memory of the {kind} side: {done.stderr.strip()[-500:]}")
    return int(done.stdout.strip().splitlines()[-1])


def _measure_peak(folder: Path, kind: Kind, asked: str, threads: int) -> int:
    torch.set_num_threads(threads)
    values = json.loads(asked)
    pair = dataclasses.replace(PAIRS[values["pair"]], **{k: v for k, v in values["changes"].items() if v})
    device = torch.device(values["device"])
    side = Side(open_pair(folder, pair), kind, device)
    side.run(5, values["readers"])
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident()


if __name__ == "__main__":
    _folder, _kind, _asked, _threads = sys.argv[1:]
    print(_measure_peak(Path(_folder), cast(Kind, _kind), _asked, int(_threads)))
