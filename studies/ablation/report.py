"""From the words of a command line to a sweep, its trainings, and the tables: what `./bevcask ablate` calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cache.errors import ConfigError
from pipeline.engine import Cluster
from studies.ablation.job import is_done
from studies.ablation.lines import Line, Result, all_lines, orphans, read_results, teachers_of
from studies.ablation.plan import Sweep, TeacherOf, jobs_of
from studies.ablation.prepare import Settings
from studies.ablation.regimes import CHOOSING, PRIMARY, REGIMES, place_of
from studies.ablation.running import Outcome, run_on_cluster, run_sweep
from studies.ablation.suite import chosen_suites, load_suite, suite_names
from studies.ablation.tables import Page, write_tables

SEEDS = 5
FIRST_ROUND = 1


def sweep_of(
    suite: str,
    regime: str,
    number: int | None,
    seeds: int | None,
    run: Path,
    docs: Path,
    rows: Sequence[str],
    console: Console,
) -> Sweep:
    """Checked. ConfigError for what there is not."""
    if regime not in REGIMES:
        raise ConfigError(f"--regime {regime!r} is unknown, expected one of {', '.join(REGIMES)}")
    suites = chosen_suites(suite)
    known = {row.name for one in suites for row in one.rows}
    if missing := [row for row in rows if row not in known]:
        raise ConfigError(f"--row {missing[0]!r}: the rows are {', '.join(sorted(known))}")
    to_choose = [one.name for one in suites if one.choosing]
    if number is None:
        number = CHOOSING if to_choose else FIRST_ROUND
    if to_choose and number != CHOOSING:
        raise ConfigError(
            f"--round {number}: rows of {to_choose[0]} are tried on round {CHOOSING} alone; the worlds of others are "
            "there to report on, not to choose by"
        )
    sweep = Sweep(
        suites=suites,
        regime=REGIMES[regime],
        round=number,
        seeds=seeds or SEEDS,
        settings=Settings(run.resolve(), console, {}, {}, kept=(docs / "results" / "teachers").resolve()),
        results=(docs / "results").resolve(),
        rows=rows,
    )
    place_of(sweep.regime, number, sweep.scale)
    return sweep


def run_suites(
    sweep: Sweep, budget_min: float | None, at_once: int, scheduler: str | None, console: Console
) -> tuple[list[Line], Outcome]:
    """Trains what is missing and makes the tables; those are made of what is there also where a training fails."""
    docs = sweep.results.parent
    sweep.results.mkdir(parents=True, exist_ok=True)
    try:
        if scheduler:
            outcome = run_on_cluster(sweep, Cluster(scheduler=scheduler), console)
        else:
            outcome = run_sweep(sweep, budget_min=budget_min, at_once=at_once, console=console)
    finally:
        shipped = set(suite_names())
        own = [suite for suite in sweep.suites if suite.name not in shipped]
        lines = make_tables(docs, [replace(sweep, suites=own)] if own else [])
    names = {suite.name for suite in sweep.suites}
    shown = [
        line
        for line in lines
        if line.cell.suite.name in names and (line.regime, line.round) == (sweep.regime.name, sweep.round)
    ]
    console.print(table_of(shown))
    return shown, outcome


def make_tables(docs: Path, others: Sequence[Sweep] = ()) -> list[Line]:
    """<docs>/results.md and results.json from <docs>/results. others: sweeps of suites that do not ship, or of another
    scale."""
    results = read_results(docs / "results")
    sweeps = [*_every_sweep(docs, results), *others]
    lines = all_lines(sweeps, results)
    teachers: dict[tuple[int, str], dict[TeacherOf, Result]] = {}
    for sweep in sweeps:
        teachers.setdefault((sweep.round, sweep.regime.name), {}).update(teachers_of(sweep, results))
    write_tables(docs, Page(lines, teachers, orphans(sweeps, results)))
    return lines


def _every_sweep(docs: Path, results: Mapping[str, Result]) -> list[Sweep]:
    """Of every round and regime of which there is a result, over all suites that ship; the primary regime first."""
    suites = [load_suite(name) for name in suite_names()]
    settings = Settings(Path("runs/ablate").resolve(), Console(quiet=True), {}, {})
    places = {(result.round, result.regime) for result in results.values()}
    return [
        Sweep(suites, regime, number, SEEDS, settings, (docs / "results").resolve())
        for number in sorted({number for number, _ in places}, reverse=True)
        for regime in sorted(REGIMES.values(), key=lambda one: one.name != PRIMARY)
        if (number, regime.name) in places
    ]


def list_jobs(sweep: Sweep, console: Console) -> None:
    """What would run, in order: a line for each row and student, shared jobs under the first that asks for them."""
    lines: dict[str, list[Any]] = {}
    for cell, job in jobs_of(sweep):
        name = f"{cell.suite.name}|{cell.row.name}|{cell.student}"
        line = lines.setdefault(name, [cell, job.overrides["train"]["steps"], 0, 0])
        line[2] += 1
        line[3] += is_done(job)
    table = Table("row", "student", "suite", "steps", "seeds", "there", title=sweep.regime.about)
    for cell, steps, seeds, there in lines.values():
        table.add_row(cell.row.name, cell.student, cell.suite.name, f"{steps:,}", str(seeds), str(there))
    console.print(table)
    jobs = sum(line[2] - line[3] for line in lines.values())
    left = sum(line[1] * (line[2] - line[3]) for line in lines.values())
    console.print(f"{jobs} trainings of {left:,} steps in all are left")


def table_of(lines: Sequence[Line]) -> Table:
    """For the terminal."""
    table = Table("suite", "row", "student", "seeds", "NDS", "mAP", "gain", "distils")
    for line in lines:
        values = line.to_dict()
        gain = "" if values["gain_nds"] is None else f"{values['gain_nds']:+.2f}"
        if values["ci_low"] is not None:
            gain += f" ({values['ci_low']:+.2f} to {values['ci_high']:+.2f})"
        said = {None: "", True: "[green]yes[/green]", False: "[yellow]no[/yellow]"}[line.distils]
        name = f"[dim]{line.cell.row.name}[/dim]" if line.cell.row.control else line.cell.row.name
        figures = [str(values["seeds"]), f"{values['nds_mean']:.2f}", f"{values['map_mean']:.2f}", gain, said]
        table.add_row(line.cell.suite.name, name, line.cell.student, *figures)
    return table
