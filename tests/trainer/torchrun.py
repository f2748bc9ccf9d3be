"""Real processes for the trainer's tests: modules under torchrun, each with a time limit, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
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


def run_to_end(command: Sequence[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """The command's status and words; its whole process group is killed where it takes longer, which fails the test."""
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"no end within {limit_s} s: {' '.join(command)}\n{out[-2000:]}{err[-4000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
