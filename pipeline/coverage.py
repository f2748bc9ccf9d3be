"""The weights of a coverage on one frame: one map a column, from boxes, the teacher's heat, the cloud and the cameras.

`cache.coverage` describes a coverage, `pipeline.selectors` holds the selectors; a cell is stored where any of the maps
is above zero. All but the ground's fit take 15 ms a frame on 128 x 128, of which 10 are the lidar's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from cache.columns import Column
from cache.coverage import Coverage
from cache.errors import ConfigError
from cache.frame import Camera
from cache.grid import BevGrid
from cache.selectors import Selector
from models.gaussian import foreground_mask
from pipeline.selectors.background import background_mask
from pipeline.selectors.confident import confident_mask
from pipeline.selectors.footprint import footprint_mask
from pipeline.selectors.occupied import occupied_mask
from pipeline.selectors.topk import topk_mask
from pipeline.selectors.view import view_mask

READ_HEAT = ("confident", "topk")


@dataclass(frozen=True)
class Evidence:
    """What selectors see of a frame, canonical.

    boxes_lidar: (N, 9) annotated boxes x, y, z, l, w, h, yaw, vx, vy, or None on a frame without annotations; labels:
    (N,) their positions in `classes`; heat: (C, H, W) the teacher's probabilities by class; cloud: (P, 5) the points
    that the teacher saw, the key sweep's first; lidarseg: (L,) uint8 classes of that sweep's points, where the data set
    has them; cameras: the frame's. Only what the coverage's selectors read must be there.
    """

    token: str
    boxes_lidar: np.ndarray | None = None
    heat: np.ndarray | None = None
    cloud: np.ndarray | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    lidarseg: np.ndarray | None = None
    cameras: tuple[Camera, ...] = ()


def coverage_weights(coverage: Coverage, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    """(S, H, W) float32, one map a column, in the coverage's order; equal inputs give equal bytes.

    Maps of annotated boxes are zero on a frame without annotations. Raises ConfigError where the evidence of a selector
    is missing, and what the selectors raise.
    """
    coverage = coverage.resolved(grid)

    @functools.cache  # a selector that stands alone and in products is computed once
    def map_of(selector: Selector) -> np.ndarray:
        return _MAPS[selector.kind](selector, evidence, grid)

    return join_columns(coverage, grid.shape, evidence.token, lambda column: product_of(map(map_of, column.factors)))


def join_columns(
    coverage: Coverage, shape: tuple[int, int], token: str, map_of: Callable[[Column], np.ndarray]
) -> np.ndarray:
    """(S, H, W): `map_of` each column, and for `random` the draw from what they leave."""
    maps = {column.name: map_of(column) for column in coverage.selectors if column.name != "random"}
    if "random" in coverage:
        # not from what dense picks: beside it random would be left with nothing, and other columns should not change
        picked = sum((weights for name, weights in maps.items() if name != "dense"), np.zeros(shape, np.float32))
        drawn = coverage.factor("random")
        maps["random"] = background_mask(picked, token, drawn["cells"], drawn["seed"])
    return np.stack([maps[name] for name in coverage.names])


def product_of(maps: Iterable[np.ndarray]) -> np.ndarray:
    """The maps of a column's factors multiplied, in their order, in float32."""
    return functools.reduce(np.multiply, maps)


def reads_heat(coverage: Coverage) -> bool:
    """Whether the evidence must hold the teacher's heat."""
    return any(factor.kind in READ_HEAT for factor in coverage.factors)


def _boxes(selector: Selector, evidence: Evidence) -> np.ndarray | None:
    """The annotated boxes of the classes that the selector names; None without annotations."""
    boxes, wanted = evidence.boxes_lidar, selector["classes"]
    if boxes is None or not wanted:
        return boxes
    ids = [evidence.classes.index(name) for name in wanted.split("|") if name in evidence.classes]
    if evidence.labels is None or len(ids) < len(wanted.split("|")):
        there_is = ", ".join(evidence.classes) or "none"
        raise ConfigError(f"selector {selector.kind}: classes is {wanted}, the frames' classes are {there_is}")
    return boxes[np.isin(evidence.labels, ids)]


def _gaussian(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    boxes = _boxes(selector, evidence)
    if boxes is None:
        return np.zeros(grid.shape, np.float32)
    return foreground_mask(
        boxes,
        grid,
        min_radius=selector["min_radius"],
        dilate=selector["dilate"],
        min_overlap=selector["overlap"],
    )


def _footprint(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    boxes = _boxes(selector, evidence)
    if boxes is None:
        return np.zeros(grid.shape, np.float32)
    return footprint_mask(boxes, grid, selector["margin"], by_size=bool(selector["by_size"]))


def _heat(selector: Selector, evidence: Evidence) -> np.ndarray:
    if evidence.heat is None:
        raise ConfigError(
            f"selector {selector.kind} reads the teacher's heatmaps, which this teacher does not give; drop it"
        )
    return evidence.heat


def _confident(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    return confident_mask(_heat(selector, evidence), grid, selector["threshold"], soft=bool(selector["soft"]))


def _topk(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    return topk_mask(_heat(selector, evidence), grid, selector["k"])


def _lidar(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    if evidence.cloud is None:
        raise ConfigError("selector lidar reads the frame's points, which are not given; drop it or give the points")
    heights = selector["z_min"], selector["z_max"]
    return occupied_mask(
        evidence.cloud, grid, selector["points"], *heights, ground=selector["ground"], lidarseg=evidence.lidarseg
    )


def _view(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    cameras = {camera.channel: camera for camera in evidence.cameras}
    wanted = selector["camera"].split("|") if selector["camera"] else list(cameras)
    if not wanted or not set(wanted) <= set(cameras):
        raise ConfigError(
            f"selector view: camera is {selector['camera'] or 'any'}, the frame's cameras are "
            f"{', '.join(cameras) or 'none'}"
        )
    bounds = {key: selector[key] for key in ("near", "far", "z_min", "z_max")}
    return view_mask([cameras[channel] for channel in wanted], grid, **bounds)


def _dense(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    return np.ones(grid.shape, np.float32)


# All but random, which is drawn from what these leave.
_MAPS: dict[str, Callable[[Selector, Evidence, BevGrid], np.ndarray]] = {
    "gaussian": _gaussian,
    "footprint": _footprint,
    "confident": _confident,
    "topk": _topk,
    "lidar": _lidar,
    "view": _view,
    "dense": _dense,
}
