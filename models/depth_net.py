"""From image features to a depth distribution and a context vector of every pixel: three nets of one protocol.

`linear` is BEVDet's, one convolution that knows no camera; `gated` the light one of lift-splat-tiny; `bevdepth` is
BEVDepth's. All take features (N, C, h', w') and calibration, and give depth logits (N, D, h', w') and context
(N, C', h', w'). Source of the last: Li et al. 2022 (BEVDepth), with the sizes of the released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.resnet import BasicBlock

LENS_AND_Z_ROW = 8
WHOLE_CALIBRATION = 23
ASPP_DILATIONS = (6, 12, 18)
RESIDUAL_BLOCKS = 3
LAST_GROUPS = 4


@dataclass(frozen=True)
class Calibration:
    """Of N images: intrinsics (N, 3, 3), of the images as given; camera_to_lidar (N, 4, 4), the BEV augmentation
    multiplied from the left; bev_augmentation (N, 4, 4); image_size: (width, height) in pixels."""

    intrinsics: Tensor
    camera_to_lidar: Tensor
    bev_augmentation: Tensor
    image_size: tuple[int, int]

    def lens_and_z_row(self) -> Tensor:
        """(N, 8) of order one: fx / w, fy / h, cx / w, cy / h, and the row of camera_to_lidar that gives z: pitch, roll
        and height. That row does not change under turns and flips of the bird's-eye view."""
        k, (width, height) = self.intrinsics.float(), self.image_size
        lens = torch.stack([k[:, 0, 0] / width, k[:, 1, 1] / height, k[:, 0, 2] / width, k[:, 1, 2] / height], dim=1)
        return torch.cat([lens, self.camera_to_lidar[:, 2].float()], dim=1)

    def whole(self) -> Tensor:
        """(N, 23) of order one: the intrinsics' two rows, over the image's size; the BEV augmentation's turn, flips and
        scale; the camera's pose before it. BEVDepth has 27 numbers: it keeps intrinsics and the image augmentation
        apart, which are one matrix here."""
        width, height = self.image_size
        lens = self.intrinsics.float()[:, :2] / self.intrinsics.new_tensor([[width], [height]]).float()  # (N, 2, 3)
        turn = self.bev_augmentation.float()
        pose = torch.linalg.solve(turn, self.camera_to_lidar.float())[:, :3]  # (N, 3, 4)
        return torch.cat([lens.flatten(1), turn[:, :2, :2].flatten(1), turn[:, 2:3, 2], pose.flatten(1)], dim=1)


class LinearDepthNet(nn.Module):
    """One 1x1 convolution to both."""

    def __init__(self, channels: int, bins: int, context_channels: int) -> None:
        super().__init__()
        self.bins = bins
        self.both = nn.Conv2d(channels, bins + context_channels, 1)

    def forward(self, features: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
        both = self.both(features)
        return both[:, : self.bins], both[:, self.bins :]


class GatedDepthNet(nn.Module):
    """A few 3x3 convolutions on features whose channels the camera gates.

    The same car is larger in a camera of longer focal length; without the intrinsics its depth is a guess (BEVDepth's
    camera-aware squeeze and excitation).
    """

    def __init__(self, channels: int, layers: int, bins: int, context_channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(LENS_AND_Z_ROW, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels), nn.Sigmoid()
        )
        convs: list[nn.Module] = []
        for _ in range(layers):
            convs += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
            convs += [nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*convs)
        self.depth = nn.Conv2d(channels, bins, 1)
        self.context = nn.Conv2d(channels, context_channels, 1)

    def forward(self, features: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
        gated = features * self.gate(calibration.lens_and_z_row())[:, :, None, None].to(features.dtype)
        return self.depth(self.convs(gated)), self.context(features)


class BevDepthNet(nn.Module):
    """BEVDepth's: both branches gated by the whole calibration, three residual blocks and an ASPP before the depth.

    Two parts differ from the release: its deformable convolution before the last one is a plain one of the same groups
    (its weights at zero offsets), and its ASPP's dropout is left out, so that a step depends on nothing but its batch.
    """

    def __init__(self, in_channels: int, channels: int, bins: int, context_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.calibration_norm = nn.BatchNorm1d(WHOLE_CALIBRATION)
        self.depth_gate = CalibrationGate(channels)
        self.context_gate = CalibrationGate(channels)
        self.context = nn.Conv2d(channels, context_channels, 1)
        self.depth = nn.Sequential(
            *(BasicBlock(channels, channels) for _ in range(RESIDUAL_BLOCKS)),
            Aspp(channels),
            nn.Conv2d(channels, channels, 3, padding=1, groups=LAST_GROUPS, bias=False),
            nn.Conv2d(channels, bins, 1),
        )

    def forward(self, features: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            known = self.calibration_norm(calibration.whole())
        reduced = self.reduce(features)
        return self.depth(self.depth_gate(reduced, known)), self.context(self.context_gate(reduced, known))


class CalibrationGate(nn.Module):
    """Squeeze and excitation whose squeezed vector comes from the calibration: (N, C, h', w') -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(WHOLE_CALIBRATION, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels)
        )
        self.excite = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels), nn.Sigmoid()
        )

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """known: (N, 23)."""
        return features * self.excite(self.embed(known))[:, :, None, None].to(features.dtype)


class Aspp(nn.Module):
    """Five views of one map, near, far and of the whole image, joined (Chen et al. 2018): (N, C, h', w') -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.views = nn.ModuleList([_view(channels, 1, 1), *(_view(channels, 3, d) for d in ASPP_DILATIONS)])
        self.image = _view(channels, 1, 1)
        self.join = nn.Sequential(
            nn.Conv2d((2 + len(ASPP_DILATIONS)) * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.join(torch.cat([*(view(x) for view in self.views), image], dim=1))


def _view(channels: int, kernel: int, dilation: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
