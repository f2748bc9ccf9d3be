"""Small frame and teacher stores with random but consistent content, written through the cache's own writer.

Boxes stand at the same places in clouds, depth labels and teacher maps, so that a model can learn them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cache.cells import gather_cells
from cache.classes import DETECTION_CLASSES
from cache.commit import StorePlan, begin, finish, shard_path, write_record
from cache.fields import FieldSpec
from cache.frame import CAMERA_CHANNELS, Camera, Frame, Pose
from cache.grid import BevGrid
from cache.manifest import Scene
from cache.store import pack_depth
from cache.tar_writer import ShardWriter
from models.gaussian import foreground_mask

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 6.4)
CAMERA_YAW_DEG = (145.0, 90.0, 35.0, -35.0, -90.0, -145.0)  # of the optical axis in the canonical frame
TINY_HEAD = {"tasks": [list(DETECTION_CLASSES)], "shared_channels": 16, "branch_channels": 8, "min_radius": 1}
TINY_STUDENT: dict[str, Any] = {
    "preset": "lift-splat-tiny",
    "image_size": [64, 32],
    "bev": {"cell_m": 6.4},
    "fpn_channels": 16,
    "context_channels": 8,
    "backbone": {"layers": [1, 1, 1, 1], "base_width": 8},
    "depth": {"bins": 8},
    "encoder": {"filters": [8, 12, 16], "neck_channels": 6},
    "head": TINY_HEAD,
}
TINY_TEACHER: dict[str, Any] = {
    "preset": "centerpoint-pillar-tiny",
    "pillar_channels": 8,
    "pillars": {"cell_m": 1.6},
    "backbone": {"layers": [1, 1, 1], "filters": [8, 8, 16], "upsample_filters": [8, 8, 8]},
    "head": TINY_HEAD,
}


def token_of(number: int) -> str:
    return f"{number:032x}"


def make_camera(channel: str, yaw_deg: float, size: tuple[int, int]) -> Camera:
    """A level camera 1.5 m above the ground plane that looks along yaw, 70 degrees wide."""
    yaw = np.deg2rad(yaw_deg)
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    rotation = np.stack([np.array([np.sin(yaw), -np.cos(yaw), 0.0]), np.array([0.0, 0.0, -1.0]), forward])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ (forward * 0.6 + [0, 0, -0.3])
    focal = size[0] / 2 / np.tan(np.deg2rad(35))
    intrinsic = np.array([[focal, 0, size[0] / 2 - 0.5], [0, focal, size[1] / 2 - 0.5], [0, 0, 1]])
    return Camera(channel, size[0], size[1], 0, intrinsic, matrix)


def frame_fields(points: bool) -> tuple[FieldSpec, ...]:
    cloud = FieldSpec("points", "npy.zstd", "float32", ("P", "5"))
    return (
        FieldSpec("frame", "json"),
        *(FieldSpec(channel.lower(), "jpg") for channel in CAMERA_CHANNELS),
        FieldSpec("gt_boxes", "npy", "float64", ("N", "12")),
        FieldSpec("gt_ids", "npy", "int32", ("N", "5")),
        FieldSpec("gt_lidar", "npy", "float32", ("N", "9")),
        FieldSpec("racks", "npy", "float64", ("M", "10")),
        FieldSpec("depth", "npy.zstd", "uint16", ("K", "4")),
        *((cloud,) if points else ()),
    )


def teacher_fields(channels: int) -> tuple[FieldSpec, ...]:
    return (
        FieldSpec("bev_index", "npy", "int32", ("K",)),
        FieldSpec("bev_values", "npy.zstd", "float16", ("K", str(channels))),
        FieldSpec("bev_weights", "npy", "float32", ("K", "S")),
        FieldSpec("boxes", "npy", "float32", ("N", "9")),
        FieldSpec("scores", "npy", "float32", ("N",)),
        FieldSpec("labels", "npy", "int32", ("N",)),
    )


def frame_values(number: int, size: tuple[int, int], points: bool, boxes: int, split: str, seed: int) -> dict[str, Any]:
    """All fields of one frame."""
    rng = np.random.default_rng((seed, number))
    cameras = tuple(
        make_camera(channel, yaw, size) for channel, yaw in zip(CAMERA_CHANNELS, CAMERA_YAW_DEG, strict=True)
    )
    pose = Pose(np.zeros(3), np.array([1.0, 0, 0, 0]))
    frame = Frame(token_of(number), token_of(900), "scene-0001", split, 1000 + number, pose, pose, cameras)
    values: dict[str, Any] = {"frame": frame.to_dict()}
    for channel in CAMERA_CHANNELS:
        coarse = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        values[channel.lower()] = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    gt = np.zeros((boxes, 9), np.float32)
    gt[:, :2] = rng.uniform(-45, 45, (boxes, 2))
    gt[:, 2] = -0.8
    gt[:, 3:6] = [4.5, 1.9, 1.6]
    gt[:, 6] = rng.uniform(-np.pi, np.pi, boxes)
    gt[:, 7:9] = rng.normal(0, 2, (boxes, 2))
    if boxes > 1:
        gt[1, 7:9] = np.nan
    ids = np.zeros((boxes, 5), np.int32)
    ids[:, 0] = rng.integers(0, len(DETECTION_CLASSES), boxes)
    ids[:, 1] = -1
    ids[:, 2] = rng.integers(1, 30, boxes)
    if boxes > 2:
        ids[2, 2] = 0  # nothing hit it: left out in training
    around = gt[:, None, :3] + rng.normal(0, 0.7, (boxes, 40, 3))
    ground = np.concatenate([rng.uniform(-50, 50, (400, 2)), np.full((400, 1), -1.8)], axis=1)
    cloud = np.concatenate([around.reshape(-1, 3), ground]).astype(np.float32)
    extra = np.stack([rng.uniform(0, 255, len(cloud)), np.zeros(len(cloud))], axis=1)
    cloud = np.concatenate([cloud, extra], axis=1).astype(np.float32)
    values["gt_boxes"] = np.concatenate(
        [gt[:, :3], gt[:, [4, 3, 5]], np.cos(gt[:, 6:7] / 2), np.zeros((boxes, 2)), np.sin(gt[:, 6:7] / 2), gt[:, 7:9]],
        axis=1,
    ).astype(np.float64)
    values["gt_ids"], values["gt_lidar"], values["racks"] = ids, gt, np.zeros((0, 10))
    values["depth"] = np.concatenate([_project(cloud, camera, i) for i, camera in enumerate(cameras)])
    if points:
        values["points"] = cloud
    return values


def _project(cloud: np.ndarray, camera: Camera, position: int) -> np.ndarray:
    xyz = cloud[:, :3] @ camera.lidar_to_camera[:3, :3].T + camera.lidar_to_camera[:3, 3]
    xyz = xyz[xyz[:, 2] > 1]
    uv = xyz @ camera.intrinsic.T
    u, v = uv[:, 0] / xyz[:, 2], uv[:, 1] / xyz[:, 2]
    keep = (u > 1) & (u < camera.width - 1) & (v > 1) & (v < camera.height - 1)
    return pack_depth(np.full(int(keep.sum()), position), u[keep], v[keep], xyz[keep, 2])


def write_frames(
    cache: Path,
    *,
    frames: int = 6,
    size: tuple[int, int] = (128, 72),
    points: bool = True,
    boxes: Sequence[int] = (5,),
    split: str = "train",
    seed: int = 0,
) -> None:
    """<cache>/frames in two shards; `boxes`: per frame, repeated."""
    fields = frame_fields(points)
    rows = [frame_values(i, size, points, boxes[i % len(boxes)], split, seed) for i in range(frames)]
    _write(cache / "frames", "frames", fields, rows, {"points": points, "sweeps": 0}, frames, split, seed)


def write_teacher(
    cache: Path,
    *,
    name: str = "demo",
    frames: int = 6,
    channels: int = 5,
    boxes: Sequence[int] = (5,),
    grid: BevGrid = GRID,
    selectors: Sequence[str] = ("gaussian",),
    split: str = "train",
    seed: int = 0,
    world: int = 0,
) -> None:
    """<cache>/teachers/<name> on the same frames: a random map whose values are higher at objects."""
    rows = []
    for number in range(frames):
        rng = np.random.default_rng((seed, 77, number))
        gt = frame_values(number, (32, 18), False, boxes[number % len(boxes)], split, world)["gt_lidar"]
        mask = foreground_mask(gt, grid, min_radius=1)
        maps = {"gaussian": mask, "dense": np.ones(grid.shape, np.float32)}
        bev = rng.normal(0, 1, (channels, *grid.shape)).astype(np.float32) + 3 * mask
        cells = gather_cells(bev, np.stack([maps[selector] for selector in selectors]))
        rows.append(
            {
                "bev_index": cells.index,
                "bev_values": cells.values,
                "bev_weights": cells.weights,
                "boxes": gt,
                "scores": np.linspace(1, 0.1, len(gt)).astype(np.float32),
                "labels": np.zeros(len(gt), np.int32),
            }
        )
    header = {
        "grid": grid.to_dict(),
        "coverage": {"selectors": list(selectors)},
        "bev_channels": channels,
        "seed": seed,
    }
    _write(cache / "teachers" / name, "teacher", teacher_fields(channels), rows, header, frames, split, world)


def _write(
    root: Path,
    kind: str,
    fields: tuple[FieldSpec, ...],
    rows: Sequence[dict[str, Any]],
    header: dict[str, Any],
    frames: int,
    split: str,
    world: int,
) -> None:
    half = -(-frames // 2)
    shards = tuple(tuple(token_of(i) for i in part) for part in (range(half), range(half, frames)) if part)
    plan = StorePlan(
        kind=kind,
        identity={
            "dataset_version": "v1.0-synthetic",
            "frames_digest": f"{frames}-{world}",
            "classes": list(DETECTION_CLASSES),
        },
        header=header,
        fields=fields,
        scenes=(Scene(token_of(900), "scene-0001", split),),
        shards=shards,
    )
    begin(root, plan)
    for shard, tokens in enumerate(shards):
        records = []
        with ShardWriter(shard_path(root, shard), {spec.name: spec for spec in fields}) as writer:
            for token in tokens:
                members = writer.write(token, rows[int(token, 16)])
                records.append(
                    {
                        "token": token,
                        "scene": 0,
                        "timestamp_us": 1000 + int(token, 16),
                        "kind": 0,
                        "class_counts": [0] * len(DETECTION_CLASSES),
                        "members": {field: location.to_list() for field, location in members.items()},
                    }
                )
        write_record(root, shard, plan.digest, size=writer.size, sha256=writer.sha256, frames=records, quarantined=[])
    finish(root, plan)
