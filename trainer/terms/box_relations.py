"""How the parts of an object relate, as matrices that forget scale and, between points, channels altogether.

What a LiDAR map and a camera map say of an object differs in every value; how its points, or its channels, resemble
each other differs less. Points that are not valid take no part. Cosines are of x / sqrt(|x|^2 + 1e-6): cells that no
camera reaches are 0, and a plain x / |x| would send gradients of any size there.
"""

from __future__ import annotations

from torch import Tensor

_LEAST_SQUARE = 1e-6


def point_relation(features: Tensor, valid: Tensor) -> Tensor:
    """(N, P, P) cosines between the points of each box; features: (N, P, C), valid: (N, P). 0 where one is not
    valid."""
    unit = _unit(features * valid[..., None], 2)
    return unit @ unit.transpose(1, 2)


def channel_relation(features: Tensor, valid: Tensor) -> Tensor:
    """(N, C, C) cosines between the channels of each box, over its valid points."""
    unit = _unit(features * valid[..., None], 1)
    return unit.transpose(1, 2) @ unit


def mean_over_pairs(error: Tensor, valid: Tensor) -> Tensor:
    """(N,) mean of (N, P, P) errors over pairs of valid points; a box with one point has the pair with itself."""
    pairs = valid.sum(dim=1).to(error.dtype).square()
    return error.sum(dim=(1, 2)) / pairs.clamp(min=1)


def _unit(features: Tensor, dim: int) -> Tensor:
    return features * (features.square().sum(dim=dim, keepdim=True) + _LEAST_SQUARE).rsqrt()
