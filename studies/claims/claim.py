"""A claim, and the means that several of them use: a clean clone, a task run in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.errors import BevcaskError

ROOT = Path(__file__).parent.parent.parent
REAL_ROOT = ROOT.parent / "shared" / "data" / "nuscenes-keyframe-a"
SHIPPED, ASIDE = "models/checkpoints/demo-teacher.safetensors", "demo-teacher.aside"


class NotHeldError(BevcaskError):
    """A claim that does not hold; the message says what was found and what was claimed."""


@dataclass(frozen=True)
class Claim:
    """One thing that must hold: its part and name, a time limit, and a function (work folder) -> the figure seen."""

    part: int
    name: str
    limit_s: int
    check: Callable[[Path], str]


def expect(held: bool, found: str, claimed: str) -> str:
    """`found` where it held, else NotHeldError."""
    if not held:
        raise NotHeldError(f"found {found}, claimed {claimed}")
    return found


def clean_clone(work: Path) -> Path:
    """A clone of HEAD in `work` without .venv, made once per commit."""
    clone = work / f"clone-{commit()[:12]}"
    if not clone.is_dir():
        for old in work.glob("clone-*"):
            shutil.rmtree(old)
        partial = clone.with_name("partial-clone")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", str(ROOT), str(partial)], check=True)
        partial.rename(clone)
    if (clone / ASIDE).is_file():  # left by a claim that was killed
        (clone / ASIDE).rename(clone / SHIPPED)
    return clone


def timed_task(clone: Path, *arguments: str) -> tuple[float, str]:
    """Seconds and output of `./bevcask ...` in the clone; NotHeldError with the last lines where it fails."""
    start = time.monotonic()
    environment = {**os.environ, "BEVCASK_REAL_DATA": str(REAL_ROOT)}  # the clone does not lie beside the data
    command = ["./bevcask", *arguments]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, env=environment)
    seconds = time.monotonic() - start
    if done.returncode:
        raise NotHeldError(
            f"./bevcask {' '.join(arguments)} ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
        )
    return seconds, done.stdout


def commit(*, tell_dirty: bool = False) -> str:
    """HEAD, so that a result belongs to a state of the code; claims run on what is committed. tell_dirty: with `-dirty`
    behind it where tracked files differ from it."""
    dirty = ["--dirty"] if tell_dirty else []
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", *dirty]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no-git"
