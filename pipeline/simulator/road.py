"""A road as a smooth centre line with lanes beside it: positions from (distance along, offset to the left) and back.

The curvature is a slow wave, so everything that follows a lane turns gently. Coordinates are global metres on the
plane z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

STEP_M = 0.5
LANE_M = 3.5
PARKING_M = 2.4
SIDEWALK_M = 3.0
OVERHANG_M = 150.0  # how far the road goes on beyond both ends of the drive


@dataclass(frozen=True)
class CrossSection:
    """What lies at which offset from the centre line, mirrored left and right: lanes, parking strip, sidewalk,
    verge."""

    lanes_each_way: int
    parking: bool
    drives_on_right: bool

    @property
    def road_edge_m(self) -> float:
        return LANE_M * self.lanes_each_way

    @property
    def kerb_m(self) -> float:
        return self.road_edge_m + (PARKING_M if self.parking else 0.0)

    @property
    def sidewalk_edge_m(self) -> float:
        return self.kerb_m + SIDEWALK_M

    def lane_offset(self, lane: int, forward: bool) -> float:
        """Offset of a lane's middle; lane 0 is the one next to the centre line."""
        side = -1.0 if forward == self.drives_on_right else 1.0
        return side * LANE_M * (lane + 0.5)


@dataclass(frozen=True)
class Road:
    """A centre line sampled every STEP_M from -OVERHANG_M on: points (N, 2), headings (N,), curvatures (N,)."""

    points: np.ndarray
    headings: np.ndarray
    section: CrossSection
    length_m: float
    _tree: cKDTree = field(repr=False, compare=False)

    def pose(self, s: np.ndarray, d: np.ndarray | float) -> np.ndarray:
        """(N, 3) x, y, heading at distance s (N,) along the centre line and offset d to its left."""
        position = (np.asarray(s, np.float64) + OVERHANG_M) / STEP_M
        index = np.arange(len(self.points))
        heading = np.interp(position, index, self.headings)
        out = np.empty((len(heading), 3))
        out[:, 0] = np.interp(position, index, self.points[:, 0]) - d * np.sin(heading)
        out[:, 1] = np.interp(position, index, self.points[:, 1]) + d * np.cos(heading)
        out[:, 2] = heading
        return out

    def locate(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(s, d) of points (N, 2): distance along and offset left of the nearest piece of the centre line."""
        _, nearest = self._tree.query(xy)
        heading = self.headings[nearest]
        offset = xy - self.points[nearest]
        c, sn = np.cos(heading), np.sin(heading)
        along = c * offset[:, 0] + sn * offset[:, 1]
        return nearest * STEP_M - OVERHANG_M + along, -sn * offset[:, 0] + c * offset[:, 1]


def draw_road(length_m: float, section: CrossSection, rng: np.random.Generator) -> Road:
    """A road of that length, its bounding box's lower corner some 60 to 120 m from the map's origin."""
    s = np.arange(-OVERHANG_M, length_m + OVERHANG_M + STEP_M, STEP_M)
    bend = rng.uniform(0.0, 1 / 70) * np.sin(2 * np.pi * s / rng.uniform(140, 360) + rng.uniform(0, 2 * np.pi))
    curvature = bend + rng.uniform(-1 / 160, 1 / 160)
    headings = rng.uniform(-np.pi, np.pi) + np.cumsum(curvature) * STEP_M
    points = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], axis=1), axis=0) * STEP_M
    points += rng.uniform(60, 120, size=2) - points.min(axis=0)
    from scipy.spatial import cKDTree  # half a second to load, and only new worlds need it

    return Road(points, headings, section, length_m, cKDTree(points))
