"""Augmentation as data: every parameter of a frame is a pure function of (seed, epoch, position in the epoch's list).

A BEV augmentation is one 4x4 matrix A, canonical -> augmented, and boxes, velocities, headings, points and cameras move
by it exactly. An image augmentation is a resize, a crop, a flip and a turn whose 2x3 matrix goes into the intrinsics,
and a jitter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from models.config import Config
from models.pictures import ImageAugment

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_LARGEST = 10.0  # factor of a size: more is a slip, and would ask for pictures of gigabytes
_AUGMENT = 2  # keeps this stream apart from that of `trainer.order`


class BevAugmentConfig(Config):
    """flip_x, flip_y: probability of mirroring that axis; rotation_deg: drawn from +- this; scale: drawn from a range;
    translation_std_m: of a normal shift along x, y, z.

    BEVDepth's values: 0.5, 0.5, 22.5, [0.95, 1.05], none; Object-DGCNN's as BEVDistill's teacher: 0.5, 0.5, 22.5,
    [0.85, 1.15], 0.5 along each.
    """

    flip_x: float = Field(default=0.0, ge=0, le=1)
    flip_y: float = Field(default=0.0, ge=0, le=1)
    rotation_deg: float = Field(default=0.0, ge=0, le=180)
    scale: tuple[float, float] = (1.0, 1.0)
    translation_std_m: tuple[NotNegative, NotNegative, NotNegative] = (0.0, 0.0, 0.0)

    @field_validator("scale")
    @classmethod
    def _rising(cls, scale: tuple[float, float]) -> tuple[float, float]:
        return _positive_range(scale)


class ImageAugmentConfig(Config):
    """resize: range of a factor on the test-time resize (BEVDepth: [0.88, 1.25]); crop_x: whether the crop's horizontal
    place is drawn, else it is centred; flip: probability; brightness, contrast: factors drawn from 1 +- this;
    rotation_deg: drawn from +- this (BEVDet and BEVDepth: 5.4).
    """

    resize: tuple[float, float] = (1.0, 1.0)
    crop_x: bool = False
    flip: float = Field(default=0.0, ge=0, le=1)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    rotation_deg: float = Field(default=0.0, ge=0, le=45)

    @field_validator("resize")
    @classmethod
    def _rising(cls, resize: tuple[float, float]) -> tuple[float, float]:
        return _positive_range(resize)


def _positive_range(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1] <= _LARGEST:
        raise ValueError(f"expected [low, high] with 0 < low <= high <= {_LARGEST:g}, found {list(values)}")
    return values


@dataclass(frozen=True)
class BevAugment:
    """Turn by rotation_rad about z, scale, shift by shift_m, then mirror: x' = -x for flip_x, y' = -y for flip_y (the
    order of BEVDepth and of mmdetection3d)."""

    rotation_rad: float = 0.0
    scale: float = 1.0
    flip_x: bool = False
    flip_y: bool = False
    shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def matrix(self) -> np.ndarray:
        """A (4, 4) float64, canonical -> augmented; the identity is exact."""
        c, s = np.cos(self.rotation_rad) * self.scale, np.sin(self.rotation_rad) * self.scale
        out = np.diag([1.0, 1.0, self.scale, 1.0])
        out[:2, :2] = [[c, -s], [s, c]]
        out[:3, 3] = self.shift_m
        if self.flip_x:
            out[0] *= -1
        if self.flip_y:
            out[1] *= -1
        return out


@dataclass(frozen=True)
class FrameAugment:
    """All of one frame: its bird's-eye view, and one entry per camera in CAMERA_CHANNELS order."""

    bev: BevAugment
    images: tuple[ImageAugment, ...]


def no_augment(cameras: int) -> FrameAugment:
    """Test-time geometry: nothing moved, images resized to fit, crop centred and keeping the bottom."""
    return FrameAugment(BevAugment(), (ImageAugment(),) * cameras)


def frame_augment(
    bev: BevAugmentConfig, image: ImageAugmentConfig, cameras: int, seed: int, epoch: int, position: int
) -> FrameAugment:
    """The parameters of the entry at `position` of an epoch's list. Pure.

    Every number is drawn whether its option is on or not, so that turning one option off leaves the others as they
    were; options that came later are drawn after all earlier ones.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_AUGMENT, seed, epoch, position))))
    b = generator.random(4)
    per_camera = generator.random((cameras, 5))
    shift, turns = generator.standard_normal(3), generator.random(cameras)
    return FrameAugment(
        BevAugment(
            rotation_rad=float(np.deg2rad(bev.rotation_deg) * (2 * b[0] - 1)),
            scale=_between(bev.scale, b[1]),
            flip_x=bool(b[2] < bev.flip_x),
            flip_y=bool(b[3] < bev.flip_y),
            shift_m=_shift(bev.translation_std_m, shift),
        ),
        tuple(
            ImageAugment(
                resize=_between(image.resize, u[0]),
                crop_x=float(u[1]) if image.crop_x else 0.5,
                flip=bool(u[2] < image.flip),
                brightness=float(1 + image.brightness * (2 * u[3] - 1)),
                contrast=float(1 + image.contrast * (2 * u[4] - 1)),
                rotation_rad=float(np.deg2rad(image.rotation_deg) * (2 * turn - 1)),
            )
            for u, turn in zip(per_camera, turns, strict=True)
        ),
    )


def _shift(std_m: tuple[float, float, float], drawn: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(std * value) + 0.0 for std, value in zip(std_m, drawn, strict=True))  # no negative zeros
    return x, y, z


def _between(limits: tuple[float, float], u: float) -> float:
    return float(limits[0] + (limits[1] - limits[0]) * u)


def move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes (N, 9) x, y, z, l, w, h, yaw, vx, vy under A (4, 4); a new float32 array, NaN velocities stay NaN.

    Sizes grow by A's scale, headings and velocities turn and mirror with A, velocities scale as positions do.
    """
    out = np.array(boxes, np.float64).reshape(-1, 9)
    linear = matrix[:2, :2]
    heading = np.stack([np.cos(out[:, 6]), np.sin(out[:, 6])], axis=1) @ linear.T
    out[:, :3] = out[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    out[:, 3:6] *= matrix[2, 2]
    if not np.array_equal(linear, np.eye(2)):  # keeps the yaw's very bits where nothing turns
        out[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    out[:, 7:9] = out[:, 7:9] @ linear.T
    return out.astype(np.float32)


def move_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (P, 5) x, y, z, intensity, dt_s under A (4, 4); a new float32 array."""
    out = np.array(points, np.float32)
    if not np.array_equal(matrix, np.eye(4)):
        out[:, :3] = out[:, :3] @ matrix[:3, :3].T.astype(np.float32) + matrix[:3, 3].astype(np.float32)
    return out
