"""Work done ahead in background threads: an iterator over results in order, with a bounded number and size of them.

Threads are enough because decoding, decompression and array work let go of the interpreter lock (measured against
processes in `./bevcask bench loader`), and there is nothing shared that a killed run could leave behind. An error of a
thread comes out where its result was due, with the shard file and frame that it was at; a thread that gets no further
is named by `stuck_s`; leaving the iterator early stops the threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

from cache.errors import BevcaskError, StoreError
from trainer.transfer import bytes_in
from trainer.watch import STAGES, LeftError, Present, Watch, watched

J = TypeVar("J")
R = TypeVar("R")

AHEAD_BYTES = 1 << 30
STUCK_S = 300.0
CLOSE_S = 10.0  # for threads to come to their next stage; those in a read that never ends are left behind, as daemons


class LeavingError(BevcaskError):
    """Nobody wants the batch that is due any more."""


class StuckError(StoreError):
    """A thread of the loader has been at one stage for too long."""


class Loader(Generic[J, R]):
    """Context manager and iterator: build(job) for every job, in order, read ahead within bounds.

    depth: results ahead at most; ahead_bytes: of their tensors, though one result is always made (the size of those
    under way is taken to be the largest so far); stuck_s: seconds at one stage after which the wait for a result ends
    with StuckError, None for never; leaving: asked while a result is waited for, which ends with LeavingError once it
    is true.

    stalled_s: seconds that the consumer has waited for results so far; stages: seconds of threads by stage, of the
    results that were handed out; most_ahead: the most bytes of finished results that waited.
    """

    def __init__(
        self,
        jobs: Iterable[J],
        build: Callable[[J], R],
        *,
        threads: int = 1,
        depth: int | None = None,
        ahead_bytes: int = AHEAD_BYTES,
        stuck_s: float | None = STUCK_S,
        leaving: Callable[[], bool] | None = None,
    ) -> None:
        self._jobs = iter(jobs)
        self._build = build
        self._depth = max(depth if depth is not None else 2 * threads, threads)
        self._ahead_bytes, self._stuck_s, self._leaving = ahead_bytes, stuck_s, leaving
        self._tasks: SimpleQueue[_Task[J, R] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"loader-{i}", daemon=True) for i in range(max(threads, 1))
        ]
        self._ahead: deque[_Task[J, R]] = deque()
        self._largest: int | None = None
        self._present = Present()
        self._stuck = False
        self.stalled_s = 0.0
        self.stages: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.most_ahead = 0

    def __enter__(self) -> Loader[J, R]:
        for thread in self._threads:
            thread.start()
        return self

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        while len(self._ahead) < self._depth and self._room():
            try:
                job = next(self._jobs)
            except StopIteration:
                break
            task: _Task[J, R] = _Task(job, Watch(self._present))
            self._ahead.append(task)
            self._tasks.put(task)
        if not self._ahead:
            raise StopIteration
        task = self._ahead[0]
        start = time.perf_counter()
        self._wait(task)
        self.stalled_s += time.perf_counter() - start
        self._ahead.popleft()
        if task.error is not None:
            raise task.error
        for name in STAGES:
            self.stages[name] += task.watch.seconds.get(name, 0.0)
        return task.results.pop()

    def _room(self) -> bool:
        """Whether one more result fits; one is always made, and before any is known one a thread."""
        if not self._ahead:
            return True
        finished = [task.size for task in self._ahead if task.done.is_set()]
        if finished:
            self._largest = max(self._largest or 0, *finished)
            self.most_ahead = max(self.most_ahead, sum(finished))
        if self._largest is None:
            return len(self._ahead) < len(self._threads)
        coming = len(self._ahead) - len(finished) + 1
        return sum(finished) + coming * self._largest <= self._ahead_bytes

    def _wait(self, task: _Task[J, R]) -> None:
        limit = self._stuck_s
        while not task.done.wait(1.0 if limit is None else min(limit / 4, 1.0)):
            if self._leaving is not None and self._leaving():
                raise LeavingError(f"left while the loader was at {task.watch.where()}")
            idle = time.monotonic() - task.watch.since
            if limit is not None and idle >= limit:
                self._stuck = True
                raise StuckError(
                    f"the loader is stuck: {idle:.0f} s at {task.watch.where()}; check that disk or network, or give "
                    "it more time with --stuck-after"
                )

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not task.watch.left:
                self._do(task)
            del task

    def _do(self, task: _Task[J, R]) -> None:
        try:
            with watched(task.watch):
                result = self._build(task.job)
                task.size = bytes_in(result)
                task.results.append(result)
                task.watch.enter("queued")
        except LeftError:
            pass
        except BaseException as error:
            _name_place(error, task.watch)
            task.error = error
        finally:
            task.done.set()

    def close(self) -> None:
        """Drops what is ahead and waits for the threads to end: they do at the next stage of what they build."""
        for task in self._ahead:
            task.watch.left = True
        for _ in self._threads:
            self._tasks.put(None)
        ends = time.monotonic() + (CLOSE_S if not self._stuck else 0.2)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(ends - time.monotonic(), 0.0))
        self._ahead.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Task(Generic[J, R]):
    """A job, and what became of it. results: one, until it is handed out; size: its tensors' bytes."""

    def __init__(self, job: J, watch: Watch) -> None:
        self.job, self.watch = job, watch
        self.done = threading.Event()
        self.results: list[R] = []
        self.size = 0
        self.error: BaseException | None = None


def _name_place(error: BaseException, watch: Watch) -> None:
    """Adds to an error the shard file and frame that its thread was at, unless it says so itself."""
    place: Any = watch.place
    if place is None:
        return
    text = str(error)
    if not isinstance(error, BevcaskError):
        error.add_note(f"the loader was at {watch.where()}")
    elif place.file not in text or place.store.token(place.row) not in text:
        error.args = (f"{text} (the loader was at {watch.where()})",)
