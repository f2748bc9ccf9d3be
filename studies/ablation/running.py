"""Jobs run two at a time, one thread each, as processes of their own; or on a Dask cluster.

Two small trainings beside each other do more in an hour on two cores than one on both. With a budget no job is begun
that would, by the minutes a step of those that ended before, not end within it. What a killed command leaves half done
goes on when it is called again: every job resumes from its checkpoint and writes its result whole. A job that fails
keeps nobody else from running; the call ends with an error that names it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache.errors import BevcaskError, ConfigError
from cache.files import write_json
from pipeline.engine import Cluster, run_shards
from studies.ablation.job import FAILED, Job, is_done, run_job_or_say
from studies.ablation.lines import Result, read_results
from studies.ablation.plan import Cell, Sweep, jobs_of, make_ready
from studies.lock import alone_in
from studies.training import KEEP_MEMORY, ROOT
from trainer.metrics import read_metrics
from trainer.orphans import started_from_here
from trainer.recipe import load_recipe

POLL_S = 1.0
FAILURES_IN_A_ROW = 3


@dataclass
class Outcome:
    """done: jobs that ended in this call; there: those whose result lay there; failed: with their last words; left:
    that the budget did not allow."""

    done: list[Job] = field(default_factory=list)
    there: int = 0
    failed: list[tuple[Job, str]] = field(default_factory=list)
    left: int = 0
    minutes: float = 0.0

    def raise_failed(self) -> None:
        """BevcaskError that names what failed, where anything did."""
        if self.failed:
            said = "\n".join(f"{job.label}: {words}" for job, words in self.failed)
            left = f", {self.left} were not begun" if self.left else ""
            raise BevcaskError(
                f"{len(self.failed)} of {len(self.failed) + len(self.done)} trainings failed{left}; the others have "
                f"their results, and the same command goes on\n{said}"
            )


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    bar: TaskID
    steps: int


def run_sweep(sweep: Sweep, *, budget_min: float | None, at_once: int, console: Console) -> Outcome:
    """Every job whose result is missing, in order. Raises BevcaskError at the end where jobs failed, or when three did
    in a row; ConfigError where another command works in the folder."""
    if budget_min is not None and not 0 <= budget_min < math.inf:
        raise ConfigError(f"--budget {budget_min:g}: expected minutes, 0 or more")
    if at_once < 1:
        raise ConfigError(f"--at-once {at_once}: expected 1 or more")
    with alone_in(sweep.settings.folder):
        outcome = _run_all(sweep, budget_min, at_once, console)
    outcome.raise_failed()
    return outcome


def _run_all(sweep: Sweep, budget_min: float | None, at_once: int, console: Console) -> Outcome:
    outcome, todo = _to_do(sweep)
    budget = Budget(budget_min, list(read_results(sweep.results).values()))
    out = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=out, disable=not out.is_terminal) as progress:
        whole = progress.add_task("[bold]jobs", total=len(todo), detail=f"0 of {len(todo)}")
        running: list[_Running] = []
        ready = _Ready(sweep, progress)
        in_a_row = 0
        try:
            while todo or running:
                while todo and len(running) < at_once and in_a_row < FAILURES_IN_A_ROW and budget.allows(todo[0][1]):
                    job = ready.job(*todo[0])
                    if budget.allows(job):  # worlds, teachers and stores take their time, too
                        todo.pop(0)
                        running.append(_begin(job, progress))
                if not running:
                    break
                time.sleep(POLL_S)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    progress.remove_task(one.bar)
                    if words := _last_words(one):
                        in_a_row += 1
                        outcome.failed.append((one.job, words))
                        console.print(f"{one.job.label}: {words}", markup=False)
                        continue
                    in_a_row = 0
                    result = _result_of(one.job)
                    budget.add(result)
                    outcome.done.append(one.job)
                    progress.update(whole, advance=1, detail=f"{len(outcome.done)}, {len(todo) + len(running)} left")
                    console.print(_line(one.job, result, len(todo) + len(running)), markup=False)
                for one in running:
                    _show(one, progress)
        finally:
            for one in running:
                one.process.terminate()
                one.process.wait()
    outcome.left = len(todo)
    outcome.minutes = budget.elapsed_min()
    return outcome


def run_on_cluster(sweep: Sweep, cluster: Cluster, console: Console) -> Outcome:
    """The same on a running Dask cluster whose workers see the run's folder under the same path; without a budget.
    Result files are written here."""
    with alone_in(sweep.settings.folder):
        outcome, todo = _to_do(sweep)
        started = time.monotonic()
        jobs = [replace(job, origin=make_ready(sweep, cell)) for cell, job in todo]
        sent = [replace(job, result=str(Path(job.run) / "result.json")).to_dict() for job in jobs]
        if jobs:
            writer = _Writer({job.key: job for job in jobs}, outcome, console)
            run_shards(run_job_or_say, [(one,) for one in sent], cluster=cluster, progress=writer)
        outcome.minutes = (time.monotonic() - started) / 60
    outcome.raise_failed()
    return outcome


def _to_do(sweep: Sweep) -> tuple[Outcome, list[tuple[Cell, Job]]]:
    jobs = list(jobs_of(sweep))
    todo = [(cell, job) for cell, job in jobs if not is_done(job)]
    return Outcome(there=len(jobs) - len(todo)), todo


class _Writer:
    """A `pipeline.engine.Progress` that writes the result of every job as it ends."""

    def __init__(self, jobs: dict[str, Job], outcome: Outcome, console: Console) -> None:
        self.jobs, self.outcome, self.console = jobs, outcome, console

    def advance(self, summary: dict[str, Any]) -> None:
        job = self.jobs[summary["key"]]
        left = len(self.jobs) - len(self.outcome.done) - len(self.outcome.failed) - 1
        if FAILED in summary:
            self.outcome.failed.append((job, summary[FAILED]))
            self.console.print(f"{job.label}: {summary[FAILED]}", markup=False)
        else:
            write_json(Path(job.result), summary)
            self.outcome.done.append(job)
            self.console.print(_line(job, _result_of(job), left), markup=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)


class Budget:
    """Minutes that are left, and what a job would take of them: its steps times the minutes a step of the last ones
    that ended in this call, else of results that are there; where nothing is known a job is begun."""

    def __init__(self, minutes: float | None, results: list[Result]) -> None:
        self.minutes, self.before, self.ended, self.started = minutes, results, list[Result](), time.monotonic()

    def elapsed_min(self) -> float:
        return (time.monotonic() - self.started) / 60

    def add(self, result: Result) -> None:
        """A training that ended in this call."""
        self.ended.append(result)

    def expected_min(self, job: Job) -> float:
        """Of the same student where there is one."""
        known = self.ended[-4:] or [r for r in self.before if r.student == job.label.student] or self.before
        steps: int = job.overrides["train"]["steps"]
        return steps * median(result.train_minutes / result.steps for result in known) if known else 0.0

    def allows(self, job: Job) -> bool:
        return self.minutes is None or self.elapsed_min() + self.expected_min(job) < self.minutes


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
    return _Running(job, process, bar, steps)


def _show(one: _Running, progress: Progress) -> None:
    path = Path(one.job.run) / "metrics.jsonl"
    lines = read_metrics(path) if path.is_file() else []
    if lines:
        last = lines[-1]
        said = "scoring" if last["step"] == one.steps else f"step {last['step']}  loss {last['loss']:.3f}"
        progress.update(one.bar, completed=last["step"], detail=said)


def _last_words(one: _Running) -> str:
    """Of a job that failed; "" for one that has its result."""
    if not one.process.returncode and is_done(one.job):
        return ""
    lines = (Path(one.job.run) / "job.log").read_text().strip().splitlines()
    said = lines[-1] if lines else "it said nothing"
    return f"ended with status {one.process.returncode}: {said} (whole log: {one.job.run}/job.log)"


def _result_of(job: Job) -> Result:
    return Result.model_validate(json.loads(Path(job.result).read_text()))


def _line(job: Job, result: Result, left: int) -> str:
    figures = f"NDS {100 * result.NDS:.2f}, mAP {100 * result.mAP:.2f} in {result.train_minutes:.1f} min"
    return f"{job.label}: {figures}, {left} jobs left"
