"""What every detector takes, gives and can be asked: `Batch` in, `DetectorOutput` out, and the `Detector` protocol.

A trainer or a teacher pass knows detectors through this file only. Nothing here computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cache.frame import Detections
from cache.grid import BevGrid


@dataclass(frozen=True)
class Batch:
    """B frames as a detector reads them. Only what the model's modality and the loss need must be present.

    Everything in space is in the canonical frame with the frame's BEV augmentation already applied.

    points: B tensors (P, 5) float32: x, y, z (m), intensity (0..255), dt_s (>= 0).
    images: (B, cameras, 3, h, w) float, normalised.
    intrinsics: (B, cameras, 3, 3), of the images as given, so after resize, crop and flip.
    camera_to_lidar: (B, cameras, 4, 4), the BEV augmentation multiplied from the left.
    boxes: B tensors (N, 9) float32: x, y, z (gravity centre), l, w, h, yaw, vx, vy (NaN = unknown).
    labels: B tensors (N,) int64, ids of `cache.classes.DETECTION_CLASSES`.
    labelled: (B,) bool, which frames are annotated; None: all. On the others boxes and labels are empty, which does not
    mean that nothing was there: no loss may learn from them that a place is free.
    depth_points: (K, 4) float32: image index b * cameras + camera, u, v (pixels of the images as given), depth_m.
    tokens: B frame tokens.
    bev_augmentation: (B, 4, 4), canonical -> augmented.
    history: earlier moments of the same scenes for a temporal detector, oldest first; memory: what it kept of the
    moment before all of these. Detectors of single frames ignore both.
    image_affine: (B, cameras, 2, 3), pixels of the stored images (centres at whole numbers) -> of the images as given
    (edges at whole numbers): how each was resized, cropped and flipped.
    """

    points: list[Tensor] | None = None
    images: Tensor | None = None
    intrinsics: Tensor | None = None
    camera_to_lidar: Tensor | None = None
    boxes: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    labelled: Tensor | None = None
    depth_points: Tensor | None = None
    tokens: list[str] = field(default_factory=list)
    bev_augmentation: Tensor | None = None
    history: list[Past] = field(default_factory=list)
    memory: Memory | None = None
    image_affine: Tensor | None = None

    def __len__(self) -> int:
        for part in (self.tokens, self.points, self.images, self.boxes):
            if part is not None and len(part):
                return len(part)
        return 0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        return _moved(self, device)


@dataclass(frozen=True)
class Past:
    """One earlier moment of each frame of a batch of B.

    frames: B frames with images and calibration, under the BEV augmentations of the batch whose past they are. Where a
    frame has no such moment, any values: they are not looked at.
    past_to_now: (B, 4, 4), this moment's LiDAR frame to the batch's, both augmented: see `cache.geometry.past_to_now`.
    known: (B,) bool, False where the scene had not begun. age_s: (B,) seconds between this moment and the batch's.
    """

    frames: Batch
    past_to_now: Tensor
    known: Tensor
    age_s: Tensor


@dataclass(frozen=True)
class Memory:
    """What a temporal detector kept of one earlier moment of each frame of a batch of B: its BEV map.

    bev: (B, C, H, W) as `DetectorOutput.bev`, still where the vehicle was then; without gradient. past_to_now, known,
    age_s: as `Past`.
    """

    bev: Tensor
    past_to_now: Tensor
    known: Tensor
    age_s: Tensor


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    if isinstance(value, (Batch, Past, Memory)):
        parts = {f.name: _moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


@dataclass(frozen=True)
class QueryOutput:
    """What a detector of queries says, layer by layer of its decoder; the last layer's is its answer.

    logits: (L, B, Q, classes), by id of `cache.classes.DETECTION_CLASSES`. boxes: (L, B, Q, 10) x, y, z (m, gravity
    centre), log l, log w, log h (of m), sin yaw, cos yaw, vx, vy (m/s); differentiable. references: (L, B, Q, 2) BEV
    centres x, y (m) that each layer began from, without gradient. embeddings: (B, Q, C) of the last layer.
    """

    logits: Tensor
    boxes: Tensor
    references: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class DetectorOutput:
    """What a forward pass gives.

    bev: (B, C, H, W) on `Detector.grid`, the map that dense distillation reads: the neck's output, before the head.
    heads: one dict of maps (B, channels, H, W) per task group: heatmap (logits), center, height, dim, rot, vel; a
    detector of queries may have a heatmap alone, or none.
    depth_logits: (B * cameras, D, h', w') of camera models, else None.
    levels: further BEV maps by name, (B, C', H', W') over the same ranges in cells a whole number of times as large or
    as small; which there are, `Detector.levels` says.
    queries: of detectors of queries, else None.
    """

    bev: Tensor
    heads: list[dict[str, Tensor]]
    depth_logits: Tensor | None = None
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    queries: QueryOutput | None = None

    def class_heat(self) -> Tensor:
        """(B, classes, H, W) float32 probabilities 0..1 of the heatmaps, task groups one after another."""
        return torch.cat([maps["heatmap"].float().sigmoid() for maps in self.heads], dim=1)


@dataclass(frozen=True)
class LossPart:
    """One term of a loss before its division, so that ranks and accumulation steps can sum both sides first.

    numerator, normaliser: (G,) float32, one entry per task group (G = 1 where there are none); weight: a plain factor.
    """

    numerator: Tensor
    normaliser: Tensor
    weight: float

    def value(self) -> Tensor:
        """weight * sum over groups of numerator / max(normaliser, 1); finite where nothing was there to learn from."""
        return self.weight * (self.numerator / self.normaliser.clamp(min=1.0)).sum()


def total_of(parts: Mapping[str, LossPart]) -> dict[str, Tensor]:
    """Weighted scalars by name; their sum is the loss."""
    return {name: part.value() for name, part in parts.items()}


@dataclass(frozen=True)
class BevLevel:
    """One map of `DetectorOutput.levels`."""

    channels: int
    grid: BevGrid


class Detector(Protocol):
    """A `torch.nn.Module` that finds boxes. The lower block is the part of nn.Module that callers use.

    grid: of `DetectorOutput.bev` and the head; bev_channels: C of that map; config: what `models.build` made it from;
    levels: what `DetectorOutput.levels` holds; heat_classes: the class of each channel of `DetectorOutput.class_heat`;
    gives: attributes of `DetectorOutput` that are not empty.
    """

    grid: BevGrid
    modality: Literal["lidar", "camera"]
    bev_channels: int
    config: dict[str, Any]
    levels: Mapping[str, BevLevel]
    heat_classes: tuple[str, ...]
    gives: frozenset[str]

    def forward(self, batch: Batch) -> DetectorOutput: ...

    def __call__(self, batch: Batch) -> DetectorOutput: ...

    def loss_parts(self, output: DetectorOutput, batch: Batch) -> dict[str, LossPart]:
        """Terms with their numerators and normalisers apart; what reads boxes leaves out frames that are not
        `Batch.labelled`."""
        ...

    def loss(self, output: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalars by name, fp32; their sum is the loss."""
        ...

    def decode(self, output: DetectorOutput) -> list[Detections]:
        """One `Detections` per frame, scores descending."""
        ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, nn.Parameter]]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...

    def to(self, *args: Any, **kwargs: Any) -> Any: ...
