"""The ground under a frame's LiDAR returns: a stiff surface through the lowest of them, and which returns lie on it.

    min_h  sum_i w_i (z_i - h(x_i, y_i))^2 + STIFFNESS * sum (h_xx^2 + 2 h_xy^2 + h_yy^2)

h is piecewise bilinear between nodes `SPACING_M` apart, its derivatives are differences between nodes, and z_i is the
low return of each `PATCH_M` patch. The second sum is zero on any plane: an infinitely stiff surface is the plane of
least squares, a real one follows ramps and crests. Patches in which no ground is seen and mirror images under the road
lose their weight w_i, by Tukey's biweight, whose reach shrinks from round to round; it starts at a plane found by
RANSAC with a fixed seed, so that equal clouds give equal bytes. About 20 ms for a sweep, 150 ms for ten.

Sources: Fischler and Bolles 1981 (RANSAC); Eilers and Marx 1996 (penalties on differences); Beaton and Tukey 1974.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from cache.errors import DataError

SPACING_M = 4.0
PATCH_M = 2.0
REACH_M = 64.0  # the surface spans |x|, |y| <= REACH_M; beyond it heights are those of its border
STIFFNESS = 20.0
ROUNDS_M = (2.0, 1.2, 0.8, 0.5, 0.35, 0.3, 0.3)  # reach of the biweight
LOW_SHARE = 0.1  # of a patch's returns lie below its low return: one mirror image does not speak for it
MIN_PATCHES = 3  # fewer fix no plane
MAX_TILT = 0.3  # metres of rise a metre: the steepest public roads have 0.35, the first plane only has to be near
TRIALS = 200
HAIR = 1e-6
NEAR_M = 0.3  # of a trial plane: counts for it
# nuScenes-lidarseg's classes that are no obstacle: noise, and flat.driveable_surface, .other, .sidewalk, .terrain
GROUND_CLASSES = (0, 24, 25, 26, 27)


@dataclass(frozen=True)
class Ground:
    """heights (n, n) float64, m: the surface at nodes SPACING_M apart, row and column 0 at -REACH_M."""

    heights: np.ndarray

    def at(self, xy: np.ndarray) -> np.ndarray:
        """(P,) float64 metres: height of the ground at (P, 2) positions, canonical frame."""
        nodes, shares = _bilinear(np.asarray(xy, np.float64), len(self.heights))
        return (self.heights.ravel()[nodes] * shares).sum(axis=1)


def ground_returns(cloud: np.ndarray, height_m: float, lidarseg: np.ndarray | None = None) -> np.ndarray:
    """(P,) bool: which returns are of the ground.

    cloud: (P, 5) or any (P, >= 3) x, y, z, canonical frame (m). lidarseg: (L,) uint8 nuScenes-lidarseg classes of the
    first L points (those of the key sweep), L <= P: these are ground by class, as BEV-LGKD's filter means it. The
    others, all of them where there are no classes, are ground up to `height_m` above the fitted surface. Where too few
    returns tell of a surface none is ground. DataError for more classes than points.
    """
    known = 0 if lidarseg is None else len(lidarseg)
    if known > len(cloud):
        raise DataError(f"{known} lidarseg classes for {len(cloud)} points, expected one a return of the key sweep")
    out = np.zeros(len(cloud), bool)
    if known:
        out[:known] = np.isin(np.asarray(lidarseg), GROUND_CLASSES)
    if known < len(cloud):
        ground = fit_ground(cloud)
        if ground is not None:
            rest = np.asarray(cloud)[known:, :3].astype(np.float64)
            finite = np.isfinite(rest).all(axis=1)
            out[known:][finite] = rest[finite, 2] - ground.at(rest[finite, :2]) <= height_m
    return out


def fit_ground(cloud: np.ndarray) -> Ground | None:
    """The ground of a cloud (P, 3 or more) x, y, z in metres, canonical frame; None where too few returns tell of it.

    Points with a NaN or infinite coordinate do not count.
    """
    low = _low_returns(np.asarray(cloud)[:, :3].astype(np.float64))
    if len(low) < MIN_PATCHES:
        return None
    side = 1 + round(2 * REACH_M / SPACING_M)
    nodes, shares = _bilinear(low[:, :2], side)
    axis = np.linspace(-REACH_M, REACH_M, side)
    from scipy.linalg import solveh_banded  # half a second to load, and few stores ask for the ground

    plane = _ransac_plane(low)
    heights = (plane[0] * axis[None, :] + plane[1] * axis[:, None] + plane[2]).ravel()
    for reach in ROUNDS_M:
        residual = low[:, 2] - (heights[nodes] * shares).sum(axis=1)
        weights = np.where(np.abs(residual) < reach, (1 - (residual / reach) ** 2) ** 2, 0.0)
        if np.count_nonzero(weights) < MIN_PATCHES:
            break  # too few agree on a surface: the one so far is as good as it gets
        matrix = STIFFNESS * _stiffness(side) + _normal_matrix(nodes, shares, weights, side)
        right = np.bincount(nodes.ravel(), (shares * (weights * low[:, 2])[:, None]).ravel(), side * side)
        # a hair towards the last surface, so that nodes are held even where the weighted patches lie on one line
        matrix[0] += HAIR
        heights = solveh_banded(matrix, right + HAIR * heights, lower=True, check_finite=False)
    return Ground(heights.reshape(side, side))


def _low_returns(xyz: np.ndarray) -> np.ndarray:
    """(M, 3): of each patch with returns the one below which LOW_SHARE of them lie, of equally high ones the first by x
    and then y, so that the file's order does not matter."""
    xyz = xyz[np.isfinite(xyz).all(axis=1)]
    xyz = xyz[(np.abs(xyz[:, :2]) < REACH_M).all(axis=1)]
    side = round(2 * REACH_M / PATCH_M)
    col, row = np.floor((xyz[:, :2].T + REACH_M) / PATCH_M).astype(np.uint16)
    patch = row * np.uint16(side) + col
    order = np.argsort(xyz[:, 2])
    order = order[np.argsort(patch[order], kind="stable")]  # of 16 bits: a radix sort, a tenth of lexsort's time
    starts = np.flatnonzero(np.diff(patch[order].astype(np.int64), prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    low = np.zeros(side * side)
    low[patch[order[starts]]] = xyz[order[starts + (LOW_SHARE * (counts - 1)).astype(np.int64)], 2]
    as_low = np.flatnonzero(xyz[:, 2] == low[patch])
    as_low = as_low[np.lexsort((xyz[as_low, 1], xyz[as_low, 0], patch[as_low]))]
    return xyz[as_low[np.flatnonzero(np.diff(patch[as_low].astype(np.int64), prepend=-1))]]


def _ransac_plane(low: np.ndarray) -> np.ndarray:
    """(3,) a, b, c of the plane z = a x + b y + c that most low returns lie near, of TRIALS through three of them."""
    rng = np.random.default_rng(0)
    picked = rng.integers(0, len(low), (TRIALS, 3))
    design = np.concatenate([low[:, :2], np.ones((len(low), 1))], axis=1)
    planes = np.zeros((TRIALS + 1, 3))
    planes[-1] = 0, 0, np.median(low[:, 2])  # where every triple is in a line or too steep
    systems = design[picked]
    sound = np.abs(np.linalg.det(systems)) > 1.0  # m^2, twice the triangle's area
    planes[:-1][sound] = np.linalg.solve(systems[sound], low[picked[sound], 2][..., None])[..., 0]
    sound &= np.hypot(planes[:-1, 0], planes[:-1, 1]) <= MAX_TILT
    near = (np.abs(design @ planes.T - low[:, 2:3]) < NEAR_M).sum(axis=0)
    near[:-1][~sound] = -1
    return planes[int(near.argmax())]


def _bilinear(xy: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(P, 4) the flat nodes about each position and their shares; positions off the surface take its border's."""
    place = np.clip((xy + REACH_M) / SPACING_M, 0, side - 1)
    first = np.minimum(place.astype(np.int64), side - 2)
    right, up = (place - first).T
    corner = first[:, 1] * side + first[:, 0]
    nodes = corner[:, None] + np.array([0, 1, side, side + 1])
    return nodes, np.stack([(1 - right) * (1 - up), right * (1 - up), (1 - right) * up, right * up], axis=1)


@functools.lru_cache(maxsize=1)
def _stiffness(side: int) -> np.ndarray:
    """The second sum's matrix over side x side nodes, in the form of `_normal_matrix`."""
    at = np.arange(side * side).reshape(side, side)
    bent = [np.stack([g[:, :-2], g[:, 1:-1], g[:, 2:]], axis=-1).reshape(-1, 3) for g in (at, at.T)]
    twisted = np.stack([at[:-1, :-1], at[:-1, 1:], at[1:, :-1], at[1:, 1:]], axis=-1).reshape(-1, 4)
    out = np.zeros((2 * side + 1, side * side))
    for nodes, factors, weight in (
        (bent[0], [1.0, -2.0, 1.0], 1.0),
        (bent[1], [1.0, -2.0, 1.0], 1.0),
        (twisted, [1.0, -1.0, -1.0, 1.0], 2.0),
    ):
        out += _normal_matrix(nodes, np.tile(factors, (len(nodes), 1)), np.full(len(nodes), weight), side)
    return out


def _normal_matrix(nodes: np.ndarray, factors: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    """sum_i w_i a_i a_i^T of rows a_i with `factors` (M, n) at `nodes` (M, n): the lower half, diagonals as rows. No
    two nodes of a row are further apart than two rows of nodes."""
    band, count = 2 * side, side * side
    apart = nodes[:, :, None] - nodes[:, None, :]
    values = weights[:, None, None] * factors[:, :, None] * factors[:, None, :]
    lower = apart >= 0
    place = apart * count + nodes[:, None, :]  # [i - j, j]
    return np.bincount(place[lower], values[lower], (band + 1) * count).reshape(band + 1, count)
