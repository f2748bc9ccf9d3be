"""The two kinds of stores as their readers see them: typed access to what a frame store and a teacher store hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cache.adaptor import Adaptor
from cache.bev import BevEncoding
from cache.cells import Cells, join_cells
from cache.coverage import Coverage
from cache.depth_labels import unpack_depth
from cache.errors import ConfigError, CorruptError, StoreError
from cache.field_list import Asked, FieldList
from cache.fields import FieldSpec
from cache.frame import Detections, Frame, GroundTruth, Poses
from cache.frame_fields import pose_part
from cache.further import Further
from cache.grid import BevGrid
from cache.reader import Place, Store

__all__ = ["FrameStore", "Queries", "Samples", "Store", "TeacherStore"]


@dataclass(frozen=True)
class Queries:
    """A frame's queries, the most confident first. logits: (Q, classes) float16 by class id; boxes: (Q, 10) float32
    x, y, z (m), log l, log w, log h (of m), sin yaw, cos yaw, vx, vy (m/s)."""

    logits: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Samples:
    """A map at points of N boxes, see `cache.box_points`. values: (N, P, C) float16, 0 at points off the map; inside:
    (N, P) bool, where points lie on it."""

    values: np.ndarray
    inside: np.ndarray


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

    def is_keyframe(self, row: int) -> bool:
        """Whether the frame is a key frame, annotated or not, which is what the metric scores; else it is an unlabelled
        moment between two."""
        header = self.manifest.header
        if self.is_labelled(row):
            return True
        # where all key frames are annotated, the index has said it; elsewhere the frame does
        all_annotated = header.get("annotated") and "labelled_scenes" not in header
        return not (header.get("between") and all_annotated) and self.frame(row).keyframe

    def key_rows(self, split: str | None = None) -> list[int]:
        """`split_rows` without what lies between key frames."""
        return [row for row in self.split_rows(split) if self.is_keyframe(row)]

    def boxes_lidar(self, row: int) -> np.ndarray:
        """(N, 9) float32 annotated boxes in the canonical frame, same order as `truth`."""
        return self.read(row, "gt_lidar")

    def truth(self, row: int) -> GroundTruth:
        """Annotations for the metric, global float64."""
        class_ids, attribute_ids, lidar_pts, radar_pts, visibility = np.ascontiguousarray(self.read(row, "gt_ids").T)
        boxes, racks = self.read(row, "gt_boxes"), self.read(row, "racks")
        return GroundTruth(boxes, class_ids, attribute_ids, lidar_pts, radar_pts, visibility, racks)

    def poses_of(self, rows: Sequence[int] | np.ndarray) -> tuple[Poses, Poses]:
        """ego_to_global and lidar_to_ego of several frames, without parsing what their cameras are."""
        told = [
            pose_part(data) or self._decode(int(row), "frame", data, {})
            for row, (data,) in zip(rows, self.read_bytes_of(rows, ["frame"]), strict=True)
        ]
        return Poses.from_dicts([one["ego_to_global"] for one in told]), Poses.from_dicts(
            [one["lidar_to_ego"] for one in told]
        )

    def truth_of(self, rows: Sequence[int] | np.ndarray) -> tuple[GroundTruth, np.ndarray, np.ndarray]:
        """`truth` of several frames one after another, and offsets (len(rows) + 1,) int64 into its boxes and into its
        racks: frame i has those from offsets[i] to offsets[i + 1]."""
        read = self.read_joined(rows, ["gt_boxes", "gt_ids", "racks"])
        class_ids, attribute_ids, lidar_pts, radar_pts, visibility = np.ascontiguousarray(read["gt_ids"].T)
        truth = GroundTruth(read["gt_boxes"], class_ids, attribute_ids, lidar_pts, radar_pts, visibility, read["racks"])
        boxes, racks = (np.concatenate([[0], np.cumsum(self.lengths(rows, key))]) for key in ("gt_boxes", "racks"))
        return truth, boxes, racks

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
        fits = ((bev.height, bev.width), bev.selectors) == (self.grid.shape, len(self.selectors))
        if not fits or not self._declares(bev.fields()):
            raise CorruptError(
                f"{self.root}: header.bev {bev.to_dict()} does not fit the fields, the grid or the coverage; "
                "the store is damaged, run verify"
            )
        return bev

    def _declares(self, fields: Sequence[FieldSpec]) -> bool:
        """Whether the manifest declares these arrays with the same dtypes and shapes."""
        declared = {name: (spec.dtype, spec.shape) for name, (_, spec) in self._fields.items() if spec.is_array}
        return all(declared.get(spec.name) == (spec.dtype, spec.shape) for spec in fields)

    @cached_property
    def further(self) -> Further:
        """What the store holds beside BEV feature and boxes; CorruptError where the header contradicts the fields."""
        where = f"{self.root}: header.further"
        further = Further.from_header(self.manifest.header.get("further"), self.grid, self.bev, where)
        if not self._declares(further.fields()) or ("adaptor" in further.asked) != ("adaptor" in self.manifest.header):
            raise CorruptError(f"{where} {further.asked} does not fit the fields; the store is damaged, run verify")
        return further

    def require(self, asked: str) -> Asked:
        """The item of `cache-teacher --fields` that serves `asked`; StoreError with the remedy where there is none."""
        wanted = FieldList.parse(asked, f"{self.root}: field").items[0]
        have = self.further.asked
        if not have.holds(wanted):
            raise StoreError(
                f"{self.root}: holds no {wanted} (its further fields: {str(have) or 'none'}); run `cache-teacher "
                f"--fields '{have.with_item(wanted)}'` under another --name"
            )
        return next(item for item in have.items if item.holds(wanted))

    def cells(self, row: int) -> Cells:
        """The BEV feature at the covered cells, values as stored (u8 comes back as float32).

        CorruptError where index, values and weights do not fit each other.
        """
        names = [spec.name for spec in self.bev.fields()]
        return self.bev.to_cells(dict(zip(names, self.read_many(row, names), strict=True)), Place(self, row, names[0]))

    def cells_of(self, rows: Sequence[int] | np.ndarray) -> tuple[Cells, np.ndarray]:
        """The cells of several frames one after another, as `cells` gives them, and offsets (len(rows) + 1,) int64:
        frame i has the cells offsets[i] .. offsets[i + 1]."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths(rows, "bev_index"))])
        names = [spec.name for spec in self.bev.fields()]
        if not len(rows):
            return self.bev.no_cells(), offsets
        if self.bev.layout == "cells":
            joined = self.bev.to_joined_cells(self.read_joined(rows, names), offsets)
            if joined is not None:
                return joined, offsets
        return join_cells([self.cells(int(row)) for row in rows]), offsets

    def detections(self, row: int) -> Detections:
        """The teacher's decoded boxes, canonical frame, scores descending."""
        return Detections(*self.read_many(row, ("boxes", "scores", "labels")))

    def detections_of(self, rows: Sequence[int] | np.ndarray) -> tuple[Detections, np.ndarray]:
        """`detections` of several frames one after another, and offsets (len(rows) + 1,) int64 as `cells_of`."""
        read = self.read_joined(rows, ["boxes", "scores", "labels"])
        offsets = np.concatenate([[0], np.cumsum(self.lengths(rows, "boxes"))])
        return Detections(read["boxes"], read["scores"], read["labels"]), offsets

    def logits(self, row: int) -> np.ndarray:
        """(K, classes) float16: class logits before the sigmoid at the frame's cells, by class id."""
        self.require("logits")
        return self._at_cells(row, "logits")

    def regression(self, row: int) -> np.ndarray:
        """(K, R) float16: the raw regressed maps at the frame's cells; columns as `further.regression` lists them."""
        self.require("regression")
        return self._at_cells(row, "regression")

    def logits_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """`logits` of several frames one after another, as `cells_of` has their cells."""
        self.require("logits")
        return self._joined_at_cells(rows, "logits", self.further.classes)

    def regression_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """`regression` of several frames one after another, as `cells_of` has their cells."""
        self.require("regression")
        return self._joined_at_cells(rows, "regression", self.further.columns)

    def _at_cells(self, row: int, name: str) -> np.ndarray:
        if self.bev.layout == "cells":
            return self.read(row, name)
        whole, index = self.read_many(row, (f"{name}_map", "bev_index"))
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.bev.height * self.bev.width:
            raise CorruptError(f"{Place(self, row, 'bev_index')}: a cell is off the grid; cache the teacher again")
        return np.ascontiguousarray(whole.reshape(len(whole), -1)[:, index].T)

    def _joined_at_cells(self, rows: Sequence[int] | np.ndarray, name: str, columns: int) -> np.ndarray:
        if self.bev.layout == "cells":
            return self.read_joined(rows, [name])[name]
        parts = [self._at_cells(int(row), name) for row in rows]
        return np.concatenate([np.empty((0, columns), np.float16), *parts])

    def level_cells(self, row: int, name: str) -> Cells:
        """A further map at the cells that the coverage makes on its grid (`further.level(name).grid`), as `cells`."""
        self.require(f"level(name={name})")
        level = self.further.level(name)
        fields = dict(zip(level.reads, self.read_many(row, level.reads), strict=True))
        return level.to_cells(fields, Place(self, row, level.reads[0]))

    def level_cells_of(self, rows: Sequence[int] | np.ndarray, name: str) -> tuple[Cells, np.ndarray]:
        """`level_cells` of several frames one after another, with offsets as `cells_of` gives them."""
        self.require(f"level(name={name})")
        if not len(rows):
            return self.further.level(name).encoding.no_cells(), np.zeros(1, np.int64)
        parts = [self.level_cells(int(row), name) for row in rows]
        return join_cells(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def queries(self, row: int, top: int | None = None) -> Queries:
        """The frame's queries, `top` of them or all that are stored."""
        self.require(f"queries(top={top or 1})")
        logits, boxes = self.read_many(row, ("query_logits", "query_boxes"))
        return Queries(logits[:top], boxes[:top])

    def samples(self, row: int, asked: str) -> Samples:
        """A map at points of the frame's boxes. asked: as in `--fields`, such as `samples(boxes=truth,points=7x7)`.

        boxes=truth: of `FrameStore.boxes_lidar`, row for row, none on a frame without annotations; boxes=teacher: of
        `detections`, the best ones, of which there may be fewer samples than boxes.
        """
        item = self.require(asked)
        wanted = FieldList.parse(asked).items[0]
        values, inside = self.read_many(row, (item.name, f"{item.name}_inside"))
        return Samples(values[: wanted["limit"] or None], inside[: wanted["limit"] or None])

    def depth(self, row: int) -> np.ndarray:
        """(cameras, D, h, w) float16: a camera teacher's probabilities of its depth bins, `further.depth`."""
        self.require("depth")
        return self.read(row, "depth_probs")

    def adaptor(self) -> Adaptor:
        """The frozen convolution that makes T_feat of the stored feature; CorruptError where it is damaged."""
        self.require("adaptor")
        return Adaptor.from_header(self.manifest.header["adaptor"], f"{self.root}: header.adaptor")
