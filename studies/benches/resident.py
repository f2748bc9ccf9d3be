"""A process's resident memory as Linux counts it: now, and the most so far.

Not by getrusage: its maximum is inherited from the process that started this one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cache.errors import BevcaskError


def resident(process: int | None = None) -> int:
    """Bytes of a process's memory that are in RAM now; None is this one."""
    return _status("VmRSS", process)


def peak_resident() -> int:
    """The most bytes that this process has had in RAM."""
    return _status("VmHWM", None)


def _status(name: str, process: int | None) -> int:
    path = Path(f"/proc/{process or os.getpid()}/status")
    try:
        found = re.search(rf"(?m)^{name}:\s+(\d+) kB$", path.read_text())
    except OSError:
        found = None
    if found is None:
        raise BevcaskError(f"{path} tells no {name}: memory is measured on Linux only")
    return int(found[1]) * 1024
