"""Work done ahead in background threads: an iterator over results in order, with a bounded number of them in flight.

Threads are enough because decoding, decompression and array work let go of the interpreter lock. An error of a thread
comes out where its result was due; leaving the iterator early stops the threads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")


class Loader(Generic[J, R]):
    """Context manager and iterator: build(job) for every job, in order, at most `depth` results ahead.

    stalled_s: seconds that the consumer has waited for results so far.
    """

    def __init__(self, jobs: Iterable[J], build: Callable[[J], R], *, threads: int = 1, depth: int = 3) -> None:
        self._jobs = iter(jobs)
        self._build = build
        self._depth = max(depth, threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._ahead: deque[Future[R]] = deque()
        self.stalled_s = 0.0

    def __enter__(self) -> Loader[J, R]:
        return self

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        while len(self._ahead) < self._depth and (job := next(self._jobs, _END)) is not _END:
            self._ahead.append(self._pool.submit(self._build, job))  # type: ignore[arg-type]
        if not self._ahead:
            raise StopIteration
        start = time.perf_counter()
        result = self._ahead.popleft().result()
        self.stalled_s += time.perf_counter() - start
        return result

    def close(self) -> None:
        """Drops what is ahead and waits for the threads to end."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_END = object()
