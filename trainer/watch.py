"""What a background thread is at while it builds a batch: stage, shard file and frame, and how long each stage took.

Whoever waits for the batch reads it (`trainer.loader`). Code that is watched marks its stages with `stage("decode")`;
reads of stores mark themselves. A change of stage costs a microsecond; where nobody watches, nothing is kept.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from cache.errors import CorruptError
from cache.reader import Place
from cache.reads import observed_reads

Stage = Literal["queued", "build", "read", "decode", "augment", "collate"]
STAGES: tuple[Stage, ...] = ("read", "decode", "augment", "collate")
PRESENT_S = 2.0  # a file's name is looked at so often


class LeftError(BaseException):
    """Nobody waits for the result any more. No Exception, so that nothing on the way takes it for a failed read."""


class Watch:
    """One job's. stage, since: at what it is, by time.monotonic(); place: the last read; seconds: by finished stage."""

    def __init__(self, present: Present | None = None) -> None:
        self.stage: Stage = "queued"
        self.since = time.monotonic()
        self.place: object = None
        self.seconds: dict[str, float] = defaultdict(float)
        self.left = False
        self._present = present
        self._outer: Stage = "queued"

    def enter(self, stage: Stage) -> Stage:
        """Begins a stage, and gives the one that it interrupts. LeftError where nobody waits any more."""
        if self.left:
            raise LeftError
        now, before = time.monotonic(), self.stage
        self.seconds[before] += now - self.since
        self.stage, self.since = stage, now
        return before

    def begins(self, place: object) -> None:
        """As `cache.reads.ReadObserver`."""
        self.place = place
        self._outer = self.enter("read")
        if self._present is not None and isinstance(place, Place):
            self._present.require(place)

    def ends(self) -> None:
        self.enter(self._outer)

    def where(self) -> str:
        """Stage and place in words."""
        return f"stage {self.stage}, {self.place or 'before the first read'}"


class Present:
    """Looks, now and then, whether shard files that are open still have their names. Shared by a loader's threads.

    A deleted file that is open can be read on, but no other process and no later start of the run will find it.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}

    def require(self, place: Place) -> None:
        """CorruptError where the file of `place` is gone from a local folder."""
        name = place.file
        key, now = (str(place.store.root), name), time.monotonic()
        if now - self._seen.get(key, -PRESENT_S) < PRESENT_S:
            return
        path = place.store.root.local_path(name)
        if path is not None and not path.exists():
            raise CorruptError(f"{place}: that file was deleted; restore it or run the caching command again")
        self._seen[key] = now


class _Own(threading.local):
    watch: Watch | None = None


_OWN = _Own()


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Inside, this thread's stages and reads are told to `watch`."""
    _OWN.watch = watch
    watch.enter("build")
    try:
        with observed_reads(watch):
            yield
    finally:
        _OWN.watch = None


@contextlib.contextmanager
def stage(name: Stage) -> Iterator[None]:
    """A stage of what this thread builds, without the stages inside it."""
    watch = _OWN.watch
    if watch is None:
        yield
        return
    before = watch.enter(name)
    yield
    watch.enter(before)  # after an error the stage stays: it is the one to be named
