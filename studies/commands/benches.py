"""`./bevcask bench NAME`: the one task with an argument given by place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context

from studies.commands.command_line import console, next_step, print_json, task


@task(
    help={
        "name": "the benchmark; `./bevcask bench` lists them",
        "run": "folder for its data, kept for the next run, and for NAME.json",
        "option": "NAME=VALUE for this benchmark, may be given several times; a wrong name lists the right ones",
        "require-peers": "fail where another library to compare with is not installed",
        "json": "print a last line of JSON",
    },
    positional=["name"],
    iterable=["option"],
)
def bench(
    c: Context,
    name: str | None = None,
    run: str = "runs/bench",
    option: Any = None,
    require_peers: bool = False,
    json: bool = False,
) -> None:
    """Run one benchmark, by name; without a name, list them."""
    from studies.benches.registry import listing, parse_options, run_bench

    if name in (None, "--help", "-h"):  # invoke takes what follows for the name, --help too
        print("Usage: ./bevcask bench NAME [--json] [--run FOLDER] [--require-peers] [--option NAME=VALUE]...\n")
        print("Runs one benchmark and writes its figures to FOLDER/NAME.json. Benchmarks:\n")
        print("\n".join(f"  {line}" for line in listing()))
        print("\nExample: ./bevcask bench order --json\nNext: docs/benchmarks.md says what the figures mean.")
        return
    options = parse_options(option or ()) | ({"require_peers": True} if require_peers else {})
    root = Path(run)
    result = run_bench(str(name), root, console, options)
    next_step(f"the figures are in {root / f'{name}.json'}; docs/benchmarks.md says what they mean")
    if json:
        print_json(result)
