"""The weights of a coverage on one frame: one map a selector, from boxes, the teacher's heat and the cloud.

`cache.coverage` describes a coverage, `pipeline.selectors` holds the selectors; a cell is stored where any of the maps
is above zero. All six take 13 ms a frame on 128 x 128, of which 10 are the lidar's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cache.coverage import Coverage
from cache.errors import ConfigError
from cache.grid import BevGrid
from cache.selectors import Selector
from models.gaussian import foreground_mask
from pipeline.selectors.background import background_mask
from pipeline.selectors.confident import confident_mask
from pipeline.selectors.footprint import footprint_mask
from pipeline.selectors.occupied import occupied_mask


@dataclass(frozen=True)
class Evidence:
    """What selectors see of a frame, canonical.

    boxes_lidar: (N, 9) annotated boxes x, y, z, l, w, h, yaw, vx, vy, or None on a frame without annotations; heat:
    (C, H, W) the teacher's probabilities by class; cloud: (P, 5) the points that the teacher saw. Only what the
    coverage's selectors read must be there.
    """

    token: str
    boxes_lidar: np.ndarray | None = None
    heat: np.ndarray | None = None
    cloud: np.ndarray | None = None


def coverage_weights(coverage: Coverage, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    """(S, H, W) float32, one map a selector, in the coverage's order; equal inputs give equal bytes.

    Maps of annotated boxes are zero on a frame without annotations. Raises ConfigError where the evidence of a selector
    is missing, and what the selectors raise.
    """
    coverage = coverage.resolved(grid)
    maps = {s.name: _MAPS[s.name](s, evidence, grid) for s in coverage.selectors if s.name in _MAPS}
    if "random" in coverage:
        # not from what dense picks: beside it random would be left with nothing, and other columns should not change
        picked = sum((weights for name, weights in maps.items() if name != "dense"), np.zeros(grid.shape, np.float32))
        drawn = coverage["random"]
        maps["random"] = background_mask(picked, evidence.token, drawn["cells"], drawn["seed"])
    return np.stack([maps[name] for name in coverage.names])


def reads_heat(coverage: Coverage) -> bool:
    """Whether the evidence must hold the teacher's heat."""
    return "confident" in coverage


def _gaussian(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    if evidence.boxes_lidar is None:
        return np.zeros(grid.shape, np.float32)
    return foreground_mask(evidence.boxes_lidar, grid, min_radius=1, dilate=selector["dilate"])


def _footprint(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    if evidence.boxes_lidar is None:
        return np.zeros(grid.shape, np.float32)
    return footprint_mask(evidence.boxes_lidar, grid, selector["margin"])


def _confident(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    if evidence.heat is None:
        raise ConfigError("selector confident reads the teacher's heatmaps, which this teacher does not give; drop it")
    return confident_mask(evidence.heat, grid, selector["threshold"])


def _lidar(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    if evidence.cloud is None:
        raise ConfigError("selector lidar reads the frame's points, which are not given; drop it or give the points")
    return occupied_mask(evidence.cloud, grid, selector["points"], selector["z_min"], selector["z_max"])


def _dense(selector: Selector, evidence: Evidence, grid: BevGrid) -> np.ndarray:
    return np.ones(grid.shape, np.float32)


# All but random, which is drawn from what these leave.
_MAPS: dict[str, Callable[[Selector, Evidence, BevGrid], np.ndarray]] = {
    "gaussian": _gaussian,
    "footprint": _footprint,
    "confident": _confident,
    "lidar": _lidar,
    "dense": _dense,
}
