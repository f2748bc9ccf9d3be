"""Which cameras look over a cell, of a batch and by calibration alone: BEV-LGKD's view-dependent masks M_k at cells.

The rule of the selector `view`, for the cells of a batch and the pictures that the student really gets: cropped, zoomed
and mirrored ones see other cells. The upright line over a cell projects to (u d, v d, d), linear in z, so every bound
is a half-line of z and the cell is seen where all of them meet. Under a millisecond for 6,000 cells and six cameras.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR_M, FAR_M = 2.0, 58.0  # the depth bins of BEV-LGKD's base detector, as the selector's defaults
Z_MIN_M, Z_MAX_M = -5.0, 3.0


def lidar_to_camera(camera_to_lidar: Tensor, bev_augmentation: Tensor) -> Tensor:
    """(B, cameras, 4, 4) float64: canonical -> camera, from a batch's augmented camera_to_lidar = A * canonical one."""
    return torch.linalg.inv(camera_to_lidar.double()) @ bev_augmentation.double()[:, None]


def cells_in_view(
    centres: Tensor,
    samples: Tensor,
    intrinsics: Tensor,
    to_camera: Tensor,
    image_size: tuple[int, int],
    *,
    near: float = NEAR_M,
    far: float = FAR_M,
    z_range: tuple[float, float] = (Z_MIN_M, Z_MAX_M),
) -> Tensor:
    """(K, cameras) bool: whether camera k of the cell's frame sees a height in `z_range` over the cell's centre.

    centres: (K, 2) canonical x, y (m); samples: (K,); intrinsics: (B, cameras, 3, 3) of pictures of `image_size`
    (width, height), pixel edges at whole numbers; to_camera: (B, cameras, 4, 4). Bounds are included.
    """
    project = intrinsics.double() @ to_camera.double()[..., :3, :]  # (B, cameras, 3, 4)
    per_cell = project[samples]  # (K, cameras, 3, 4)
    foot = torch.cat([centres.double(), torch.zeros_like(centres[:, :1]), torch.ones_like(centres[:, :1])], dim=1)
    u, v, depth = torch.einsum("kcij,kj->kci", per_cell, foot.double()).unbind(-1)  # at z = 0, (K, cameras) each
    du, dv, dd = per_cell[..., 2].unbind(-1)  # a metre of z
    width, height = image_size
    at_zero = torch.stack([u, width * depth - u, v, height * depth - v, depth - near, far - depth], dim=-1)
    slope = torch.stack([du, width * dd - du, dv, height * dd - dv, dd, -dd], dim=-1)
    crossing = -at_zero / torch.where(slope == 0, torch.ones_like(slope), slope)
    low = torch.where(slope > 0, crossing, torch.full_like(crossing, z_range[0])).amax(-1).clamp(min=z_range[0])
    high = torch.where(slope < 0, crossing, torch.full_like(crossing, z_range[1])).amin(-1).clamp(max=z_range[1])
    never = ((slope == 0) & (at_zero < 0)).any(-1)
    return (low <= high) & ~never
