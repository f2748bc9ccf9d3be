"""A frame's further fields as they are stored: maps at the cells, the best queries, samples at boxes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cache.box_points import box_points
from cache.field_list import Asked
from cache.frame import Detections
from cache.further import Further, finite, half
from cache.grid import BevGrid
from pipeline.fields.samples import sample_points


def stored_fields(
    further: Further,
    raw: Mapping[str, np.ndarray],
    bev: np.ndarray,
    grid: BevGrid,
    weights: np.ndarray,
    found: Detections,
    truth: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Every array of `further` for one frame.

    raw: of `pipeline.fields.raw.raw_of`, this frame's part; bev: (C, H, W) the feature on `grid`; weights: (S, H, W) of
    the coverage; found: the teacher's boxes; truth: (N, 9) annotated ones, None on a frame without. StoreError where a
    value does not fit its dtype.
    """
    out: dict[str, np.ndarray] = {}
    index = np.flatnonzero((weights.astype(np.float32) > 0).any(axis=0))
    for name in ("logits", "regression"):
        if name in further.asked:
            out.update(_at_cells(name, raw[name], index, further))
    for level in further.levels:
        out.update(level.encode(raw[f"level_{level.name}"], weights))
    if "queries" in further.asked:
        best = best_queries(raw["query_logits"], further.queries[0])
        out["query_logits"] = half(raw["query_logits"][best], "query_logits")
        out["query_boxes"] = finite(raw["query_boxes"][best], "query_boxes")
    for item in further.asked.of("samples"):
        level_map = raw[f"level_{item['level']}"] if item["level"] else bev
        level_grid = _grid_of(level_map, grid)
        values, inside = sample_points(level_map, level_grid, _points(item, found, truth))
        out[item.name], out[f"{item.name}_inside"] = half(values, item.name), inside
    if "depth" in further.asked:
        out["depth_probs"] = half(raw["depth"], "depth_probs")
    return out


def best_queries(logits: np.ndarray, count: int) -> np.ndarray:
    """(count,) positions in (Q, classes) of the queries of best class logits, best first; of equal ones the earlier."""
    return np.argsort(-logits.max(axis=1), kind="stable")[:count]


def _at_cells(name: str, whole: np.ndarray, index: np.ndarray, further: Further) -> dict[str, np.ndarray]:
    if further.bev.layout == "dense":
        return {f"{name}_map": half(whole, name)}
    return {name: half(whole.reshape(len(whole), -1)[:, index].T, name)}


def _points(item: Asked, found: Detections, truth: np.ndarray | None) -> np.ndarray:
    if item["boxes"] == "teacher":
        boxes = found.boxes_lidar[: item["limit"] or None]
    else:
        boxes = np.empty((0, 9), np.float32) if truth is None else truth
    return box_points(boxes, item["points"], item["enlarge"])


def _grid_of(level_map: np.ndarray, grid: BevGrid) -> BevGrid:
    """The grid of a map over the same range: cells as its width says."""
    return BevGrid(grid.x_min, grid.x_max, grid.y_min, grid.y_max, (grid.x_max - grid.x_min) / level_map.shape[2])
