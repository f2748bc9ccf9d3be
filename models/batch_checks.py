"""What a detector refuses of a batch: a tensor of another shape than it reads, told with its name and both shapes.

Of what lies on a device only shapes are read, so no check waits for it; on the CPU calibration is looked at as well,
and labels, which losses bring there anyway. What a detector itself refuses is told with its preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from models.detector import Batch
from models.voxels import VOXEL_FEATURES

BOX_NUMBERS = 9  # x, y, z, l, w, h, yaw, vx, vy
DEPTH_NUMBERS = 4  # image, u, v, depth


def require_points(points: Sequence[Tensor] | None, config: Mapping[str, Any]) -> list[Tensor]:
    """One cloud (P, 5) a frame, one frame at least. config: of the detector. DataError else."""
    if points is None:
        raise DataError(
            f"{told(config)}: the batch holds no points, which a LiDAR model reads; use `cache-frames --points`"
        )
    if not len(points):
        raise DataError(f"{told(config)}: points of 0 frames, expected one cloud (P, {VOXEL_FEATURES}) a frame")
    for frame, cloud in enumerate(points):
        if cloud.dim() != 2 or cloud.shape[1] != VOXEL_FEATURES:
            raise DataError(
                f"{told(config)}: points of frame {frame} have shape {tuple(cloud.shape)}, expected "
                f"(P, {VOXEL_FEATURES}): x, y, z, intensity, dt_s"
            )
    return list(points)


def require_cameras(
    batch: Batch, size: tuple[int, int], config: Mapping[str, Any], cameras: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, N, 3, h, w), intrinsics (B, N, 3, 3) and camera_to_lidar (B, N, 4, 4) of `batch`.

    size: (width, height) in pixels; cameras: N, None for any number. DataError where one is missing or does not fit.
    """
    images, intrinsics, to_lidar = batch.images, batch.intrinsics, batch.camera_to_lidar
    if images is None or intrinsics is None or to_lidar is None:
        raise DataError(f"{told(config)}: the batch holds no images with calibration, which a camera model reads")
    found = (images.shape[-1], images.shape[-2]) if images.dim() > 2 else size  # of fewer axes: the shape is told below
    if found != size:
        raise DataError(
            f"{told(config)}: images of {found[0]} x {found[1]} pixels, the model reads {size[0]} x {size[1]}; resize"
        )
    rig = (len(images) if images.dim() else 1, cameras or (images.shape[1] if images.dim() == 5 else 1))
    wanted = {
        "images": (images, (*rig, 3, size[1], size[0])),
        "intrinsics": (intrinsics, (*rig, 3, 3)),
        "camera_to_lidar": (to_lidar, (*rig, 4, 4)),
    }
    if batch.bev_augmentation is not None:
        wanted["bev_augmentation"] = (batch.bev_augmentation, (rig[0], 4, 4))
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape or not rig[0]:
            raise DataError(
                f"{told(config)}: {name} of shape {tuple(tensor.shape)}, expected {rig[0] or 1} frames of {rig[1]} "
                f"cameras, {(rig[0] or 1, *shape[1:])}; give every frame all cameras and their calibration"
            )
        if not tensor.is_floating_point():
            raise DataError(
                f"{told(config)}: {name} of {tensor.dtype}, expected floats; normalise, do not hand on bytes"
            )
        if name != "images" and tensor.device.type == "cpu" and not _invertible(tensor):
            raise DataError(f"{told(config)}: {name} hold a matrix that is not finite or has no inverse; mend the rig")
    return images, intrinsics, to_lidar


def require_annotations(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], config: Mapping[str, Any] | None = None
) -> None:
    """Boxes (N, 9) and as many labels, ids of classes, of every frame; what targets are made of. DataError else, with
    the preset where the detector's config is given."""
    if problem := _problem_of_annotations(boxes, labels):
        raise DataError(f"{told(config)}: {problem}" if config is not None else problem)


def _problem_of_annotations(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> str | None:
    """In words, the first that there is."""
    sizes = [len(sample) for sample in labels]
    if not sizes or sizes != [len(sample) for sample in boxes]:
        return (
            f"a loss needs boxes and labels of every frame, found {len(boxes)} and {len(labels)} lists, "
            f"of {[len(sample) for sample in boxes]} and {sizes} objects; use frames with annotations"
        )
    for frame, (sample, label) in enumerate(zip(boxes, labels, strict=True)):
        if sample.dim() != 2 or sample.shape[1] != BOX_NUMBERS:
            return f"boxes of frame {frame} have shape {tuple(sample.shape)}, expected (N, {BOX_NUMBERS})"
        if label.dim() != 1:
            return f"labels of frame {frame} have shape {tuple(label.shape)}, expected ({len(label)},)"
        if len(label) and (label.is_floating_point() or label.dtype == torch.bool):
            return f"labels of frame {frame} are {label.dtype}, expected ids of classes, torch.int64"
        if len(label) and not 0 <= int(label.min()) <= int(label.max()) < len(DETECTION_CLASSES):
            return (
                f"labels of frame {frame} reach from {int(label.min())} to {int(label.max())}, expected ids of "
                f"0..{len(DETECTION_CLASSES) - 1}; leave other classes out"
            )
    return None


def require_depth_points(depth_points: Tensor, config: Mapping[str, Any] | None = None) -> None:
    """Depth labels (K, 4). DataError else, with the preset where the detector's config is given."""
    if depth_points.dim() != 2 or depth_points.shape[1] != DEPTH_NUMBERS:
        who = f"{told(config)}: " if config is not None else ""
        raise DataError(
            f"{who}depth_points have shape {tuple(depth_points.shape)}, expected (K, {DEPTH_NUMBERS}): image, u, v "
            "(pixels), depth (m)"
        )


def require_judged(batch: Batch, frames: int, config: Mapping[str, Any]) -> None:
    """The annotations of a batch fit the output that they are to judge: as many frames, and each as
    `require_annotations` has it. DataError else."""
    for name, part in (("boxes", batch.boxes), ("labels", batch.labels), ("labelled", batch.labelled)):
        if part is not None and len(part) not in (0, frames):
            raise DataError(
                f"{told(config)}: {name} of {len(part)} frames for an output of {frames}; give the same batch"
            )
    if batch.labelled is not None and batch.labelled.dtype != torch.bool:  # whole numbers would choose frames instead
        raise DataError(f"{told(config)}: labelled is {batch.labelled.dtype}, expected torch.bool, True for annotated")
    require_annotations(batch.boxes, batch.labels, config)


def _invertible(matrices: Tensor) -> bool:
    if torch.compiler.is_exporting():  # a traced program has no values to look at, and cannot hold a refusal
        return True
    size = torch.linalg.det(matrices.double())
    return bool((torch.isfinite(size) & (size != 0)).all())


def told(config: Mapping[str, Any]) -> str:
    """The detector's preset, in words."""
    from models.build import told_preset  # here, since that module builds the detectors that check their batches

    return told_preset(config)
