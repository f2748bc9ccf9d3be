from __future__ import annotations

import numpy as np
import pytest
import torch.distributed as dist

from cache.frame import Detections
from trainer.distributed import ALONE, PeerError, Ranks
from trainer.gathering import gather, pack, unpack


def detections(count: int, seed: int) -> Detections:
    rng = np.random.default_rng(seed)
    boxes = rng.normal(size=(count, 9)).astype(np.float32)
    boxes[::2, 7] = np.nan
    scores = rng.random(count).astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, 10, count).astype(np.int32))


def same(one: Detections, other: Detections) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("boxes_lidar", "scores", "labels")]
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def test_packed_boxes_come_back_bit_for_bit() -> None:
    given = [detections(count, seed) for seed, count in enumerate((3, 0, 7, 0))]
    rows, found = unpack(*pack([5, 2, 9, 1], given))
    assert rows == [5, 2, 9, 1]
    assert all(same(a, b) for a, b in zip(given, found, strict=True))


def test_nothing_packs_to_nothing() -> None:
    assert unpack(*pack([], [])) == ([], [])
    rows, found = unpack(*pack([4], [Detections.empty()]))
    assert rows == [4] and same(found[0], Detections.empty())


def test_one_process_gathers_what_it_gives() -> None:
    given = [detections(2, 1)]
    assert gather(ALONE, [3], given).parts == [([3], given)]
    assert gather(ALONE, [3], given, failed=True).failed == [0]


def test_a_rank_that_is_gone_is_told_as_lost_so_that_the_run_may_be_begun_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def closed(*arguments: object, **options: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(dist, "all_gather", closed)
    with pytest.raises(PeerError, match=r"rank 0 of 2 lost another rank .* gathering of detections") as caught:
        gather(Ranks(0, 2), [3], [detections(2, 1)])
    assert caught.value.lost
