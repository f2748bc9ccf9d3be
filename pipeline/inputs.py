"""What a teacher is shown of a frame: a cloud for LiDAR models, six images for camera models, never both.

Clouds come from the frame store or the raw sweeps, images from the frame store, at the model's size and without any
augmentation, drawn as the trainer draws them at test time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.errors import ConfigError, DataError
from cache.frame import CAMERA_CHANNELS
from cache.store import FrameStore
from models.detector import Batch, Detector
from models.pictures import ImageAugment, draw_cameras, normalised
from pipeline.points import Sweep, aggregate


@dataclass(frozen=True)
class FrameInput:
    """cloud: (P, 5) float32, or pictures: (cameras, h, w, 3) uint8 RGB with their intrinsics (cameras, 3, 3) and
    camera_to_lidar (cameras, 4, 4)."""

    cloud: np.ndarray | None = None
    pictures: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    camera_to_lidar: np.ndarray | None = None


def image_size_of(model: Detector) -> tuple[int, int] | None:
    """(width, height) that a camera model reads, None for a LiDAR model. ConfigError where it does not say."""
    if model.modality == "lidar":
        return None
    try:
        width, height = (int(size) for size in model.config["image_size"])
        if model.modality == "camera" and width > 0 and height > 0:
            return width, height
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ConfigError(
        f"a {model.modality} model without config['image_size'] (width, height); a teacher reads LiDAR or cameras, and "
        "one of cameras says the size of its images"
    )


def read_input(
    frames: FrameStore,
    row: int,
    sweeps: tuple[Sweep, ...] | None,
    data_root: str | None,
    image_size: tuple[int, int] | None,
) -> FrameInput:
    """A frame's images at `image_size`, or for None its cloud: of the store or, with sweeps, of the raw files under
    data_root. DataError where a file, a cloud or an image cannot be read."""
    if image_size is not None:
        missing = [channel for channel in CAMERA_CHANNELS if not frames.has(row, channel.lower())]
        if missing:
            raise DataError(f"{frames.root}: frame {frames.token(row)} has no image of {missing[0]}")
        pictures = np.empty((len(CAMERA_CHANNELS), image_size[1], image_size[0], 3), np.uint8)
        views = draw_cameras(frames, row, image_size, _AS_IT_IS, pictures)
        return FrameInput(None, pictures, views.intrinsics, views.camera_to_lidar)
    if sweeps is None:
        return FrameInput(frames.points(row))
    assert data_root is not None
    return FrameInput(aggregate(sweeps, Path(data_root)))


def batch_of(inputs: Sequence[FrameInput], tokens: Sequence[str], device: str) -> Batch:
    """The inputs of some frames, all of one kind, as a detector reads them, on `device`."""
    if inputs[0].pictures is None:
        clouds = [torch.from_numpy(np.array(part.cloud)).to(device, non_blocking=True) for part in inputs]
        return Batch(points=clouds, tokens=list(tokens))
    pictures = np.stack([part.pictures for part in inputs if part.pictures is not None])
    batch = Batch(
        images=normalised(pictures, _AS_IT_IS * len(inputs)),
        intrinsics=_stacked([part.intrinsics for part in inputs]),
        camera_to_lidar=_stacked([part.camera_to_lidar for part in inputs]),
        tokens=list(tokens),
    )
    return batch.to(device)


_AS_IT_IS = (ImageAugment(),) * len(CAMERA_CHANNELS)


def _stacked(parts: Sequence[np.ndarray | None]) -> Tensor:
    return torch.from_numpy(np.stack([part for part in parts if part is not None]).astype(np.float32))
