"""CenterPoint, the LiDAR detector: points -> pillars or voxels -> SECOND backbone and neck -> centre head.

Reads top to bottom like the figure of the paper. The two kinds differ in the encoder only; full size are the presets
centerpoint-pillar-0.2, centerpoint-voxel-0.1 and -0.075, the demo's teacher is centerpoint-pillar-tiny, SparseKD's
pairs are cp-voxel and cp-pillar with their students. The neck's output is what students distil from.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn

from cache.frame import Detections
from models.batch_checks import require_judged, require_points
from models.bev_backbone import BevBackbone, BevBackboneConfig
from models.center_head import CenterHead, CenterHeadConfig
from models.config import GridConfig
from models.detector import Batch, BevLevel, DetectorOutput, LossPart, total_of
from models.lidar_grids import PillarsConfig, VoxelsConfig
from models.pillars import PillarEncoder
from models.sparse_encoder import SparseEncoder
from models.voxels import CapsConfig
from models.width import WidthConfig, narrowed


class CenterPointPillarConfig(PillarsConfig):
    """The head's grid is the pillars' at the backbone's stride. width: factors on all channels given here; caps: hard
    voxelisation, see `models.voxels`."""

    kind: Literal["centerpoint-pillar"] = "centerpoint-pillar"
    backbone: BevBackboneConfig
    head: CenterHeadConfig = CenterHeadConfig()
    width: WidthConfig = WidthConfig()
    caps: CapsConfig = CapsConfig()

    @model_validator(mode="after")
    def _divides(self) -> CenterPointPillarConfig:
        self.require_division(self.backbone.strides)
        if self.at_width().pillar_channels % 2:
            raise ValueError(f"pillar_channels {self.pillar_channels} times width {self.width.encoder:g} is odd")
        return self

    def at_width(self) -> CenterPointPillarConfig:
        """The config that is built: every channel times its factor."""
        channels = narrowed(self.pillar_channels, self.width.encoder, "pillar_channels")
        return self.model_copy(update={"pillar_channels": channels, **_narrow_rest(self)})

    def encoder(self) -> PillarEncoder:
        """With fresh weights."""
        return self.pillar_encoder(self.caps)


class CenterPointVoxelConfig(VoxelsConfig):
    """width: factors on all channels given here; caps: hard voxelisation, see `models.voxels`."""

    kind: Literal["centerpoint-voxel"] = "centerpoint-voxel"
    backbone: BevBackboneConfig
    head: CenterHeadConfig = CenterHeadConfig()
    width: WidthConfig = WidthConfig()
    caps: CapsConfig = CapsConfig()

    @model_validator(mode="after")
    def _divides(self) -> CenterPointVoxelConfig:
        self.require_division(self.backbone.strides)
        self.at_width()
        return self

    def at_width(self) -> CenterPointVoxelConfig:
        """The config that is built: every channel times its factor."""
        return self.model_copy(update={"sparse": self.sparse.at_width(self.width.encoder), **_narrow_rest(self)})

    def encoder(self) -> SparseEncoder:
        """With fresh weights. ConfigError where spconv is not installed."""
        return SparseEncoder(self.voxels.grid(), self.z_range, self.voxel_height_m, self.sparse, self.caps)


class CenterPoint(nn.Module):
    """A `models.detector.Detector` over points."""

    modality: Literal["lidar", "camera"] = "lidar"
    gives = frozenset({"bev", "heads", "levels"})

    def __init__(self, config: CenterPointPillarConfig | CenterPointVoxelConfig) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.model_dump(mode="json")
        config = config.at_width()
        canvas = config.canvas()
        self.grid = canvas.model_copy(update={"cell_m": canvas.cell_m * config.backbone.stride}).grid()
        self.encoder = config.encoder()
        self.backbone = BevBackbone(self.encoder.out_channels, config.backbone)
        self.bev_channels = self.backbone.out_channels
        self.head = CenterHead(self.bev_channels, self.grid, config.head)
        self.heat_classes = self.head.heat_classes
        self.levels = {"canvas": BevLevel(self.encoder.out_channels, canvas.grid()), **_stages(canvas, config.backbone)}

    @property
    def adaptor(self) -> nn.Sequential:
        """The head's shared convolution, norm and ReLU: what makes T_feat of the map, for stores."""
        return self.head.shared

    def forward(self, batch: Batch) -> DetectorOutput:
        """Reads batch.points."""
        canvas = self.encoder(require_points(batch.points, self.config))
        stages = self.backbone.stages(canvas)
        bev = self.backbone.neck(stages)
        levels = {"canvas": canvas, **{f"stage{i}": stage for i, stage in enumerate(stages, 1)}}
        return DetectorOutput(bev=bev, heads=self.head(bev), levels=levels)

    def loss_parts(self, output: DetectorOutput, batch: Batch) -> dict[str, LossPart]:
        require_judged(batch, len(output.bev), self.config)
        targets = self.head.targets(batch.boxes, batch.labels, output.bev.device)
        return self.head.loss_parts(output.heads, targets, batch.labelled)

    def loss(self, output: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        return total_of(self.loss_parts(output, batch))

    def decode(self, output: DetectorOutput) -> list[Detections]:
        return self.head.decode(output.heads)


def _narrow_rest(config: CenterPointPillarConfig | CenterPointVoxelConfig) -> dict[str, Any]:
    """Backbone and head at their factors, and no factors left."""
    width = config.width
    return {
        "backbone": config.backbone.at_width(width.backbone),
        "head": config.head.at_width(width.head),
        "width": WidthConfig(),
    }


def _stages(canvas: GridConfig, backbone: BevBackboneConfig) -> dict[str, BevLevel]:
    """The backbone's stages before the neck, `stage1` the finest."""
    out, cell_m = {}, canvas.cell_m
    for number, (stride, channels) in enumerate(zip(backbone.strides, backbone.filters, strict=True), 1):
        cell_m *= stride
        out[f"stage{number}"] = BevLevel(channels, canvas.model_copy(update={"cell_m": cell_m}).grid())
    return out
