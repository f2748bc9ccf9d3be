"""nuScenes tables through the devkit, read once by the client and turned into plain records that travel to workers.

Opening v1.0-trainval takes the devkit about 40 s and some GB, so no worker ever does it. A record holds all that one
frame's task needs: paths, transforms, calibration, poses and annotations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.classes import ATTRIBUTES, BICYCLE_RACK, class_id
from cache.errors import ConfigError, DataError
from cache.files import sha256
from cache.frame import CAMERA_CHANNELS, Camera, Frame, GroundTruth, Pose
from cache.plan import Scene
from pipeline.between import Between, choose_evenly, nearest
from pipeline.points import Sweep

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

_TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
_SPLITS_OF = {"trainval": ("train", "val"), "mini": ("mini_train", "mini_val"), "test": ("test",)}


@dataclass(frozen=True)
class FrameRecord:
    """One frame as the tables tell it; camera sizes and intrinsics are those of the files. truth is None between key
    frames, and where the version has no annotations; lidarseg: path of the key sweep's classes, "" where the data set
    has none."""

    frame: Frame
    sweeps: tuple[Sweep, ...]  # the frame's own first, then older ones, then later ones
    image_paths: tuple[str, ...]  # in CAMERA_CHANNELS order
    truth: GroundTruth | None
    lidarseg: str = ""


@dataclass(frozen=True)
class DataSet:
    """All frames of the chosen splits, grouped by scene in the order of shards: by split, then by scene name; in a
    scene by time. between: what of them lies between key frames; labelled_scenes: names of those training scenes that
    keep their annotations, None where all do."""

    version: str
    scenes: tuple[Scene, ...]
    records: tuple[tuple[FrameRecord, ...], ...]  # one tuple a scene
    annotated: bool
    between: Between = field(default_factory=Between)
    labelled_scenes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return sum(len(scene) for scene in self.records)

    def without_lidarseg(self) -> DataSet:
        """The same where no key sweep has lidarseg classes."""
        return replace(self, records=tuple(tuple(replace(r, lidarseg="") for r in scene) for scene in self.records))

    def labelled_in(self, names: Sequence[str]) -> DataSet:
        """The same where of the scenes that students train on only the named ones have annotations, lidarseg classes
        among them; all else of the others stays. Splits for scoring keep theirs."""
        records = tuple(
            scene
            if told.name in names or not _is_trained_on(told)
            else tuple(replace(record, truth=None, lidarseg="") for record in scene)
            for told, scene in zip(self.scenes, self.records, strict=True)
        )
        return replace(self, records=records, labelled_scenes=tuple(names))


def labelled_names(data: DataSet, asked: int | Sequence[str]) -> tuple[str, ...]:
    """The training scenes that keep their annotations, sorted: those named, or so many of them, with the smallest
    SHA-256 of their names: the same data give the same draw, fewer are among more, and it does not follow the order of
    recording. ConfigError for a number or a name that the data have not, and for data without annotations."""
    if not data.annotated:
        raise ConfigError(f"--labelled-scenes: {data.version} has no annotations to leave out; drop the option")
    names = {scene.name for scene in data.scenes if _is_trained_on(scene)}
    if not names:
        raise ConfigError("--labelled-scenes: no scene of a training split is cached; choose another --split")
    if not isinstance(asked, int):
        if unknown := sorted(set(asked) - names):
            raise ConfigError(
                f"--labelled-scenes: {unknown[0]!r} is none of the {len(names)} scenes of training splits that are "
                "cached; name such scenes, as scene-0001, one a line"
            )
        return tuple(sorted(set(asked)))
    if not 0 < asked <= len(names):
        raise ConfigError(
            f"--labelled-scenes {asked}: expected 1 to {len(names)}, the scenes of training splits that are cached"
        )
    return tuple(sorted(sorted(names, key=lambda name: sha256(name.encode()))[:asked]))


def _is_trained_on(scene: Scene) -> bool:
    """Of train, mini_train, or a split of one's own; val, mini_val and test are for scoring."""
    return "val" not in scene.split and scene.split != "test"


def open_tables(
    root: Path, version: str, split: str | None, sweeps: int, sweeps_after: int = 0, *, between: int = 0
) -> DataSet:
    """Reads the tables under root/version and the records of a split (all splits of the version for None).

    sweeps, sweeps_after: how many LiDAR sweeps before and after each frame to name (fewer where a recording starts or
    ends). between: unlabelled frames from each key frame to the next, see `pipeline.between`. Raises DataError for a
    wrong root, version or split, and for tables that do not link.
    """
    _check_folder(root, version)
    from nuscenes.nuscenes import NuScenes  # two seconds to load, and most commands open no tables

    try:
        nusc = NuScenes(version=version, dataroot=str(root), verbose=False)
    except (AssertionError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
        raise DataError(
            f"{root / version}: the tables do not open ({type(error).__name__}: {error}); restore them"
        ) from None
    split_of = _scene_splits(nusc, version)
    available = sorted(set(split_of.values()))
    if split is not None and split not in available:
        raise DataError(f"split {split!r} is not in {version} under {root}; it has {available}")
    # v1.0-test has the sample_annotation table but no rows
    annotated = bool(nusc.sample_annotation)
    scene_rows = sorted(
        (row for row in nusc.scene if split in (None, split_of[row["name"]])),
        key=lambda r: (split_of[r["name"]], r["name"]),
    )
    try:
        found = [
            _scene_records(nusc, row, split_of[row["name"]], (sweeps, sweeps_after), annotated, between)
            for row in scene_rows
        ]
    except KeyError as error:
        raise DataError(f"{root / version}: the tables do not link, no row or key {error}; restore them") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{root / version}: a table holds an impossible value ({error}); restore them") from None
    scenes = tuple(Scene(r["token"], r["name"], split_of[r["name"]], r["description"]) for r in scene_rows)
    records = tuple(tuple(scene) for scene, _ in found)
    return DataSet(version, scenes, records, annotated, sum((there_is for _, there_is in found), Between(between)))


def _check_folder(root: Path, version: str) -> None:
    if not root.is_dir():
        raise DataError(
            f"data root {root} does not exist; expected a nuScenes folder with {version}/, samples/, sweeps/"
        )
    folder = root / version
    if not folder.is_dir():
        found = sorted(path.name for path in root.glob("v*") if path.is_dir())
        raise DataError(f"{root} has no version {version!r}, found {found or 'none'}; set --version or --data-root")
    missing = [name for name in _TABLES if not (folder / f"{name}.json").is_file()]
    if missing:
        raise DataError(
            f"{folder}: tables missing: {', '.join(missing)}; restore them from the data set's metadata archive"
        )


def _scene_splits(nusc: NuScenes, version: str) -> dict[str, str]:
    """Scene name -> official split of this version; a scene that no official split names forms the split 'custom'."""
    from nuscenes.utils.splits import create_splits_scenes

    official = create_splits_scenes()
    wanted = next((splits for suffix, splits in _SPLITS_OF.items() if version.endswith(suffix)), ())
    by_name = {name: split for split in wanted for name in official[split]}
    return {row["name"]: by_name.get(row["name"], "custom") for row in nusc.scene}


def _samples(nusc: NuScenes, scene: dict[str, Any]) -> list[dict[str, Any]]:
    samples = []
    token = scene["first_sample_token"]
    while token:
        sample = nusc.get("sample", token)
        samples.append(sample)
        token = sample["next"]
    return samples


def _pose(row: dict[str, Any]) -> Pose:
    return Pose(np.asarray(row["translation"], np.float64), np.asarray(row["rotation"], np.float64))


def _scene_records(
    nusc: NuScenes,
    scene: dict[str, Any],
    split: str,
    sweeps: tuple[int, int],
    annotated: bool,
    between: int,
) -> tuple[list[FrameRecord], Between]:
    """A scene's frames by time: key frames, and after each but the last the unlabelled ones up to the next."""
    samples = _samples(nusc, scene)
    images = {c: _chain(nusc, samples[0]["data"][c]) for c in CAMERA_CHANNELS} if between and samples else {}
    times = {channel: [row["timestamp"] for row in rows] for channel, rows in images.items()}
    intervals = chosen = short = left_out = 0
    out: list[FrameRecord] = []
    for sample, following in zip(samples, [*samples[1:], None], strict=True):
        key = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        rows = [nusc.get("sample_data", sample["data"][channel]) for channel in CAMERA_CHANNELS]
        truth = _truth(nusc, sample) if annotated else None
        named = Frame(
            sample["token"], scene["token"], scene["name"], split, sample["timestamp"], *_sensor_poses(nusc, key), ()
        )
        out.append(_record(nusc, named, key, rows, sweeps, truth, _lidarseg(nusc, key["token"])))
        if not between or following is None:
            continue
        end = nusc.get("sample_data", following["data"]["LIDAR_TOP"])["timestamp"]
        inside = [
            row
            for row in _chain(nusc, key["token"], end)
            if not row["is_key_frame"] and row["timestamp"] > key["timestamp"]
        ]
        wanted = choose_evenly([row["timestamp"] for row in inside], key["timestamp"], end, between)
        intervals, short = intervals + 1, short + (len(inside) < between)
        for row in (inside[i] for i in wanted):
            near = {channel: nearest(times[channel], row["timestamp"]) for channel in CAMERA_CHANNELS}
            if None in near.values():
                left_out += 1
                continue
            rows = [images[channel][i] for channel, i in near.items() if i is not None]
            poses = _sensor_poses(nusc, row)
            moment = Frame(row["token"], scene["token"], scene["name"], split, row["timestamp"], *poses, (), False)
            out.append(_record(nusc, moment, row, rows, sweeps, None, ""))
            chosen += 1
    return out, Between(between, intervals, chosen, short, left_out)


def _chain(nusc: NuScenes, token: str, end: int | None = None) -> list[dict[str, Any]]:
    """sample_data rows of one sensor from `token` on, by `next`, those before the time `end`; by time. ValueError where
    the chain bites its own tail."""
    rows, seen = [nusc.get("sample_data", token)], {token}
    while rows[-1]["next"]:
        row = nusc.get("sample_data", rows[-1]["next"])
        if row["token"] in seen:
            raise ValueError(f"sample_data {row['token']} comes after itself")
        if end is not None and row["timestamp"] >= end:
            break
        rows.append(row)
        seen.add(row["token"])
    return sorted(rows, key=lambda row: row["timestamp"])


def _record(
    nusc: NuScenes,
    frame: Frame,
    lidar: dict[str, Any],
    images: list[dict[str, Any]],
    sweeps: tuple[int, int],
    truth: GroundTruth | None,
    lidarseg: str,
) -> FrameRecord:
    """The record of a frame that lacks its cameras still. lidar, images: its sample_data rows."""
    canonical_to_global = frame.lidar_to_global()
    cameras = []
    for channel, row in zip(CAMERA_CHANNELS, images, strict=True):
        camera_ego, camera_to_ego = _sensor_poses(nusc, row)
        to_camera = np.linalg.inv(camera_ego.matrix() @ camera_to_ego.matrix()) @ canonical_to_global
        intrinsic = np.asarray(
            nusc.get("calibrated_sensor", row["calibrated_sensor_token"])["camera_intrinsic"], np.float64
        )
        width, height = int(row["width"]), int(row["height"])
        if intrinsic.shape != (3, 3) or min(width, height) < 1:
            raise ValueError(
                f"{channel}: {width}x{height} pixels, intrinsic of shape {intrinsic.shape}, expected (3, 3)"
            )
        cameras.append(Camera(channel, width, height, row["timestamp"], intrinsic, to_camera))
    return FrameRecord(
        replace(frame, cameras=tuple(cameras)),
        tuple(_sweeps(nusc, lidar, canonical_to_global, *sweeps)),
        tuple(row["filename"] for row in images),
        truth,
        lidarseg,
    )


def _sensor_poses(nusc: NuScenes, row: dict[str, Any]) -> tuple[Pose, Pose]:
    return (
        _pose(nusc.get("ego_pose", row["ego_pose_token"])),
        _pose(nusc.get("calibrated_sensor", row["calibrated_sensor_token"])),
    )


def _sweeps(
    nusc: NuScenes, key: dict[str, Any], canonical_to_global: np.ndarray, before: int, after: int
) -> list[Sweep]:
    """The frame's own sweep, then up to `before` sweeps before it and up to `after` behind it, nearest first, each
    through its own ego pose; dt_s of the latter is negative."""
    from_global = np.linalg.inv(canonical_to_global)
    out = [Sweep(key["filename"], np.eye(4), 0.0)]
    for link, count in (("prev", before), ("next", after)):
        row = key
        for _ in range(count):
            if not row[link]:
                break
            row = nusc.get("sample_data", row[link])
            ego, sensor = _sensor_poses(nusc, row)
            transform = from_global @ ego.matrix() @ sensor.matrix()
            out.append(Sweep(row["filename"], transform, 1e-6 * (key["timestamp"] - row["timestamp"])))
    return out


def _lidarseg(nusc: NuScenes, token: str) -> str:
    """Path under the data root of a sweep's lidarseg classes, as the data set lays them out; "" where there is none."""
    path = f"lidarseg/{nusc.version}/{token}_lidarseg.bin"
    return path if (Path(nusc.dataroot) / path).is_file() else ""


def _truth(nusc: NuScenes, sample: dict[str, Any]) -> GroundTruth:
    """Annotations of the ten classes, racks apart; velocity by the devkit's own rule (it needs the neighbours)."""
    boxes, ids, racks = [], [], []
    for token in sample["anns"]:
        row = nusc.get("sample_annotation", token)
        if row["category_name"] == BICYCLE_RACK:
            racks.append([*row["translation"], *row["size"], *row["rotation"]])
            continue
        label = class_id(row["category_name"])
        if label < 0:
            continue
        attributes = [nusc.get("attribute", t)["name"] for t in row["attribute_tokens"]]
        if len(attributes) > 1:
            raise DataError(f"annotation {token} has attributes {attributes}, the metric allows one; mend the table")
        attribute = ATTRIBUTES.index(attributes[0]) if attributes else -1
        velocity = nusc.box_velocity(token)[:2]
        boxes.append([*row["translation"], *row["size"], *row["rotation"], *velocity])
        ids.append([label, attribute, row["num_lidar_pts"], row["num_radar_pts"], _visibility(row["visibility_token"])])
    class_ids, attribute_ids, lidar, radar, visibility = np.ascontiguousarray(
        np.asarray(ids, np.int32).reshape(-1, 5).T
    )
    return GroundTruth(
        boxes_global=np.asarray(boxes, np.float64).reshape(-1, 12),
        class_ids=class_ids,
        attribute_ids=attribute_ids,
        num_lidar_pts=lidar,
        num_radar_pts=radar,
        visibility=visibility,
        racks_global=np.asarray(racks, np.float64).reshape(-1, 10),
    )


def _visibility(token: str) -> int:
    with contextlib.suppress(ValueError):
        return int(token)
    return 0
