"""Real processes for the trainer's tests: modules under torchrun, each with a time limit, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "PYTHONPATH": str(ROOT),
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def torchrun(processes: int, module: str, *arguments: str) -> list[str]:
    """The command that runs a module as so many ranks of this machine."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*agent, "-m", module, *arguments]


def training(processes: int, recipe: Path, cache: Path, run: Path, *more: str) -> list[str]:
    """The command that trains with so many ranks."""
    where = ["--recipe", str(recipe), "--cache", str(cache), "--run-dir", str(run), "--threads", "1"]
    return torchrun(processes, "trainer.main", *where, *more)


def run_to_end(command: Sequence[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """The command's status and words; its whole process group is killed where it takes longer, which fails the test."""
    process = _start(command)
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"no end within {limit_s} s: {' '.join(command)}\n{out[-2000:]}{err[-4000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_until(
    command: Sequence[str], ready: Callable[[], bool], number: signal.Signals, limit_s: float
) -> subprocess.CompletedProcess[str]:
    """Sends a signal once `ready`: SIGKILL to the whole process group, as a machine dies; any other to the command
    itself. Then its status and words."""
    process, ends = _start(command), time.monotonic() + limit_s
    try:
        while not ready():
            if process.poll() is not None or time.monotonic() > ends:
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f"not ready: {process.communicate()[1][-4000:]}")
            time.sleep(0.05)
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=max(ends - time.monotonic(), 1.0))
    except BaseException:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


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
