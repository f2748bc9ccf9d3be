"""Trainings of several processes for proofs and tests: started, watched through their logs, killed, each with a time
limit and none left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.metrics import read_metrics
from trainer.run_files import METRICS

ROOT = Path(__file__).parent.parent
_KEPT_OUT = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in _KEPT_OUT},
    "PYTHONPATH": str(ROOT),
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


class NoEndError(Exception):
    """A command that did not end, or not become ready, in its time; it is killed."""


def torchrun(processes: int, module: str, *arguments: str) -> list[str]:
    """The command that runs a module as so many ranks of this machine."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*agent, "-m", module, *arguments]


def training(processes: int, recipe: Path, cache: Path, run: Path, *more: str) -> list[str]:
    """The command that trains with so many ranks."""
    where = ["--recipe", str(recipe), "--cache", str(cache), "--run-dir", str(run), "--threads", "1"]
    return torchrun(processes, "trainer.main", *where, *more)


def run_to_end(command: Sequence[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """The command's status and words; NoEndError, and its whole process group killed, where it takes longer."""
    process = start(command)
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise NoEndError(f"no end within {limit_s} s: {' '.join(command)}\n{out[-2000:]}{err[-4000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_until(
    command: Sequence[str], ready: Callable[[], bool], number: signal.Signals, limit_s: float
) -> subprocess.CompletedProcess[str]:
    """Sends a signal once `ready`: SIGKILL to the whole process group, as a machine dies; any other to the command
    itself. Then its status and words. NoEndError where one or the other takes too long."""
    process, ends = start(command), time.monotonic() + limit_s
    try:
        while not ready():
            if process.poll() is not None or time.monotonic() > ends:
                os.killpg(process.pid, signal.SIGKILL)
                raise NoEndError(f"not ready: {process.communicate()[1][-4000:]}")
            time.sleep(0.05)
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=max(ends - time.monotonic(), 1.0))
    except BaseException:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start(command: Sequence[str], log: Path | None = None) -> subprocess.Popen[str]:
    """The command in a process group of its own; log: a file for its words, else they are piped."""
    with contextlib.ExitStack() as stack:
        where: Any = stack.enter_context(log.open("ab")) if log is not None else subprocess.PIPE
        words = {"stdout": where, "stderr": where, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **words)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a started command and all that it started, as when a machine dies."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def steps_logged(run: Path) -> int:
    """How many steps a run's log tells of; every step has a line where log_every = 1."""
    log = run / METRICS
    return len(read_metrics(log)) if log.is_file() else 0


def processes_of(text: str) -> list[int]:
    """Processes whose command line has `text` in it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if text in words:
            found.append(int(folder.name))
    return found


def ownerless_shared_memory() -> list[str]:
    """Names of what lies in shared memory and is of no process that lives."""
    shared = Path("/dev/shm")
    names = [path.name for path in shared.iterdir()] if shared.is_dir() else []
    return [name for name in names if not any(Path("/proc", n).exists() for n in re.findall(r"\d+", name))]
