"""Dask as the engine: one task is one shard, which returns only a small summary; the client shows progress.

A LocalCluster of one-thread processes by default, any running cluster by its address, or plain calls in this process
for one worker (tests, debuggers). Tasks are idempotent, so a lost worker's shard simply runs again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol

import dask
from dask.distributed import (
    Client,
    KilledWorker,
    LocalCluster,
    Nanny,
    Scheduler,
    SpecCluster,
    as_completed,
    performance_report,
)

from cache.errors import BevcaskError, ConfigError

RETRIES = 2
# Of what scheduler and workers log: INFO is noise beside a progress bar, and a task's error reaches the client, which
# says it in one line; workers would print its traceback once a retry before that.
SILENT = logging.CRITICAL
KINDS = ("local", "slurm")


@dataclass(frozen=True)
class Cluster:
    """Where tasks run. scheduler: address of a running cluster; kind: "local" or "slurm" (dask-jobqueue, configured by
    its own jobqueue.yaml); report: where Dask's HTML report of the run goes."""

    scheduler: str | None = None
    kind: str = "local"
    report: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"--cluster {self.kind!r} is unknown, expected one of {', '.join(KINDS)}")
        if self.scheduler and self.kind != "local":
            raise ConfigError(f"--scheduler {self.scheduler} and --cluster {self.kind}: give one of the two")
        if self.report and not find_spec("bokeh"):
            raise ConfigError("--performance-report needs bokeh; run: pip install -c constraints.txt -e '.[dashboard]'")


class Progress(Protocol):
    """What the client tells of a run as shards finish."""

    def advance(self, summary: dict[str, Any]) -> None:
        """Called once per finished shard with its summary: frames, bytes, quarantined."""

    def note(self, text: str) -> None:
        """A line for the person who watches."""


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_shards(
    task: Callable[..., dict[str, Any]],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int | None = None,
    cluster: Cluster | None = None,
    gpus: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Runs task(*job) for every job and returns the summaries in the order of jobs.

    workers: processes (default: one per core, or per entry of `gpus`; 1 runs here without Dask). cluster: where, a
    local cluster by default. gpus: what CUDA_VISIBLE_DEVICES is to be for each local worker, in turn. Raises the first
    task's error after cancelling the rest; committed shards stay.
    """
    cluster = cluster or Cluster()
    if workers is None:
        workers = len(gpus) or default_workers()
    if not jobs:
        return []
    if cluster == Cluster() and (workers <= 1 or len(jobs) == 1):
        results = []
        for job in jobs:
            results.append(task(*job))
            if progress:
                progress.advance(results[-1])
        return results
    with _client(cluster, min(workers, len(jobs)), gpus) as client, _report(cluster.report):
        if progress and find_spec("bokeh"):
            progress.note(f"Dask dashboard: {client.dashboard_link}")
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
def _client(cluster: Cluster, workers: int, gpus: Sequence[str]) -> Iterator[Client]:
    if cluster.scheduler is not None:
        try:
            client = Client(cluster.scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise BevcaskError(
                f"no Dask scheduler answers at {cluster.scheduler} ({error}); start one or drop --scheduler"
            ) from None
        with client:
            yield client
        return
    with contextlib.ExitStack() as ending:
        with _interrupts_held():
            started = ending.enter_context(_started(cluster, workers, gpus))
        yield ending.enter_context(Client(started))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of this; processes that are started here never hear it, nor do those which the threads
    started here start later. A terminal's Ctrl-C reaches every process of a run: the client alone is to answer it."""
    resource_tracker.ensure_running()  # it unblocks the signal when it starts, in the thread that starts a process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _started(cluster: Cluster, workers: int, gpus: Sequence[str]) -> Any:
    """A cluster of our own with so many one-thread workers; it ends with its context."""
    if cluster.kind == "slurm":
        return slurm_cluster(workers)
    if not gpus:
        return LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=SILENT
        )
    specs = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "env": {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]},
                "silence_logs": SILENT,
            },
        }
        for number in range(workers)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    return SpecCluster(specs, scheduler, silence_logs=SILENT)


def slurm_cluster(workers: int) -> Any:
    """A dask-jobqueue cluster that has submitted `workers` jobs of one process each; partition, memory, time limit and
    GPUs come from dask-jobqueue's configuration (`jobqueue.slurm`). ConfigError where the package is missing."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ConfigError(
            "--cluster slurm needs dask-jobqueue; run: pip install -c constraints.txt -e '.[slurm]'"
        ) from None
    try:
        cluster = SLURMCluster(
            cores=1, processes=1, scheduler_options={"dashboard_address": ":0"}, silence_logs="error", **_slurm_memory()
        )
    except ValueError as error:
        raise ConfigError(f"--cluster slurm: {error}; set jobqueue.slurm in ~/.config/dask/jobqueue.yaml") from None
    cluster.scale(jobs=workers)
    return cluster


def _slurm_memory() -> dict[str, str]:
    """A job's memory where the configuration names none."""
    return {} if dask.config.get("jobqueue.slurm.memory", None) else {"memory": "16GB"}


def _report(path: Path | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if path is None else performance_report(filename=str(path))
