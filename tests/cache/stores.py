"""Small stores for the tests: every field of a frame and of a teacher store, values fixed by the frame's token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from cache.cells import gather_cells
from cache.commit import StorePlan, begin, finish, shard_path, write_record
from cache.fields import FieldSpec
from cache.files import seal
from cache.frame import CAMERA_CHANNELS, Camera, Frame, Pose
from cache.grid import BevGrid
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from cache.manifest import Manifest, Scene
from cache.tar_writer import ShardWriter

GRID = BevGrid(-8.0, 8.0, -4.0, 4.0, 1.0)
SELECTORS = ["foreground", "all"]
SCENES = (Scene("a" * 32, "scene-0001", "train", "rain"), Scene("b" * 32, "scene-0002", "val"))
TOKENS = [hashlib.md5(str(i).encode()).hexdigest() for i in range(6)]
SHARDS = (tuple(TOKENS[0:2]), tuple(TOKENS[2:4]), tuple(TOKENS[4:6]))  # shard 2 is the val scene
UNLABELLED = TOKENS[3]

FRAME_FIELDS = (
    FieldSpec("frame", "json", about="identity, poses, calibration"),
    *(FieldSpec(channel.lower(), "jpg") for channel in CAMERA_CHANNELS),
    FieldSpec("gt_boxes", "npy", "float64", ("N", "12"), "m"),
    FieldSpec("gt_ids", "npy", "int32", ("N", "5")),
    FieldSpec("gt_lidar", "npy", "float32", ("N", "9"), "m"),
    FieldSpec("racks", "npy", "float64", ("M", "10"), "m"),
    FieldSpec("depth", "npy.zstd", "uint16", ("K", "4")),
    FieldSpec("points", "npy.zstd", "float32", ("P", "5"), "m"),
)
TEACHER_FIELDS = (
    FieldSpec("bev_index", "npy", "int32", ("K",)),
    FieldSpec("bev_values", "npy.zstd", "float16", ("K", "3")),
    FieldSpec("bev_weights", "npy", "float32", ("K", "S")),
    FieldSpec("boxes", "npy", "float32", ("N", "9")),
    FieldSpec("scores", "npy", "float32", ("N",)),
    FieldSpec("labels", "npy", "int32", ("N",)),
)
IDENTITY = {"dataset_version": "v1.0-test", "frames_digest": "f00d"}


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
    scene = scene_of(token)
    return Frame(
        token,
        SCENES[scene].token,
        SCENES[scene].name,
        SCENES[scene].split,
        TOKENS.index(token),
        pose(),
        pose(),
        cameras,
    )


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
        values["gt_ids"] = rng.integers(-1, 9, (boxes, 5)).astype(np.int32)
        values["gt_lidar"] = rng.normal(size=(boxes, 9)).astype(np.float32)
        values["racks"] = rng.normal(size=(2, 10))
    return values


def teacher_values(token: str) -> dict[str, Any]:
    rng = rng_of(token)
    weights = rng.uniform(size=(2, *GRID.shape)) * (rng.uniform(size=(2, *GRID.shape)) < 0.2)
    cells = gather_cells(rng.normal(size=(3, *GRID.shape)).astype(np.float32), weights)
    return {
        "bev_index": cells.index,
        "bev_values": cells.values,
        "bev_weights": cells.weights,
        "boxes": rng.normal(size=(4, 9)).astype(np.float32),
        "scores": np.sort(rng.uniform(size=4).astype(np.float32))[::-1],
        "labels": rng.integers(0, 10, 4).astype(np.int32),
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


def teacher_plan(**changes: Any) -> StorePlan:
    values: dict[str, Any] = {
        "kind": "teacher",
        "identity": IDENTITY,
        "header": {"grid": GRID.to_dict(), "coverage": {"selectors": SELECTORS}},
        "fields": TEACHER_FIELDS,
        "scenes": SCENES,
        "shards": SHARDS,
    }
    return StorePlan(**(values | changes))


def values_of(plan: StorePlan) -> Callable[[str], dict[str, Any]]:
    return frame_values if plan.kind == "frames" else teacher_values


def write_shard(root: Path, plan: StorePlan, shard: int, quarantine: Collection[str] = (), commit: bool = True) -> None:
    """One shard as the pipeline writes it; `quarantine` are tokens whose raw data cannot be read today."""
    frames = []
    with ShardWriter(shard_path(root, shard), {spec.name: spec for spec in plan.fields}) as writer:
        for token in plan.shards[shard]:
            if token in quarantine:
                continue
            members = writer.write(token, values_of(plan)(token))
            labelled = token != UNLABELLED
            frames.append(
                {
                    "token": token,
                    "scene": scene_of(token),
                    "timestamp_us": TOKENS.index(token),
                    "kind": KIND_LABELLED if labelled else KIND_UNLABELLED,
                    "class_counts": list(range(10)),
                    "members": {name: location.to_list() for name, location in members.items()},
                }
            )
    if commit:
        bad = [{"token": token, "reason": "a.bin: truncated"} for token in plan.shards[shard] if token in quarantine]
        write_record(root, shard, plan.digest, size=writer.size, sha256=writer.sha256, frames=frames, quarantined=bad)


def write_store(root: Path, plan: StorePlan, quarantine: Collection[str] = ()) -> Manifest:
    """A whole store, or the rest of one."""
    for shard in begin(root, plan):
        write_shard(root, plan, shard, quarantine)
    return finish(root, plan)


def tree(root: Path) -> dict[str, bytes]:
    """Every file under `root` and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def forge_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits manifest.json as an attacker would: the digest is made to agree with the change."""
    path = root / "manifest.json"
    values = json.loads(path.read_bytes())
    del values["digest"]
    change(values)
    path.write_text(json.dumps(seal(values)))


def assert_equal(found: Any, expected: Any) -> None:
    """Equal in dtype, shape and every bit (NaN equals NaN)."""
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()
    else:
        assert found == expected
