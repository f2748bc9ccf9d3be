"""Jobs run two at a time, one thread each, as processes of their own; or on a Dask cluster.

Two small trainings beside each other do more in an hour on two cores than one on both. The world, teacher or store that
the next jobs wait for is made in one of the slots while students train in the others. With a budget no job is begun
that would, by the minutes a step of those that ended before, not end within it. What a killed command leaves half done
goes on when it is called again: every job resumes from its checkpoint and writes its result whole. A job that fails
keeps nobody else from running; the call ends with an error that names it.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from cache.errors import BevcaskError, ConfigError
from cache.files import write_json
from pipeline.engine import Cluster, run_shards
from studies.ablation.job import FAILED, Job, is_done, run_job_or_say
from studies.ablation.lines import Result, read_results
from studies.ablation.plan import Cell, Sweep, jobs_of, make_ready
from studies.ablation.slots import Slots
from studies.lock import alone_in

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


def run_sweep(sweep: Sweep, *, budget_min: float | None, at_once: int, console: Console) -> Outcome:
    """Every job whose result is missing, in order as far as what they stand on is there. Raises BevcaskError at the end
    where jobs failed, or when three did in a row; ConfigError where another command works in the folder."""
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
    with Slots(sweep, len(todo)) as slots:
        in_a_row = 0
        while todo or slots.running:
            free = in_a_row < FAILURES_IN_A_ROW
            while free and len(slots.running) < at_once:
                free = _begin_next(slots, todo, at_once, budget)
            if not slots.running:
                break
            time.sleep(POLL_S)
            for ended in slots.ended():
                if ended.words:
                    in_a_row += 1
                    failed = [ended.job] if ended.job else [job for cell, job in todo if slots.waits_for(cell, ended)]
                    todo = [(cell, job) for cell, job in todo if job not in failed]
                    outcome.failed += [(job, ended.words) for job in failed]
                    console.print(f"{ended.name}: {ended.words}", markup=False)
                    continue
                in_a_row = 0
                if ended.job:
                    result = _result_of(ended.job)
                    budget.add(result)
                    outcome.done.append(ended.job)
                    left = len(todo) + sum(one.job is not None for one in slots.running)
                    slots.tell(len(outcome.done), left)
                    console.print(_line(ended.job, result, left), markup=False)
    outcome.left = len(todo)
    outcome.minutes = budget.elapsed_min()
    return outcome


def _begin_next(slots: Slots, todo: list[tuple[Cell, Job]], at_once: int, budget: Budget) -> bool:
    """Begins one process where there is use for one. What one of the next jobs waits for comes before any of them, so
    that it is there in time; while it is being made, later jobs that wait for nothing go first."""
    if not todo or not budget.allows(todo[0][1]):
        return False
    waiting = next((cell for cell, _ in todo[:at_once] if slots.origin(cell) is None), None)
    if waiting is not None and not slots.making:
        slots.make(waiting)
        return True
    for place, (cell, job) in enumerate(todo):
        origin = slots.origin(cell)
        if origin is not None and budget.allows(job):
            del todo[place]
            slots.begin(replace(job, origin=origin))
            return True
    return False


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


def _result_of(job: Job) -> Result:
    return Result.model_validate(json.loads(Path(job.result).read_text()))


def _line(job: Job, result: Result, left: int) -> str:
    figures = f"NDS {100 * result.NDS:.2f}, mAP {100 * result.mAP:.2f} in {result.train_minutes:.1f} min"
    return f"{job.label}: {figures}, {left} jobs left"
