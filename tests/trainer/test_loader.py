from __future__ import annotations

import threading
import time

import pytest
import torch

from trainer.loader import Loader, StuckError
from trainer.watch import stage


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


def test_read_ahead_is_bounded_in_bytes_and_one_result_is_always_made() -> None:
    def build(job: int) -> torch.Tensor:
        return torch.zeros(1000, dtype=torch.uint8)

    with Loader(range(40), build, threads=2, depth=8, ahead_bytes=3500) as loader:
        for _ in loader:
            time.sleep(0.003)
        assert loader.most_ahead == 2000  # a third comes as the first of them is handed out
    with Loader(range(5), build, ahead_bytes=10) as loader:
        assert len(list(loader)) == 5


def test_a_thread_that_gets_no_further_is_named_and_does_not_hold_the_run() -> None:
    blocked = threading.Event()

    def build(job: int) -> int:
        if job == 2:
            with stage("decode"):
                blocked.wait(20)
        return job

    start = time.monotonic()
    with (
        pytest.raises(StuckError, match=r"s at stage decode, .*--stuck-after"),
        Loader(range(5), build, threads=1, stuck_s=0.3) as loader,
    ):
        list(loader)
    assert time.monotonic() - start < 5
    blocked.set()
    for thread in threading.enumerate():
        if thread.name.startswith("loader"):
            thread.join(5)
    assert loader_threads() == []


def test_slow_is_not_stuck_while_stages_go_by() -> None:
    def build(job: int) -> int:
        for _ in range(4):
            with stage("decode"):
                time.sleep(0.15)
        return job

    with Loader(range(2), build, stuck_s=0.4) as loader:
        assert list(loader) == [0, 1]


def test_leaving_early_ends_a_build_at_its_next_stage() -> None:
    stages: list[int] = []

    def build(job: int) -> int:
        for i in range(100):
            with stage("read"):
                stages.append(i)
                time.sleep(0.02)
        return job

    with Loader([0, 1, 1], lambda job: job and build(job), threads=2) as loader:
        assert next(loader) == 0
        while not stages:
            time.sleep(0.01)
    assert loader_threads() == [] and len(stages) < 50


def test_stages_of_what_was_handed_out_are_summed_without_the_stages_inside() -> None:
    def build(job: int) -> int:
        with stage("decode"):
            time.sleep(0.03)
            with stage("read"):
                time.sleep(0.02)
        with stage("collate"):
            time.sleep(0.01)
        return job

    with Loader(range(5), build) as loader:
        list(loader)
    assert 0.15 <= loader.stages["decode"] < 0.25 and 0.1 <= loader.stages["read"] < 0.2
    assert 0.05 <= loader.stages["collate"] < 0.15 and loader.stages["augment"] == 0
