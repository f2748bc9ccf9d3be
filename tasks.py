"""The command line: parses, calls, prints. Each task is thin; what it does lives in the rooms it calls.

Run as `./bevcask TASK` anywhere, or `invoke TASK` inside an environment. Errors that are the input's fault are one
line on stderr and exit status 1, without a traceback.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invoke import Context, Exit
from invoke import task as invoke_task
from rich.console import Console

from cache.errors import BevcaskError

ROOT = Path(__file__).resolve().parent


def task(body: Callable[..., Any]) -> Any:
    """An invoke task whose BevcaskError becomes one red line and exit status 1, and Ctrl-C exit status 130."""

    @functools.wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return body(*args, **kwargs)
        except BevcaskError as error:
            message = " ".join(str(error).split()) or type(error).__name__
            # soft_wrap: a long path must stay one line that can be copied; markup off: a path may hold brackets
            Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
            raise Exit(code=1) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted; the same command goes on where it can", style="yellow")
            raise Exit(code=130) from error

    # positional=[]: invoke would make an argument without a default positional, and then --help runs the task
    return invoke_task(guarded, positional=[])


def _run(*command: str) -> int:
    """Run a tool of this environment in the repository root, its output straight to the terminal."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


@task
def test(
    c: Context, select: str | None = None, path: str | None = None, failfast: bool = False, durations: int = 15
) -> None:
    """The test suite. --select EXPRESSION (pytest -k), --path FILE_OR_FOLDER, --failfast, --durations N slowest."""
    command = [sys.executable, "-m", "pytest", f"--durations={durations}", "--durations-min=1"]
    command += ["-k", select] if select else []
    command += ["-x"] if failfast else []
    command += [path] if path else []
    code = _run(*command)
    if code:
        raise Exit(code=code)


@task
def lint(c: Context, fix: bool = False) -> None:
    """Style, types and import floors: ruff, mypy, import-linter. --fix lets ruff mend what it can first."""
    python = sys.executable
    if fix:
        _run(python, "-m", "ruff", "check", "--fix", "--quiet", ".")
        _run(python, "-m", "ruff", "format", "--quiet", ".")
    checks = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "--quiet", "."],
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
