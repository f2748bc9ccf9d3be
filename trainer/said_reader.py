"""Rows of a teacher store -> `TeacherSaid`: what the run's terms ask for, and nothing else.

Cost for 4 frames of 500 cells x 96 channels on one core: under 1 ms; each further field adds its own bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.cells import Cells
from cache.field_list import KINDS, Asked, FieldList, asked_by_field
from cache.further import Branch
from cache.store import FrameStore, Samples, TeacherStore
from models.pictures import ImageAugment, picture_geometry
from trainer.said import DepthSaid, TeacherCells, TeacherSaid
from trainer.terms.term import TermNeeds

_DETECTIONS = frozenset({"boxes", "scores", "labels"})


@dataclass(frozen=True)
class Wanted:
    """What is read of a store. cells: the feature at its cells; detections: the decoded boxes; items: of the further
    fields, as `cache-teacher --fields` lists them."""

    cells: bool = False
    detections: bool = False
    items: tuple[Asked, ...] = ()

    @classmethod
    def by(cls, needs: Iterable[TermNeeds], teacher: TeacherStore) -> Wanted:
        """All that some terms need of this store, which serves them (`trainer.terms.require_served`)."""
        cells, detections, items = False, False, {}
        for need in needs:
            cells |= bool(need.selectors) or need.every_cell
            for name in need.teacher_fields:
                item = _item(name)
                detections |= name in _DETECTIONS or (item is not None and item.kind == "samples")
                cells |= name.startswith("bev_") or (item is not None and item.kind in ("logits", "regression"))
                if item is not None:
                    item = teacher.require(str(item))
                    items[item.name] = item
        return cls(cells, detections, tuple(items.values()))

    def of(self, kind: str) -> tuple[Asked, ...]:
        """The items of one kind."""
        return tuple(item for item in self.items if item.kind == kind)


def _item(name: str) -> Asked | None:
    """The further field that a term names, by an array's name or as a list has it; None for any other field."""
    if name.partition("(")[0] in KINDS:
        return FieldList.parse(name, "field").items[0]
    return asked_by_field(name)


class SaidReader:
    """Reads a store's rows for some terms. Safe to share between threads."""

    def __init__(self, teacher: TeacherStore, frames: FrameStore, wanted: Wanted) -> None:
        self.teacher, self.frames, self.wanted = teacher, frames, wanted
        further = teacher.further
        self._columns = regression_columns(further.regression) if wanted.of("regression") else ()
        self._grids = {item["name"]: further.level(item["name"]).grid for item in wanted.of("level")}

    def fields(self) -> list[str]:
        """Names of the store's fields that `read` reads."""
        further, wanted = self.teacher.further, self.wanted
        at_cells = "" if self.teacher.bev.layout == "cells" else "_map"
        names = [spec.name for spec in self.teacher.bev.fields()] if wanted.cells else []
        names += sorted(_DETECTIONS) if wanted.detections else []
        for item in wanted.items:
            if item.kind in ("logits", "regression"):
                names.append(item.kind + at_cells)
            elif item.kind == "level":
                names += further.level(item["name"]).reads
            elif item.kind == "queries":
                names += ["query_logits", "query_boxes"]
            elif item.kind == "samples":
                names += [item.name, f"{item.name}_inside"]
            elif item.kind == "depth":
                names.append("depth_probs")
        return list(dict.fromkeys(names))

    def read(self, rows: Sequence[int], frame_rows: Sequence[int], kept: Sequence[np.ndarray]) -> TeacherSaid:
        """What the teacher said of `rows`, one after another; frame_rows: the same frames in the frame store; kept: per
        frame the annotated boxes (N,) bool that the batch has, which samples of annotated boxes must go with.

        Raises as `TeacherStore.cells`.
        """
        store, wanted = self.teacher, self.wanted
        found = [store.detections(row) for row in rows] if wanted.detections else []
        queries = [store.queries(row) for row in rows] if wanted.of("queries") else []
        samples = {item: [store.samples(row, str(item)) for row in rows] for item in wanted.of("samples")}
        for item, of_frames in samples.items():
            if item["boxes"] == "truth":
                samples[item] = [
                    Samples(each.values[mask], each.inside[mask]) if len(mask) else each
                    for each, mask in zip(of_frames, kept, strict=True)
                ]
        return TeacherSaid(
            grid=store.grid,
            cells=self._cells(*store.cells_of(rows)) if wanted.cells else None,
            logits=_tensor(store.logits_of(rows)) if wanted.of("logits") else None,
            regression=_tensor(store.regression_of(rows)) if wanted.of("regression") else None,
            regression_columns=self._columns,
            groups=store.further.groups if self._columns else (),
            levels={name: self._cells(*store.level_cells_of(rows, name)) for name in self._grids},
            level_grids=self._grids,
            boxes=[_tensor(boxes.boxes_lidar) for boxes in found],
            scores=[_tensor(boxes.scores) for boxes in found],
            labels=[_tensor(boxes.labels).long() for boxes in found],
            query_logits=[_tensor(query.logits) for query in queries],
            query_boxes=[_tensor(query.boxes) for query in queries],
            samples={str(item): [_tensor(each.values) for each in parts] for item, parts in samples.items()},
            sample_inside={str(item): [_tensor(each.inside) for each in parts] for item, parts in samples.items()},
            depth=self._depth(rows, frame_rows) if wanted.of("depth") else None,
        )

    def _cells(self, cells: Cells, offsets: np.ndarray) -> TeacherCells:
        return TeacherCells(
            torch.from_numpy(cells.index.astype(np.int64)),
            torch.from_numpy(cells.values),
            torch.from_numpy(cells.weights),
            torch.from_numpy(offsets),
            tuple(self.teacher.selectors),
        )

    def _depth(self, rows: Sequence[int], frame_rows: Sequence[int]) -> DepthSaid:
        bins = self.teacher.further.depth
        assert bins is not None
        affines = [
            [
                picture_geometry((camera.width, camera.height), bins.image_size, ImageAugment()).affine()
                for camera in self.frames.frame(row).cameras
            ]
            for row in frame_rows
        ]
        return DepthSaid(
            _tensor(np.stack([self.teacher.depth(row) for row in rows])),
            bins.edges_m,
            bins.stride,
            bins.image_size,
            torch.from_numpy(np.array(affines)),
        )


def regression_columns(branches: Sequence[Branch]) -> tuple[dict[str, slice], ...]:
    """Of each task group, by the branch's name, its columns of the raw regression."""
    out: dict[int, dict[str, slice]] = {}
    start = 0
    for branch in branches:
        out.setdefault(branch.group, {})[branch.name] = slice(start, start + branch.channels)
        start += branch.channels
    return tuple(out[group] for group in sorted(out))


def _tensor(values: np.ndarray) -> Tensor:
    """The values in memory of their own: what a store gives is read-only."""
    return torch.from_numpy(np.array(values))
