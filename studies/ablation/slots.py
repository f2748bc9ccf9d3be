"""The processes of a sweep on this machine: trainings, and at most one beside them that makes what others stand on.

Each has a log in its folder and a line in the progress display, and ends with the command that started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache.files import read_json, write_json
from studies.ablation.job import Job, is_done
from studies.ablation.making import ORIGIN, written
from studies.ablation.plan import Cell, Sweep
from studies.training import KEEP_MEMORY, ROOT
from trainer.metrics import read_metrics
from trainer.orphans import started_from_here
from trainer.recipe import load_recipe

JOB, MAKING = "studies.ablation.job", "studies.ablation.making"
Stands = tuple[str, str]  # a store's spec and whose weights a student begins from: what cells share


@dataclass
class Running:
    """A process. job: the training, None for what makes `stands`; file: what it reads; words: the last ones of its log
    once it has failed."""

    name: str
    process: subprocess.Popen[bytes]
    file: Path
    log: Path
    bar: TaskID
    job: Job | None = None
    stands: Stands = ("", "")
    steps: int = 0
    words: str = ""


class Slots:
    """As a context: leaving it ends what still runs."""

    def __init__(self, sweep: Sweep, jobs: int) -> None:
        self.sweep = sweep
        self.running: list[Running] = []
        self.origins: dict[Stands, dict[str, str]] = {}
        out = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, *times, console=out, disable=not out.is_terminal)
        self.whole = self.progress.add_task("[bold]jobs", total=jobs, detail=f"0 of {jobs}")

    def __enter__(self) -> Slots:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one in self.running:
            one.process.terminate()
            one.process.wait()
        self.progress.stop()

    @property
    def making(self) -> bool:
        """Whether something is being made."""
        return any(one.job is None for one in self.running)

    def origin(self, cell: Cell) -> dict[str, str] | None:
        """Digests of what a cell's jobs stand on; None before that was made, or looked at, in this call."""
        return self.origins.get(_stands_on(cell))

    def waits_for(self, cell: Cell, one: Running) -> bool:
        """Whether a process makes what the cell's jobs stand on."""
        return one.job is None and one.stands == _stands_on(cell)

    def make(self, cell: Cell) -> None:
        """Begins to make what a cell's jobs stand on."""
        file = self.sweep.settings.folder / "making" / "making.json"
        name = f"what {cell.row.name} ({cell.student}) stands on"
        one = self._start(MAKING, file, written(self.sweep, cell), name, None, {})
        one.stands = _stands_on(cell)

    def begin(self, job: Job) -> None:
        """Begins a training."""
        steps = int(load_recipe(job.recipe, {"train": job.overrides["train"]}).train.steps or 0)
        threads = {"OMP_NUM_THREADS": "1"}
        file = Path(job.run) / "job.json"
        one = self._start(JOB, file, job.to_dict(), str(job.label), steps, threads)
        one.job, one.steps = job, steps

    def ended(self) -> list[Running]:
        """Those that have ended since the last call; the display shows how far the others are."""
        over = [one for one in self.running if one.process.poll() is not None]
        for one in over:
            self.running.remove(one)
            self.progress.remove_task(one.bar)
            one.words = _last_words(one)
            if one.job is None and not one.words:
                self.origins[one.stands] = dict(read_json(one.file, "what was made")[ORIGIN])
        for one in self.running:
            self._show(one)
        return over

    def tell(self, done: int, left: int) -> None:
        """How many jobs have ended and are left."""
        self.progress.update(self.whole, completed=done, detail=f"{done}, {left} left")

    def _start(
        self,
        module: str,
        file: Path,
        values: Mapping[str, Any],
        name: str,
        steps: int | None,
        environment: Mapping[str, str],
    ) -> Running:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, values)
        with open(file.with_suffix(".log"), "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(file)],
                cwd=ROOT,
                env={**KEEP_MEMORY, **os.environ, **started_from_here(), **environment},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        bar = self.progress.add_task(f"  {name}", total=steps, detail="")
        self.running.append(Running(name, process, file, file.with_suffix(".log"), bar))
        return self.running[-1]

    def _show(self, one: Running) -> None:
        if one.job is None:
            self.progress.update(one.bar, detail=_last_line(one.log)[:60])
            return
        path = Path(one.job.run) / "metrics.jsonl"
        lines = read_metrics(path) if path.is_file() else []
        if lines:
            last = lines[-1]
            said = "scoring" if last["step"] == one.steps else f"step {last['step']}  loss {last['loss']:.3f}"
            self.progress.update(one.bar, completed=last["step"], detail=said)


def _stands_on(cell: Cell) -> Stands:
    return (cell.store.model_dump_json() if cell.store is not None else "", cell.row.init)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].rpartition("\r")[2].strip() if lines else ""


def _last_words(one: Running) -> str:
    """Of one that failed; "" for one that did what it was begun for."""
    if not one.process.returncode and (one.job is None or is_done(one.job)):
        return ""
    said = _last_line(one.log) or "it said nothing"
    return f"ended with status {one.process.returncode}: {said} (whole log: {one.log})"
