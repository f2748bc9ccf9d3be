"""The fields of a frame store: what each is, and how a frame, its images and its annotations become them.

Any rig's frames fit: a camera is a field named after its channel, in the order of the frame's own list of cameras.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cache.errors import StoreError
from cache.fields import FieldSpec
from cache.files import digest_of
from cache.frame import Frame, GroundTruth
from cache.geometry import boxes_to_lidar
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from cache.plan import FrameEntry

BOX_CONVENTION = "canonical x,y,z(centre),l,w,h,yaw(ccw from +x),vx,vy; global x,y,z,w,l,h,qw,qx,qy,qz,vx,vy"


def frame_identity(dataset_version: str, classes: Sequence[str]) -> dict[str, Any]:
    """A store's identity: what stores that are joined must share, besides each frame's own digest."""
    return {"dataset_version": dataset_version, "classes": list(classes), "box_convention": BOX_CONVENTION}


def frame_fields(cameras: Sequence[str], *, points: bool, lidarseg: bool = False) -> tuple[FieldSpec, ...]:
    """The fields of a frame store for a rig's camera channels, in the order of the index's columns. points, lidarseg:
    whether clouds, and classes of the key sweeps' points, are stored."""
    images = tuple(FieldSpec(name.lower(), "jpg", unit="JPEG", about=f"image of {name}") for name in cameras)
    cloud = FieldSpec(
        "points", "npy.zstd", "float32", ("P", "5"), "m, m, m, 0..255, s", "x, y, z, intensity, dt; canonical"
    )
    classes = FieldSpec(
        "lidarseg",
        "npy.zstd",
        "uint8",
        ("L",),
        "class",
        "nuScenes-lidarseg classes of the key sweep's points, in order",
    )
    return (
        FieldSpec("frame", "json", about="identity, poses, calibration"),
        *images,
        FieldSpec("gt_boxes", "npy", "float64", ("N", "12"), "m, quaternion, m/s", "global boxes"),
        FieldSpec("gt_ids", "npy", "int32", ("N", "5"), "", "class, attribute, LiDAR points, radar points, visibility"),
        FieldSpec("gt_lidar", "npy", "float32", ("N", "9"), "m, rad, m/s", "the same boxes, canonical frame"),
        FieldSpec("racks", "npy", "float64", ("M", "10"), "m, quaternion", "bicycle racks, global"),
        FieldSpec(
            "depth",
            "npy.zstd",
            "uint16",
            ("D", "4"),
            "camera, px/32, px/32, cm",
            "LiDAR returns of the key sweep in the images",
        ),
        *((cloud,) if points else ()),
        *((classes,) if lidarseg else ()),
    )


def frame_values(
    frame: Frame,
    images: Mapping[str, bytes],
    truth: GroundTruth | None,
    depth: np.ndarray,
    points: np.ndarray | None = None,
    lidarseg: np.ndarray | None = None,
) -> dict[str, Any]:
    """The fields' values. images: JPEG bytes by channel; depth: (D, 4) uint16, see `cache.store.pack_depth`; points:
    (P, 5) float32, canonical; lidarseg: (L,) uint8; truth: None for a frame without annotations.

    Raises StoreError where images and the frame's cameras are not the same.
    """
    channels = [camera.channel for camera in frame.cameras]
    if sorted(channels) != sorted(images):
        raise StoreError(f"frame {frame.token}: images of {sorted(images)}, its cameras are {sorted(channels)}")
    values: dict[str, Any] = {"frame": frame.to_dict(), "depth": depth}
    values |= {channel.lower(): images[channel] for channel in channels}
    if points is not None:
        values["points"] = points
    if lidarseg is not None:
        values["lidarseg"] = lidarseg
    if truth is not None:
        values["gt_boxes"] = truth.boxes_global
        values["gt_ids"] = np.stack(
            [truth.class_ids, truth.attribute_ids, truth.num_lidar_pts, truth.num_radar_pts, truth.visibility], axis=1
        )
        values["gt_lidar"] = boxes_to_lidar(truth.boxes_global, frame.lidar_to_global())
        values["racks"] = truth.racks_global
    return values


def frame_entry(frame: Frame, truth: GroundTruth | None, num_classes: int) -> FrameEntry:
    """The frame's index entry. Raises StoreError for a class id outside the store's list."""
    labels = truth.class_ids if truth is not None else np.zeros(0, np.int32)
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise StoreError(
            f"frame {frame.token}: class ids {labels.min()}..{labels.max()}, expected 0..{num_classes - 1}"
        )
    identity = [
        frame.token,
        frame.timestamp_us,
        frame.ego_to_global.to_dict(),
        frame.lidar_to_ego.to_dict(),
    ]
    return FrameEntry(
        token=frame.token,
        scene=frame.scene_token,
        timestamp_us=frame.timestamp_us,
        kind=KIND_LABELLED if truth is not None else KIND_UNLABELLED,
        class_counts=tuple(np.bincount(labels, minlength=num_classes).tolist()),
        digest=digest_of(identity)[:16],
    )


def pose_part(data: bytes) -> dict[str, Any] | None:
    """The poses, and what else stands behind the cameras in the bytes of a `frame` field; None where that takes parsing
    all of it. Keys are sorted as we write them, and six cameras are nine tenths of the bytes.

    What follows the last `,"ego_to_global":` parses as the rest of an object only if that key is the outermost
    object's: inside another one a closing brace would be too many, and in a string the quotes would be escaped.
    """
    start = data.rfind(b',"ego_to_global":')
    if start < 0:
        return None
    try:
        told = json.loads(b"{" + data[start + 1 :])
    except ValueError:
        return None
    return told if isinstance(told, dict) and "lidar_to_ego" in told else None
