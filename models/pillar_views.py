"""Which cameras see each cell of the bird's-eye view, and where: pillars of points projected into the images.

A cell stands for a pillar of points at a few heights; a camera sees the cell if at least one of them falls into its
image. Each camera attends with the cells it sees only, so their indices are listed here, once for all layers: per
camera as many as the busiest one needs. Geometry is fp64 in the matrices and fp32 in the points, without a product of
matrices over them, which a GPU might round to 10 bits (tf32). Source: Li et al. 2022 (BEVFormer).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.grid import BevGrid

MIN_DEPTH_M = 1e-5
FAR_OUTSIDE = 10.0  # widths of an image: no learned offset brings a place back from there


@dataclass(frozen=True)
class PillarViews:
    """The cells of B frames, S each, that each of N cameras sees: at most K.

    cells: (B * N, K) int64 row * W + col; valid: (B * N, K) bool, False beyond a camera's last; places: (B * N, K,
    heights, 2) float32 x, y in 0..1 of the padded image; cameras: (B, S) int64, how many see a cell.
    """

    cells: Tensor
    valid: Tensor
    places: Tensor
    cameras: Tensor


def pillar_points(grid: BevGrid, z_range: tuple[float, float], heights: int) -> Tensor:
    """(S, heights, 3) float32 metres: x, y of every cell's centre, row by row; z evenly from half a metre above the
    lower bound to half a metre below the upper one."""
    centres = torch.tensor(grid.centres()).flatten(0, 1)[:, None].expand(-1, heights, -1)  # (S, heights, 2)
    z = torch.linspace(z_range[0] + 0.5, z_range[1] - 0.5, heights, dtype=centres.dtype)
    return torch.cat([centres, z[None, :, None].expand(len(centres), -1, -1)], dim=-1).float()


def project_pillars(
    points: Tensor, intrinsics: Tensor, camera_to_lidar: Tensor, image_size: tuple[int, int], padded: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """points: (S, heights, 3); intrinsics: (B, N, 3, 3), pixel edges at whole numbers; camera_to_lidar: (B, N, 4, 4);
    image_size, padded: (width, height) before and after padding on the right and below.

    Returns places (B, N, S, heights, 2), x, y in 0..1 of the padded image, and visible (B, N, S, heights) bool: in
    front of the camera and in the image, padding apart.
    """
    with torch.autocast(points.device.type, enabled=False):
        to_pixels = (intrinsics.double() @ torch.linalg.inv(camera_to_lidar.double())[..., :3, :]).float()  # (B,N,3,4)
        x, y, z = points.flatten(0, 1).T  # (S * heights,)
        column = to_pixels[..., None].unbind(dim=3)  # four of (B, N, 3, 1)
        u, v, depth = (column[0] * x + column[1] * y + column[2] * z + column[3]).unbind(dim=2)
        in_front = depth > MIN_DEPTH_M
        places = torch.stack([u, v], dim=-1) / depth.clamp(min=MIN_DEPTH_M)[..., None]
        edge = places.new_tensor(image_size)
        visible = in_front & ((places > 0) & (places < edge)).all(dim=-1)
        places = torch.where(in_front[..., None], places / places.new_tensor(padded), -FAR_OUTSIDE)
        places = places.clamp(-FAR_OUTSIDE, FAR_OUTSIDE)
    heights = points.shape[1]
    return places.unflatten(2, (-1, heights)), visible.unflatten(2, (-1, heights))


def pillar_views(places: Tensor, visible: Tensor) -> PillarViews:
    """Lists what `project_pillars` gives. Reads one number back from the device: the busiest camera's count."""
    seen = visible.any(dim=-1).flatten(0, 1)  # (B * N, S)
    order = seen.cumsum(dim=1)  # of a seen cell among its camera's, from 1
    most = max(int(order[:, -1].max()), 1)
    cell = torch.arange(seen.shape[1], device=seen.device).expand_as(seen)
    slots = cell.new_zeros(len(seen), most + 1)
    slots.scatter_(1, torch.where(seen, order - 1, most), cell)  # cells not seen all go to the last slot, left out here
    cells = slots[:, :most]
    valid = torch.arange(most, device=seen.device) < order[:, -1:]
    heights = places.shape[3]
    index = cells[:, :, None, None].expand(-1, -1, heights, 2)
    return PillarViews(cells, valid, places.flatten(0, 1).gather(1, index), visible.any(dim=-1).sum(dim=1))
