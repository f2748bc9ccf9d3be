"""The Dask engine: order of results, errors of tasks, and a cluster that is not there."""

from __future__ import annotations

from typing import Any

import pytest

from cache.errors import BevcaskError, DataError
from pipeline.engine import run_shards


def echo(number: int) -> dict[str, Any]:
    return {"frames": number, "bytes": 0, "quarantined": 0}


def fail_on_three(number: int) -> dict[str, Any]:
    if number == 3:
        raise DataError("shard 3: what was found, what to do")
    return echo(number)


class Collect:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def advance(self, summary: dict[str, Any]) -> None:
        self.seen.append(summary["frames"])


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_jobs_and_progress_sees_each_once(workers: int) -> None:
    progress = Collect()
    results = run_shards(echo, [(n,) for n in range(6)], workers=workers, progress=progress)
    assert [r["frames"] for r in results] == list(range(6))
    assert sorted(progress.seen) == list(range(6))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_reaches_the_caller_with_its_message(workers: int) -> None:
    with pytest.raises(DataError, match="shard 3: what was found"):
        run_shards(fail_on_three, [(n,) for n in range(5)], workers=workers)


def test_no_jobs_start_no_cluster() -> None:
    assert run_shards(echo, [], workers=2) == []


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    with pytest.raises(BevcaskError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run_shards(echo, [(1,)], scheduler="tcp://127.0.0.1:9")
