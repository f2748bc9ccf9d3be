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
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def _turned(matrix: Tensor, vectors: Tensor) -> Tensor:
    """(K, 2, 2) times (K, 2)."""
    return (matrix * vectors[:, None, :]).sum(dim=-1)
