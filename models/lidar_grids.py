"""Where a LiDAR detector's points are put, pillars or columns of voxels, and the canvas that its encoder makes of them.

The part of a config that CenterPoint and Object-DGCNN share; each adds what comes behind the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

from pydantic import Field, model_validator

from models.config import Between, Config, GridConfig
from models.pillars import PillarEncoder
from models.sparse_encoder import SparseEncoderConfig
from models.voxels import CapsConfig


class PillarsConfig(Config):
    """pillars: the grid of the canvas; z_range: metres; pillar_layers, pillar_features and pillar_padding: see
    `models.pillars`."""

    pillars: GridConfig
    z_range: Between = (-5.0, 3.0)
    pillar_channels: int = Field(default=64, ge=2, multiple_of=2)
    pillar_layers: Literal[1, 2] = 1
    pillar_features: Literal["scaled", "released"] = "scaled"
    pillar_padding: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _pads_one_layer_alone(self) -> PillarsConfig:
        if self.pillar_padding and self.pillar_layers != 1:
            raise ValueError("pillar_padding goes with pillar_layers = 1")
        return self

    def canvas(self) -> GridConfig:
        """The grid of the encoder's output."""
        return self.pillars

    def pillar_encoder(self, caps: CapsConfig) -> PillarEncoder:
        """With fresh weights; its canvas has the pillars' grid. caps: hard voxelisation, see `models.voxels`."""
        return PillarEncoder(
            self.pillar_channels,
            self.pillars.grid(),
            self.z_range,
            layers=self.pillar_layers,
            released=self.pillar_features == "released",
            padding=self.pillar_padding,
            caps=caps,
        )

    def require_division(self, strides: Sequence[int]) -> None:
        """ValueError where the pillars do not divide by the strides behind the canvas together."""
        _require_division(self.pillars, "pillars", prod(strides))


class VoxelsConfig(Config):
    """voxels: the grid of the columns of voxels; z_range and voxel_height_m: metres; the canvas is `sparse.stride`
    times coarser."""

    voxels: GridConfig
    z_range: Between = (-5.0, 3.0)
    voxel_height_m: float = Field(default=0.2, gt=0)
    sparse: SparseEncoderConfig = SparseEncoderConfig()

    @model_validator(mode="after")
    def _has_layers(self) -> VoxelsConfig:
        layers = (self.z_range[1] - self.z_range[0]) / self.voxel_height_m
        if abs(layers - round(layers)) > 1e-6:
            raise ValueError(f"z_range {self.z_range} is not a whole number of {self.voxel_height_m} m voxels")
        if self.sparse.layers_left(round(layers) + 1) < 1:
            raise ValueError(f"{round(layers)} layers of voxels are too few for {len(self.sparse.channels)} stages")
        return self

    def canvas(self) -> GridConfig:
        """The grid of the encoder's output."""
        return self.voxels.model_copy(update={"cell_m": self.voxels.cell_m * self.sparse.stride})

    def require_division(self, strides: Sequence[int]) -> None:
        """ValueError where the voxels do not divide by the encoder's stride and those behind the canvas together."""
        _require_division(self.voxels, "voxels", self.sparse.stride * prod(strides))


def _require_division(fine: GridConfig, what: str, deepest: int) -> None:
    grid = fine.grid()
    if grid.height % deepest or grid.width % deepest:
        raise ValueError(f"{grid.height} x {grid.width} {what} do not divide by {deepest}, the deepest stride")
