"""Detections of all ranks brought to rank 0: a header of four numbers a rank, then arrays of fixed width. No pickle.

A frame costs 8 bytes and a box 44; boxes come back bit for bit. One process gathers nothing and needs no group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cache.frame import Detections
from trainer.distributed import Ranks

_COLUMNS = 11  # nine of the box, score, label


@dataclass(frozen=True)
class Gathered:
    """parts: on rank 0 the (rows, detections) of every rank, by rank, elsewhere none; failed: ranks that could not give
    any; stopped: whether any was asked to stop."""

    parts: list[tuple[list[int], list[Detections]]]
    failed: list[int]
    stopped: bool = False


def gather(
    ranks: Ranks, rows: Sequence[int], detections: Sequence[Detections], failed: bool = False, stop: bool = False
) -> Gathered:
    """A collective call: every rank gives the rows it has predicted since the last one, whether it has failed, and
    whether it was asked to stop.

    Where one has or was, nothing moves and every rank is told. Raises PeerError where one is gone.
    """
    if ranks.alone:
        return Gathered([(list(rows), list(detections))], [0] if failed else [], stop)
    with ranks.together("gathering of detections"):
        return _moved(ranks, rows, detections, failed, stop)


def _moved(ranks: Ranks, rows: Sequence[int], detections: Sequence[Detections], failed: bool, stop: bool) -> Gathered:
    frames, boxes = pack(rows, detections)
    header = torch.tensor([int(failed), int(stop), len(frames), len(boxes)], dtype=torch.int64)
    headers = [torch.empty_like(header) for _ in range(ranks.world)]
    dist.all_gather(headers, header, group=ranks.words)
    bad = [rank for rank, one in enumerate(headers) if int(one[0])]
    stopped = any(int(one[1]) for one in headers)
    if bad or stopped:
        return Gathered([], bad, stopped)
    sizes = torch.stack(headers)[:, 2:]
    all_frames = _to_first(ranks, frames, int(sizes[:, 0].max()))
    all_boxes = _to_first(ranks, boxes, int(sizes[:, 1].max()))
    parts = [
        unpack(frames[: int(size[0])], boxes[: int(size[1])])
        for frames, boxes, size in zip(all_frames, all_boxes, sizes, strict=False)
    ]
    return Gathered(parts, [])


def pack(rows: Sequence[int], detections: Sequence[Detections]) -> tuple[Tensor, Tensor]:
    """(F, 2) int32 row and number of boxes, and (N, 11) float32 of all boxes, the label's bits in the last column."""
    counts = [len(one) for one in detections]
    frames = torch.tensor([*zip(rows, counts, strict=True)], dtype=torch.int32).reshape(-1, 2)
    boxes = np.empty((sum(counts), _COLUMNS), np.float32)
    start = 0
    for one, count in zip(detections, counts, strict=True):
        part = boxes[start : start + count]
        part[:, :9], part[:, 9] = one.boxes_lidar, one.scores
        part[:, 10] = np.asarray(one.labels, np.int32).view(np.float32)
        start += count
    return frames, torch.from_numpy(boxes)


def unpack(frames: Tensor, boxes: Tensor) -> tuple[list[int], list[Detections]]:
    """What `pack` was given."""
    rows, counts = frames.numpy()[:, 0].tolist(), frames.numpy()[:, 1]
    parts = np.split(boxes.numpy(), np.cumsum(counts)[:-1]) if len(counts) else []
    found = [
        Detections(part[:, :9].copy(), part[:, 9].copy(), np.ascontiguousarray(part[:, 10]).view(np.int32))
        for part in parts
    ]
    return rows, found


def _to_first(ranks: Ranks, values: Tensor, longest: int) -> list[Tensor]:
    """Every rank's tensor, filled up to the longest one's length, on rank 0; none elsewhere."""
    full = values.new_zeros(longest, values.shape[1])
    full[: len(values)] = values
    into = [torch.empty_like(full) for _ in range(ranks.world)] if ranks.first else None
    dist.gather(full, into, group=ranks.words, group_dst=0)
    return into or []
