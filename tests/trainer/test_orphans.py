"""A process whose parent is gone ends, also where the parent went before it could look."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHILD = """
import sys, time
sys.stdin.read()  # until the test says so
from trainer.orphans import end_with_parent
end_with_parent(0.05)
time.sleep(float(sys.argv[1]))
"""
PARENT = """
import os, signal, subprocess, sys
from trainer.orphans import started_from_here
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "60"], env={**os.environ, **started_from_here()})
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_parent_that_was_killed_while_its_child_was_still_loading_is_missed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None and parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.wait(30)
    parent.stdin.close()  # only now does the child look for its parent
    ends = time.monotonic() + 30
    while running(child) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not running(child)


def test_while_the_parent_lives_the_child_goes_on() -> None:
    code = "import os; from trainer.orphans import started_from_here; os.environ.update(started_from_here());"
    code += "import subprocess, sys;"
    code += "sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1], '1'], input=b'').returncode)"
    assert subprocess.run([sys.executable, "-c", code, CHILD], cwd=ROOT, check=False).returncode == 0


def running(process: int) -> bool:
    """Not a dead one that nobody has asked after."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
