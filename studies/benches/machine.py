"""What a benchmark ran on: processor, cores, memory, versions. Nothing that names the host."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.engine import default_workers

VERSIONS = ("torch", "numpy", "numcodecs", "opencv-python-headless")


def machine() -> dict[str, Any]:
    """Processor model, cores that this process may use, memory in GB, system, Python and package versions."""
    return {
        "cpu": _cpu_model(),
        "cores": default_workers(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in VERSIONS},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
