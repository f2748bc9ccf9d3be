"""Small frame and teacher stores with random but consistent content, written through the cache's own writer.

Boxes stand at the same places in clouds, depth labels and teacher maps, so that a model can learn them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cache.bev import BevEncoding
from cache.classes import DETECTION_CLASSES
from cache.commit import begin, finish
from cache.coverage import Coverage
from cache.depth_labels import pack_depth
from cache.fields import FieldSpec
from cache.files import digest_of
from cache.frame import CAMERA_CHANNELS, Camera, Frame, Pose
from cache.frame_fields import frame_fields, frame_identity
from cache.grid import BevGrid
from cache.plan import Format, FrameEntry, Scene, StorePlan
from cache.shard_writer import open_shard
from models.gaussian import foreground_mask
from pipeline.teacher import detection_fields

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 6.4)
ANNOTATIONS = ("gt_boxes", "gt_ids", "gt_lidar", "racks")
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
    unlabelled: Sequence[int] = (),
    val: int = 0,
) -> None:
    """<cache>/frames in two shards; `boxes`: per frame, repeated; unlabelled: numbers of frames without annotations;
    val: so many of the frames, the last, are a scene of the split val."""
    fields = frame_fields(CAMERA_CHANNELS, points=points)
    rows = [frame_values(i, size, points, boxes[i % len(boxes)], split, seed) for i in range(frames)]
    for number in unlabelled:
        rows[number] = {name: v for name, v in rows[number].items() if name not in ANNOTATIONS}
    for row in rows[frames - val :]:
        row["frame"] |= {"scene_token": token_of(901), "scene_name": "scene-0002", "split": "val"}
    header = {"points": points, "sweeps": 0, "cameras": list(CAMERA_CHANNELS)}
    _write(cache / "frames", "frames", fields, rows, header, frames, split, seed, unlabelled=unlabelled, val=val)


def write_teacher(
    cache: Path,
    *,
    name: str = "demo",
    frames: int = 6,
    channels: int = 5,
    boxes: Sequence[int] = (5,),
    grid: BevGrid = GRID,
    coverage: str = "gaussian(dilate=0)",
    layout: str = "cells",
    dtype: str = "float16",
    store_format: str = "webdataset",
    split: str = "train",
    seed: int = 0,
    world: int = 0,
    unlabelled: Sequence[int] = (),
    val: int = 0,
) -> None:
    """<cache>/teachers/<name> on the same frames: a random map whose values are higher at objects."""
    parsed = Coverage.parse(coverage, grid)
    encoding = BevEncoding(channels, *grid.shape, len(parsed.names), layout, dtype)
    rows = []
    for number in range(frames):
        rng = np.random.default_rng((seed, 77, number))
        gt = frame_values(number, (32, 18), False, boxes[number % len(boxes)], split, world)["gt_lidar"]
        mask = foreground_mask(gt, grid, min_radius=1)
        known = np.zeros_like(mask) if number in unlabelled else mask
        maps = {"gaussian": known, "dense": np.ones(grid.shape, np.float32)}
        bev = rng.normal(0, 1, (channels, *grid.shape)).astype(np.float32) + 3 * mask
        rows.append(
            {
                **encoding.encode(bev, np.stack([maps[selector] for selector in parsed.names])),
                "boxes": gt,
                "scores": np.linspace(1, 0.1, len(gt)).astype(np.float32),
                "labels": np.zeros(len(gt), np.int32),
            }
        )
    header = {"grid": grid.to_dict(), "coverage": parsed.header(), "bev": encoding.to_dict(), "seed": seed}
    fields = (*encoding.fields(), *detection_fields())
    place = Format()
    if store_format == "zarr":
        place = Format("zarr", -(-frames // 2), {"K": grid.height * grid.width, "N": max(*boxes, 1)})
    _write(cache / "teachers" / name, "teacher", fields, rows, header, frames, split, world, place, unlabelled, val)


def _write(
    root: Path,
    kind: str,
    fields: tuple[FieldSpec, ...],
    rows: Sequence[dict[str, Any]],
    header: dict[str, Any],
    frames: int,
    split: str,
    world: int,
    store_format: Format = Format(),  # noqa: B008 (frozen)
    unlabelled: Sequence[int] = (),
    val: int = 0,
) -> None:
    half, first_val = -(-(frames - val) // 2), frames - val
    parts = (range(half), range(half, first_val), range(first_val, frames))
    shards = tuple(tuple(token_of(i) for i in part) for part in parts if part)
    further = (Scene(token_of(901), "scene-0002", "val"),) if val else ()
    plan = StorePlan(
        kind=kind,
        identity=frame_identity(f"v1.0-synthetic-{world}", DETECTION_CLASSES),
        header=header,
        fields=fields,
        scenes=(Scene(token_of(900), "scene-0001", split), *further),
        shards=shards,
        format=store_format,
    )
    for shard in begin(root, plan):
        with open_shard(root, shard) as writer:
            for token in shard.tokens:
                number = int(token, 16)
                digest = digest_of([token, world])[:16]
                labels = rows[number].get("gt_ids", np.zeros((0, 5), np.int32))[:, 0]
                counts = tuple(np.bincount(labels, minlength=len(DETECTION_CLASSES)).tolist())
                entry = FrameEntry(
                    token,
                    token_of(901 if number >= first_val else 900),
                    1000 + number,
                    int(number in unlabelled),
                    counts,
                    digest,
                )
                writer.write(entry, rows[number])
    finish(root, plan)
