"""CenterPoint on pillars, the LiDAR detector: points -> pillars -> SECOND backbone and neck -> centre head.

Reads top to bottom like the figure of the paper; full size is the preset centerpoint-pillar-0.2, the demo's teacher is
centerpoint-pillar-tiny. The neck's output is what students distil from.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn

from cache.errors import DataError
from cache.frame import Detections
from models.bev_backbone import BevBackbone, BevBackboneConfig
from models.center_head import CenterHead, CenterHeadConfig
from models.config import Config, GridConfig
from models.detector import Batch, DetectorOutput, LossPart, total_of
from models.pillars import PillarEncoder


class CenterPointPillarConfig(Config):
    """pillars: the grid of the canvas; z_range: metres; the head's grid is the pillars' at the backbone's stride."""

    kind: Literal["centerpoint-pillar"] = "centerpoint-pillar"
    pillars: GridConfig
    z_range: tuple[float, float] = (-5.0, 3.0)
    pillar_channels: int = 64
    backbone: BevBackboneConfig
    head: CenterHeadConfig = CenterHeadConfig()

    @model_validator(mode="after")
    def _divides(self) -> CenterPointPillarConfig:
        deepest = 1
        for stride in self.backbone.strides:
            deepest *= stride
        grid = self.pillars.grid()
        if grid.height % deepest or grid.width % deepest:
            raise ValueError(f"{grid.height} x {grid.width} pillars do not divide by the backbone's stride {deepest}")
        return self


class CenterPointPillar(nn.Module):
    """A `models.detector.Detector` over points."""

    modality: Literal["lidar", "camera"] = "lidar"

    def __init__(self, config: CenterPointPillarConfig) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.model_dump(mode="json")
        pillars = config.pillars
        self.grid = pillars.model_copy(update={"cell_m": pillars.cell_m * config.backbone.stride}).grid()
        self.encoder = PillarEncoder(config.pillar_channels, pillars.grid(), config.z_range)
        self.backbone = BevBackbone(config.pillar_channels, config.backbone)
        self.bev_channels = self.backbone.out_channels
        self.head = CenterHead(self.bev_channels, self.grid, config.head)

    def forward(self, batch: Batch) -> DetectorOutput:
        """Reads batch.points."""
        if batch.points is None:
            raise DataError("the batch holds no points, which a LiDAR model reads; use `cache-frames --points`")
        canvas = self.encoder(batch.points)
        bev = self.backbone(canvas)
        return DetectorOutput(bev=bev, heads=self.head(bev))

    def loss_parts(self, output: DetectorOutput, batch: Batch) -> dict[str, LossPart]:
        return self.head.loss_parts(output.heads, self.head.targets(batch.boxes, batch.labels, output.bev.device))

    def loss(self, output: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        return total_of(self.loss_parts(output, batch))

    def decode(self, output: DetectorOutput) -> list[Detections]:
        return self.head.decode(output.heads)
