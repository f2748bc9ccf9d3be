"""Small stores for the tests: every field of a frame and of a teacher store, values fixed by the frame's token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from cache.bev import BevEncoding
from cache.classes import DETECTION_CLASSES
from cache.commit import begin, finish
from cache.coverage import Coverage
from cache.fields import FieldSpec
from cache.frame import CAMERA_CHANNELS, Camera, Frame, GroundTruth, Pose
from cache.frame_fields import frame_entry, frame_fields, frame_identity
from cache.grid import BevGrid
from cache.manifest import Manifest
from cache.npy import encode_npy
from cache.plan import Format, FrameEntry, Scene, StorePlan
from cache.roots import Root, open_root
from cache.shard_writer import ShardWriter, open_shard

GRID = BevGrid(-8.0, 8.0, -4.0, 4.0, 1.0)
COVERAGE = Coverage.parse("gaussian+random", GRID)
ENCODING = BevEncoding(3, *GRID.shape, len(COVERAGE.names))
SCENES = (Scene("a" * 32, "scene-0001", "train", "rain"), Scene("b" * 32, "scene-0002", "val"))
TOKENS = [hashlib.md5(str(i).encode()).hexdigest() for i in range(6)]
SHARDS = (tuple(TOKENS[0:2]), tuple(TOKENS[2:4]), tuple(TOKENS[4:6]))  # shard 2 is the val scene
UNLABELLED = TOKENS[3]

WEBDATASET = Format()
ZARR = Format("zarr", rows=3, capacity={"N": 6, "K": 90})  # a row more than frames in a shard, letters not sorted
FORMATS = (WEBDATASET, ZARR)
FRAME_FIELDS = frame_fields(CAMERA_CHANNELS, points=True)
DETECTION_FIELDS = (
    FieldSpec("boxes", "npy", "float32", ("N", "9")),
    FieldSpec("scores", "npy", "float32", ("N",)),
    FieldSpec("labels", "npy", "int32", ("N",)),
)
IDENTITY = frame_identity("v1.0-test", DETECTION_CLASSES)


def rng_of(token: str) -> np.random.Generator:
    return np.random.default_rng(int(token[:8], 16))


def frame_of(token: str) -> Frame:
    """A frame whose every number is random in all its bits."""
    rng = rng_of(token)

    def pose() -> Pose:
        return Pose(rng.normal(size=3) * 1e3, rng.normal(size=4))

    cameras = tuple(
        Camera(name, 32, 18, 1_500_000 + i, rng.normal(size=(3, 3)), rng.normal(size=(4, 4)))
        for i, name in enumerate(CAMERA_CHANNELS)
    )
    scene = SCENES[scene_of(token)]
    return Frame(token, scene.token, scene.name, scene.split, TOKENS.index(token), pose(), pose(), cameras)


def scene_of(token: str) -> int:
    return int(TOKENS.index(token) >= 4)


def frame_values(token: str) -> dict[str, Any]:
    """All fields of a frame; one frame is without annotations, one without a single object."""
    rng = rng_of(token)
    boxes = 0 if token == TOKENS[1] else int(rng.integers(1, 5))
    values: dict[str, Any] = {
        "frame": frame_of(token).to_dict(),
        "depth": rng.integers(0, 6, (20, 4)).astype(np.uint16),
        "points": rng.normal(size=(300, 5)).astype(np.float32),
    }
    for channel in CAMERA_CHANNELS:
        values[channel.lower()] = b"\xff\xd8" + rng.bytes(40) + b"\xff\xd9"
    if token != UNLABELLED:
        values["gt_boxes"] = rng.normal(size=(boxes, 12)) * 1e3
        values["gt_boxes"][:1, 10:] = np.nan
        values["gt_ids"] = rng.integers(0, 9, (boxes, 5)).astype(np.int32)
        values["gt_lidar"] = rng.normal(size=(boxes, 9)).astype(np.float32)
        values["racks"] = rng.normal(size=(2, 10))
    return values


def truth_of(token: str) -> GroundTruth | None:
    """The annotations of `frame_values`."""
    values = frame_values(token)
    if "gt_ids" not in values:
        return None
    return GroundTruth(values["gt_boxes"], *np.ascontiguousarray(values["gt_ids"].T), values["racks"])


def entry_of(token: str) -> FrameEntry:
    """What the index says of the frame, in stores of either kind."""
    return frame_entry(frame_of(token), truth_of(token), len(DETECTION_CLASSES))


def bev_of(token: str) -> tuple[np.ndarray, np.ndarray]:
    """A feature (3, H, W) float32, and weights (2, H, W) that keep about every third cell."""
    rng = rng_of(token)
    weights = rng.uniform(size=(2, *GRID.shape)) * (rng.uniform(size=(2, *GRID.shape)) < 0.2)
    return rng.normal(size=(3, *GRID.shape)).astype(np.float32), weights.astype(np.float32)


def teacher_values(token: str, encoding: BevEncoding = ENCODING) -> dict[str, Any]:
    """All fields of what a teacher says; of one frame it says nothing."""
    rng = rng_of(token[::-1])
    bev, weights = bev_of(token)
    boxes = 4
    if token == TOKENS[2]:
        boxes, weights = 0, np.zeros_like(weights)
    return {
        **encoding.encode(bev, weights),
        "boxes": rng.normal(size=(boxes, 9)).astype(np.float32),
        "scores": np.ascontiguousarray(np.sort(rng.uniform(size=boxes).astype(np.float32))[::-1]),
        "labels": rng.integers(0, 10, boxes).astype(np.int32),
    }


def frame_plan(**changes: Any) -> StorePlan:
    values: dict[str, Any] = {
        "kind": "frames",
        "identity": IDENTITY,
        "header": {"annotated": True, "image_scale": 1.0, "sweeps": 10},
        "fields": FRAME_FIELDS,
        "scenes": SCENES,
        "shards": SHARDS,
    }
    return StorePlan(**(values | changes))


def teacher_plan(encoding: BevEncoding = ENCODING, **changes: Any) -> StorePlan:
    values: dict[str, Any] = {
        "kind": "teacher",
        "identity": IDENTITY,
        "header": {"grid": GRID.to_dict(), "coverage": COVERAGE.header(), "bev": encoding.to_dict()},
        "fields": (*encoding.fields(), *DETECTION_FIELDS),
        "scenes": SCENES,
        "shards": SHARDS,
    }
    return StorePlan(**(values | changes))


def plan_of(kind: str, layout: Format = WEBDATASET) -> StorePlan:
    """The plan of a kind of store in a format; frame stores are webdataset."""
    return frame_plan() if kind == "frames" else teacher_plan(format=layout)


KINDS = (("frames", WEBDATASET), ("teacher", WEBDATASET), ("teacher", ZARR))


def values_of(plan: StorePlan, token: str) -> dict[str, Any]:
    """All fields of a frame in a store of that plan."""
    if plan.kind == "frames":
        return frame_values(token)
    return teacher_values(token, BevEncoding.from_dict(plan.header["bev"]))


def write_shard(
    place: Any, plan: StorePlan, number: int, quarantine: Collection[str] = (), commit: bool = True
) -> ShardWriter:
    """One shard as the pipeline writes it; `quarantine` are tokens whose raw data cannot be read today; commit: False
    for a writer that was killed between its files and its record."""
    shard = plan.shard_plans()[number]
    with open_shard(place, shard) as writer:
        for token in shard.tokens:
            if token in quarantine:
                writer.quarantine(token, "a.bin: truncated")
            else:
                writer.write(entry_of(token), values_of(plan, token))
    if not commit:
        open_root(place).remove(shard.record)
    return writer


def todo(place: Any, plan: StorePlan, **options: Any) -> list[int]:
    """Numbers of the shards that are still to be written."""
    return [shard.number for shard in begin(place, plan, **options)]


def write_store(place: Any, plan: StorePlan, quarantine: Collection[str] = (), **options: Any) -> Manifest:
    """A whole store, or the rest of one."""
    for number in todo(place, plan, **options):
        write_shard(place, plan, number, quarantine)
    return finish(place, plan)


def tree(place: Any) -> dict[str, bytes]:
    """Every file of a store and its bytes."""
    if isinstance(place, Path):  # also what no root would name
        return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    root: Root = open_root(place)
    return {name: root.read(name) for name in root.sizes()}


def shard_files(place: Path, number: int) -> list[Path]:
    """The files of a committed shard."""
    return [place / name for name, _, _ in json.loads(record_path(place, number).read_bytes())["files"]]


def tar_path(place: Path, number: int) -> Path:
    return place / f"shards/{number:05d}.tar"


def record_path(place: Path, number: int) -> Path:
    return place / f"records/{number:05d}.json"


def forge_manifest(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits manifest.json as an attacker would: the digest is made to agree with the change."""
    path = place / "manifest.json"
    values = json.loads(path.read_bytes())
    del values["digest"]
    change(values)
    digest = hashlib.sha256(json_bytes(values)).hexdigest()
    path.write_bytes(json_bytes({**values, "digest": digest}))


def json_bytes(values: dict[str, Any]) -> bytes:
    """A store's JSON, also of values that no writer would write: NaN and infinities."""
    return (json.dumps(values, sort_keys=True, indent=1) + "\n").encode()


def forge_column(place: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another column, and a manifest that agrees with it."""
    path = place / "index" / f"{name}.npy"
    forge_file(place, path, encode_npy(change(np.load(path, allow_pickle=False))))


def forge_file(place: Path, column: Path, data: bytes) -> None:
    """Other bytes for a column, and a manifest that agrees with them."""
    column.write_bytes(data)
    row = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge_manifest(place, lambda values: values["index"].update({column.name: row}))


def assert_equal(found: Any, expected: Any) -> None:
    """Equal in dtype, shape and every bit (NaN equals NaN)."""
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()
    else:
        assert found == expected
