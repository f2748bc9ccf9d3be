"""confident: the cells at which the teacher itself is sure enough that there is an object, whatever its class.

    w = max_c p_c where it is `threshold` or more (soft), or 1 there; 0 elsewhere

Needs no annotations: on unlabelled frames it takes the place of the boxes' masks. At threshold 0 it is the heat of
every cell: `gaussian(dilate=0,min_radius=2)*confident(threshold=0)` is SparseKD's default weight, max_c p_T * max_c G.

Source: SparseKD (arXiv 2205.15156), confidence PP.
"""

from __future__ import annotations

import numpy as np

from cache.errors import DataError
from cache.grid import BevGrid


def confident_mask(heat: np.ndarray, grid: BevGrid, threshold: float = 0.1, *, soft: bool = True) -> np.ndarray:
    """(H, W) float32: the largest of a cell's class heats, or 1 without `soft`, where that heat is `threshold` or more,
    0 elsewhere.

    heat: (C, H, W) probabilities. DataError as `checked_heat`.
    """
    best = checked_heat(heat, grid, "confident").max(axis=0)
    return np.where(best >= np.float32(threshold), best if soft else np.float32(1), np.float32(0))


def checked_heat(heat: np.ndarray, grid: BevGrid, selector: str) -> np.ndarray:
    """(C, H, W) float32. DataError where the heat's grid is another one, or a value is not in 0..1."""
    if heat.ndim != 3 or heat.shape[1:] != grid.shape or not len(heat):
        raise DataError(
            f"selector {selector}: the teacher's heat has shape {heat.shape}, expected (classes, {grid.height}, "
            f"{grid.width}); give heatmaps on the grid of the BEV feature"
        )
    out = np.asarray(heat, np.float32)
    if not ((out >= 0) & (out <= 1)).all():  # NaN is neither
        raise DataError(
            f"selector {selector}: the teacher's heat reaches {out.min():g}..{out.max():g}, expected probabilities in "
            "0..1; check its weights and input points, or whether these are logits"
        )
    return out
