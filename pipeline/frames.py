"""nuScenes keyframes -> the frame store: images (optionally smaller), calibration, poses, annotations, depth, points.

The client reads the tables and fixes the plan (whole scenes per shard, no split mixed with another); each shard is one
task. A frame that cannot be read is quarantined with its reason; the rest goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.commit import StorePlan, begin, finish, shard_path, write_record
from cache.errors import ConfigError, DataError
from cache.fields import FieldSpec
from cache.files import digest_of
from cache.frame import CAMERA_CHANNELS, Camera, Frame
from cache.geometry import boxes_to_lidar
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from cache.manifest import Manifest
from cache.store import pack_depth
from cache.tar_writer import ShardWriter
from pipeline.engine import run_shards
from pipeline.images import read_jpeg_file, scaled_intrinsic, scaled_size, stored_image
from pipeline.points import aggregate
from pipeline.progress import FrameProgress
from pipeline.tables import DataSet, FrameRecord, open_tables

BOX_CONVENTION = "canonical x,y,z(centre),l,w,h,yaw(ccw from +x),vx,vy; global x,y,z,w,l,h,qw,qx,qy,qz,vx,vy"
SHARD_BYTES = 256e6
MIN_SHARDS = 16  # small data sets still spread over workers; a fixed number keeps the plan independent of the machine
_MIN_DEPTH_M, _MAX_DEPTH_M = 1.0, 200.0  # a stray return beyond what the sensor can see is no label


@dataclass(frozen=True)
class FrameOptions:
    """What the frame store holds. image_scale: stored size over file size, 0 < scale <= 1; points: store clouds too;
    sweeps: LiDAR sweeps before the key frame that join a stored cloud."""

    image_scale: float = 1.0
    points: bool = False
    sweeps: int = 9

    def __post_init__(self) -> None:
        if not 0 < self.image_scale <= 1:
            raise ConfigError(f"--image-scale {self.image_scale} is out of range, expected 0 < scale <= 1")
        if self.sweeps < 0:
            raise ConfigError(f"--sweeps {self.sweeps} is negative, expected 0 or more")


def frame_fields(options: FrameOptions) -> tuple[FieldSpec, ...]:
    """The fields of a frame store, in the order of the index's columns."""
    cameras = tuple(
        FieldSpec(channel.lower(), "jpg", unit="JPEG", about=f"image of {channel}") for channel in CAMERA_CHANNELS
    )
    points = FieldSpec(
        "points", "npy.zstd", "float32", ("P", "5"), "m, m, m, 0..255, s", "x, y, z, intensity, dt; canonical"
    )
    return (
        FieldSpec("frame", "json", about="identity, poses, calibration"),
        *cameras,
        FieldSpec("gt_boxes", "npy", "float64", ("N", "12"), "m, quaternion, m/s", "global boxes of the ten classes"),
        FieldSpec("gt_ids", "npy", "int32", ("N", "5"), "", "class, attribute, LiDAR points, radar points, visibility"),
        FieldSpec("gt_lidar", "npy", "float32", ("N", "9"), "m, rad, m/s", "the same boxes, canonical frame"),
        FieldSpec("racks", "npy", "float64", ("M", "10"), "m, quaternion", "bicycle racks, global"),
        FieldSpec(
            "depth",
            "npy.zstd",
            "uint16",
            ("K", "4"),
            "camera, px/32, px/32, cm",
            "LiDAR returns of the key sweep in the images",
        ),
        *((points,) if options.points else ()),
    )


def cache_frames(
    data_root: Path,
    version: str,
    cache: Path,
    *,
    split: str | None = None,
    options: FrameOptions | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Manifest:
    """Writes <cache>/frames from a nuScenes folder; skips what an earlier run with the same settings committed.

    Returns the manifest; its `quarantined` lists frames that could not be read. Raises DataError for a wrong root,
    version or split, or where not one frame can be read; FingerprintError where the folder was begun otherwise.
    """
    options = options or FrameOptions()
    data = open_tables(data_root, version, split, options.sweeps if options.points else 0)
    if not len(data):
        raise DataError(f"{data_root}: {version} has no key frame in split {split or 'any'}; choose another split")
    root = cache / "frames"
    shards = _plan_shards(data, options)
    plan = _store_plan(data, options, shards)
    todo = begin(root, plan)
    scene_number = {scene.token: i for i, scene in enumerate(data.scenes)}
    jobs = [(str(root), shard, plan.digest, shards[shard], scene_number, str(data_root), options) for shard in todo]
    with FrameProgress("cache-frames", len(data), len(data) - sum(len(shards[s]) for s in todo)) as progress:
        summaries = run_shards(write_frame_shard, jobs, workers=workers, scheduler=scheduler, progress=progress)
    if summaries and not any(summary["frames"] for summary in summaries) and len(todo) == len(shards):
        raise DataError(f"not one of {len(data)} frames could be read; the first: {summaries[0]['first_problem']}")
    return finish(root, plan)


def _store_plan(data: DataSet, options: FrameOptions, shards: Sequence[Sequence[FrameRecord]]) -> StorePlan:
    records = [record for shard in shards for record in shard]
    poses = [
        [r.frame.token, r.frame.timestamp_us, r.frame.ego_to_global.to_dict(), r.frame.lidar_to_ego.to_dict()]
        for r in records
    ]
    return StorePlan(
        kind="frames",
        identity={
            "dataset_version": data.version,
            "frames_digest": digest_of(sorted(poses, key=lambda p: str(p[0]))),
            "classes": list(DETECTION_CLASSES),
            "box_convention": BOX_CONVENTION,
        },
        header={
            "annotated": data.annotated,
            "image_scale": options.image_scale,
            "points": options.points,
            "sweeps": options.sweeps if options.points else 0,
        },
        fields=frame_fields(options),
        scenes=data.scenes,
        shards=tuple(tuple(record.frame.token for record in shard) for shard in shards),
    )


def _plan_shards(data: DataSet, options: FrameOptions) -> list[list[FrameRecord]]:
    """Whole scenes in order, cut where a shard would pass its byte target or where the split changes."""
    frame_bytes = 1.0e6 * options.image_scale**2 + 1.2e5 + (0.5e6 * (1 + options.sweeps) if options.points else 0)
    target = min(SHARD_BYTES, max(1, len(data) // MIN_SHARDS) * frame_bytes)
    shards: list[list[FrameRecord]] = []
    previous_split = None
    for scene, records in zip(data.scenes, data.records, strict=True):
        if (
            not shards
            or scene.split != previous_split
            or (len(shards[-1]) + len(records)) * frame_bytes > target * 1.001
        ):
            shards.append([])
        shards[-1].extend(records)
        previous_split = scene.split
    return [shard for shard in shards if shard]


def write_frame_shard(
    root: str,
    shard: int,
    plan_digest: str,
    records: Sequence[FrameRecord],
    scene_number: dict[str, int],
    data_root: str,
    options: FrameOptions,
) -> dict[str, Any]:
    """One task: reads, checks and writes the frames of one shard, then its record. Returns counts only."""
    cv2.setNumThreads(1)
    frames, quarantined = [], []
    with ShardWriter(shard_path(Path(root), shard), {spec.name: spec for spec in frame_fields(options)}) as writer:
        for record in records:
            try:
                values = frame_values(record, Path(data_root), options)
            except DataError as error:
                quarantined.append({"token": record.frame.token, "reason": str(error)})
                continue
            members = writer.write(record.frame.token, values)
            labels = record.truth.class_ids if record.truth else np.zeros(0, np.int32)
            frames.append(
                {
                    "token": record.frame.token,
                    "scene": scene_number[record.frame.scene_token],
                    "timestamp_us": record.frame.timestamp_us,
                    "kind": KIND_LABELLED if record.truth else KIND_UNLABELLED,
                    "class_counts": np.bincount(labels, minlength=len(DETECTION_CLASSES)).tolist(),
                    "members": {name: location.to_list() for name, location in members.items()},
                }
            )
    return write_record(
        Path(root), shard, plan_digest, size=writer.size, sha256=writer.sha256, frames=frames, quarantined=quarantined
    )


def frame_values(record: FrameRecord, data_root: Path, options: FrameOptions) -> dict[str, Any]:
    """The fields of one frame by name. Raises DataError naming the file that is missing, truncated or not finite."""
    cameras: list[Camera] = []
    values: dict[str, Any] = {}
    for camera, path in zip(record.frame.cameras, record.image_paths, strict=True):
        size = (camera.width, camera.height)
        scaled = scaled_size(size, options.image_scale)
        jpeg = read_jpeg_file(data_root / path)
        values[camera.channel.lower()] = stored_image(jpeg, options.image_scale, size, data_root / path)
        intrinsic = scaled_intrinsic(camera.intrinsic, size, scaled)
        cameras.append(Camera(camera.channel, *scaled, camera.timestamp_us, intrinsic, camera.lidar_to_camera))
    frame = Frame(**{**record.frame.__dict__, "cameras": tuple(cameras)})
    cloud = aggregate(record.sweeps, data_root)
    values["frame"] = frame.to_dict()
    values["depth"] = depth_labels(cloud[cloud[:, 4] == 0], frame.cameras)
    if options.points:
        values["points"] = cloud
    if record.truth is not None:
        truth = record.truth
        values["gt_boxes"] = truth.boxes_global
        values["gt_ids"] = np.stack(
            [truth.class_ids, truth.attribute_ids, truth.num_lidar_pts, truth.num_radar_pts, truth.visibility], axis=1
        )
        values["gt_lidar"] = boxes_to_lidar(truth.boxes_global, frame.lidar_to_global())
        values["racks"] = truth.racks_global
    return values


def depth_labels(points: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """(K, 4) uint16 (see `cache.store.pack_depth`) of canonical points (P, 5) that fall into each image by at least a
    pixel, through the camera's own pose at its own time. No occlusion test: who reads them keeps the nearest.
    """
    packed = []
    for position, camera in enumerate(cameras):
        xyz = points[:, :3].astype(np.float64) @ camera.lidar_to_camera[:3, :3].T + camera.lidar_to_camera[:3, 3]
        xyz = xyz[(xyz[:, 2] > _MIN_DEPTH_M) & (xyz[:, 2] < _MAX_DEPTH_M)]
        uvd = xyz @ camera.intrinsic.T
        u, v = uvd[:, 0] / xyz[:, 2], uvd[:, 1] / xyz[:, 2]
        keep = (u > 1) & (u < camera.width - 1) & (v > 1) & (v < camera.height - 1)
        packed.append(pack_depth(np.full(int(keep.sum()), position), u[keep], v[keep], xyz[keep, 2]))
    return np.concatenate(packed)
