"""A run's checkpoints: the last `keep` of them, of which a resumed run takes the newest that is whole.

They lie at <run>/checkpoints/step-<steps done>.safetensors, each under a checksum of all its bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cache.errors import CorruptError
from cache.files import PARTIAL
from trainer.checkpoint import read_checkpoint
from trainer.run_files import CHECKPOINTS

_NAME = re.compile(r"step-\d{8,}\.safetensors")


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that is whole; passed_over: what is wrong with newer ones, in words."""

    path: Path
    data: bytes
    passed_over: tuple[str, ...] = ()


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run_dir / CHECKPOINTS / f"step-{step:08d}.safetensors"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, newest first; none where there is no run."""
    named = [path for path in (run_dir / CHECKPOINTS).glob("*") if _NAME.fullmatch(path.name)]
    return sorted(named, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    """How many steps had been taken, by the file's name."""
    return int(path.name.removeprefix("step-").removesuffix(".safetensors"))


def newest_whole(run_dir: Path) -> Found | None:
    """The checkpoint to go on from; None where the run has none. CorruptError where none of them is whole."""
    wrong = list[str]()
    for path in list_checkpoints(run_dir):
        try:
            return Found(path, read_checkpoint(path), tuple(wrong))
        except CorruptError as error:
            wrong.append(str(error))
    if wrong:
        raise CorruptError(f"none of the run's checkpoints is whole: {'; '.join(wrong)}; remove {run_dir}, train again")
    return None


def remove_partials(run_dir: Path) -> None:
    """Removes what processes that were killed while they wrote a checkpoint have left: each as large as one."""
    for left in (run_dir / CHECKPOINTS).glob(f"*{PARTIAL}"):
        left.unlink(missing_ok=True)


def prune(run_dir: Path, keep: int, step: int) -> None:
    """Removes all but the last `keep` up to `step`. Newer ones do not count: they are those that a resumed run has
    passed over, and comes to again."""
    for path in [path for path in list_checkpoints(run_dir) if _step_of(path) <= step][keep:]:
        path.unlink(missing_ok=True)
