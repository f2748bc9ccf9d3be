"""Which benchmarks there are, and how one is run: `./bevcask bench NAME`.

A benchmark is a module with `ABOUT`, one line of text, and `run(work, console, **options)`, which returns plain JSON
values. The modules are imported when they run and not before: some of them need packages that are not everywhere.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from rich.console import Console

from cache.errors import ConfigError
from cache.files import write_json
from studies.benches.machine import machine

BENCHES = {
    "break-even": "studies.benches.break_even",
    "cache-teacher": "studies.benches.cache_teacher",
    "drift": "studies.benches.drift",
    "evaluate": "studies.benches.evaluate",
    "faults": "studies.benches.faults",
    "full-size-steps": "studies.benches.full_size_steps",
    "loader": "studies.benches.loader",
    "memory": "studies.benches.memory",
    "order": "studies.benches.order",
    "pillar-profile": "studies.benches.pillar_profile",
    "report": "studies.benches.report",
    "scale": "studies.benches.scale",
    "size": "studies.benches.size",
    "step": "studies.benches.step",
    "stream": "studies.benches.stream",
    "terms": "studies.benches.terms",
}  # name -> module


class Bench(Protocol):
    """What a benchmark's module holds."""

    ABOUT: str

    def run(self, work: Path, console: Console, **options: Any) -> dict[str, Any]:
        """Measures in the folder `work`, which it may fill and find again; tells the console; returns the figures."""


def about(name: str) -> str:
    """The benchmark's line of text, read from its source without importing it."""
    spec = find_spec(_module_of(name))
    source = Path(str(spec.origin)).read_text() if spec else ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["ABOUT"]:
            return str(ast.literal_eval(node.value))
    raise ConfigError(f"{_module_of(name)} has no line ABOUT = '...'; add one")


def listing() -> list[str]:
    """One line a benchmark."""
    width = max(len(name) for name in BENCHES)
    return [f"{name:<{width}}  {about(name)}" for name in sorted(BENCHES)]


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["rounds=3", "peers=npz"]` -> {"rounds": 3, "peers": "npz"}: values are JSON where they parse as such."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--option {pair!r}: expected NAME=VALUE")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def run_bench(name: str, work: Path, console: Console, options: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a benchmark in <work>/<name> and returns its figures with date, machine, versions and options beside them;
    the same goes to <work>/<name>.json.

    Raises ConfigError for a name or an option that there is not.
    """
    bench = cast(Bench, importlib.import_module(_module_of(name)))
    accepted = [p.name for p in list(inspect.signature(bench.run).parameters.values())[2:]]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(f"bench {name} has no option {', '.join(unknown)}; it takes {', '.join(accepted) or 'none'}")
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    figures = bench.run(folder, console, **options)
    result = {
        **figures,
        "bench": name,
        "date": time.strftime("%Y-%m-%d", time.gmtime(start)),
        "seconds": round(time.time() - start, 1),
        "machine": machine(),
        "options": dict(options),
    }
    write_json(work / f"{name}.json", result)
    return result


def _module_of(name: str) -> str:
    if name not in BENCHES:
        raise ConfigError(f"no benchmark {name!r}; there are {', '.join(sorted(BENCHES))}")
    return BENCHES[name]
