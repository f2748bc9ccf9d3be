"""`./bevcask ablate`: rows x seeds of the papers' tables on the simulated world, and the tables of docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context

from cache.errors import ConfigError
from studies.commands.command_line import console, need, next_step, number, print_json, task, whole

REGIMES = "unlabelled, unlabelled-long, scarce, full"
SUITES = "bevdistill, sparsekd, bev-lgkd, bevdistill-queries (--regime full), cache, all of these, choosing (round 0)"


@task(
    help={
        "suite": f"{SUITES}, or a TOML file",
        "regime": f"how much is labelled and how long students train: {REGIMES}; see docs/results.md",
        "round": "worlds and seeds: 0 to choose by (scored on its own val split), 1 and on (default 1) to report",
        "seeds": "trainings of every row, paired by seed over rows",
        "budget": "minutes: begin no training that would end later; the same command goes on",
        "row": "only rows of this name; may be given more than once",
        "run": "folder for worlds, teachers, stores and trainings",
        "docs": "folder of results.md, results.json and results/: one small file a training, worth committing",
        "table": "train nothing: make results.md and results.json anew from the result files",
        "list": "train nothing: print what would run, in order",
        "at-once": "trainings beside each other, one thread each",
        "scheduler": "address of a running Dask cluster, tcp://...; its workers must see --run under the same path",
        "json": "print a last line of JSON: the table's rows",
    },
    iterable=["row"],
)
def ablate(
    c: Context,
    suite: str | None = None,
    regime: str = "unlabelled",
    round: str | None = None,
    seeds: str | None = None,
    budget: str | None = None,
    row: Any = None,
    run: str = "runs/ablate",
    docs: str = "docs",
    table: bool = False,
    list: bool = False,
    at_once: int = 2,
    scheduler: str | None = None,
    json: bool = False,
) -> None:
    """Train recipes x seeds on the simulated world, two at a time: does it distil? Writes docs/results.md.

    Resumable: a training whose result file is there is not run again, one that was killed goes on from its checkpoint.
    Every row of a table has equal frames, steps and augmentation; controls stand beside the methods.

    Example: ./bevcask ablate --suite bevdistill --budget 60
    Next: the same command goes on; docs/results.md has the tables.
    """
    from studies.ablation.report import list_jobs, make_tables, run_suites, sweep_of

    if table:
        lines = make_tables(Path(docs))
        console.print(f"{len(lines)} rows in {docs}/results.md and {docs}/results.json", soft_wrap=True)
        next_step("./bevcask ablate --suite all --list")
    else:
        wanted = need(
            suite, "--suite", "bevdistill, sparsekd, bev-lgkd, bevdistill-queries, cache, all, choosing, or a TOML file"
        )
        limit = number(budget, "--budget")
        if limit is not None and scheduler:
            raise ConfigError("--budget is for trainings on this machine; leave it out with --scheduler")
        sweep = sweep_of(
            wanted,
            regime,
            whole(round, "--round", 0),
            whole(seeds, "--seeds", 1),
            Path(run),
            Path(docs),
            tuple(row or ()),
            console,
        )
        if list:
            lines = []
            list_jobs(sweep, console)
            next_step(f"./bevcask ablate --suite {wanted} --regime {regime} --round {sweep.round} --budget 60")
        else:
            lines, outcome = run_suites(sweep, limit, at_once, scheduler, console)
            console.print(
                f"{len(outcome.done)} trainings ended in {outcome.minutes:.1f} min, {outcome.there} were there, "
                f"{outcome.left} are left",
            )
            again = f"the same command goes on with the {outcome.left} that are left"
            next_step(again if outcome.left else f"read {docs}/results.md; commit it with {docs}/results")
    if json:
        print_json([line.to_dict() for line in lines])
