"""Dask as the engine: one task is one shard, which returns only a small summary; the client shows progress.

A LocalCluster of one-thread processes by default, any running cluster by its address, or plain calls in this process
for one worker (tests, debuggers). Tasks are idempotent, so a lost worker's shard simply runs again.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from dask.distributed import Client, KilledWorker, LocalCluster, as_completed

from cache.errors import BevcaskError

RETRIES = 2


class Progress(Protocol):
    """What the client tells of a run as shards finish."""

    def advance(self, summary: dict[str, Any]) -> None:
        """Called once per finished shard with its summary: frames, bytes, quarantined."""


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_shards(
    task: Callable[..., dict[str, Any]],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Runs task(*job) for every job and returns the summaries in the order of jobs.

    workers: processes of the local cluster (default: one per core; 1 runs here without Dask). scheduler: address of a
    running cluster instead. Raises the first task's error after cancelling the rest; committed shards stay.
    """
    workers = default_workers() if workers is None else workers
    if not jobs:
        return []
    if scheduler is None and (workers <= 1 or len(jobs) == 1):
        results = []
        for job in jobs:
            results.append(task(*job))
            if progress:
                progress.advance(results[-1])
        return results
    with _client(scheduler, min(workers, len(jobs))) as client:
        futures = [client.submit(task, *job, retries=RETRIES, pure=False) for job in jobs]
        order = {future.key: i for i, future in enumerate(futures)}
        summaries: dict[int, dict[str, Any]] = {}
        try:
            for future in as_completed(futures):
                summary = future.result()
                summaries[order[future.key]] = summary
                if progress:
                    progress.advance(summary)
        except KilledWorker as error:
            client.cancel(futures)
            raise BevcaskError(
                f"workers died again and again on one shard ({error}); look for out-of-memory kills, lower --workers, "
                "and run the same command again: committed shards are kept"
            ) from None
        except BaseException:
            client.cancel(futures)
            raise
        return [summaries[i] for i in range(len(jobs))]


@contextlib.contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator[Client]:
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise BevcaskError(
                f"no Dask scheduler answers at {scheduler} ({error}); start one or drop --scheduler"
            ) from None
        with client:
            yield client
        return
    # INFO lines of scheduler and workers are noise beside a progress bar
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
