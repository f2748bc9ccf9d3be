"""Which read of a store a thread is at, told to whoever watches that thread: a loader that must name what is stuck.

An observer is a thread's own. Without one a read costs nothing more; with one, a microsecond.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol


class ReadObserver(Protocol):
    """Told of every ranged read of the thread that it observes."""

    def begins(self, place: object) -> None:
        """A read begins; str(place) names file, frame and field. What it raises ends the read."""

    def ends(self) -> None:
        """It is over. Not told after an error, so that the place of that stays known."""


class _Own(threading.local):
    observer: ReadObserver | None = None


_OWN = _Own()


@contextlib.contextmanager
def observed_reads(observer: ReadObserver) -> Iterator[None]:
    """Inside, every store's reads of this thread are told to `observer`."""
    before, _OWN.observer = _OWN.observer, observer
    try:
        yield
    finally:
        _OWN.observer = before


def read_observer() -> ReadObserver | None:
    """Of this thread."""
    return _OWN.observer
