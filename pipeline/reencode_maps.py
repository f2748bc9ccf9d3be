"""BEV maps of a store in another layout, at other cells, in another dtype: the feature, its levels, logits, regression.

Nothing is invented: a cell that the source does not hold is a refusal that names it. Values of the same dtype are
passed on bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cache.bev import BevEncoding
from cache.cells import cell_weights
from cache.errors import StoreError
from cache.further import Further
from cache.levels import Level, level_weights
from cache.quantise import dequantise_u8
from cache.store import TeacherStore


@dataclass(frozen=True)
class CellChange:
    """From cells `have` (K,) to cells `want` (K',), rising, of a map of (height, width) `shape`; dense: whether source
    and result are whole maps; frame, coverage: of which, in words."""

    have: np.ndarray
    want: np.ndarray
    shape: tuple[int, int]
    dense: tuple[bool, bool]
    frame: str
    coverage: str

    def moved(self, values: np.ndarray) -> np.ndarray:
        """Values (K, C), or a map (C, H, W), as the result has them; StoreError where the source lacks a cell."""
        was_dense, is_dense = self.dense
        if was_dense:
            return values if is_dense else np.ascontiguousarray(values.reshape(len(values), -1)[:, self.want].T)
        if is_dense:
            self._require(np.arange(self.shape[0] * self.shape[1]))
            return np.ascontiguousarray(values.T).reshape(values.shape[1], *self.shape)
        if np.array_equal(self.have, self.want):
            return values
        self._require(self.want)
        return np.ascontiguousarray(values[np.searchsorted(self.have, self.want)])

    def _require(self, want: np.ndarray) -> None:
        missing = np.setdiff1d(want, self.have, assume_unique=True)
        if len(missing):
            width = self.shape[1]
            shown = ", ".join(f"({cell // width}, {cell % width})" for cell in missing[:3].tolist())
            raise StoreError(
                f"{self.frame} is stored at {len(self.have)} cells ({self.coverage}); {len(missing)} of the "
                f"{len(want)} asked for are missing, such as (row, column) {shown}; cache the teacher again for those"
            )


def reencoded_map(
    fields: Mapping[str, np.ndarray], was: BevEncoding, wanted: BevEncoding, change: CellChange, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The fields of one map in another encoding. fields: as `was` has them; weights: (K', S) at the wanted cells."""
    values = change.moved(fields["bev_values" if was.layout == "cells" else "bev_map"])
    scale = fields["bev_scale"] if was.dtype == "u8" else None
    if wanted.dtype == was.dtype:
        name = "bev_values" if wanted.layout == "cells" else "bev_map"
        same = {"bev_index": change.want, "bev_weights": weights, name: values}
        return {**same, **({"bev_scale": scale} if scale is not None else {})}
    real = values.astype(np.float32) if scale is None else dequantise_u8(values, scale, int(wanted.layout == "cells"))
    return wanted.encode_values(real, change.want, weights)


def reencoded_further(
    source: TeacherStore, row: int, wanted: Further, main: CellChange, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The source's further fields of a frame as `wanted` has them; main: of the feature's cells, weights: (K', S) of
    the result's. What is not on cells is copied."""
    was, out = source.further, {}
    for name in ("logits", "regression"):
        if name in was.asked:
            stored, result = (f"{name}_map" if dense else name for dense in main.dense)
            out[result] = main.moved(source.read(row, stored))
    for level, result_level in zip(was.levels, wanted.levels, strict=True):
        fields = level.unnamed(dict(zip(level.reads, source.read_many(row, level.reads), strict=True)))
        index, level_weight = main.want, weights
        if level.own_cells:
            index, level_weight = cells_on_level(result_level, main.want, weights, main.shape)
        change = CellChange(
            fields["bev_index"], index, level.grid.shape, main.dense, f"{main.frame} level {level.name}", main.coverage
        )
        out.update(
            result_level.named(reencoded_map(fields, level.encoding, result_level.encoding, change, level_weight))
        )
    copied = {spec.name for spec in wanted.fields()} - set(out)
    return {**out, **{name: source.read(row, name) for name in sorted(copied)}}


def cells_on_level(
    level: Level, index: np.ndarray, weights: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """index (K',) and weights (K', S) of a level's cells from those (K,), (K, S) of the feature's on `shape`."""
    whole = np.zeros((weights.shape[1], shape[0] * shape[1]), np.float32)
    whole[:, index] = weights.T
    pooled = level_weights(whole.reshape(-1, *shape), level.ratio)
    return cell_weights(np.empty((0, *level.grid.shape)), pooled)
