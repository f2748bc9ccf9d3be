"""Stages side by side: order, bounds, errors of each stage, and that they do run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.overlap import STAGES, overlap


@pytest.mark.parametrize("count", [0, 1, 2, 7, 50])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_item_goes_through_once_and_in_order(count: int, depth: int) -> None:
    out: list[int] = []
    seconds = overlap(range(count), lambda item: item * 10, out.append, depth=depth)
    assert out == [item * 10 for item in range(count)]
    assert set(seconds) == set(STAGES) and all(value >= 0 for value in seconds.values())


def test_three_items_are_under_way_at_once() -> None:
    """Each stage waits for the others at one barrier: with less than three at a time it would break."""
    meet = threading.Barrier(3, timeout=10)

    def read() -> Iterator[int]:
        for item in range(5):
            if item == 2:
                meet.wait()
            yield item

    def compute(item: int) -> int:
        if item == 1:
            meet.wait()
        return item

    def put(item: int) -> None:
        if item == 0:
            meet.wait()

    overlap(read(), compute, put, depth=1)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_slow_end_holds_the_beginning_back(depth: int) -> None:
    read, written, most = [0], [0], [0]

    def source() -> Iterator[int]:
        for item in range(40):
            read[0] += 1
            most[0] = max(most[0], read[0] - written[0])
            yield item

    def put(item: int) -> None:
        threading.Event().wait(0.002)
        written[0] += 1

    overlap(source(), lambda item: item, put, depth=depth)
    assert most[0] <= 2 * depth + 3  # waiting on both sides, and one in each stage


@pytest.mark.parametrize("stage", ["read", "compute", "put"])
@pytest.mark.parametrize("at", [0, 3, 9])
def test_an_error_of_a_stage_is_raised_and_nothing_later_is_put(stage: str, at: int) -> None:
    out: list[int] = []

    def source() -> Iterator[int]:
        for item in range(10):
            if stage == "read" and item == at:
                raise OSError("read")
            yield item

    def compute(item: int) -> int:
        if stage == "compute" and item == at:
            raise OSError("compute")
        return item

    def put(item: int) -> None:
        if stage == "put" and item == at:
            raise OSError("put")
        out.append(item)

    threads = threading.active_count()
    with pytest.raises(OSError, match=stage):
        overlap(source(), compute, put)
    assert threading.active_count() == threads
    assert out == list(range(len(out))) and len(out) <= at
