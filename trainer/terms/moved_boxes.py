"""Boxes and the centre head's raw box code under a BEV augmentation: moved exactly, and coded for other cells. Torch.

The code is ten values in the order of `models.center_head.BRANCHES`: x, y within a cell (in cells), z (m), log l, log
w, log h, sin yaw, cos yaw, vx, vy. All but the first two move by A whatever the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.grid import BevGrid
from trainer.terms.places import moved


def move_boxes(boxes: Tensor, matrices: Tensor) -> Tensor:
    """Boxes (N, 9) x, y, z, l, w, h, yaw, vx, vy under matrices (N, 4, 4), float64; NaN velocities stay NaN.

    As `trainer.augment.move_boxes`, one matrix a box.
    """
    a, boxes = matrices.double(), boxes.double()
    linear, scale = a[:, :2, :2], a[:, 2, 2]
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], dim=1)
    turned = (linear @ heading[..., None])[..., 0]
    still = (linear == torch.eye(2, dtype=a.dtype, device=a.device)).all(dim=2).all(dim=1)
    yaw = torch.where(still, boxes[:, 6], torch.atan2(turned[:, 1], turned[:, 0]))  # the very bits where nothing turns
    z = boxes[:, 2] * scale + a[:, 2, 3]
    velocity = (linear @ boxes[:, 7:9, None])[..., 0]
    velocity = torch.where(torch.isfinite(boxes[:, 7:9]).all(dim=1)[:, None], velocity, boxes[:, 7:9])
    xy, size = moved(boxes[:, :2], a), boxes[:, 3:6] * scale[:, None]
    return torch.cat([xy, z[:, None], size, yaw[:, None], velocity], dim=1)


def move_code(
    code: Tensor, row: Tensor, col: Tensor, grid: BevGrid, matrices: Tensor, to_row: Tensor, to_col: Tensor, to: BevGrid
) -> Tensor:
    """The raw code (N, 10) of cells `row`, `col` (N,) on `grid`, as cells `to_row`, `to_col` on `to` would say the same
    box after matrices (N, 4, 4). float64; with the identity and equal cells the very same values.

    Sine and cosine turn as they are: what a network says need not lie on the unit circle. Offsets may leave 0..1, where
    the other cell is not the box's own.
    """
    a, code = matrices.double(), code.double()
    linear, scale = a[:, :2, :2], a[:, 2, 2]
    same_cells = (a == torch.eye(4, dtype=a.dtype, device=a.device)).all(dim=2).all(dim=1)
    same_cells = same_cells & (row == to_row) & (col == to_col) & (grid == to)
    low, to_low = code.new_tensor([grid.x_min, grid.y_min]), code.new_tensor([to.x_min, to.y_min])
    place = low + (torch.stack([col, row], dim=1) + code[:, :2]) * grid.cell_m
    offset = (moved(place, a) - to_low) / to.cell_m - torch.stack([to_col, to_row], dim=1)
    offset = torch.where(same_cells[:, None], code[:, :2], offset)
    z = code[:, 2] * scale + a[:, 2, 3]
    size = code[:, 3:6] + scale.log()[:, None]
    heading = (linear @ code[:, [7, 6], None])[..., 0] / scale[:, None]  # cos, sin
    velocity = (linear @ code[:, 8:10, None])[..., 0]
    return torch.cat([offset, z[:, None], size, heading.flip(1), velocity], dim=1)
