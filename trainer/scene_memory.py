"""A temporal detector run through scenes in time order: one forward pass a frame, its own map of the moment before as
memory.

Scenes go side by side, each in a lane of the batch, so a batch is of several scenes and never of two moments of one.
What is said of a frame does not depend on which others are asked for, nor on the batch: the key frames before it in its
scene are always gone through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache.store import FrameStore
from models.detector import Batch, Memory
from trainer.batches import motion_since
from trainer.scene_windows import ABSENT


@dataclass(frozen=True)
class SceneStep:
    """One moment each of some scenes. rows (n,): of the frame store; lanes (n,): where each scene's memory is kept;
    before (n,): the row that it is of, or ABSENT at a scene's first; kept, wanted (n,): whether the moment becomes
    memory, as key frames do, and whether its detections were asked for."""

    rows: list[int]
    lanes: list[int]
    before: list[int]
    kept: list[bool]
    wanted: list[bool]


def scene_steps(frames: FrameStore, rows: Sequence[int], lanes: int) -> list[SceneStep]:
    """The steps that lead through the scenes of `rows`, up to the last asked for of each, at most `lanes` at once."""
    asked = set(rows)
    scene, time = np.asarray(frames.index.scene), np.asarray(frames.index.timestamp_us)
    drives: list[list[tuple[int, int, bool, bool]]] = []  # of each scene: row, before, kept, wanted
    for number in sorted({int(scene[row]) for row in asked}):
        members = np.flatnonzero(scene == number)
        drive: list[tuple[int, int, bool, bool]] = []
        last = ABSENT
        for row in (int(row) for row in members[np.argsort(time[members], kind="stable")]):
            key = frames.is_keyframe(row)
            if key or row in asked:
                drive.append((row, last, key, row in asked))
            last = row if key else last
        while not drive[-1][3]:
            drive.pop()
        drives.append(drive)
    steps: list[SceneStep] = []
    ends = [0] * lanes  # the step at which each lane is free again
    placed: dict[int, list[tuple[int, tuple[int, int, bool, bool]]]] = {}
    for drive in drives:
        lane = ends.index(min(ends))
        for at, moment in enumerate(drive, ends[lane]):
            placed.setdefault(at, []).append((lane, moment))
        ends[lane] += len(drive)
    for at in sorted(placed):
        of_lanes, moments = zip(*placed[at], strict=True)
        columns = [list(column) for column in zip(*moments, strict=True)]
        steps.append(SceneStep(columns[0], list(of_lanes), *columns[1:]))
    return steps


def memory_of(frames: FrameStore, step: SceneStep) -> Memory:
    """All of the step's `Memory` but the maps themselves, of which there is none yet."""
    count = len(step.rows)
    motions, ages = np.tile(np.eye(4), (count, 1, 1)), np.zeros(count, np.float32)
    for i, (row, before) in enumerate(zip(step.rows, step.before, strict=True)):
        if before != ABSENT:
            motions[i], ages[i] = motion_since(frames.frame(before), frames.frame(row))
    known = torch.tensor([before != ABSENT for before in step.before])
    return Memory(torch.zeros(0), torch.from_numpy(motions), known, torch.from_numpy(ages))


class SceneMemory:
    """The maps that scenes' lanes remember."""

    def __init__(self) -> None:
        self._maps: dict[int, Tensor] = {}  # by lane, (C, H, W)

    def recall(self, batch: Batch, step: SceneStep) -> Batch:
        """`batch`, whose memory is as `memory_of` gives it, with the lanes' maps."""
        memory = batch.memory
        if memory is None or all(before == ABSENT for before in step.before):
            return replace(batch, memory=None)
        some = next(self._maps[lane] for lane, before in zip(step.lanes, step.before, strict=True) if before != ABSENT)
        maps = [
            torch.zeros_like(some) if before == ABSENT else self._maps[lane]
            for lane, before in zip(step.lanes, step.before, strict=True)
        ]
        return replace(batch, memory=replace(memory, bev=torch.stack(maps)))

    def keep(self, step: SceneStep, bev: Tensor) -> None:
        """Remembers bev (n, C, H, W) of the step's moments that are kept."""
        for lane, kept, own in zip(step.lanes, step.kept, bev, strict=True):
            if kept:
                self._maps[lane] = own.clone()
