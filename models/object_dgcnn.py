"""Object-DGCNN, the LiDAR detector of queries: points -> pillars or voxels -> SECOND, pyramid -> transformer -> boxes.

Wang and Solomon 2021; with attention between the queries, learned voxel features and a heatmap beside it, the teacher
of BEVDistill (Chen et al. 2022). The kinds differ in the encoder only; presets object-dgcnn-voxel-0.1 (BEVDistill's),
-pillar-0.2 (the paper's) and -tiny. Students distil from level 0 of the pyramid, before the transformer.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from cache.classes import DETECTION_CLASSES
from models.batch_checks import require_points
from models.bev_pyramid import BevPyramid, BevPyramidConfig
from models.detector import Batch, BevLevel, DetectorOutput
from models.heat_head import HeatHead, HeatHeadConfig
from models.lidar_grids import PillarsConfig, VoxelsConfig
from models.pillars import PillarEncoder
from models.query_decoder import Transformer, TransformerConfig
from models.query_detector import QueryDetector
from models.query_head import QueryHead, QueryHeadConfig
from models.sparse_encoder import SparseEncoder
from models.voxel_features import VoxelFeatures
from models.voxels import NO_CAPS


class ObjectDgcnnPillarConfig(PillarsConfig):
    """heat: absent is without."""

    kind: Literal["object-dgcnn-pillar"] = "object-dgcnn-pillar"
    backbone: BevPyramidConfig
    transformer: TransformerConfig = TransformerConfig()
    head: QueryHeadConfig = QueryHeadConfig()
    heat: HeatHeadConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> ObjectDgcnnPillarConfig:
        self.require_division(self.backbone.strides)
        _require_heads(self)
        return self

    def encoder(self) -> PillarEncoder:
        """With fresh weights."""
        return self.pillar_encoder(NO_CAPS)


class ObjectDgcnnVoxelConfig(VoxelsConfig):
    """voxel_features: `learned` from the points of each voxel, of voxel_channels, or their `mean`; heat: absent is
    without."""

    kind: Literal["object-dgcnn-voxel"] = "object-dgcnn-voxel"
    voxel_features: Literal["learned", "mean"] = "learned"
    voxel_channels: int = Field(default=64, ge=1)
    backbone: BevPyramidConfig
    transformer: TransformerConfig = TransformerConfig()
    head: QueryHeadConfig = QueryHeadConfig()
    heat: HeatHeadConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> ObjectDgcnnVoxelConfig:
        self.require_division(self.backbone.strides)
        _require_heads(self)
        return self

    def encoder(self) -> SparseEncoder:
        """With fresh weights. ConfigError where spconv is not installed."""
        place = (self.voxels.grid(), self.z_range, self.voxel_height_m)
        learned = VoxelFeatures(*place, self.voxel_channels) if self.voxel_features == "learned" else None
        return SparseEncoder(*place, self.sparse, voxel_features=learned)


class ObjectDgcnn(QueryDetector):
    """A `models.detector.Detector` over points.

    adaptor: convolution, norm and ReLU that make level "adapted" of the output's `bev`; None without a heat head.
    """

    modality: Literal["lidar", "camera"] = "lidar"

    def __init__(self, config: ObjectDgcnnPillarConfig | ObjectDgcnnVoxelConfig) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.model_dump(mode="json")
        canvas, pyramid = config.canvas(), config.backbone
        self.grid = canvas.model_copy(update={"cell_m": canvas.cell_m * pyramid.stride}).grid()
        self.bev_channels = pyramid.channels
        self.encoder = config.encoder()
        self.backbone = BevPyramid(self.encoder.out_channels, pyramid)
        shapes = pyramid.shapes(*canvas.grid().shape)
        self.transformer = Transformer(pyramid.channels, shapes, config.transformer)
        self.head = QueryHead(pyramid.channels, config.transformer.decoder_layers, self.grid, config.head)
        self.heat = HeatHead(pyramid.channels, self.grid, config.heat) if config.heat else None
        self.gives = frozenset({"bev", "levels", "queries", *(("heads",) if config.heat else ())})
        self.heat_classes = tuple(DETECTION_CLASSES) if self.heat is not None else ()
        self.levels = {"canvas": BevLevel(self.encoder.out_channels, canvas.grid())}
        if config.heat:
            self.levels["adapted"] = BevLevel(config.heat.channels, self.grid)

    @property
    def adaptor(self) -> nn.Sequential | None:
        return self.heat.shared if self.heat is not None else None

    def forward(self, batch: Batch) -> DetectorOutput:
        """Reads batch.points."""
        canvas = self.encoder(require_points(batch.points, self.config))
        maps = self.backbone(canvas)
        features, references = self.transformer(maps, list(self.head.boxes))
        queries = self.head(features, references)
        heads, levels = [], {"canvas": canvas}
        if self.heat is not None:
            levels["adapted"], heatmap = self.heat(maps[0])
            heads.append({"heatmap": heatmap})
        return DetectorOutput(bev=maps[0], heads=heads, levels=levels, queries=queries)


def _require_heads(config: ObjectDgcnnPillarConfig | ObjectDgcnnVoxelConfig) -> None:
    """ValueError where the channels do not divide by the heads."""
    if config.backbone.channels % config.transformer.heads:
        raise ValueError(f"{config.backbone.channels} channels do not divide by {config.transformer.heads} heads")
