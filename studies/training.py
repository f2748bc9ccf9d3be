"""Trainings as the command line and the demo run them: one here, or several side by side, each a process of its own.

Side by side costs less than one after the other: a small model on two cores gains little from the second thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache.errors import BevcaskError
from cache.roots import open_root
from evaluation.curves import LossCurve
from studies.launch import Launch, launch
from trainer.loop import saved_result, train
from trainer.metrics import read_metrics
from trainer.orphans import end_with_parent, started_from_here
from trainer.recipe import load_recipe
from trainer.run_files import RECORD

ROOT = Path(__file__).parent.parent
_POLL_S = 2.0
# glibc gives large blocks back to the kernel and faults them in again at every step: keeping them saves 5 to 20 %
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
_CURVE_SKIPS = (
    "step",
    "epoch",
    "lr",
    "frames_per_s",
    "stall_share",
    "gradient_norm",
    "unlabelled_frames",
    "skipped",
    "digest",
    "loader_s",
)


@dataclass(frozen=True)
class TrainingJob:
    """One training: what it is called, recipe (with overrides laid over it), stores, and the run's folder."""

    name: str
    recipe: str
    cache: str | Path
    run: Path
    overrides: Mapping[str, Any]


def train_run(
    recipe: str,
    cache: str | Path,
    run: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    launched: Launch | None = None,
) -> dict[str, Any]:
    """One training, in this process or in those of a launch; the figures of `trainer.loop.TrainResult` as plain values,
    of a launch those of its record, none on a machine that does not see the run's folder."""
    if launched is None:
        result = train(load_recipe(recipe, overrides), cache, run, resume=resume, threads=threads)
    else:
        load_recipe(recipe, overrides)  # what is wrong with it is told before processes are started
        arguments = ["--recipe", recipe, "--cache", open_root(cache).url, "--run-dir", str(run)]
        arguments += ["--overrides", json.dumps(overrides or {}), *(["--resume"] if resume else [])]
        launch(launched, [*arguments, *(["--threads", str(threads)] if threads else [])], KEEP_MEMORY)
        if not (run / RECORD).is_file():
            return {}
        result = saved_result(run)
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(result).items()}


def train_side_by_side(jobs: Sequence[TrainingJob], threads: int) -> None:
    """Runs all jobs at once, resuming what was begun, a bar each. Raises BevcaskError with a failed job's words."""
    processes = {job.name: _start(job, threads) for job in jobs}
    steps = {job.name: load_recipe(job.recipe, job.overrides).train.steps or 0 for job in jobs}
    console = Console(stderr=True)
    try:
        with Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        ) as progress:
            bars = {job.name: progress.add_task(job.name, total=steps[job.name] or None, detail="") for job in jobs}
            while any(process.poll() is None for process in processes.values()):
                time.sleep(_POLL_S)
                for job in jobs:
                    last = _last_line(job.run / "metrics.jsonl")
                    if last:
                        detail = f"step {last['step']}  loss {last['loss']:.3f}  {last['frames_per_s']:.1f} frames/s"
                        progress.update(bars[job.name], completed=last["step"], detail=detail)
                for job in jobs:
                    _raise_if_failed(job, processes[job.name])
        for job in jobs:
            _raise_if_failed(job, processes[job.name])
            if not console.is_terminal and (last := _last_line(job.run / "metrics.jsonl")):
                console.print(f"{job.name}: {last['step']} steps, loss {last['loss']:.3f}", highlight=False)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
                process.wait()


def _start(job: TrainingJob, threads: int) -> subprocess.Popen[str]:
    job.run.mkdir(parents=True, exist_ok=True)
    arguments = [job.recipe, open_root(job.cache).url, str(job.run.resolve()), str(threads), json.dumps(job.overrides)]
    return subprocess.Popen(
        [sys.executable, "-m", "studies.training", *arguments],
        cwd=ROOT,
        env={**KEEP_MEMORY, **os.environ, **started_from_here()},
        stdout=subprocess.DEVNULL,
        stderr=open(job.run / "training.log", "w"),
        text=True,
    )


def _raise_if_failed(job: TrainingJob, process: subprocess.Popen[str]) -> None:
    if process.poll():
        lines = (job.run / "training.log").read_text().strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        raise BevcaskError(
            f"training {job.name} ended with status {process.returncode}: {said} (whole log: {job.run}/training.log)"
        )


def _last_line(path: Path) -> dict[str, Any] | None:
    """The newest line of a metrics log, if any."""
    lines = read_metrics(path) if path.is_file() else []
    return lines[-1] if lines else None


def loss_curves(name: str, run: Path) -> list[LossCurve]:
    """One curve per loss part of a run's log; curves of the same part share a panel."""
    rows = read_metrics(run / "metrics.jsonl")
    # a name with a slash is a count of labels that were changed
    parts = [key for key in rows[-1] if key not in _CURVE_SKIPS and "/" not in key] if rows else []
    steps = [row["step"] for row in rows]
    return [LossCurve(name, part, steps, [row.get(part, float("nan")) for row in rows]) for part in parts]


if __name__ == "__main__":
    end_with_parent()  # a demo that is killed must not leave a training behind, which a second one would find at work
    _recipe, _cache, _run, _threads, _overrides = sys.argv[1:]
    try:
        train_run(_recipe, _cache, Path(_run), resume=True, threads=int(_threads), overrides=json.loads(_overrides))
    except BevcaskError as _error:
        print(" ".join(str(_error).split()), file=sys.stderr)
        sys.exit(_error.exit_status)
