"""nuScenes frames -> the frame store: images (optionally smaller), calibration, poses, annotations, depth, points.

The client reads the tables and fixes the plan (whole scenes per shard, no split mixed with another); each shard is one
task. A frame that cannot be read is quarantined with its reason; the rest goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2

from cache.classes import DETECTION_CLASSES
from cache.commit import begin, finish, read_plan
from cache.depth_labels import depth_labels
from cache.errors import ConfigError, DataError
from cache.frame import CAMERA_CHANNELS, Camera
from cache.frame_fields import frame_entry, frame_fields, frame_identity, frame_values
from cache.layout import frames_place
from cache.manifest import Manifest
from cache.plan import ShardPlan, StorePlan
from cache.roots import open_root
from cache.shard_writer import open_shard
from pipeline.engine import Cluster, run_shards
from pipeline.images import read_jpeg_file, scaled_intrinsic, scaled_size, stored_image
from pipeline.points import aggregate, read_lidarseg_file
from pipeline.progress import FrameProgress
from pipeline.tables import DataSet, FrameRecord, labelled_names, open_tables

SHARD_BYTES = 256e6
MIN_SHARDS = 16  # small data sets still spread over workers; a fixed number keeps the plan independent of the machine


@dataclass(frozen=True)
class FrameOptions:
    """What the frame store holds. image_scale: stored size over file size, 0 < scale <= 1; points: store clouds too;
    sweeps: LiDAR sweeps before the frame that join a stored cloud; between: unlabelled frames from each key frame to
    the next, see `pipeline.between`; labelled_scenes: the training scenes that keep their annotations, or how many, see
    `pipeline.tables.labelled_names` (None: all)."""

    image_scale: float = 1.0
    points: bool = False
    sweeps: int = 9
    between: int = 0
    labelled_scenes: int | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.image_scale <= 1:
            raise ConfigError(f"--image-scale {self.image_scale} is out of range, expected 0 < scale <= 1")
        if self.sweeps < 0:
            raise ConfigError(f"--sweeps {self.sweeps} is negative, expected 0 or more")
        if self.between < 0:
            raise ConfigError(f"--between {self.between} is negative, expected 0 or more unlabelled frames")

    def open_tables(self, data_root: Path, version: str, split: str | None) -> DataSet:
        """The frames that these options ask for."""
        sweeps = self.sweeps if self.points else 0
        data = open_tables(data_root, version, split, sweeps, between=self.between)
        if not len(data):
            raise DataError(f"{data_root}: {version} has no key frame in split {split or 'any'}; choose another split")
        if self.labelled_scenes is None:
            return data
        return data.labelled_in(labelled_names(data, self.labelled_scenes))


def cache_frames(
    data_root: Path,
    version: str,
    cache: str | Path,
    *,
    split: str | None = None,
    options: FrameOptions | None = None,
    workers: int | None = None,
    cluster: Cluster | None = None,
) -> Manifest:
    """Writes <cache>/frames from a nuScenes folder; skips what an earlier run with the same settings committed.

    Returns the manifest; its `quarantined` lists frames that could not be read. Raises DataError for a wrong root,
    version or split, or where not one frame can be read; FingerprintError where the folder was begun otherwise.
    """
    options = options or FrameOptions()
    data = options.open_tables(data_root, version, split)
    place = frames_place(cache)
    earlier = read_plan(open_root(place))
    if earlier is not None and not has_lidarseg(earlier):
        data = data.without_lidarseg()  # a store begun before these were read goes on as it is
    shards = plan_shards(data, options)
    plan = frame_plan(data, options, shards)
    todo = begin(place, plan)
    url = open_root(place).url
    jobs = [(url, shard, shards[shard.number], str(data_root), options) for shard in todo]
    with FrameProgress("cache-frames", len(data), len(data) - sum(len(job[2]) for job in jobs)) as progress:
        if options.between:
            progress.note(str(data.between))
        summaries = run_shards(write_frame_shard, jobs, workers=workers, cluster=cluster, progress=progress)
    if summaries and not any(summary["frames"] for summary in summaries) and len(todo) == len(shards):
        raise DataError(f"not one of {len(data)} frames could be read; the first: {summaries[0]['first_problem']}")
    return finish(place, plan)


def has_lidarseg(plan: StorePlan) -> bool:
    """Whether the plan's store has a field of lidarseg classes."""
    return any(spec.name == "lidarseg" for spec in plan.fields)


def frame_plan(
    data: DataSet, options: FrameOptions, shards: Sequence[Sequence[FrameRecord]], *, lidarseg: bool | None = None
) -> StorePlan:
    """The store's plan for records that are already cut into shards. lidarseg: whether classes are stored (None: where
    a record has them)."""
    if lidarseg is None:
        lidarseg = any(record.lidarseg for records in shards for record in records)
    return StorePlan(
        kind="frames",
        identity=frame_identity(data.version, DETECTION_CLASSES),
        header={
            "annotated": data.annotated,
            "cameras": list(CAMERA_CHANNELS),
            "image_scale": options.image_scale,
            "points": options.points,
            "sweeps": options.sweeps if options.points else 0,
            # absent where not asked for, as stores always were
            **({"between": options.between} if options.between else {}),
            **({} if data.labelled_scenes is None else {"labelled_scenes": list(data.labelled_scenes)}),
        },
        fields=frame_fields(CAMERA_CHANNELS, points=options.points, lidarseg=lidarseg),
        scenes=data.scenes,
        shards=tuple(tuple(record.frame.token for record in shard) for shard in shards),
    )


def plan_shards(data: DataSet, options: FrameOptions) -> list[list[FrameRecord]]:
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
    url: str, shard: ShardPlan, records: Sequence[FrameRecord], data_root: str, options: FrameOptions
) -> dict[str, Any]:
    """One task: reads, checks and writes the frames of one shard, then its record. Returns counts only."""
    cv2.setNumThreads(1)
    with open_shard(url, shard) as writer:
        for record in records:
            try:
                values = record_values(record, Path(data_root), options)
            except DataError as error:
                writer.quarantine(record.frame.token, str(error))
                continue
            writer.write(frame_entry(record.frame, record.truth, len(DETECTION_CLASSES)), values)
    return writer.summary


def record_values(record: FrameRecord, data_root: Path, options: FrameOptions) -> dict[str, Any]:
    """The fields of one frame by name. Raises DataError naming the file that is missing, truncated or not finite."""
    cameras: list[Camera] = []
    images: dict[str, bytes] = {}
    for camera, path in zip(record.frame.cameras, record.image_paths, strict=True):
        size = (camera.width, camera.height)
        scaled = scaled_size(size, options.image_scale)
        jpeg = read_jpeg_file(data_root / path)
        images[camera.channel] = stored_image(jpeg, options.image_scale, size, data_root / path)
        intrinsic = scaled_intrinsic(camera.intrinsic, size, scaled)
        cameras.append(Camera(camera.channel, *scaled, camera.timestamp_us, intrinsic, camera.lidar_to_camera))
    frame = replace(record.frame, cameras=tuple(cameras))
    cloud = aggregate(record.sweeps, data_root)
    depth = depth_labels(cloud[cloud[:, 4] == 0], frame.cameras)
    lidarseg = None
    if record.lidarseg:
        lidarseg = read_lidarseg_file(data_root / record.lidarseg, data_root / record.sweeps[0].path)
    return frame_values(frame, images, record.truth, depth, cloud if options.points else None, lidarseg)
