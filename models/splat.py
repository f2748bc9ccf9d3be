"""Lift and splat: where every (pixel, depth bin) of the cameras lies on the BEV grid, and the sum of features there.

The lifted volume (pixels x bins x channels, 0.1 GB for a batch of 4 tiny frames) is never made: sorted by cell, the
splat is a bag of weighted rows per cell, which `embedding_bag` sums directly. On one CPU core that is four times as
fast, forward and backward, as `index_add_` over the volume, and equal to it to rounding. fp32 throughout.
Source: Philion and Fidler 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.grid import BevGrid


def pixel_centres(size: tuple[int, int], stride: int, device: torch.device | str = "cpu") -> Tensor:
    """(h' * w', 3) float32: u, v, 1 of the middle of every cell of a feature map (h', w'), row by row."""
    v, u = torch.meshgrid(
        (torch.arange(size[0], device=device) + 0.5) * stride,
        (torch.arange(size[1], device=device) + 0.5) * stride,
        indexing="ij",
    )
    return torch.stack([u, v, torch.ones_like(u)], dim=-1).reshape(-1, 3)


def frustum_cells(
    intrinsics: Tensor,
    camera_to_lidar: Tensor,
    pixels: Tensor,
    depths: Tensor,
    grid: BevGrid,
    z_range: tuple[float, float],
) -> Tensor:
    """The cell b * H * W + row * W + col (B, cameras, pixels, D) int64 of every lifted point, -1 off the grid.

    intrinsics: (B, cameras, 3, 3); camera_to_lidar: (B, cameras, 4, 4); pixels: (pixels, 3) u, v, 1; depths: (D,) m
    along the optical axis. Cells are floors: truncation would fold the strip outside the border into the first cell.
    """
    with torch.autocast(intrinsics.device.type, enabled=False):
        to_lidar = camera_to_lidar.float()
        rays = to_lidar[..., :3, :3] @ torch.linalg.inv(intrinsics.float()) @ pixels.T  # (B, cameras, 3, pixels)
        points = rays[..., None] * depths + to_lidar[..., :3, 3, None, None]  # (B, cameras, 3, pixels, D)
        x, y, z = points.unbind(dim=2)
        col = torch.floor((x - grid.x_min) / grid.cell_m)
        row = torch.floor((y - grid.y_min) / grid.cell_m)
        height, width = grid.shape
        inside = (col >= 0) & (col < width) & (row >= 0) & (row < height) & (z >= z_range[0]) & (z < z_range[1])
        sample = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        cell = (sample * height + row.long()) * width + col.long()
        return torch.where(inside, cell, -1)


def splat(context: Tensor, depth: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """out[n] = sum over pixels p and bins d with cells[p, d] = n of depth[p, d] * context[p]; (num_cells, C) fp32.

    context: (P, C) feature of each pixel; depth: (P, D) its weight per bin; cells: (P, D) int64, -1 = dropped.
    """
    bins = depth.shape[1]
    with torch.autocast(context.device.type, enabled=False):
        # int32 keys sort about twice as fast; a grid of 2^31 cells is far away
        by_cell, order = torch.sort(cells.reshape(-1).int(), stable=True)
        starts = torch.searchsorted(by_cell, torch.arange(num_cells + 1, dtype=torch.int32, device=cells.device))
        order, starts = order[starts[0] :], starts - starts[0]  # the dropped ones come first
        return F.embedding_bag(
            torch.div(order, bins, rounding_mode="floor"),
            context.float(),
            starts,
            mode="sum",
            per_sample_weights=depth.float().reshape(-1)[order],
            include_last_offset=True,
        )
