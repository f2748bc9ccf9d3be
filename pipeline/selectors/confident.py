"""confident: the cells at which the teacher itself is sure enough that there is an object, whatever its class.

Needs no annotations: on unlabelled frames it takes the place of the boxes' masks.
"""

from __future__ import annotations

import numpy as np

from cache.errors import DataError
from cache.grid import BevGrid


def confident_mask(heat: np.ndarray, grid: BevGrid, threshold: float = 0.1) -> np.ndarray:
    """(H, W) float32: the largest of a cell's class heats where it is `threshold` or more, 0 elsewhere.

    heat: (C, H, W) probabilities. DataError where its grid is another one, or a value is not in 0..1.
    """
    if heat.ndim != 3 or heat.shape[1:] != grid.shape or not len(heat):
        raise DataError(
            f"selector confident: the teacher's heat has shape {heat.shape}, expected (classes, {grid.height}, "
            f"{grid.width}); give heatmaps on the grid of the BEV feature"
        )
    best = np.asarray(heat, np.float32).max(axis=0)
    if not ((best >= 0) & (best <= 1)).all():  # NaN is neither
        raise DataError(
            f"selector confident: the teacher's heat reaches {best.min():g}..{best.max():g}, expected probabilities in "
            "0..1; check its weights and input points, or whether these are logits"
        )
    return np.where(best >= np.float32(threshold), best, np.float32(0))
