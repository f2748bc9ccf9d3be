"""The launcher, with a fake python on PATH: what it runs, when it installs, what it says; nothing real is installed.

The fake interpreter answers the launcher's probe, "makes" a .venv with a fake python in it, and writes down each call.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "bevcask"
# what the launcher may call; PATH holds nothing else, so that no real python is found
TOOLS = ("sh cat sed grep mkdir rmdir rm mv cp dirname readlink cksum hostname find sleep tail touch chmod env").split()

PYTHON = """#!/bin/sh
case "$1" in
    -c) {probe} ;;
    -m) echo "venv $0" >>"$FAKE_LOG"; mkdir -p "$3/bin"; cp "$FAKE_VENV_PYTHON" "$3/bin/python" ;;
esac
"""
# FAKE_PIP: what pip does. `exec sleep` is one process, as pip is
VENV_PYTHON = """#!/bin/sh
case "$*" in
    "-c "*) echo "3.11 able $0" ;;
    "-m pip install"*) echo "pip $*" >>"$FAKE_LOG"; eval "${FAKE_PIP:-:}" ;;
    "-P -m invoke"*) echo "invoke:" "$@"; exit "${FAKE_EXIT:-0}" ;;
    *) exit 99 ;;
esac
"""


@dataclass(frozen=True)
class Clone:
    """A clone of the launcher with a PATH of its own."""

    root: Path
    bin: Path
    calls_file: Path

    @property
    def env(self) -> dict[str, str]:
        fakes = {"FAKE_LOG": str(self.calls_file), "FAKE_VENV_PYTHON": str(self.bin.parent / "venv_python")}
        return {"PATH": str(self.bin), "HOME": str(self.root), **fakes}

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    @property
    def pip_calls(self) -> list[str]:
        return [call for call in self.calls if call.startswith("pip")]

    @property
    def venv_calls(self) -> list[str]:
        return [call for call in self.calls if call.startswith("venv")]

    def add(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def add_python(self, name: str, version: str, able: str = "able") -> Path:
        return self.add(name, PYTHON.format(probe=f'echo "{version} {able} $0"'))

    def run(self, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "bevcask"), *arguments],
            cwd=cwd or self.root,
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def start(self, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "bevcask"), "task"],
            cwd=self.root,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    root = tmp_path / "a clone"  # the space is on purpose
    folder = tmp_path / "bin"
    root.mkdir()
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)
    shutil.copy(LAUNCHER, root / "bevcask")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("numpy==1.26.4\n")
    (tmp_path / "venv_python").write_text(VENV_PYTHON)
    (tmp_path / "venv_python").chmod(0o755)
    clone = Clone(root, folder, tmp_path / "calls")
    clone.add_python("python3.11", "3.11")
    return clone


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 30 s in vain")


def test_the_first_call_installs_with_constraints_and_hands_over(clone: Clone) -> None:
    done = clone.run("evaluate", "--cache", "a b")
    assert done.returncode == 0, done.stderr
    assert clone.pip_calls == ["pip -m pip install --disable-pip-version-check -c constraints.txt -e .[cpu,dev]"]
    assert done.stdout == f"invoke: -P -m invoke --search-root {clone.root} evaluate --cache a b\n"
    said = done.stderr.splitlines()
    assert len(said) == 2
    assert "first start" in said[0]
    assert "minutes" in said[0]


def test_a_second_call_installs_nothing_and_says_nothing(clone: Clone) -> None:
    clone.run("task")
    before = clone.calls
    done = clone.run("task")
    assert clone.calls == before
    assert done.stderr == ""


def test_the_exit_status_of_the_task_passes_through(clone: Clone) -> None:
    assert clone.run("task", FAKE_EXIT="7").returncode == 7
    assert clone.run("task", FAKE_EXIT="1").returncode == 1


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",), ("--list",)])
def test_without_a_task_it_lists_the_tasks_under_a_header(clone: Clone, arguments: tuple[str, ...]) -> None:
    lines = clone.run(*arguments).stdout.splitlines()
    assert lines[0].startswith("Bevcask")
    assert lines[-1].endswith("--list")


def test_help_of_a_task_goes_to_the_task(clone: Clone) -> None:
    assert clone.run("demo", "--help").stdout.endswith(" demo --help\n")


def test_it_is_found_through_a_symlink_from_another_folder(clone: Clone, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hop").symlink_to(os.path.relpath(clone.root / "bevcask", elsewhere))
    (elsewhere / "link").symlink_to("hop")
    done = subprocess.run(
        ["./link", "task"], cwd=elsewhere, env=clone.env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"--search-root {clone.root} task" in done.stdout
    assert (clone.root / ".venv").is_dir()
    assert not (elsewhere / ".venv").exists()


# ---------------------------------------------------------------- which python


def test_a_broken_shim_is_passed_over_quietly(clone: Clone) -> None:
    clone.add("python3.12", "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    done = clone.run("task")
    assert done.returncode == 0
    assert "pyenv" not in done.stderr
    assert clone.venv_calls == [f"venv {clone.bin / 'python3.11'}"]


def test_a_working_python_behind_a_broken_shim_of_the_same_name_is_found(clone: Clone, tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3.11").chmod(0o755)
    done = clone.run("task", PATH=f"{shims}:{clone.bin}")
    assert done.returncode == 0, done.stderr
    assert clone.venv_calls == [f"venv {clone.bin / 'python3.11'}"]


def test_python_3_12_comes_first(clone: Clone) -> None:
    clone.add_python("python3.12", "3.12")
    assert clone.run("task").returncode == 0
    assert clone.venv_calls == [f"venv {clone.bin / 'python3.12'}"]


def test_one_that_can_make_a_venv_comes_before_one_that_cannot(clone: Clone) -> None:
    clone.add_python("python3.12", "3.12", able="unable")
    assert clone.run("task").returncode == 0
    assert clone.venv_calls == [f"venv {clone.bin / 'python3.11'}"]


def test_a_missing_venv_module_is_one_line_naming_the_package(clone: Clone) -> None:
    clone.add_python("python3.11", "3.11", able="unable")
    done = clone.run("task")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "apt install python3.11-venv" in done.stderr
    assert not (clone.root / ".venv").exists()
    assert not (clone.root / ".venv.lock").exists()


def test_no_suitable_python_is_one_line_saying_what_to_install(clone: Clone) -> None:
    clone.add("python3.11", "#!/bin/sh\nexit 1\n")
    done = clone.run("task")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "3.11 or 3.12" in done.stderr
    assert "BEVCASK_PYTHON" in done.stderr


def test_the_version_bounds_are_those_of_pyproject() -> None:
    assert 'requires-python = ">=3.11,<3.13"' in (ROOT / "pyproject.toml").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 12)" in LAUNCHER.read_text()


def test_bevcask_python_overrides_and_a_change_makes_a_new_venv(clone: Clone) -> None:
    other = clone.add_python("other", "3.12")
    clone.run("task")
    assert clone.run("task", BEVCASK_PYTHON=str(other)).returncode == 0
    assert clone.venv_calls == [f"venv {clone.bin / 'python3.11'}", f"venv {other}"]
    clone.run("task", BEVCASK_PYTHON=str(other))
    clone.run("task")  # unset: whatever the .venv was made with
    assert len(clone.venv_calls) == 2


def test_a_bevcask_python_that_does_not_run_is_named(clone: Clone) -> None:
    done = clone.run("task", BEVCASK_PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "/nowhere/python" in done.stderr


def test_without_a_build_for_one_version_the_next_is_tried(clone: Clone) -> None:
    clone.add_python("python3.12", "3.12")
    # only the first install fails so
    pip = 'test -e "$FAKE_LOG.tried" || { : >"$FAKE_LOG.tried"; echo "ERROR: No matching distribution found"; exit 1; }'
    done = clone.run("task", FAKE_PIP=pip)
    assert done.returncode == 0, done.stderr
    assert clone.venv_calls == [f"venv {clone.bin / 'python3.12'}", f"venv {clone.bin / 'python3.11'}"]


# ---------------------------------------------------------------- which build


def test_cuda_where_nvidia_smi_answers_and_cpu_where_it_fails(clone: Clone) -> None:
    clone.add("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a card'\n")
    clone.run("task")
    assert clone.pip_calls[-1].endswith(".[cuda,dev]")
    shutil.rmtree(clone.root / ".venv")
    clone.add("nvidia-smi", "#!/bin/sh\necho 'no driver' >&2\nexit 9\n")
    clone.run("task")
    assert clone.pip_calls[-1].endswith(".[cpu,dev]")


def test_nvidia_smi_is_not_asked_again_once_installed(clone: Clone) -> None:
    clone.add("nvidia-smi", '#!/bin/sh\necho asked >>"$FAKE_LOG"\necho "GPU 0: a card"\n')
    clone.run("task")
    clone.run("task")
    assert clone.calls.count("asked") == 1


def test_the_build_can_be_chosen_and_a_change_makes_a_new_venv(clone: Clone) -> None:
    clone.run("task")
    clone.run("task", BEVCASK_EXTRA="cuda")
    assert clone.pip_calls[-1].endswith(".[cuda,dev]")
    assert len(clone.venv_calls) == 2
    assert clone.run("task", BEVCASK_EXTRA="tpu").returncode == 1


# ---------------------------------------------------------------- again, after a change or a failure


def test_changed_requirements_are_installed_into_the_same_venv(clone: Clone) -> None:
    clone.run("task")
    (clone.root / "constraints.txt").write_text("numpy==1.26.5\n")
    clone.run("task")
    assert len(clone.pip_calls) == 2
    assert len(clone.venv_calls) == 1


def test_a_moved_clone_makes_a_new_venv(clone: Clone, tmp_path: Path) -> None:
    clone.run("task")
    moved = Clone(clone.root.rename(tmp_path / "moved"), clone.bin, clone.calls_file)
    assert moved.run("task").returncode == 0
    assert len(moved.venv_calls) == 2


def test_a_venv_whose_python_has_gone_is_made_anew(clone: Clone) -> None:
    clone.run("task")
    (clone.root / ".venv/bin/python").unlink()
    assert clone.run("task").returncode == 0
    assert len(clone.venv_calls) == 2


def test_a_failed_install_says_what_to_do_and_is_retried(clone: Clone) -> None:
    done = clone.run("task", FAKE_PIP="echo 'ERROR: no route to host'; exit 1")
    assert done.returncode == 1
    assert "ERROR: no route to host" in done.stderr
    assert "run the same command again" in done.stderr
    assert done.stdout == ""
    assert clone.run("task").returncode == 0
    assert len(clone.pip_calls) == 2
    assert len(clone.venv_calls) == 2  # what a failed pip leaves is not trusted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_install_stops_pip_and_is_retried(clone: Clone, number: signal.Signals) -> None:
    running = clone.start(FAKE_PIP='echo $$ >"$FAKE_LOG.pid"; exec sleep 60')
    pid_file = Path(f"{clone.calls_file}.pid")
    wait_for(lambda: pid_file.exists() and pid_file.read_text().strip())
    running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert "interrupted" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not (clone.root / ".venv.lock").exists()
    assert clone.run("task").returncode == 0
    assert len(clone.pip_calls) == 2


def test_a_venv_made_by_hand_is_used_and_never_deleted(clone: Clone, tmp_path: Path) -> None:
    (clone.root / ".venv/bin").mkdir(parents=True)
    shutil.copy(tmp_path / "venv_python", clone.root / ".venv/bin/python")
    (clone.root / ".venv/mine").touch()
    assert clone.run("task", FAKE_PIP="exit 1").returncode == 1
    assert clone.run("task").returncode == 0
    assert (clone.root / ".venv/mine").exists()
    assert clone.venv_calls == []


def test_a_folder_named_venv_without_a_python_is_not_touched(clone: Clone) -> None:
    (clone.root / ".venv").mkdir()
    (clone.root / ".venv/mine").touch()
    done = clone.run("task")
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert (clone.root / ".venv/mine").exists()


# ---------------------------------------------------------------- two at once


def test_two_launchers_at_once_install_once(clone: Clone) -> None:
    first, second = clone.start(FAKE_PIP="sleep 2"), clone.start(FAKE_PIP="sleep 2")
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert all(out.startswith("invoke:") for out, _ in outputs)
    assert len(clone.pip_calls) == 1
    assert sum("waiting" in said for _, said in outputs) == 1


def test_the_lock_of_a_launcher_that_was_killed_is_taken_over(clone: Clone) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock = clone.root / ".venv.lock"
    lock.mkdir()
    (lock / "owner").write_text(f"{socket.gethostname()} {gone.pid}\n")
    done = clone.run("task")
    assert done.returncode == 0, done.stderr
    assert "waiting" not in done.stderr
    assert sorted(path.name for path in clone.root.glob(".venv.lock*")) == []


@pytest.mark.parametrize(("owner", "minutes"), [("", 3), ("another-machine 1", 180)])
def test_an_old_lock_whose_owner_cannot_be_asked_is_taken_over(clone: Clone, owner: str, minutes: int) -> None:
    lock = clone.root / ".venv.lock"
    lock.mkdir()
    (lock / "owner").write_text(owner)
    then = time.time() - 60 * minutes
    os.utime(lock, (then, then))
    assert clone.run("task").returncode == 0


def test_the_lock_of_a_launcher_that_lives_is_waited_for(clone: Clone) -> None:
    lock = clone.root / ".venv.lock"
    lock.mkdir()
    (lock / "owner").write_text(f"{socket.gethostname()} {os.getpid()}\n")
    waiting = clone.start()
    time.sleep(1.5)
    assert waiting.poll() is None
    assert clone.pip_calls == []
    shutil.rmtree(lock)
    _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 0
    assert "waiting" in said
