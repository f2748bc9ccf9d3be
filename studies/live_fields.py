"""How far what a teacher says now lies from what its store says of a frame: cells, values, and the further fields.

Values are compared where both have a cell, rows that are ranked (queries, the teacher's own boxes) each with the row
that is nearest to it: sums in another order change ranks, and that is no error.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cache.cells import Cells
from cache.store import TeacherStore


def cells_apart(found: Cells, stored: Cells) -> float:
    """The share of all cells that only one of the two has."""
    union = np.union1d(found.index, stored.index)
    return 1.0 - len(np.intersect1d(found.index, stored.index)) / len(union) if len(union) else 0.0


def values_apart(found: Cells, stored: Cells) -> float:
    """Largest difference at cells that both have, over the channel's standard deviation there."""
    _, mine, theirs = np.intersect1d(found.index, stored.index, return_indices=True)
    return _apart(found.values[mine], stored.values[theirs])


def further_apart(
    store: TeacherStore, row: int, values: Mapping[str, np.ndarray], tolerance: float
) -> tuple[float, float]:
    """Of the further fields of a frame: the largest share of cells or of ranked rows that only one of the two has, and
    the largest difference of a value as in `values_apart`. values: what the teacher says now, by field."""
    further, share, worst = store.further, 0.0, 0.0
    stored = store.cells(row)
    for name in ("logits", "regression"):
        if name in further.asked:
            if store.bev.layout == "dense":
                a, b = (x.reshape(len(x), -1).T for x in (values[f"{name}_map"], store.read(row, f"{name}_map")))
                worst = max(worst, _apart(a, b))
                continue
            mine = Cells(values["bev_index"], values[name], values["bev_weights"])
            worst = max(worst, values_apart(mine, Cells(stored.index, store.read(row, name), stored.weights)))
    for level in further.levels:
        mine, theirs = level.to_cells(values, store.root), store.level_cells(row, level.name)
        share, worst = max(share, cells_apart(mine, theirs)), max(worst, values_apart(mine, theirs))
    if "queries" in further.asked:
        stored_rows = store.queries(row)
        now = np.concatenate([values["query_logits"].astype(np.float64), values["query_boxes"]], axis=1)
        then = np.concatenate([stored_rows.logits.astype(np.float64), stored_rows.boxes], axis=1)
        share = max(share, _rows_apart(now, then, tolerance))
    for item in further.asked.of("samples"):
        a, b = values[item.name], store.read(row, item.name)
        if item["boxes"] == "truth":
            worst = max(worst, _apart(a.reshape(-1, a.shape[2]), b.reshape(-1, b.shape[2])))
        else:
            share = max(share, _rows_apart(a.reshape(len(a), -1), b.reshape(len(b), -1), tolerance))
    if "depth" in further.asked:
        a, b = (np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) for x in (values["depth_probs"], store.depth(row)))
        worst = max(worst, _apart(a, b))
    return share, worst


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of (M, C) values over their channel's standard deviation; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    if not one.size:
        return 0.0
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float((np.abs(one - other) / _spread(one)).max())


def _spread(values: np.ndarray) -> np.ndarray:
    spread = values.std(axis=0)
    # a channel that is nearly constant has no spread of its own to measure by
    return np.maximum(spread, 1e-3 * max(spread.max(), 1e-12))


def _rows_apart(one: np.ndarray, other: np.ndarray, tolerance: float) -> float:
    """The share of rows (M, C) of either without a row of the other within `tolerance` of the columns' spread."""
    if not len(one) or not len(other):
        return float(len(one) != len(other))
    scale = _spread(one.astype(np.float64))
    a, b = one / scale, other / scale
    near = np.array([np.abs(row - b).max(axis=1) <= tolerance for row in a])
    return 1.0 - min(near.any(axis=1).mean(), near.any(axis=0).mean())
