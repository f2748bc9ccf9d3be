"""A centre head's raw regression under a BEV augmentation, so that a student sampled at A * p can be compared with it.

Every branch moves linearly, so raw maps move without being decoded, and cells without an object move as well:

    center   c' - 1/2 = r R (c - 1/2)      fractions of a cell from its corner; R: turn, flip and scale of A
    height   z' = s z + A's z              s: the scale of A
    dim      log d' = log d + log s
    rot      (cos', sin') = R (cos, sin) / s
    vel      v' = R v

r is the teacher's cell over the student's, so the two grids may differ. A student map that points at one centre from
every cell points at it from a place between cells too, when `center` is interpolated there: c = g - p + 1/2 is linear
in p. So the rule holds at any A * p, not only at cell centres. With A = 1 and r = 1 values keep their bits.

`move_code` is the rule for a code that is read in one cell and compared with what another cell says of the same box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.grid import BevGrid
from trainer.terms.box_code import move_codes


def moved_branch(name: str, values: Tensor, augmentation: Tensor, cell_ratio: float = 1.0) -> Tensor:
    """(K, channels) raw values of a branch (`models.center_head.BRANCHES`) moved by A (K, 4, 4); cell_ratio: metres of
    the teacher's cell by those of the student's. KeyError for a branch whose movement is not known."""
    a = augmentation.to(values.dtype)
    linear, scale = a[:, :2, :2], a[:, 2, 2:3]  # (K, 2, 2), (K, 1)
    one = torch.eye(2, dtype=values.dtype, device=values.device)
    if name == "center":
        return values + _turned(cell_ratio * linear - one, values - 0.5)
    if name == "height":
        return scale * values + a[:, 2, 3:4]
    if name == "dim":
        return values + scale.log()
    if name == "rot":  # stored sin, cos; a direction is (cos, sin)
        return values + _turned(linear / scale[..., None] - one, values.flip(1)).flip(1)
    if name == "vel":
        return values + _turned(linear - one, values)
    raise KeyError(name)


def move_code(
    code: Tensor, row: Tensor, col: Tensor, grid: BevGrid, matrices: Tensor, to_row: Tensor, to_col: Tensor, to: BevGrid
) -> Tensor:
    """The raw code (N, 10), in the order of `models.center_head.BRANCHES`, of cells `row`, `col` (N,) on `grid`, as
    cells `to_row`, `to_col` on `to` would say the same box after matrices (N, 4, 4). float64; with the identity and
    equal cells the very same values.

    Sine and cosine turn as they are: what a network says need not lie on the unit circle. Offsets may leave 0..1, where
    the other cell is not the box's own.
    """
    a, code = matrices.double(), code.double()
    same_cells = (a == torch.eye(4, dtype=a.dtype, device=a.device)).all(dim=2).all(dim=1)
    same_cells = same_cells & (row == to_row) & (col == to_col) & (grid == to)
    low, to_low = code.new_tensor([grid.x_min, grid.y_min]), code.new_tensor([to.x_min, to.y_min])
    place = low + (torch.stack([col, row], dim=1) + code[:, :2]) * grid.cell_m
    out = move_codes(torch.cat([place, code[:, 2:]], dim=1), a)
    offset = (out[:, :2] - to_low) / to.cell_m - torch.stack([to_col, to_row], dim=1)
    return torch.where(same_cells[:, None], code, torch.cat([offset, out[:, 2:]], dim=1))


def _turned(matrix: Tensor, vectors: Tensor) -> Tensor:
    """(K, 2, 2) times (K, 2)."""
    return (matrix * vectors[:, None, :]).sum(dim=-1)
