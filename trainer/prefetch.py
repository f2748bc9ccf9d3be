"""Shards of the coming steps, fetched whole into the local cache before the loader's threads ask for them.

For stores behind a network that are read through a local cache (`cache.read_through`); others are read where they are.
One thread goes along the run's order, as far ahead as half of the cache's limit holds, so that what it fetches does not
drive out what training reads. What fails here is tried again, and told, by the read that needs it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from cache.errors import BevcaskError
from cache.read_through import ReadThrough
from cache.store import Store

SHARE = 0.5  # of the cache's limit: the rest holds the shards of the steps before
CLOSE_S = 10.0


@dataclass(frozen=True)
class ShardFile:
    """An object of a root that is read through the local cache. size: bytes."""

    root: ReadThrough
    name: str
    size: int

    @property
    def key(self) -> tuple[str, str]:
        return self.root.url, self.name


def files_through_cache(store: Store, rows: Iterable[int], fields: Iterable[str]) -> list[ShardFile]:
    """The shard files, each once, that hold these fields of these rows; none where the store is read in place."""
    root = store.root
    if not isinstance(root, ReadThrough):
        return []
    wanted = set(fields)
    places = [place for place, spec in enumerate(store.manifest.fields) if spec.name in wanted]
    shards = {int(store.index.shard[row]) for row in rows}
    files = [store.manifest.shards[shard].file_of(place) for shard in shards for place in places]
    return [ShardFile(root, name, size) for name, size in sorted({file.name: file.size for file in files}.items())]


class Prefetcher:
    """Context manager; steps: (number, files that it reads) in order, from the first that is trained on."""

    def __init__(self, steps: Iterator[tuple[int, list[ShardFile]]], limit_bytes: int) -> None:
        self._steps, self._room = steps, int(SHARE * limit_bytes)
        self._ahead: deque[tuple[int, list[ShardFile]]] = deque()
        self._changed = threading.Condition()
        self._reached, self._ends = -1, False
        self.fetched = 0
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def reached(self, step: int) -> None:
        """Training has the batch of `step`: what it and those before it read may make room."""
        with self._changed:
            self._reached = step
            self._changed.notify_all()

    def _run(self) -> None:
        for step, files in self._steps:
            if not self._wait_for_room(step, files):
                return
            for file in files:
                if self._ends:
                    return
                with contextlib.suppress(BevcaskError, OSError):
                    found = file.root.open_file(file.name)
                    found.close()
                    self.fetched += 1

    def _wait_for_room(self, step: int, files: list[ShardFile]) -> bool:
        """Waits until the files of all steps that training has not reached fit; those of one step always go."""
        with self._changed:
            while not self._ends:
                while self._ahead and self._ahead[0][0] <= self._reached:
                    self._ahead.popleft()
                held = {file.key: file.size for _, of_step in self._ahead for file in of_step}
                held |= {file.key: file.size for file in files}
                if not self._ahead or sum(held.values()) <= self._room:
                    self._ahead.append((step, files))
                    return True
                self._changed.wait()
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
