"""Narrower networks by factors: SparseKD's students are their teacher's config and three numbers.

A config keeps the teacher's channels and says the factors beside them; depth, kernels and strides stay. `narrowed`
gives the channels that are built.
"""

from __future__ import annotations

from pydantic import Field

from models.config import Config


class WidthConfig(Config):
    """Factors on the channels of the point or voxel encoder, of the 2-D backbone with its neck, and of the head.

    Source: Yang et al. 2022 (SparseKD): CP-Voxel-S 1, 0.5, 0.5; -XS 0.75, 0.5, 0.5; -XXS 0.5, 0.25, 0.25.
    """

    encoder: float = Field(default=1.0, gt=0)
    backbone: float = Field(default=1.0, gt=0)
    head: float = Field(default=1.0, gt=0)


def narrowed(channels: int, factor: float, what: str) -> int:
    """`channels` times `factor`. ValueError where that is no whole number: rounding would hide another network."""
    width = channels * factor
    if abs(width - round(width)) > 1e-6 or round(width) < 1:
        raise ValueError(f"{what} {channels} times width {factor:g} is {width:g} channels, expected a whole number")
    return round(width)
