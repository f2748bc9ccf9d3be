"""What keeps the code right: the test suite, style and import floors, the slow claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit

from cache.errors import BevcaskError
from studies.commands.command_line import console, next_step, print_json, task, whole

ROOT = Path(__file__).resolve().parents[2]


def _run(*command: str) -> int:
    """Run a tool of this environment in the repository root, its output straight to the terminal."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


@task(
    help={
        "select": "only tests whose names match this expression (pytest -k)",
        "path": "only the tests of this file or folder",
        "failfast": "stop at the first failure",
        "durations": "how many of the slowest tests to list",
        "workers": "processes that run tests, file by file (default: one per core, at most 4; 1 for a single file)",
    }
)
def test(
    c: Context,
    select: str | None = None,
    path: str | None = None,
    failfast: bool = False,
    durations: int = 15,
    workers: str | None = None,
) -> None:
    """The test suite; arguments choose a part of it.

    Example: ./bevcask test --path tests/cache --failfast
    Next: ./bevcask lint.
    """
    from pipeline.engine import default_workers

    count = whole(workers, "--workers", 1) or (1 if path and Path(path).is_file() else min(default_workers(), 4))
    command = [sys.executable, "-m", "pytest", f"--durations={durations}", "--durations-min=1"]
    command += ["--numprocesses", str(count), "--dist", "loadfile"] if count > 1 else []
    command += ["-k", select] if select else []
    command += ["-x"] if failfast else []
    command += [path] if path else []
    code = _run(*command)
    if code:
        raise Exit(code=code)


@task(help={"fix": "let ruff mend what it can first"})
def lint(c: Context, fix: bool = False) -> None:
    """Style, types and import floors: ruff, mypy, import-linter.

    Example: ./bevcask lint --fix
    Next: ./bevcask test.
    """
    python = sys.executable
    if fix:
        _run(python, "-m", "ruff", "check", "--fix", "--quiet", ".")
        _run(python, "-m", "ruff", "format", "--quiet", ".")
    checks = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "--output-format", "concise", "."],
        "mypy": [python, "-m", "mypy"],
        # import-linter has no `python -m`; its script stands beside the interpreter
        "import floors": [str(Path(python).with_name("lint-imports")), "--no-logo"],
    }
    failed = []
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        if _run(*command):
            failed.append(name)
    if failed:
        raise BevcaskError(f"lint: {', '.join(failed)} failed; `./bevcask lint --fix` mends what ruff can mend")
    print("lint: all clean")
    next_step("./bevcask test")


@task(
    help={
        "part": "only one part (1: the main job, 2: cache, 3: teacher pass, 4: models, 6: trainer, 7: metric)",
        "claim": "only this claim; may be given more than once",
        "run": "folder for the work; claims that held at this commit are not run again",
        "json": "print a last line of JSON",
    },
    iterable=["claim"],
)
def prove(
    c: Context, part: str | None = None, claim: list[str] | None = None, run: str = "runs/prove", json: bool = False
) -> None:
    """Run every slow claim of the project for real: resumable, each with a time limit.

    Example: ./bevcask prove --part 2
    Next: the same command goes on with what did not hold; its results lie in runs/prove/results.
    """
    from studies.prove import run_claims

    results = run_claims(Path(run), whole(part, "--part"), console, claim or [])
    failed = [result.name for result in results if not result.held]
    if not failed:
        next_step(f"{run}/results has what was found, a file a claim")
    if json:
        print_json([result.to_dict() for result in results])
    if failed:
        raise BevcaskError(
            f"{len(failed)} of {len(results)} claims did not hold: {', '.join(failed)}; see {run}/results"
        )
