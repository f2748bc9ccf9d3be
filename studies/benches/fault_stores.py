"""Small stores for the fault benchmark: a frame store, and a teacher store in each format, values fixed by the token.

A store takes about 20 ms to write and has about 20 files, among them every kind that there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.bev import BevEncoding
from cache.commit import begin, finish
from cache.coverage import Coverage
from cache.fields import FieldSpec
from cache.frame import CAMERA_CHANNELS, Camera, Frame, GroundTruth, Pose
from cache.frame_fields import frame_entry, frame_fields, frame_identity, frame_values
from cache.grid import BevGrid
from cache.manifest import Manifest
from cache.plan import Format, FrameEntry, Scene, StorePlan
from cache.shard_writer import open_shard
from cache.store import FrameStore, Store, TeacherStore

GRID = BevGrid(-8.0, 8.0, -4.0, 4.0, 1.0)
COVERAGE = Coverage.parse("gaussian+random(cells=20)", GRID)
CLASSES = ("car", "pedestrian", "barrier")
SCENES = (Scene("a" * 32, "scene-0001", "train", "rain"), Scene("b" * 32, "scene-0002", "val"))
TOKENS = tuple(hashlib.md5(str(i).encode()).hexdigest() for i in range(5))
SHARDS = (TOKENS[0:2], TOKENS[2:4], TOKENS[4:5])  # the last is the val scene, and in Zarr has an unused row
UNLABELLED = TOKENS[3]
CAPACITY = {"K": 60, "N": 6}
Values = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class SmallStore:
    """A store that can be written, and written again: its plan and what each token's fields are."""

    name: str
    plan: StorePlan
    values: Values

    def write(self, place: Any) -> Manifest:
        """The whole store, or what an earlier run has left."""
        for shard in begin(place, self.plan):
            with open_shard(place, shard) as writer:
                for token in shard.tokens:
                    writer.write(entry_of(token), self.values(token))
        return finish(place, self.plan)

    def open(self, place: Any) -> Store:
        """The store as a reader opens it."""
        return FrameStore(place) if self.plan.kind == "frames" else TeacherStore(place)


def small_stores() -> dict[str, SmallStore]:
    """The three kinds by name."""
    encoding = BevEncoding(3, *GRID.shape, len(COVERAGE.names), dtype="u8")
    detections = (
        FieldSpec("boxes", "npy", "float32", ("N", "9")),
        FieldSpec("scores", "npy", "float32", ("N",)),
        FieldSpec("labels", "npy", "int32", ("N",)),
    )
    frames = StorePlan(
        kind="frames",
        identity=frame_identity("v1.0-faults", CLASSES),
        header={"annotated": True, "cameras": list(CAMERA_CHANNELS), "image_scale": 1.0, "points": True, "sweeps": 9},
        fields=frame_fields(CAMERA_CHANNELS, points=True),
        scenes=SCENES,
        shards=SHARDS,
    )
    header = {"teacher": "none", "grid": GRID.to_dict(), "coverage": COVERAGE.header(), "bev": encoding.to_dict()}
    made = {"frames": SmallStore("frames", frames, _frame_values)}
    for layout in (Format("webdataset"), Format("zarr", 2, CAPACITY)):
        plan = StorePlan(
            kind="teacher",
            identity=frames.identity,
            header=header,
            fields=(*encoding.fields(), *detections),
            scenes=SCENES,
            shards=SHARDS,
            format=layout,
        )
        name = f"teacher-{layout.name}"
        made[name] = SmallStore(name, plan, lambda token, encoding=encoding: teacher_values(token, encoding))  # type: ignore[misc]
    return made


def other_values(store: SmallStore) -> SmallStore:
    """The same plan over other values: written out, a forgery in which every digest agrees with every other."""

    def forged(token: str) -> Mapping[str, Any]:
        values = dict(store.values(token))
        name = "points" if "points" in values else "scores"
        values[name] = values[name] * np.float32(0.5)
        return values

    return SmallStore(store.name, store.plan, forged)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, leftovers included, and its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def expected_reads(store: SmallStore, place: Any) -> dict[str, dict[str, Any]]:
    """Every field of every frame by token, as an undamaged store reads back."""
    opened = store.open(place)
    out = {token: read_frame(opened, token) for token in TOKENS}
    opened.close()
    return out


def read_frame(store: Store, token: str) -> dict[str, Any]:
    """All that can be read of a frame, in forms that compare: fields, its index entry, and cells or truth."""
    row = store.row_of(token)
    out: dict[str, Any] = {"entry": store.entry(row).to_dict(), "scene": store.scene_of(row)}
    for spec in store.manifest.fields:
        if store.has(row, spec.name):
            out[spec.name] = _comparable(store.read(row, spec.name))
    if isinstance(store, TeacherStore):
        cells = store.cells(row)
        out["cells"] = [_comparable(part) for part in (cells.index, cells.values, cells.weights)]
    elif isinstance(store, FrameStore):
        out["pose"] = store.frame(row).to_dict()
    return out


def _comparable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()
    return value


def entry_of(token: str) -> FrameEntry:
    """The index entry of a token, equal in all three stores."""
    return frame_entry(frame_of(token), truth_of(token), len(CLASSES))


def frame_of(token: str) -> Frame:
    """A frame whose every number is random in all its bits."""
    rng = _rng(token)

    def pose() -> Pose:
        return Pose(rng.normal(size=3) * 1e3, rng.normal(size=4))

    cameras = tuple(
        Camera(name, 32, 18, 1_500_000 + i, rng.normal(size=(3, 3)), rng.normal(size=(4, 4)))
        for i, name in enumerate(CAMERA_CHANNELS)
    )
    scene = SCENES[TOKENS.index(token) >= 4]
    return Frame(token, scene.token, scene.name, scene.split, TOKENS.index(token), pose(), pose(), cameras)


def truth_of(token: str) -> GroundTruth | None:
    """Annotations of a token, None for the frame without; one frame has no object."""
    if token == UNLABELLED:
        return None
    rng = _rng(token)
    count = 0 if token == TOKENS[1] else int(rng.integers(1, 5))
    boxes = np.concatenate([rng.normal(size=(count, 6)), rng.normal(size=(count, 4)), np.zeros((count, 2))], axis=1)
    ids = rng.integers(0, len(CLASSES), (5, count)).astype(np.int32)
    return GroundTruth(boxes, ids[0], ids[1], ids[2], ids[3], ids[4], rng.normal(size=(2, 10)))


def _frame_values(token: str) -> dict[str, Any]:
    rng = _rng(token)
    images = {name: b"\xff\xd8" + rng.bytes(60) + b"\xff\xd9" for name in CAMERA_CHANNELS}
    depth = rng.integers(0, 6, (20, 4)).astype(np.uint16)
    return frame_values(frame_of(token), images, truth_of(token), depth, rng.normal(size=(60, 5)).astype(np.float32))


def teacher_values(token: str, encoding: BevEncoding) -> dict[str, Any]:
    """A teacher's fields of a token under an encoding on GRID and COVERAGE."""
    rng = _rng(token)
    weights = rng.uniform(size=(len(COVERAGE.names), *GRID.shape)) * (rng.uniform(size=GRID.shape) < 0.2)
    return {
        **encoding.encode(rng.normal(size=(encoding.channels, *GRID.shape)).astype(np.float32), weights),
        "boxes": rng.normal(size=(4, 9)).astype(np.float32),
        "scores": np.sort(rng.uniform(size=4).astype(np.float32))[::-1],
        "labels": rng.integers(0, 3, 4).astype(np.int32),
    }


def _rng(token: str) -> np.random.Generator:
    return np.random.default_rng(int(token[:8], 16))
