"""From the words of a command line to a sweep, its trainings, and the tables: what `./bevcask ablate` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cache.errors import ConfigError
from pipeline.engine import Cluster
from studies.ablation.job import is_done
from studies.ablation.lines import Line, Result, all_lines, orphans, read_results
from studies.ablation.plan import Sweep, jobs_of
from studies.ablation.prepare import Settings
from studies.ablation.regimes import PRIMARY, REGIMES, place_of
from studies.ablation.running import Outcome, run_on_cluster, run_sweep
from studies.ablation.suite import chosen_suites, load_suite, suite_names
from studies.ablation.tables import write_tables

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
    number = FIRST_ROUND if number is None else number
    sweep = Sweep(
        suites=suites,
        regime=REGIMES[regime],
        round=number,
        seeds=seeds or SEEDS,
        settings=Settings(run.resolve(), console, {}, {}),
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
            outcome = run_on_cluster(sweep, Cluster(scheduler=scheduler))
        else:
            outcome = run_sweep(sweep, budget_min=budget_min, at_once=at_once, console=console)
    finally:
        lines = make_tables(docs)
    names = {suite.name for suite in sweep.suites}
    shown = [
        line
        for line in lines
        if line.cell.suite.name in names and (line.regime, line.round) == (sweep.regime.name, sweep.round)
    ]
    console.print(table_of(shown))
    return shown, outcome


def make_tables(docs: Path, others: Sequence[Sweep] = ()) -> list[Line]:
    """<docs>/results.md and results.json from <docs>/results; others: sweeps that the command line does not know."""
    results = read_results(docs / "results")
    sweeps = [*_every_sweep(docs, results), *others]
    lines = all_lines(sweeps, results)
    write_tables(docs, lines, results, orphans(sweeps, results))
    return lines


def _every_sweep(docs: Path, results: dict[str, Result]) -> list[Sweep]:
    """Of every round and regime of which there is a result, over all suites that ship."""
    suites = [load_suite(name) for name in suite_names()]
    settings = Settings(Path("runs/ablate").resolve(), Console(quiet=True), {}, {})
    out = []
    for number in sorted({int(result["round"]) for result in results.values()}, reverse=True):
        for regime in sorted(REGIMES.values(), key=lambda one: one.name != PRIMARY):
            first = place_of(regime, number).first_seed
            seeds = [
                int(r["seed"]) - first + 1
                for r in results.values()
                if (r["regime"], r["round"]) == (regime.name, number)
            ]
            if seeds:
                out.append(Sweep(suites, regime, number, max(seeds), settings, (docs / "results").resolve()))
    return out


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
