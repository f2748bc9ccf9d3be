"""The past of a temporal detector as arithmetic on maps: bring a map to where the vehicle is now, tell its motion.

The past map is resampled bilinearly at the places that the present cells' centres had then, by the whole relative pose
seen from above; cells that lay off the past map are zero. All matrices are of augmented frames, and one augmentation
holds for a whole window: maps of one moment then differ from maps of another by motion alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import DataError
from cache.grid import BevGrid
from models.batch_checks import told
from models.detector import Memory, Past

MOTION_NUMBERS = 9  # x, y, z (m), the turn's 2 x 2 matrix less the identity, age (s), known


def resample(bev: Tensor, past_to_now: Tensor, grid: BevGrid) -> Tensor:
    """bev: (B, C, H, W) on `grid`, of the past; past_to_now: (B, 4, 4). Returns (B, C, H, W) at the present cells."""
    centres = torch.from_numpy(grid.centres()).to(bev.device)  # (H, W, 2) fp64: cells of 0.5 m, poses of any size
    now_to_past = torch.linalg.inv(past_to_now.double())
    x, y = centres[..., 0], centres[..., 1]
    # Points of height 0, the LiDAR's: a tilt of 1 degree moves what lies on the road, 1.8 m below, by 3 cm.
    column = now_to_past[:, :2, :, None, None].unbind(dim=2)  # four of (B, 2, 1, 1)
    then = column[0] * x + column[1] * y + column[3]  # (B, 2, H, W) metres
    low, high = then.new_tensor([grid.x_min, grid.y_min]), then.new_tensor([grid.x_max, grid.y_max])
    places = 2 * (then.permute(0, 2, 3, 1) - low) / (high - low) - 1
    with torch.autocast(bev.device.type, enabled=False):
        wide = bev if bev.dtype == torch.float64 else bev.float()
        return F.grid_sample(wide, places.to(wide), align_corners=False)


def require_fit(moment: Past | Memory, frames: int, config: Mapping[str, Any]) -> None:
    """DataError where the numbers of `moment` are not of so many frames, naming the preset, the one that is not and
    both shapes. config: of the detector."""
    for name, wanted in (("past_to_now", (frames, 4, 4)), ("known", (frames,)), ("age_s", (frames,))):
        found = tuple(getattr(moment, name).shape)
        if found != wanted:
            said = f"{told(config)}: {type(moment).__name__}.{name} has shape {found}, expected {wanted}"
            raise DataError(f"{said}; give one entry per frame of the batch")


def before(memory: Memory, past: Past, rows: Tensor) -> Memory:
    """`memory`, of a moment before `past`, as one standing there has it: motion and age told from there, not from now.

    rows: (R,) int64, the frames of the batch that had the moment `past`; only they are kept.
    """
    motion = torch.linalg.solve(past.past_to_now[rows].double(), sound(memory).past_to_now[rows])
    return Memory(memory.bev[rows], motion, memory.known[rows], memory.age_s[rows] - past.age_s[rows])


def renewed(memory: Memory | None, past: Past, rows: Tensor, bev: Tensor) -> Memory:
    """What is remembered after `past`: there `bev` (R, C, H, W) of the frames `rows` that had it, else as before."""
    if memory is None:
        size = len(past.known)
        nothing = bev.new_zeros(size, *bev.shape[1:])
        still = torch.eye(4, dtype=torch.float64, device=bev.device).repeat(size, 1, 1)
        memory = Memory(nothing, still, torch.zeros_like(past.known), torch.zeros_like(past.age_s))
    had = past.known
    return Memory(
        memory.bev.to(bev.dtype).index_copy(0, rows, bev),
        torch.where(had[:, None, None], past.past_to_now.double(), memory.past_to_now.double()),
        memory.known | had,
        torch.where(had, past.age_s, memory.age_s),
    )


def sound(memory: Memory) -> Memory:
    """`memory` in fp64 with the identity for the motion of frames that know none: what stands there may be anything."""
    motion = memory.past_to_now.double()
    still = torch.eye(4, dtype=torch.float64, device=motion.device)
    return dataclasses.replace(memory, past_to_now=torch.where(memory.known[:, None, None], motion, still))


def motion_numbers(memory: Memory) -> Tensor:
    """(B, MOTION_NUMBERS) fp32: how the vehicle moved since the memory's moment; zeros where nothing is known.

    It stands for BEVFormer's CAN bus: poses and times say the same.
    """
    motion = memory.past_to_now.double()
    turn = (motion[:, :2, :2] - torch.eye(2, dtype=motion.dtype, device=motion.device)).flatten(1)
    age = memory.age_s.double()[:, None]
    numbers = torch.cat([motion[:, :3, 3], turn, age, torch.ones_like(age)], dim=1)
    return torch.where(memory.known[:, None], numbers, 0.0).float()
