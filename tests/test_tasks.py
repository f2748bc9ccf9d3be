"""The command line: `--help` shows every task and runs none, no argument is positional, errors are one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

import tasks
from cache.errors import DataError

ROOT = Path(__file__).resolve().parents[1]


def invoke(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "invoke", "--search-root", str(ROOT), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def task_names() -> list[str]:
    listed = json.loads(invoke("--list", "--list-format=json").stdout)
    return [entry["name"] for entry in listed["tasks"]]


def everything_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts} if folder.exists() else set()


@pytest.mark.parametrize("name", task_names())
def test_help_of_a_task_explains_it_and_runs_nothing(name: str, tmp_path: Path) -> None:
    runs = everything_below(ROOT / "runs")
    done = invoke(name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")
    assert "Docstring:\n  none" not in done.stdout
    assert re.findall(r"(?m)^  (?:-\w[^,\n]*, )?--\S+ *$", done.stdout) == [], "options without a help text"
    assert everything_below(tmp_path) == set()
    assert everything_below(ROOT / "runs") == runs


def test_no_argument_is_positional_but_the_name_of_a_benchmark() -> None:
    found = [item for item in vars(tasks).values() if type(item).__name__ == "Task"]
    assert found
    positional = {
        (task.name, argument.name) for task in found for argument in task.get_arguments() if argument.positional
    }
    assert positional <= {("bench", "name")}


def test_bench_without_a_name_lists_the_benchmarks(tmp_path: Path) -> None:
    done = invoke("bench", "--help", cwd=tmp_path)
    assert re.search(r"^ +stream +frames per second", done.stdout, re.MULTILINE)
    unknown = invoke("bench", "no-such", "--option", "rounds=1", cwd=tmp_path)
    assert unknown.returncode == 1 and "no benchmark 'no-such'" in unknown.stderr
    wrong = invoke("bench", "stream", "--option", "turns=1", cwd=tmp_path)
    assert wrong.returncode == 1 and "no option turns; it takes rounds" in wrong.stderr
    assert everything_below(tmp_path) == set()


def test_an_error_of_the_input_is_one_line_on_stderr_and_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    message = "/data/[a]/00012.bin is truncated: " + "found 17 bytes, expected a multiple of 20; " * 6

    @tasks.task
    def fail(c: Context) -> NoReturn:
        """Fails."""
        raise DataError(message)

    with pytest.raises(Exit) as stop:
        fail.body(Context())
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == message.strip() + "\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "a process or a machine did not answer in time (no more is known)"),
        (TimeoutError("no worker\ncame up"), "did not answer in time (no worker came up)"),
        (TimeoutError(110, "Connection timed out", "/data/a"), "/data/a: Connection timed out; check the path"),
        (PermissionError(13, "Permission denied", "/data/a"), "/data/a: Permission denied; check the path"),
    ],
)
def test_only_an_error_of_a_file_is_told_as_one(error: OSError, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    @tasks.task
    def fail(c: Context) -> NoReturn:
        """Fails."""
        raise error

    with pytest.raises(Exit) as stop:
        fail.body(Context())
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_an_unknown_task_fails_and_is_named(tmp_path: Path) -> None:
    done = invoke("no-such-task", cwd=tmp_path)
    assert done.returncode != 0
    assert "no-such-task" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_the_callers_folder_is_not_imported_in_place_of_ours(tmp_path: Path) -> None:
    for room in ("cache", "models"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    done = invoke("--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lint" in done.stdout


def test_the_exit_status_of_pytest_passes_through(tmp_path: Path) -> None:
    failing = tmp_path / "test_that_fails.py"
    failing.write_text("def test_it():\n    assert False\n")
    done = invoke("test", "--path", str(failing))
    assert done.returncode == 1
    assert "1 failed" in done.stdout.splitlines()[-1]
    nothing = invoke("test", "--path", str(failing), "--select", "no_such_test")
    assert nothing.returncode == 5
