"""The claim that freed memory stays: large blocks are cleared and mapped by the kernel once, not at every pass."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from models.freed_memory import keep_freed_memory
if sys.argv[2] == "keep" and not keep_freed_memory():
    sys.exit("refused")
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100_000_000, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_large_block_is_mapped_once() -> None:
    last = {}
    for how in ("leave", "keep"):
        command = [sys.executable, "-c", SCRIPT, str(ROOT), how]
        environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}  # no malloc settings of the caller's
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        last[how] = int(done.stdout)
    # with huge pages there are as few as 48 for 100 MB
    assert last["leave"] > 20 and last["keep"] < last["leave"] / 10, last
