"""Reading a store: any field of any frame by one ranged read, its crc32c checked on every read.

Needs numpy, numcodecs and google-crc32c only (fsspec where the root is remote). Safe to share between threads and cheap
to open: the index is memory-mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np

from cache.bev import BevEncoding
from cache.cells import Cells
from cache.coverage import Coverage
from cache.depth_labels import unpack_depth
from cache.errors import ConfigError, CorruptError, FingerprintError, StoreError
from cache.frame import Detections, Frame, GroundTruth
from cache.grid import BevGrid
from cache.index import FrameIndex
from cache.local_cache import read_through
from cache.manifest import Manifest
from cache.plan import FrameEntry
from cache.roots import open_root


class Store:
    """A committed store at a path, URL or Root. Rows are frames in shard order.

    Raises StoreError where there is none, CorruptError where manifest, index and shards do not agree.
    """

    kind = ""

    def __init__(self, place: Any) -> None:
        self.root = read_through(open_root(place))
        self.manifest = Manifest.read(self.root)
        self.root.expect({file.name: (file.size, file.sha256) for file in self.manifest.files})
        if self.kind and self.manifest.kind != self.kind:
            raise StoreError(f"{self.root}: holds a {self.manifest.kind} store, expected a {self.kind} store")
        self._fields = {spec.name: (position, spec) for position, spec in enumerate(self.manifest.fields)}
        self.index = FrameIndex.open(
            self.root,
            self.manifest.index,
            num_fields=len(self._fields),
            num_letters=len(self.manifest.letters),
            num_classes=len(self.classes),
        )
        frames = [shard.frames for shard in self.manifest.shards]
        known = not (self.index.shard >= len(frames)).any()
        if not known or np.bincount(self.index.shard, minlength=len(frames)).tolist() != frames:
            raise CorruptError(
                f"{self.root}: the index and the shard table count frames differently; run the caching command again"
            )
        if (self.index.scene >= len(self.manifest.scenes)).any():
            raise CorruptError(f"{self.root}: the index names an unknown scene; run the caching command again")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def classes(self) -> list[str]:
        """The data set's class names; labels and class counts are positions in it."""
        return [str(name) for name in self.manifest.identity.get("classes", ())]

    @cached_property
    def tokens(self) -> list[str]:
        """Every frame's token, in row order."""
        return [row.tobytes().hex() for row in self.index.token]

    def token(self, row: int) -> str:
        """One frame's token."""
        return self.index.token[row].tobytes().hex()

    def row_of(self, token: str) -> int:
        """Row of a frame; StoreError where the store does not have it."""
        row = self.index.row_of(token)
        if row is None:
            raise StoreError(f"{self.root}: no frame {token!r} among its {len(self)}; inspect lists them")
        return row

    def entry(self, row: int) -> FrameEntry:
        """The frame's index entry, for another store of the same frames."""
        return self.index.entry(row, self._scene_tokens)

    @cached_property
    def _scene_tokens(self) -> list[str]:
        return [scene.token for scene in self.manifest.scenes]

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
        """The field's bytes, checked. StoreError where the frame lacks the field, CorruptError where bytes are bad."""
        position, spec = self._fields.get(field, (-1, None))
        if spec is None or not self.has(row, field):
            raise StoreError(
                f"{self.root}: frame {self.token(row)} has no field {field!r}; the store holds {sorted(self._fields)}"
            )
        file = self.manifest.shards[int(self.index.shard[row])].file_of(position)
        offset, length = int(self.index.offset[row, position]), int(self.index.length[row, position])
        checksum = int(self.index.crc32c[row, position])
        try:
            # a damaged index must not make us allocate what the file cannot hold
            data = self.root.read_range(file.name, offset, length) if offset + length <= file.size else b""
            if google_crc32c.value(data) != checksum and self.root.discard(file.name):
                data = self.root.read_range(file.name, offset, length)  # a local copy had gone bad
        except FileNotFoundError:
            raise CorruptError(
                f"{self.root}/{file.name}: missing; restore it or run the caching command again"
            ) from None
        if len(data) != length or google_crc32c.value(data) != checksum:
            found = "checksum differs" if len(data) == length else f"{len(data)} of {length} bytes"
            raise CorruptError(
                f"{self._where(row, field)}: {found}; delete that file and run the caching command again"
            )
        return data

    def read(self, row: int, field: str) -> Any:
        """The decoded field: a read-only array, a dict, or JPEG bytes. Raises as `read_bytes`."""
        data = self.read_bytes(row, field)
        spec = self._fields[field][1]
        sizes = dict(zip(self.manifest.letters, self.index.sizes[row].tolist(), strict=True))
        if self.manifest.format.name == "zarr":
            return spec.decode_padded(data, sizes, self.manifest.format.capacity, self._where(row, field))
        return spec.decode(data, sizes, self._where(row, field))

    def close(self) -> None:
        """Lets go of open files; reading opens them again."""
        self.root.close()

    def _where(self, row: int, field: str) -> str:
        position, spec = self._fields[field]
        file = self.manifest.shards[int(self.index.shard[row])].file_of(position)
        return f"{self.root}/{file.name}: {self.token(row)}.{spec.member}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Opens the store anew where a process is handed one (a DataLoader's workers): open files do not travel."""
        return type(self), (self.root,)


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
        """(D, 4) float32: position in the frame's cameras, u, v in pixels of the stored image, depth in metres."""
        return unpack_depth(self.read(row, "depth"))


class TeacherStore(Store):
    """What one teacher said of every frame: BEV features in cells, detections, masks."""

    kind = "teacher"

    @property
    def grid(self) -> BevGrid:
        """Grid of the BEV fields."""
        try:
            return BevGrid.from_dict(self.manifest.header["grid"])
        except (KeyError, TypeError, ConfigError) as error:
            raise CorruptError(f"{self.root}: header.grid: {error}; the store is damaged, run verify") from None

    @property
    def selectors(self) -> list[str]:
        """Names of the columns of the cells' weights."""
        return list(self.coverage.names)

    @cached_property
    def coverage(self) -> Coverage:
        """Which cells the store holds."""
        return Coverage.from_header(self.manifest.header.get("coverage"), f"{self.root}: header.coverage")

    @cached_property
    def bev(self) -> BevEncoding:
        """How the BEV feature is stored; CorruptError where the header contradicts fields, grid or coverage."""
        bev = BevEncoding.from_dict(self.manifest.header.get("bev", {}))
        declared = {name: (spec.dtype, spec.shape) for name, (_, spec) in self._fields.items()}
        fits = ((bev.height, bev.width), bev.selectors) == (self.grid.shape, len(self.selectors))
        if not fits or any(declared.get(spec.name) != (spec.dtype, spec.shape) for spec in bev.fields()):
            raise CorruptError(
                f"{self.root}: header.bev {bev.to_dict()} does not fit the fields, the grid or the coverage; "
                "the store is damaged, run verify"
            )
        return bev

    def cells(self, row: int) -> Cells:
        """The BEV feature at the covered cells, values as stored (u8 comes back as float32).

        CorruptError where index, values and weights do not fit each other.
        """
        return self.bev.read(lambda name: self.read(row, name), lambda name: self._where(row, name))

    def detections(self, row: int) -> Detections:
        """The teacher's decoded boxes, canonical frame, scores descending."""
        return Detections(self.read(row, "boxes"), self.read(row, "scores"), self.read(row, "labels"))


def require_same_frames(frames: FrameStore, teacher: TeacherStore, rows: Sequence[int]) -> list[int]:
    """The teacher store's rows of the frame store's `rows`.

    Raises FingerprintError where the identities differ (both values named) or a frame has other poses there, StoreError
    where frames are missing.
    """
    for key, expected in frames.manifest.identity.items():
        found = teacher.manifest.identity.get(key)
        if found != expected:
            raise FingerprintError(
                f"{teacher.root}: {key} = {found}, but {frames.root} has {expected}; "
                "cache the teacher again on these frames"
            )
    wanted = np.asarray(rows, np.int64)
    there = teacher.index.rows_of(frames.index.token[wanted])
    if (there < 0).any():
        missing = wanted[there < 0]
        raise StoreError(
            f"{teacher.root}: {len(missing)} of {len(rows)} frames are missing, the first "
            f"{frames.token(missing[0])}; run cache-teacher again on this cache"
        )
    differs = (frames.index.digest[wanted] != teacher.index.digest[there]).any(axis=1)
    if differs.any():
        row, other = wanted[differs][0], there[differs][0]
        raise FingerprintError(
            f"{teacher.root}: frame {frames.token(row)} has pose digest {teacher.entry(other).digest}, but "
            f"{frames.root} has {frames.entry(row).digest}; cache the teacher again on these frames"
        )
    return there.tolist()
