"""Cells: a sparse encoding of a BEV field that keeps exactly the cells a masked loss reads.

A masked loss touches only cells whose weight is not zero; storing those, with their weights, makes the loss and its
gradient equal the dense ones. Cost: K * (C * 2 + 4 + 4 S) bytes for K cells, C channels in fp16 and S selectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache.errors import StoreError

FP16_MAX = 65504.0


@dataclass(frozen=True)
class Cells:
    """index (K,) int32 flat cells row * W + col, rising; values (K, C); weights (K, S) float32, column is selector."""

    index: np.ndarray
    values: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


def gather_cells(bev: np.ndarray, weights: np.ndarray, dtype: str = "float16") -> Cells:
    """The cells of `bev` (C, H, W) at which any of `weights` (S, H, W) is above zero, values as `dtype`.

    Raises StoreError as `cell_weights` and `rounded` do.
    """
    index, kept = cell_weights(bev, weights)
    return Cells(index, rounded(bev.reshape(len(bev), -1)[:, index].T, dtype), kept)


def cell_weights(bev: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """index (K,) int32 and weights (K, S) float32 of the cells at which any of `weights` (S, H, W) is above zero.

    Raises StoreError where a weight is negative or not finite, and where the grids of `bev` and weights differ.
    """
    if bev.ndim != 3 or bev.shape[1:] != weights.shape[1:]:
        raise StoreError(f"cells: BEV feature {bev.shape}, weights {weights.shape}; expected one grid")
    flat_weights = weights.reshape(len(weights), -1).astype(np.float32)  # first, so that what rounds to 0 is not kept
    if not (np.isfinite(flat_weights) & (flat_weights >= 0)).all():
        raise StoreError("cells: a weight is negative or not finite; check the coverage's boxes and scores")
    index = np.flatnonzero((flat_weights > 0).any(axis=0)).astype(np.int32)
    return index, np.ascontiguousarray(flat_weights[:, index].T, np.float32)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` as float16 or float32. StoreError for another dtype, where one is not finite or does not fit float16."""
    if dtype not in ("float16", "float32"):
        raise StoreError(f"BEV values as {dtype}: expected float16 or float32; u8 has a scale, see cache.quantise")
    require_finite(np.asarray(values, np.float32))
    if dtype == "float16" and values.size and float(np.abs(values).max()) > FP16_MAX:
        raise StoreError(
            f"a BEV feature reaches {float(np.abs(values).max()):g}, above float16's {FP16_MAX:g}; use --dtype float32"
        )
    return np.ascontiguousarray(values, np.dtype(dtype))


def require_finite(values: np.ndarray) -> None:
    """Raises StoreError where a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise StoreError("a BEV feature is not finite; check the teacher's weights and input points")


def join_cells(frames: Sequence[Cells]) -> Cells:
    """The cells of one or more frames, one after another."""
    return Cells(*(np.concatenate([getattr(cells, name) for cells in frames]) for name in Cells.__annotations__))


def scatter_cells(cells: Cells, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The dense (C, H, W) values and (S, H, W) weights that `cells` came from, zero at cells not stored."""
    height, width = shape
    values = np.zeros((cells.values.shape[1], height * width), cells.values.dtype)
    values[:, cells.index] = cells.values.T
    weights = np.zeros((cells.weights.shape[1], height * width), np.float32)
    weights[:, cells.index] = cells.weights.T
    return values.reshape(-1, height, width), weights.reshape(-1, height, width)
