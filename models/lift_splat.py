"""The camera detector: images -> ResNet -> FPN -> depth distribution x context -> splat -> BEV encoder -> centre head.

Lift, splat, shoot (Philion and Fidler 2020) as BEVDet and BEVDepth use it, in the canonical frame, with plain torch.
Presets: lift-splat-tiny (the demo's student) and lift-splat-r50 (256 x 704 input, BEVDepth-like).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cache.errors import DataError
from cache.frame import Detections
from models.bev_encoder import BevEncoder, BevEncoderConfig
from models.center_head import CenterHead, CenterHeadConfig
from models.config import Config, GridConfig
from models.depth import DepthConfig, depth_loss
from models.detector import Batch, BevLevel, DetectorOutput, LossPart, total_of
from models.fpn import FinestFpn
from models.resnet import LEVELS, ResNet, ResNetConfig
from models.splat import frustum_cells, pixel_centres, splat

# fx / w, fy / h, cx / w, cy / h, and the row of camera_to_lidar that gives z: pitch, roll and height of the camera.
# That row does not change under turns and flips of the bird's-eye view, so the depth net cannot see the augmentation.
CAMERA_FEATURES = 8


class LiftSplatConfig(Config):
    """image_size: (width, height) in pixels; bev: the grid; z_range: metres, lifted points outside are dropped."""

    kind: Literal["lift-splat"] = "lift-splat"
    image_size: tuple[int, int]
    bev: GridConfig
    z_range: tuple[float, float] = (-5.0, 3.0)
    backbone: ResNetConfig
    fpn_channels: int
    depth: DepthConfig
    depth_layers: int = Field(1, ge=0)
    context_channels: int
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
        return self


class DepthNet(nn.Module):
    """Image features -> depth logits (N, D, h', w') and context (N, C, h', w'), told the camera by channel gates.

    The same car is larger in a camera of longer focal length; without the intrinsics its depth is a guess (BEVDepth's
    camera-aware squeeze and excitation).
    """

    def __init__(self, channels: int, layers: int, bins: int, context_channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(CAMERA_FEATURES, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels), nn.Sigmoid()
        )
        convs: list[nn.Module] = []
        for _ in range(layers):
            convs += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
            convs += [nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*convs)
        self.depth = nn.Conv2d(channels, bins, 1)
        self.context = nn.Conv2d(channels, context_channels, 1)

    def forward(self, features: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """features: (N, C, h', w'); camera: (N, CAMERA_FEATURES)."""
        gated = features * self.gate(camera)[:, :, None, None].to(features.dtype)
        return self.depth(self.convs(gated)), self.context(features)


class LiftSplat(nn.Module):
    """A `models.detector.Detector` over images."""

    depth_edges: Tensor
    depth_centres: Tensor
    pixels: Tensor

    modality: Literal["lidar", "camera"] = "camera"

    def __init__(self, config: LiftSplatConfig) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.model_dump(mode="json")
        self.settings = config
        self.grid = config.bev.grid()
        self.stride = config.backbone.strides[0]
        self.backbone = ResNet(config.backbone)
        self.fpn = FinestFpn(config.backbone.channels, config.fpn_channels)
        self.depth_net = DepthNet(config.fpn_channels, config.depth_layers, config.depth.bins, config.context_channels)
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
        k, to_lidar = batch.intrinsics, batch.camera_to_lidar
        if batch.images is None or k is None or to_lidar is None:
            raise DataError("the batch holds no images with calibration, which a camera model reads")
        found, wanted = (batch.images.shape[-1], batch.images.shape[-2]), self.settings.image_size
        if found != wanted:
            raise DataError(
                f"images of {found[0]} x {found[1]} pixels, the model reads {wanted[0]} x {wanted[1]}; resize"
            )
        images = batch.images.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # (B * cameras, 3, h, w)
        features = self.fpn(self.backbone(images))
        depth_logits, context = self.depth_net(features, self._camera_features(k, to_lidar))
        splatted = self._splat(depth_logits, context, k, to_lidar)
        bev = self.encoder(splatted)
        return DetectorOutput(bev, self.head(bev), depth_logits, levels={"splat": splatted})

    def _camera_features(self, intrinsics: Tensor, camera_to_lidar: Tensor) -> Tensor:
        """(B * cameras, CAMERA_FEATURES), of order one."""
        width, height = self.settings.image_size
        k, z_row = intrinsics.flatten(0, 1).float(), camera_to_lidar.flatten(0, 1)[:, 2].float()
        lens = torch.stack([k[:, 0, 0] / width, k[:, 1, 1] / height, k[:, 0, 2] / width, k[:, 1, 2] / height], dim=1)
        return torch.cat([lens, z_row], dim=1)

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
        targets = self.head.targets(batch.boxes, batch.labels, output.bev.device)
        parts = self.head.loss_parts(output.heads, targets, batch.labelled)
        if batch.depth_points is not None and output.depth_logits is not None:
            weight = self.settings.depth.weight
            parts["depth"] = depth_loss(output.depth_logits, batch.depth_points, self.stride, self.depth_edges, weight)
        return parts

    def loss(self, output: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        return total_of(self.loss_parts(output, batch))

    def decode(self, output: DetectorOutput) -> list[Detections]:
        return self.head.decode(output.heads)
