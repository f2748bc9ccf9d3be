"""One holder at a time of a folder: two commands, or a training and its orphan, must not write the same run.

The lock is the kernel's (flock) on a file in the folder, so that it is gone with its holder however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from cache.errors import ConfigError


@contextlib.contextmanager
def alone_in(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the folder, made where it is missing. wait: for another holder to end, else ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another command works in it; wait for its end, or choose another folder"
            ) from None
        yield
