"""The camera detector: images -> ResNet -> FPN -> depth distribution x context -> splat -> BEV encoder -> centre head.

Lift, splat, shoot (Philion and Fidler 2020) as BEVDet and BEVDepth use it, in the canonical frame, with plain torch.
Presets: lift-splat-tiny (the demo's student), lift-splat-r50, and the published detectors bevdet-r50 and bevdepth-r50,
which are this one with the parts that their papers have.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cache.frame import Detections
from models.batch_checks import require_cameras, require_depth_points, require_judged
from models.bev_backbone import MultiScaleNeck
from models.bev_encoder import BevEncoder, BevEncoderConfig
from models.center_head import CenterHead, CenterHeadConfig
from models.config import AtLeastOne, Between, Config, GridConfig
from models.depth import DepthConfig, depth_loss
from models.depth_net import BevDepthNet, Calibration, GatedDepthNet, LinearDepthNet
from models.detector import Batch, BevLevel, DetectorOutput, LossPart, total_of
from models.fpn import FinestFpn
from models.resnet import LEVELS, ResNet, ResNetConfig
from models.splat import frustum_cells, pixel_centres, splat


class LiftSplatConfig(Config):
    """image_size: (width, height) in pixels; bev: the grid; z_range: metres, lifted points outside are dropped.

    image_neck: `fpn` gives the finest of the backbone's outputs, `second` brings all of them to `neck_stride` pixels a
    cell and shares `fpn_channels` among them. depth_net: see `models.depth_net`; depth_layers are of `gated`,
    depth_channels of `bevdepth`.
    """

    kind: Literal["lift-splat"] = "lift-splat"
    image_size: tuple[AtLeastOne, AtLeastOne]
    bev: GridConfig
    z_range: Between = (-5.0, 3.0)
    backbone: ResNetConfig
    fpn_channels: int = Field(ge=1)
    image_neck: Literal["fpn", "second"] = "fpn"
    neck_stride: Literal[4, 8, 16, 32] = 16
    depth: DepthConfig
    depth_net: Literal["gated", "linear", "bevdepth"] = "gated"
    depth_layers: int = Field(1, ge=0)
    depth_channels: int = Field(512, ge=4, multiple_of=4)
    context_channels: int = Field(ge=1)
    encoder: BevEncoderConfig
    head: CenterHeadConfig = CenterHeadConfig()

    @model_validator(mode="after")
    def _check(self) -> LiftSplatConfig:
        coarsest = self.backbone.strides[-1]
        if self.image_size[0] % coarsest or self.image_size[1] % coarsest:
            raise ValueError(f"image_size {self.image_size} does not divide by the backbone's stride {coarsest}")
        if LEVELS.index(self.backbone.outputs[-1]) >= len(self.backbone.layers):
            raise ValueError(f"output {self.backbone.outputs[-1]} needs more than {len(self.backbone.layers)} stages")
        grid, total = self.bev.grid(), self.encoder.total_strides[-1]
        if grid.height % total or grid.width % total:
            raise ValueError(f"{grid.height} x {grid.width} cells do not divide by the encoder's stride {total}")
        if self.image_neck == "second" and self.fpn_channels % len(self.backbone.outputs):
            raise ValueError(f"fpn_channels {self.fpn_channels} do not divide by {len(self.backbone.outputs)} outputs")
        if any(size % self.stride for size in self.image_size):
            raise ValueError(f"image_size {self.image_size} does not divide by the neck's stride {self.stride}")
        return self

    @property
    def stride(self) -> int:
        """Pixels per cell of the map that is lifted."""
        return self.backbone.strides[0] if self.image_neck == "fpn" else self.neck_stride


class LiftSplat(nn.Module):
    """A `models.detector.Detector` over images."""

    depth_edges: Tensor
    depth_centres: Tensor
    pixels: Tensor

    modality: Literal["lidar", "camera"] = "camera"
    gives = frozenset({"bev", "heads", "levels", "depth_logits"})

    def __init__(self, config: LiftSplatConfig) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.model_dump(mode="json")
        self.settings = config
        self.grid = config.bev.grid()
        self.stride = config.stride
        self.backbone = ResNet(config.backbone)
        self.fpn = _image_neck(config)
        self.depth_net = _depth_net(config)
        self.encoder = BevEncoder(config.context_channels, config.encoder)
        self.bev_channels = self.encoder.out_channels
        self.head = CenterHead(self.bev_channels, self.grid, config.head)
        self.heat_classes = self.head.heat_classes
        self.levels = {"splat": BevLevel(config.context_channels, self.grid)}
        self.register_buffer("depth_edges", config.depth.edges(), persistent=False)
        self.register_buffer("depth_centres", config.depth.centres(), persistent=False)
        width, height = config.image_size
        pixels = pixel_centres((height // self.stride, width // self.stride), self.stride)
        self.register_buffer("pixels", pixels, persistent=False)

    def forward(self, batch: Batch) -> DetectorOutput:
        """Reads batch.images, intrinsics and camera_to_lidar."""
        images, k, to_lidar = require_cameras(batch, self.settings.image_size, self.config)
        images = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # (B * cameras, 3, h, w)
        features = self.fpn(self.backbone(images))
        depth_logits, context = self.depth_net(features, self._calibration(batch, k, to_lidar))
        splatted = self._splat(depth_logits, context, k, to_lidar)
        bev = self.encoder(splatted)
        return DetectorOutput(bev, self.head(bev), depth_logits, levels={"splat": splatted})

    def _calibration(self, batch: Batch, intrinsics: Tensor, camera_to_lidar: Tensor) -> Calibration:
        """Of all images, one after another."""
        turns = batch.bev_augmentation
        if turns is None:
            turns = torch.eye(4, device=camera_to_lidar.device).expand(len(camera_to_lidar), 4, 4)
        turns = turns.repeat_interleave(camera_to_lidar.shape[1], dim=0)  # (B * cameras, 4, 4)
        return Calibration(intrinsics.flatten(0, 1), camera_to_lidar.flatten(0, 1), turns, self.settings.image_size)

    def _splat(self, depth_logits: Tensor, context: Tensor, intrinsics: Tensor, camera_to_lidar: Tensor) -> Tensor:
        """(B, C, H, W) fp32, channels last in memory."""
        cells = frustum_cells(
            intrinsics, camera_to_lidar, self.pixels, self.depth_centres, self.grid, self.settings.z_range
        )
        depth = depth_logits.float().softmax(dim=1).permute(0, 2, 3, 1).flatten(0, 2)  # (pixels, D)
        pixels = context.permute(0, 2, 3, 1).flatten(0, 2)  # (pixels, C)
        height, width = self.grid.shape
        out = splat(pixels, depth, cells.flatten(0, 2), len(cells) * height * width)
        return out.view(len(cells), height, width, -1).permute(0, 3, 1, 2)

    def loss_parts(self, output: DetectorOutput, batch: Batch) -> dict[str, LossPart]:
        """The head's terms, and `depth` where the batch holds LiDAR returns."""
        require_judged(batch, len(output.bev), self.config)
        targets = self.head.targets(batch.boxes, batch.labels, output.bev.device)
        parts = self.head.loss_parts(output.heads, targets, batch.labelled)
        depth = self.settings.depth
        if batch.depth_points is not None and output.depth_logits is not None and depth.weight:
            require_depth_points(batch.depth_points, self.config)
            parts["depth"] = depth_loss(
                output.depth_logits, batch.depth_points, self.stride, self.depth_edges, depth.weight, depth.loss
            )
        return parts

    def loss(self, output: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        return total_of(self.loss_parts(output, batch))

    def decode(self, output: DetectorOutput) -> list[Detections]:
        return self.head.decode(output.heads)


def _image_neck(config: LiftSplatConfig) -> FinestFpn | MultiScaleNeck:
    backbone = config.backbone
    if config.image_neck == "fpn":
        return FinestFpn(backbone.channels, config.fpn_channels)
    scales = [stride / config.neck_stride for stride in backbone.strides]
    return MultiScaleNeck(backbone.channels, scales, [config.fpn_channels // len(scales)] * len(scales))


def _depth_net(config: LiftSplatConfig) -> GatedDepthNet | LinearDepthNet | BevDepthNet:
    channels, bins, context = config.fpn_channels, config.depth.bins, config.context_channels
    if config.depth_net == "linear":
        return LinearDepthNet(channels, bins, context)
    if config.depth_net == "bevdepth":
        return BevDepthNet(channels, config.depth_channels, bins, context)
    return GatedDepthNet(channels, config.depth_layers, bins, context)
