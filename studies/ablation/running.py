"""Jobs run two at a time, one thread each, as processes of their own; or on a Dask cluster.

Two small trainings beside each other do more in an hour on two cores than one on both. With a budget no job is begun
that would, by those that ended, not end within it. What a killed command leaves half done goes on when it is called
again: every job resumes from its checkpoint and writes its result whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache.errors import BevcaskError
from cache.files import write_json
from pipeline.engine import Cluster, run_shards
from studies.ablation.job import Job, is_done, run_job
from studies.ablation.plan import Cell, Sweep, jobs_of, make_ready
from studies.lock import alone_in
from studies.training import KEEP_MEMORY, ROOT
from trainer.metrics import read_metrics
from trainer.orphans import started_from_here
from trainer.recipe import load_recipe

POLL_S = 1.0


@dataclass
class Outcome:
    """done: jobs that ended in this call; there: those whose result lay there; left: that the budget did not allow."""

    done: list[Job] = field(default_factory=list)
    there: int = 0
    left: int = 0
    minutes: float = 0.0


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float
    bar: TaskID
    steps: int


def run_sweep(sweep: Sweep, *, budget_min: float | None, at_once: int, console: Console) -> Outcome:
    """Every job whose result is missing, in order. Raises BevcaskError with a failed job's last words; those beside it
    are stopped, and go on in the next call. ConfigError where another command works in the folder."""
    with alone_in(sweep.settings.folder):
        return _run_all(sweep, budget_min, at_once, console)


def _run_all(sweep: Sweep, budget_min: float | None, at_once: int, console: Console) -> Outcome:
    outcome, started = Outcome(), time.monotonic()
    todo = []
    for cell, job in jobs_of(sweep):
        if is_done(job):
            outcome.there += 1
        else:
            todo.append((cell, job))
    out = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=out, disable=not out.is_terminal) as progress:
        whole = progress.add_task("[bold]jobs", total=len(todo), detail=f"0 of {len(todo)}")
        running: list[_Running] = []
        lengths: list[float] = []
        ready = _Ready(sweep, progress)
        try:
            while todo or running:
                while todo and len(running) < at_once and _fits(started, budget_min, lengths):
                    cell, job = todo.pop(0)
                    running.append(_begin(ready.job(cell, job), progress))
                if not running:
                    break
                time.sleep(POLL_S)
                for one in list(running):
                    _show(one, progress)
                    if one.process.poll() is None:
                        continue
                    _require_ended_well(one)
                    running.remove(one)
                    progress.remove_task(one.bar)
                    lengths.append(time.monotonic() - one.began)
                    outcome.done.append(one.job)
                    count = len(outcome.done)
                    detail = f"{count} of {len(todo) + len(running) + count}"
                    progress.update(whole, advance=1, detail=detail)
                    console.print(_line(one.job, lengths[-1], len(todo) + len(running)), markup=False)
        finally:
            for one in running:
                one.process.terminate()
                one.process.wait()
    outcome.left = len(todo)
    outcome.minutes = (time.monotonic() - started) / 60
    return outcome


def run_on_cluster(sweep: Sweep, cluster: Cluster) -> Outcome:
    """The same on a running Dask cluster whose workers see the run's folder under the same path; without a budget."""
    started, outcome = time.monotonic(), Outcome()
    jobs = []
    for cell, job in jobs_of(sweep):
        if is_done(job):
            outcome.there += 1
        else:
            jobs.append(replace(job, origin=make_ready(sweep, cell)))
    if jobs:
        run_shards(run_job, [(job.to_dict(),) for job in jobs], cluster=cluster)
    outcome.done = jobs
    outcome.minutes = (time.monotonic() - started) / 60
    return outcome


class _Ready:
    """Makes what a cell stands on before its first job, once."""

    def __init__(self, sweep: Sweep, progress: Progress) -> None:
        self.sweep, self.progress = sweep, progress
        self.origins: dict[tuple[str, str], dict[str, str]] = {}

    def job(self, cell: Cell, job: Job) -> Job:
        key = (cell.store.model_dump_json() if cell.store is not None else "", cell.row.init)
        if key not in self.origins:
            self.progress.stop()  # worlds, teachers and stores show bars of their own
            self.origins[key] = make_ready(self.sweep, cell)
            self.progress.start()
        return replace(job, origin=self.origins[key])


def _fits(started: float, budget_min: float | None, lengths: list[float]) -> bool:
    if budget_min is None:
        return True
    expected = sum(lengths[-4:]) / len(lengths[-4:]) if lengths else 0.0
    return time.monotonic() - started + expected < budget_min * 60


def _begin(job: Job, progress: Progress) -> _Running:
    run = Path(job.run)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "job.json", job.to_dict())
    with open(run / "job.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "studies.ablation.job", str(run / "job.json")],
            cwd=ROOT,
            env={**KEEP_MEMORY, **os.environ, **started_from_here(), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    steps = int(load_recipe(job.recipe, {"train": job.overrides["train"]}).train.steps or 0)
    bar = progress.add_task(f"  {job.label}", total=steps, detail="")
    return _Running(job, process, time.monotonic(), bar, steps)


def _show(one: _Running, progress: Progress) -> None:
    path = Path(one.job.run) / "metrics.jsonl"
    lines = read_metrics(path) if path.is_file() else []
    if lines:
        last = lines[-1]
        said = "scoring" if last["step"] == one.steps else f"step {last['step']}  loss {last['loss']:.3f}"
        progress.update(one.bar, completed=last["step"], detail=said)


def _require_ended_well(one: _Running) -> None:
    if one.process.returncode:
        lines = (Path(one.job.run) / "job.log").read_text().strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        raise BevcaskError(
            f"{one.job.label}: ended with status {one.process.returncode}: {said} (whole log: {one.job.run}/job.log); "
            "the same command goes on with the others' results"
        )


def _line(job: Job, seconds: float, left: int) -> str:
    result: dict[str, Any] = json.loads(Path(job.result).read_text())
    return (
        f"{job.label}: NDS {100 * result['NDS']:.2f}, mAP {100 * result['mAP']:.2f} in {seconds / 60:.1f} min, "
        f"{left} jobs left"
    )
