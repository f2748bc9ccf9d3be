"""How a run's batches are read, which changes nothing of what it trains on: threads, read-ahead, patience.

Asked by environment, as the local cache is, so that it reaches the ranks of a torchrun as well: BEVCASK_LOADER_THREADS,
BEVCASK_READ_AHEAD (`1GiB`), BEVCASK_STUCK_AFTER (seconds; 0: never).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from cache.errors import ConfigError
from cache.read_through import bytes_of
from trainer.loader import AHEAD_BYTES, STUCK_S, Loader
from trainer.watch import STAGES

J = TypeVar("J")
R = TypeVar("R")

THREADS, READ_AHEAD, STUCK_AFTER = "BEVCASK_LOADER_THREADS", "BEVCASK_READ_AHEAD", "BEVCASK_STUCK_AFTER"


@dataclass(frozen=True)
class LoaderOptions:
    """threads: that build batches, None for the trainer's choice; ahead_bytes: of tensors read ahead; stuck_s: seconds
    at one stage after which a run ends, None for never."""

    threads: int | None = None
    ahead_bytes: int = AHEAD_BYTES
    stuck_s: float | None = STUCK_S


def loader_options() -> LoaderOptions:
    """What the environment asks for. ConfigError where a value is none."""
    threads, ahead, stuck = (os.environ.get(name, "") for name in (THREADS, READ_AHEAD, STUCK_AFTER))
    try:
        count, seconds = int(threads or 0), float(stuck or STUCK_S)
    except ValueError:
        raise ConfigError(f"{THREADS} {threads!r}, {STUCK_AFTER} {stuck!r}: expected numbers") from None
    if count < 0 or not 0 <= seconds < float("inf"):
        raise ConfigError(f"{THREADS} {count}, {STUCK_AFTER} {seconds:g}: expected 0 or more")
    return LoaderOptions(count or None, bytes_of(ahead) if ahead else AHEAD_BYTES, seconds or None)


def loader_of(
    jobs: Iterable[J], build: Callable[[J], R], options: LoaderOptions, leaving: Callable[[], bool] | None = None
) -> Loader[J, R]:
    """A loader under these options; leaving: see `Loader`."""
    return Loader(
        jobs,
        build,
        threads=options.threads or 1,
        ahead_bytes=options.ahead_bytes,
        stuck_s=options.stuck_s,
        leaving=leaving,
    )


class Reading:
    """What a loader's stages have taken since it was last asked, for a line of the log."""

    def __init__(self, loader: Loader[Any, Any]) -> None:
        self._loader, self._told = loader, dict.fromkeys((*STAGES, "wait"), 0.0)

    def window(self) -> dict[str, float]:
        """Seconds by stage, of all threads together, and `wait`, for which training stood still."""
        now = {**self._loader.stages, "wait": self._loader.stalled_s}
        since = {name: round(now[name] - before, 4) for name, before in self._told.items()}
        self._told = now
        return since


def use_loader_options(threads: str | None, read_ahead: str | None, stuck_after: str | None) -> None:
    """Sets the options of this process and those it starts; what is None stays as it was. ConfigError as
    `loader_options`."""
    for name, value in ((THREADS, threads), (READ_AHEAD, read_ahead), (STUCK_AFTER, stuck_after)):
        if value is not None:
            os.environ[name] = str(value)
    loader_options()
