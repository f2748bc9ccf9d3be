from __future__ import annotations

import threading
import time

import pytest

from trainer.loader import Loader


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_whatever_the_threads(threads: int) -> None:
    def build(job: int) -> int:
        time.sleep(0.002 * (job % 3))
        return job * job

    with Loader(range(30), build, threads=threads) as loader:
        assert list(loader) == [job * job for job in range(30)]
    assert loader_threads() == []


def test_never_more_than_depth_results_ahead() -> None:
    started: list[int] = []
    with Loader(range(100), lambda job: started.append(job) or job, depth=3) as loader:
        assert next(loader) == 0
        time.sleep(0.05)
        assert len(started) <= 3
        assert next(loader) == 1
        time.sleep(0.05)
        assert len(started) <= 4


def test_an_error_of_a_thread_is_raised_where_its_result_was_due() -> None:
    def build(job: int) -> int:
        if job == 4:
            raise ValueError("frame 4 is bad")
        return job

    got: list[int] = []
    with Loader(range(10), build) as loader, pytest.raises(ValueError, match="frame 4"):
        got.extend(loader)
    assert got == [0, 1, 2, 3]
    assert loader_threads() == []


def test_leaving_early_stops_the_threads() -> None:
    with Loader(iter(int, 1), lambda job: job, threads=2) as loader:
        next(loader)
    assert loader_threads() == []


def test_stall_is_the_time_the_consumer_waited() -> None:
    with Loader(range(4), lambda job: time.sleep(0.05), depth=1) as slow:
        list(slow)
    with Loader(range(4), lambda job: None) as fast:
        for _ in fast:
            time.sleep(0.01)
    assert slow.stalled_s > 0.15
    assert fast.stalled_s < slow.stalled_s
