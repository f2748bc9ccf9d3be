"""The further fields of a teacher store in full: which arrays its `--fields` make, and what their columns mean.

Stands in the store's header as `further`; absent where a store has none. Beside the feature's cells (K of them):

    logits           (K, classes) f2      class logits before the sigmoid, by class id     logits_map (classes, H, W)
    regression       (K, R) f2            the raw maps of each task group                  regression_map (R, H, W)
    level_<name>_*   as bev_*             a further map, on its own grid, see `cache.levels`
    query_logits     (Q, classes) f2      of the last decoder layer, best class first
    query_boxes      (Q, 10) f4           x, y, z, log l, log w, log h, sin yaw, cos yaw, vx, vy
    samples_*        (T, P, C) f2         bilinear at points of T boxes; 0 where samples_*_inside (T, P) says no
    depth_probs      (cameras, D, h, w) f2  a camera teacher's softmax over its depth bins
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cache.bev import BevEncoding
from cache.box_points import point_offsets
from cache.errors import BevcaskError, CorruptError, StoreError
from cache.field_list import NOTHING, Asked, FieldList
from cache.fields import FieldSpec
from cache.grid import BevGrid
from cache.levels import Level

QUERY_CODE = 10
LEVEL_LETTERS = "ABCDEFGH"
LIMIT_LETTERS = "SUVWXYZ"
_FP16_MAX = 65504.0


@dataclass(frozen=True)
class Branch:
    """Columns of `regression`: of a task group (its position), the branch's name and channels, one after another."""

    group: int
    name: str
    channels: int


@dataclass(frozen=True)
class DepthBins:
    """A camera teacher's depth: bin i of cell (row, col) holds edges_m[i] <= depth < edges_m[i + 1] metres, over
    `stride` x `stride` pixels of its input image of `image_size` (width, height), see `models.pictures`."""

    edges_m: tuple[float, ...]
    stride: int
    image_size: tuple[int, int]
    cameras: int
    height: int
    width: int


@dataclass(frozen=True)
class Further:
    """asked: the list; bev: of the feature; classes: of the logits; regression: columns in order, and groups: the class
    names of each task group; levels; queries: how many are stored, and of how many classes; channels: of each item of
    samples, by name; depth. What the list does not ask for is empty."""

    bev: BevEncoding
    asked: FieldList = NOTHING
    classes: int = 0
    regression: tuple[Branch, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    levels: tuple[Level, ...] = ()
    queries: tuple[int, int] = (0, 0)
    channels: Mapping[str, int] = field(default_factory=dict)
    depth: DepthBins | None = None

    @property
    def columns(self) -> int:
        """Of `regression`."""
        return sum(branch.channels for branch in self.regression)

    @property
    def reads_truth(self) -> bool:
        """Whether annotated boxes are sampled."""
        return any(item["boxes"] == "truth" for item in self.asked.of("samples"))

    def level(self, name: str) -> Level:
        """The level of this name; StoreError where it was not cached."""
        for level in self.levels:
            if level.name == name:
                return level
        raise StoreError(f"no level {name!r} is stored; those that are: {[level.name for level in self.levels]}")

    def with_bev(self, bev: BevEncoding) -> Further:
        """The same for another encoding of the feature, which levels follow."""
        levels = tuple(
            replace(
                level, encoding=replace(level.encoding, layout=bev.layout, dtype=bev.dtype, selectors=bev.selectors)
            )
            for level in self.levels
        )
        return replace(self, bev=bev, levels=levels)

    def rows_letter(self, item: Asked) -> str:
        """The letter of the number of boxes that an item of samples has."""
        if item["boxes"] == "truth":
            return "T"
        limits = sorted({other["limit"] for other in self.asked.of("samples") if other["limit"]})
        return LIMIT_LETTERS[limits.index(item["limit"])] if item["limit"] else "N"

    def fields(self) -> tuple[FieldSpec, ...]:
        """Every array, in the list's order."""
        out: list[FieldSpec] = []
        if "logits" in self.asked:
            out.append(self._at_cells("logits", self.classes, "logit", "class logits before the sigmoid, by class id"))
        if "regression" in self.asked:
            unit = "cell, m, log m, sin cos, m/s"
            out.append(self._at_cells("regression", self.columns, unit, "raw maps; columns: header.further"))
        for level in self.levels:
            out += level.fields()
        if "queries" in self.asked:
            count, classes = map(str, self.queries)
            code = (count, str(QUERY_CODE))
            about = "x, y, z, log l, log w, log h, sin yaw, cos yaw, vx, vy"
            out.append(
                FieldSpec("query_logits", "npy.zstd", "float16", (count, classes), "logit", "best first, by class id")
            )
            out.append(FieldSpec("query_boxes", "npy.zstd", "float32", code, "m, log m, m/s", about))
        for item in self.asked.of("samples"):
            shape = (self.rows_letter(item), str(len(point_offsets(item["points"]))))
            channels = str(self.channels[item.name])
            out.append(
                FieldSpec(item.name, "npy.zstd", "float16", (*shape, channels), "", "bilinear at points of boxes")
            )
            out.append(FieldSpec(f"{item.name}_inside", "npy", "bool", shape, "", "whether the point lies on the map"))
        if self.depth is not None:
            d = self.depth
            sizes = (str(d.cameras), str(len(d.edges_m) - 1), str(d.height), str(d.width))
            out.append(FieldSpec("depth_probs", "npy.zstd", "float16", sizes, "0..1", "softmax over depth bins"))
        return tuple(out)

    def _at_cells(self, name: str, columns: int, unit: str, about: str) -> FieldSpec:
        if self.bev.layout == "cells":
            return FieldSpec(name, "npy.zstd", "float16", ("K", str(columns)), unit, about)
        shape = (str(columns), str(self.bev.height), str(self.bev.width))
        return FieldSpec(f"{name}_map", "npy.zstd", "float16", shape, unit, about)

    def header(self) -> dict[str, Any]:
        """Plain values for the store's header."""
        out: dict[str, Any] = {"asked": str(self.asked)}
        if "logits" in self.asked:
            out["logits"] = {"classes": self.classes}
        if "regression" in self.asked:
            columns = [[branch.group, branch.name, branch.channels] for branch in self.regression]
            out["regression"] = {"columns": columns, "groups": [list(names) for names in self.groups]}
        if self.levels:
            out["levels"] = {level.name: level.header() for level in self.levels}
        if "queries" in self.asked:
            out["queries"] = {"queries": self.queries[0], "classes": self.queries[1]}
        if "samples" in self.asked:
            out["samples"] = dict(self.channels)
        if self.depth is not None:
            d = {key: list(v) if isinstance(v, tuple) else v for key, v in self.depth.__dict__.items()}
            out["depth"] = d
        return out

    @classmethod
    def from_header(cls, values: Any, grid: BevGrid, bev: BevEncoding, where: str) -> Further:
        """Inverse of `header`, None for a store without. CorruptError where `header` would not have written it."""
        if values is None:
            return cls(bev)
        try:
            asked = FieldList.from_header(values["asked"], f"{where}.asked")
            depth = values.get("depth")
            regression = values.get("regression", {"columns": [], "groups": []})
            further = cls(
                bev,
                asked,
                classes=_count(values["logits"]["classes"]) if "logits" in asked else 0,
                regression=tuple(Branch(int(g), str(name), _count(c)) for g, name, c in regression["columns"]),
                groups=tuple(tuple(map(str, names)) for names in regression["groups"]),
                levels=levels_of(asked, values.get("levels", {}), grid, bev),
                queries=tuple(_count(values["queries"][key]) for key in ("queries", "classes"))  # type: ignore[arg-type]
                if "queries" in asked
                else (0, 0),
                channels={name: _count(count) for name, count in values.get("samples", {}).items()},
                depth=DepthBins(
                    tuple(map(float, depth["edges_m"])),
                    _count(depth["stride"]),
                    tuple(map(_count, depth["image_size"])),  # type: ignore[arg-type]
                    *(_count(depth[key]) for key in ("cameras", "height", "width")),
                )
                if "depth" in asked
                else None,
            )
            further.fields()
            if further.header() != values:
                raise ValueError("it does not say what its list asks for")
        except CorruptError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, BevcaskError) as error:
            raise CorruptError(f"{where}: {type(error).__name__}: {error}; the store is damaged, run verify") from None
        return further


def levels_of(asked: FieldList, known: Mapping[str, Any], grid: BevGrid, bev: BevEncoding) -> tuple[Level, ...]:
    """The levels of a list; known: their {"channels", "grid"} by name. Raises as `Level.on`."""
    return tuple(
        Level.on(
            item["name"],
            _count(known[item["name"]]["channels"]),
            BevGrid.from_dict(known[item["name"]]["grid"]),
            grid,
            bev,
            LEVEL_LETTERS[position],
        )
        for position, item in enumerate(asked.of("level"))
    )


def half(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as float16; StoreError, naming `what`, where one is not finite or does not fit."""
    values = finite(values, what)
    if values.size and (most := float(np.abs(values).max())) > _FP16_MAX:
        raise StoreError(f"{what} reaches {most:g}, above float16's {_FP16_MAX:g}; leave it out of --fields")
    return np.ascontiguousarray(values, np.float16)


def finite(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as float32; StoreError, naming `what`, where one is not finite."""
    values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise StoreError(f"{what}: a value is not finite; check the teacher's weights and input")
    return values


def _count(value: Any) -> int:
    number = int(value)
    if number != value or not 0 < number < 10**6:
        raise ValueError(f"{value!r} is no count")
    return number
