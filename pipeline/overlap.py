"""Three stages of a task side by side: bring what is next, compute, put away what is done.

The computing stage stays in the caller's thread (autocast and inference mode belong to a thread), the other two have
one each. At most `depth` items wait before and behind it, so memory is bounded and a slow stage holds the others back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

STAGES = ("read", "forward", "write", "wait_read", "wait_write")


def overlap(
    source: Iterable[A], compute: Callable[[A], B], put: Callable[[B], None], *, depth: int = 2
) -> dict[str, float]:
    """put(compute(item)) for every item of `source`, in order. Returns seconds by STAGES: at work in each stage, and
    that the computing stage waited for the one before and the one behind it.

    An error of any stage is raised here, after the others have finished the item that they were at.
    """
    seconds = dict.fromkeys(STAGES, 0.0)
    items = iter(source)

    def timed(stage: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            seconds[stage] += time.perf_counter() - start

    failed = threading.Event()

    def put_unless_failed(item: B) -> None:
        if failed.is_set():
            return  # the error of an earlier item is on its way
        try:
            put(item)
        except BaseException:
            failed.set()
            raise

    bring, away = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    ahead: deque[Future[Any]] = deque()
    behind: deque[Future[Any]] = deque()
    try:
        for _ in range(depth):
            ahead.append(bring.submit(timed, "read", next, items, _END))
        while (item := timed("wait_read", ahead.popleft().result)) is not _END:
            ahead.append(bring.submit(timed, "read", next, items, _END))
            done = timed("forward", compute, item)
            behind.append(away.submit(timed, "write", put_unless_failed, done))
            while behind and (len(behind) > depth or behind[0].done()):
                timed("wait_write", behind.popleft().result)
        while behind:
            timed("wait_write", behind.popleft().result)
    finally:
        for pool in (bring, away):
            pool.shutdown(wait=True, cancel_futures=True)
    return seconds


_END = object()
