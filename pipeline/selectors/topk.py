"""topk: the cells of the teacher's k best heats, SparseKD's rank positions.

All heats of a frame are ranked together, whatever their class and without looking for peaks; a cell that is among the
best for two classes takes two places. Needs no annotations.

Source: SparseKD (arXiv 2205.15156), rank PP: top K by class, then top K over classes, which together are the top K of
all (class, cell) pairs. There K is counted for each of the head's groups of classes; here over all classes.
"""

from __future__ import annotations

import numpy as np

from cache.grid import BevGrid
from pipeline.selectors.confident import checked_heat


def topk_mask(heat: np.ndarray, grid: BevGrid, k: int) -> np.ndarray:
    """(H, W) float32: 1 at cells that hold one of the `k` largest heats, 0 elsewhere.

    heat: (C, H, W) probabilities; of equal ones the first in memory are taken. DataError as `checked_heat`.
    """
    flat = checked_heat(heat, grid, "topk").ravel()
    picked = np.arange(len(flat))
    if k < len(flat):
        worst = np.partition(flat, len(flat) - k)[len(flat) - k]
        above = np.flatnonzero(flat > worst)
        picked = np.concatenate([above, np.flatnonzero(flat == worst)[: k - len(above)]])
    mask = np.zeros(grid.height * grid.width, np.float32)
    mask[picked % mask.size] = 1
    return mask.reshape(grid.shape)
