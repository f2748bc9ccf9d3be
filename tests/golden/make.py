"""Makes the golden stores of the present format version: `python -m tests.golden.make tests/golden/v1`.

Run once for a version and committed; never again over a version that has been released: later code must read what this
code wrote, not what it would write itself. `expected.json` keeps every value's dtype, shape and sha256.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cache.bev import BevEncoding
from cache.commit import begin, finish
from cache.coverage import Coverage
from cache.fields import FieldSpec
from cache.files import write_json
from cache.frame import Camera, Frame, GroundTruth, Pose
from cache.grid import BevGrid
from cache.own_frames import OwnFrame, token_of, write_frames
from cache.plan import Format, Scene, StorePlan
from cache.shard_writer import open_shard
from cache.store import FrameStore, Store, TeacherStore

CAMERAS, CLASSES = ("left", "right"), ("car", "person", "cone")
SCENES = tuple(Scene(token_of(name), name, split, "golden") for name, split in (("one", "train"), ("two", "val")))
FRAMES = {scene: [token_of(f"{scene.name}/{i}") for i in range(3)] for scene in SCENES}
UNLABELLED = FRAMES[SCENES[1]][2]
GRID = BevGrid(-16.0, 16.0, -8.0, 8.0, 1.0)
CHANNELS = 6
TEACHERS = {  # name -> layout, dtype, format
    "cells-fp16": ("cells", "float16", "webdataset"),
    "cells-fp16-zarr": ("cells", "float16", "zarr"),
    "cells-u8": ("cells", "u8", "webdataset"),
    "dense-fp32": ("dense", "float32", "webdataset"),
    "dense-u8-zarr": ("dense", "u8", "zarr"),
}


def rng_of(token: str) -> np.random.Generator:
    return np.random.default_rng(int(token[:12], 16))


def own_frame(token: str) -> OwnFrame:
    """Two small noisy images, 200 points, up to four boxes; one frame has no annotations, one no box."""
    rng = rng_of(token)
    scene = next(scene for scene, tokens in FRAMES.items() if token in tokens)
    level = Pose(rng.normal(size=3) * 100, np.array([1.0, 0, 0, 0]))
    cameras = tuple(
        Camera(name, 24, 16, 1_000, np.array([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]), np.eye(4)) for name in CAMERAS
    )
    images = {}
    for name in CAMERAS:
        images[name] = cv2.imencode(".jpg", rng.integers(0, 255, (16, 24, 3)).astype(np.uint8))[1].tobytes()
    boxes = int(rng.integers(0, 5))
    ids = rng.integers(0, 3, (4, boxes)).astype(np.int32)
    table = np.concatenate([rng.normal(size=(boxes, 6)) * 5, np.tile([1.0, 0, 0, 0, 1.5, -2.0], (boxes, 1))], axis=1)
    table[:, 3:6] = np.abs(table[:, 3:6]) + 0.5
    table[:1, 10:] = np.nan
    truth = GroundTruth(table, ids[0], ids[1] - 1, ids[2] * 9, ids[3], ids[0] + 1, np.zeros((1, 10)))
    points = np.concatenate([rng.normal(size=(200, 3)) * 6, np.zeros((200, 2))], axis=1).astype(np.float32)
    frame = Frame(token, scene.token, scene.name, scene.split, int(rng.integers(2**50)), level, level, cameras)
    return OwnFrame(frame, images, None if token == UNLABELLED else truth, points)


def write_teacher(cache: Path, name: str) -> None:
    """A teacher store of made-up values: a BEV map after a ReLU, two selectors, detections."""
    layout, dtype, form = TEACHERS[name]
    frames = FrameStore(cache / "frames")
    coverage = Coverage.parse("gaussian(dilate=0)+random(cells=7,seed=3)", GRID)
    encoding = BevEncoding(CHANNELS, *GRID.shape, len(coverage.names), layout, dtype)
    plan = StorePlan(
        kind="teacher",
        identity=frames.manifest.identity,
        header={"teacher": name, "weights_sha256": "0" * 64, "grid": GRID.to_dict(), "sweeps": 0, "batch": 1}
        | {"coverage": coverage.header(), "bev": encoding.to_dict()},
        fields=(
            *encoding.fields(),
            FieldSpec("boxes", "npy", "float32", ("N", "9"), "m, rad, m/s"),
            FieldSpec("scores", "npy", "float32", ("N",)),
            FieldSpec("labels", "npy", "int32", ("N",)),
        ),
        scenes=SCENES,
        shards=tuple(tuple(tokens) for tokens in FRAMES.values()),
        format=Format("zarr", 4, {"K": 64, "N": 5}) if form == "zarr" else Format(),
    )
    root = cache / "teachers" / name
    for shard in begin(root, plan):
        with open_shard(root, shard) as writer:
            for token in shard.tokens:
                rng = rng_of(token)
                bev = np.maximum(rng.normal(size=(CHANNELS, *GRID.shape)), 0).astype(np.float32)
                weights = rng.uniform(size=(2, *GRID.shape)) * (rng.uniform(size=(2, *GRID.shape)) < 0.03)
                boxes = int(rng.integers(0, 6))
                values: dict[str, Any] = {
                    **encoding.encode(bev, weights),
                    "boxes": rng.normal(size=(boxes, 9)).astype(np.float32),
                    "scores": np.sort(rng.uniform(size=boxes).astype(np.float32))[::-1].copy(),
                    "labels": rng.integers(0, 3, boxes).astype(np.int32),
                }
                writer.write(frames.entry(frames.row_of(token)), values)
    finish(root, plan)


def fingerprint(value: Any) -> list[Any]:
    """What a value is, shortly: [dtype, shape, sha256], [length, sha256] of bytes, or the JSON itself."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes()
        return [value.dtype.name, list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, bytes):
        return [len(value), hashlib.sha256(value).hexdigest()]
    return [value]


def content(store: Store) -> dict[str, dict[str, Any]]:
    """Every value of a store by token and field, and for teachers the decoded cells."""
    out: dict[str, dict[str, Any]] = {}
    for row in range(len(store)):
        names = [spec.name for spec in store.manifest.fields if store.has(row, spec.name)]
        out[store.token(row)] = {name: fingerprint(store.read(row, name)) for name in names}
        if isinstance(store, TeacherStore):
            cells = store.cells(row)
            out[store.token(row)]["cells()"] = [fingerprint(x) for x in (cells.index, cells.values, cells.weights)]
    return out


def stores_of(cache: Path) -> dict[str, Store]:
    """All stores of a golden cache by name."""
    return {"frames": FrameStore(cache / "frames")} | {
        path.name: TeacherStore(path) for path in sorted((cache / "teachers").iterdir())
    }


def make(cache: Path) -> None:
    """Writes all stores and expected.json."""
    write_frames(
        cache / "frames",
        dataset_version="golden",
        classes=CLASSES,
        cameras=CAMERAS,
        scenes=list(FRAMES.items()),
        read=own_frame,
        frames_per_shard=3,
    )
    for name in TEACHERS:
        write_teacher(cache, name)
    stores = stores_of(cache)
    write_json(
        cache / "expected.json",
        {
            name: {
                "digest": store.manifest.digest,
                "selectors": getattr(store, "selectors", []),
                "values": content(store),
            }
            for name, store in stores.items()
        },
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]))
