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
from models.config import Between, Config, GridConfig
from models.detector import Batch, BevLevel, DetectorOutput
from models.heat_head import HeatHead, HeatHeadConfig
from models.pillars import PillarEncoder
from models.query_decoder import Transformer, TransformerConfig
from models.query_detector import QueryDetector
from models.query_head import QueryHead, QueryHeadConfig
from models.sparse_encoder import SparseEncoder, SparseEncoderConfig
from models.voxel_features import VoxelFeatures


class ObjectDgcnnPillarConfig(Config):
    """pillars: the grid of the canvas; z_range: metres; pillar_*: see `models.pillars`; heat: absent is without."""

    kind: Literal["object-dgcnn-pillar"] = "object-dgcnn-pillar"
    pillars: GridConfig
    z_range: Between = (-5.0, 3.0)
    pillar_channels: int = Field(default=64, ge=2, multiple_of=2)
    pillar_layers: Literal[1, 2] = 1
    pillar_features: Literal["scaled", "released"] = "scaled"
    pillar_padding: int = Field(default=0, ge=0)
    backbone: BevPyramidConfig
    transformer: TransformerConfig = TransformerConfig()
    head: QueryHeadConfig = QueryHeadConfig()
    heat: HeatHeadConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> ObjectDgcnnPillarConfig:
        _require_fit(self)
        if self.pillar_padding and self.pillar_layers != 1:
            raise ValueError("pillar_padding goes with pillar_layers = 1")
        return self

    def encoder(self) -> PillarEncoder:
        """With fresh weights; its canvas has the pillars' grid."""
        return PillarEncoder(
            self.pillar_channels,
            self.pillars.grid(),
            self.z_range,
            layers=self.pillar_layers,
            released=self.pillar_features == "released",
            padding=self.pillar_padding,
        )

    def canvas(self) -> GridConfig:
        """The grid of the encoder's output."""
        return self.pillars


class ObjectDgcnnVoxelConfig(Config):
    """voxels: the grid of the columns of voxels; z_range and voxel_height_m: metres; the canvas is `sparse.stride`
    times coarser. voxel_features: `learned` from the points of each voxel, of voxel_channels, or their `mean`; heat:
    absent is without.
    """

    kind: Literal["object-dgcnn-voxel"] = "object-dgcnn-voxel"
    voxels: GridConfig
    z_range: Between = (-5.0, 3.0)
    voxel_height_m: float = Field(default=0.2, gt=0)
    voxel_features: Literal["learned", "mean"] = "learned"
    voxel_channels: int = Field(default=64, ge=1)
    sparse: SparseEncoderConfig = SparseEncoderConfig()
    backbone: BevPyramidConfig
    transformer: TransformerConfig = TransformerConfig()
    head: QueryHeadConfig = QueryHeadConfig()
    heat: HeatHeadConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> ObjectDgcnnVoxelConfig:
        _require_fit(self)
        layers = (self.z_range[1] - self.z_range[0]) / self.voxel_height_m
        if abs(layers - round(layers)) > 1e-6:
            raise ValueError(f"z_range {self.z_range} is not a whole number of {self.voxel_height_m} m voxels")
        if self.sparse.layers_left(round(layers) + 1) < 1:
            raise ValueError(f"{round(layers)} layers of voxels are too few for {len(self.sparse.channels)} stages")
        return self

    def encoder(self) -> SparseEncoder:
        """With fresh weights. ConfigError where spconv is not installed."""
        place = (self.voxels.grid(), self.z_range, self.voxel_height_m)
        learned = VoxelFeatures(*place, self.voxel_channels) if self.voxel_features == "learned" else None
        return SparseEncoder(*place, self.sparse, voxel_features=learned)

    def canvas(self) -> GridConfig:
        """The grid of the encoder's output."""
        return self.voxels.model_copy(update={"cell_m": self.voxels.cell_m * self.sparse.stride})


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


def _require_fit(config: ObjectDgcnnPillarConfig | ObjectDgcnnVoxelConfig) -> None:
    """ValueError where the canvas does not divide by all strides together, or the channels by the heads."""
    fine, deepest = (
        (config.pillars, 1) if isinstance(config, ObjectDgcnnPillarConfig) else (config.voxels, config.sparse.stride)
    )
    for stride in config.backbone.strides:
        deepest *= stride
    grid = fine.grid()
    if grid.height % deepest or grid.width % deepest:
        raise ValueError(f"{grid.height} x {grid.width} cells do not divide by {deepest}, the deepest stride")
    if config.backbone.channels % config.transformer.heads:
        raise ValueError(f"{config.backbone.channels} channels do not divide by {config.transformer.heads} heads")
