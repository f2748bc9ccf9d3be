"""Reading a store: any field of any frame by one ranged read, its crc32c checked on every read.

Needs numpy, numcodecs and google-crc32c only. Safe to share between threads (pread on descriptors that stay open) and
cheap to open: the index is memory-mapped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from cache.cells import Cells
from cache.errors import CorruptError, FingerprintError, StoreError
from cache.frame import CAMERA_CHANNELS, Detections, Frame, GroundTruth
from cache.grid import BevGrid
from cache.index import FrameIndex
from cache.manifest import Manifest

MAX_OPEN = 256


class Store:
    """A committed store under `root`. Rows are frames in shard order.

    Raises StoreError where `root` holds none, CorruptError where manifest, index and shards do not agree.
    """

    kind = ""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.manifest = Manifest.read(self.root)
        if self.kind and self.manifest.kind != self.kind:
            raise StoreError(f"{root}: holds a {self.manifest.kind} store, expected a {self.kind} store")
        self.index = FrameIndex.open(self.root / "index", self.manifest.index)
        self.tokens = self.index.tokens()
        self._row = {token: row for row, token in enumerate(self.tokens)}
        self._fields = {spec.name: (position, spec) for position, spec in enumerate(self.manifest.fields)}
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._descriptors)  # a store that is dropped unclosed leaks nothing
        if self.index.offset.shape[1] != len(self._fields):
            raise CorruptError(
                f"{root}: the index has {self.index.offset.shape[1]} fields, the manifest {len(self._fields)}"
            )
        frames = [shard.frames for shard in self.manifest.shards]
        known = not (self.index.shard >= len(frames)).any()
        if not known or np.bincount(self.index.shard, minlength=len(frames)).tolist() != frames:
            raise CorruptError(
                f"{root}: the index and the shard table count frames differently; run the caching command again"
            )
        if len(self._row) != len(self.tokens) or (self.index.scene >= len(self.manifest.scenes)).any():
            raise CorruptError(
                f"{root}: the index holds a token twice or an unknown scene; run the caching command again"
            )

    def __len__(self) -> int:
        return len(self.index)

    def row_of(self, token: str) -> int:
        """Row of a frame; StoreError where the store does not have it."""
        try:
            return self._row[token]
        except KeyError:
            raise StoreError(f"{self.root}: no frame {token!r} among its {len(self)}; inspect lists them") from None

    def has(self, row: int, field: str) -> bool:
        """Whether this frame carries the field."""
        return field in self._fields and int(self.index.length[row, self._fields[field][0]]) > 0

    def scene_of(self, row: int) -> str:
        """Name of the frame's scene."""
        return self.manifest.scenes[int(self.index.scene[row])].name

    def split_rows(self, split: str | None = None) -> list[int]:
        """Rows of a split, in order; of all splits for None. StoreError naming the splits the store has."""
        splits = [scene.split for scene in self.manifest.scenes]
        if split is not None and split not in splits:
            raise StoreError(f"{self.root}: no split {split!r}; it has {sorted(set(splits))}")
        wanted = np.array([split is None or name == split for name in splits], bool)
        return np.flatnonzero(wanted[np.asarray(self.index.scene)]).tolist() if len(wanted) else []

    def read_bytes(self, row: int, field: str) -> bytes:
        """The member's bytes, checked. StoreError where the frame lacks the field, CorruptError where bytes are bad."""
        position, spec = self._fields.get(field, (-1, None))
        if spec is None or not self.has(row, field):
            raise StoreError(
                f"{self.root}: frame {self.tokens[row]} has no field {field!r}; the store holds {sorted(self._fields)}"
            )
        shard = int(self.index.shard[row])
        offset, length = int(self.index.offset[row, position]), int(self.index.length[row, position])
        with self._opened(shard) as descriptor:
            data = os.pread(descriptor, length, offset) if self._inside(shard, offset, length) else b""
        if len(data) != length or google_crc32c.value(data) != int(self.index.crc32c[row, position]):
            found = "checksum differs" if len(data) == length else f"{len(data)} of {length} bytes"
            raise CorruptError(
                f"{self._where(row, spec.member)}: {found}; delete that shard and run the caching command again"
            )
        return data

    def read(self, row: int, field: str) -> Any:
        """The decoded field: an array, a dict, or JPEG bytes. Raises as `read_bytes`."""
        data = self.read_bytes(row, field)
        spec = self._fields[field][1]
        return spec.decode(data, self._where(row, spec.member))

    def close(self) -> None:
        """Closes the shards' descriptors; reading opens them again."""
        with self._lock:
            _close_all(self._descriptors)

    def _where(self, row: int, member: str) -> str:
        return f"{self.root / self.manifest.shards[int(self.index.shard[row])].name}: {self.tokens[row]}.{member}"

    def _inside(self, shard: int, offset: int, length: int) -> bool:
        """A damaged index must not make us allocate what the shard cannot hold."""
        return offset + length <= self.manifest.shards[shard].size

    @contextlib.contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        """The shard's descriptor: kept for the first MAX_OPEN shards, so that no store exhausts the process's limit."""
        with self._lock:
            kept = self._descriptors.get(shard)
            if kept is None and len(self._descriptors) < MAX_OPEN:
                kept = self._descriptors[shard] = self._open(shard)
        if kept is not None:
            yield kept
            return
        descriptor = self._open(shard)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, shard: int) -> int:
        """Opens a shard; CorruptError where it is missing or has not the manifest's size."""
        path, expected = self.root / self.manifest.shards[shard].name, self.manifest.shards[shard].size
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise CorruptError(f"{path}: missing; restore it or run the caching command again") from None
        size = os.fstat(descriptor).st_size
        if size != expected:
            os.close(descriptor)
            raise CorruptError(
                f"{path}: {size} bytes, expected {expected}; restore it or run the caching command again"
            )
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a Store holds open files; open it again from its root in each process")


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


class FrameStore(Store):
    """What students need of every frame: images, calibration, poses, annotations, depth, optionally points."""

    kind = "frames"

    def frame(self, row: int) -> Frame:
        """Identity, poses and calibration."""
        return Frame.from_dict(self.read(row, "frame"))

    def image(self, row: int, channel: str) -> bytes:
        """JPEG bytes of one camera."""
        return self.read_bytes(row, channel.lower())

    def is_labelled(self, row: int) -> bool:
        """Whether the frame carries annotations."""
        return self.has(row, "gt_boxes")

    def boxes_lidar(self, row: int) -> np.ndarray:
        """(N, 9) float32 annotated boxes in the canonical frame, same order as `truth`."""
        return self.read(row, "gt_lidar")

    def truth(self, row: int) -> GroundTruth:
        """Annotations for the metric, global float64."""
        class_ids, attribute_ids, lidar_pts, radar_pts, visibility = np.ascontiguousarray(self.read(row, "gt_ids").T)
        boxes, racks = self.read(row, "gt_boxes"), self.read(row, "racks")
        return GroundTruth(boxes, class_ids, attribute_ids, lidar_pts, radar_pts, visibility, racks)

    def points(self, row: int) -> np.ndarray:
        """(P, 5) float32 x, y, z, intensity, dt_s of key frame and sweeps, canonical frame."""
        return self.read(row, "points")

    def depth(self, row: int) -> np.ndarray:
        """(K, 4) float32: camera position in CAMERA_CHANNELS, u, v in pixels of the stored image, depth in metres."""
        packed = self.read(row, "depth").astype(np.float32)
        packed[:, 1:3] /= 32.0
        packed[:, 3] /= 100.0
        return packed


def pack_depth(camera: np.ndarray, u: np.ndarray, v: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """(K, 4) uint16 of the `depth` field: camera position, u and v in 1/32 pixel, depth in cm. Inverse in `depth`.

    Raises StoreError where a value does not fit: a camera that is none, pixels beyond 2047, depth beyond 655 m.
    """
    packed = np.stack([camera, np.round(u * 32), np.round(v * 32), np.round(depth_m * 100)], axis=1)
    if not ((packed >= 0) & (packed < 2**16)).all() or (packed[:, 0] >= len(CAMERA_CHANNELS)).any():
        raise StoreError(
            "depth labels: a value is not finite or beyond 6 cameras, 2047 pixels, 655 m; "
            "store images of at most 2047 pixels"
        )
    return packed.astype(np.uint16)


class TeacherStore(Store):
    """What one teacher said of every frame: BEV features in cells, detections, masks."""

    kind = "teacher"

    @property
    def grid(self) -> BevGrid:
        """Grid of the BEV fields."""
        return BevGrid.from_dict(self.manifest.header["grid"])

    @property
    def selectors(self) -> list[str]:
        """Names of the columns of the cells' weights."""
        return list(self.manifest.header["coverage"]["selectors"])

    def cells(self, row: int) -> Cells:
        """The BEV feature at the stored cells. CorruptError where index, values and weights do not fit each other."""
        index, values, weights = (self.read(row, name) for name in ("bev_index", "bev_values", "bev_weights"))
        height, width = self.grid.shape
        ascending = not (np.diff(index) <= 0).any() and (
            not len(index) or (index[0] >= 0 and index[-1] < height * width)
        )
        if not ascending or not len(index) == len(values) == len(weights):
            raise CorruptError(
                f"{self._where(row, 'bev_index')}: {len(index)} cells, {len(values)} values, {len(weights)} weights, "
                f"or a cell outside {height} x {width}; cache the teacher again"
            )
        return Cells(index, values, weights)

    def detections(self, row: int) -> Detections:
        """The teacher's decoded boxes, canonical frame, scores descending."""
        return Detections(self.read(row, "boxes"), self.read(row, "scores"), self.read(row, "labels"))


def require_same_frames(frames: FrameStore, teacher: TeacherStore, rows: Sequence[int]) -> list[int]:
    """The teacher store's rows of the frame store's `rows`.

    Raises FingerprintError where the identities differ (both values named), StoreError where frames are missing.
    """
    for key, expected in frames.manifest.identity.items():
        found = teacher.manifest.identity.get(key)
        if found != expected:
            raise FingerprintError(
                f"{teacher.root}: {key} = {found}, but {frames.root} has {expected}; "
                "cache the teacher again on these frames"
            )
    missing = [frames.tokens[row] for row in rows if frames.tokens[row] not in teacher._row]
    if missing:
        raise StoreError(
            f"{teacher.root}: {len(missing)} of {len(rows)} frames are missing, the first {missing[0]}; "
            "run cache-teacher again on this cache"
        )
    return [teacher.row_of(frames.tokens[row]) for row in rows]
