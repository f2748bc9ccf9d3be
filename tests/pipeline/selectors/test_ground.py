"""ground: the fit equals a loop-written one, follows slopes, heeds neither mirror images nor walls; classes decide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cache.errors import DataError
from pipeline.selectors import ground
from pipeline.selectors.ground import fit_ground, ground_returns


def a_road(rng: np.random.Generator, count: int = 6000, reach: float = 50.0) -> np.ndarray:
    """(count, 2) places, denser near the LiDAR as returns are."""
    radius, angle = reach * rng.uniform(0.05, 1, count) ** 1.5, rng.uniform(0, 2 * np.pi, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def upright(rng: np.random.Generator, places: np.ndarray, foot: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns low..high metres above their foot, about each place."""
    xy = np.repeat(places, 40, axis=0) + rng.uniform(-0.8, 0.8, (40 * len(places), 2))
    return np.concatenate([xy, (np.repeat(foot, 40) + rng.uniform(low, high, len(xy)))[:, None]], axis=1)


def slow_fit(cloud: np.ndarray) -> np.ndarray:
    """The formula with loops over patches, returns, nodes and differences, and a dense solve."""
    reach, spacing, patch_m = ground.REACH_M, ground.SPACING_M, ground.PATCH_M
    side = 1 + round(2 * reach / spacing)
    patches: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for x, y, z in cloud[:, :3].astype(float).tolist():
        if all(map(math.isfinite, (x, y, z))) and abs(x) < reach and abs(y) < reach:
            key = math.floor((y + reach) / patch_m), math.floor((x + reach) / patch_m)
            patches.setdefault(key, []).append((z, x, y))
    low = []
    for key in sorted(patches):
        inside = sorted(patches[key])
        z = inside[int(ground.LOW_SHARE * (len(inside) - 1))][0]
        low.append((*min((x, y) for height, x, y in inside if height == z), z))
    best, plane = -1, (0.0, 0.0, float(np.median([z for _, _, z in low])))
    candidates = [plane]
    for triple in np.random.default_rng(0).integers(0, len(low), (ground.TRIALS, 3)).tolist():
        system = np.array([[low[i][0], low[i][1], 1.0] for i in triple])
        if abs(np.linalg.det(system)) <= 1:
            continue
        a, b, c = np.linalg.solve(system, np.array([low[i][2] for i in triple]))
        if math.hypot(a, b) <= ground.MAX_TILT:
            candidates.append((a, b, c))
    for a, b, c in [*candidates[1:], candidates[0]]:
        near = sum(abs(a * x + b * y + c - z) < ground.NEAR_M for x, y, z in low)
        if near > best:
            best, plane = near, (a, b, c)
    heights = np.zeros((side, side))
    for row in range(side):
        for col in range(side):
            heights[row, col] = plane[0] * (col * spacing - reach) + plane[1] * (row * spacing - reach) + plane[2]
    rows = []  # (row of the least-squares system as {node: factor}, height)
    for x, y, z in low:
        col, row = (x + reach) / spacing, (y + reach) / spacing
        i, j = min(math.floor(row), side - 2), min(math.floor(col), side - 2)
        u, v = row - i, col - j
        corners = {(i, j): (1 - u) * (1 - v), (i, j + 1): (1 - u) * v, (i + 1, j): u * (1 - v), (i + 1, j + 1): u * v}
        rows.append((corners, z))
    bends = []
    for i in range(side):
        for j in range(side):
            if j + 2 < side:
                bends += [
                    ({(i, j): 1, (i, j + 1): -2, (i, j + 2): 1}, 1),
                    ({(j, i): 1, (j + 1, i): -2, (j + 2, i): 1}, 1),
                ]
            if i + 1 < side and j + 1 < side:
                bends.append(({(i, j): 1, (i, j + 1): -1, (i + 1, j): -1, (i + 1, j + 1): 1}, 2))
    for cut in ground.ROUNDS_M:
        matrix, right = np.eye(side * side) * ground.HAIR, ground.HAIR * heights.ravel()
        for corners, z in rows:
            residual = z - sum(share * heights[node] for node, share in corners.items())
            weight = (1 - (residual / cut) ** 2) ** 2 if abs(residual) < cut else 0.0
            for (i, j), a in corners.items():
                right[i * side + j] += weight * a * z
                for (k, l), b in corners.items():
                    matrix[i * side + j, k * side + l] += weight * a * b
        for nodes, weight in bends:
            for (i, j), a in nodes.items():
                for (k, l), b in nodes.items():
                    matrix[i * side + j, k * side + l] += ground.STIFFNESS * weight * a * b
        heights = np.linalg.solve(matrix, right).reshape(side, side)
    return heights


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_equals_the_loop_written_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground, "REACH_M", 16.0)
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-18, 18, (3000, 2))
    z = 0.05 * xy[:, 0] - 0.002 * xy[:, 1] ** 2 + rng.exponential(0.4, 3000) * (rng.uniform(size=3000) < 0.8)
    cloud = np.concatenate([xy, z[:, None]], axis=1)
    cloud[::50, seed] = np.nan
    fitted = fit_ground(cloud)
    assert fitted is not None
    np.testing.assert_allclose(fitted.heights, slow_fit(cloud), atol=1e-6)


def test_a_plane_is_found_exactly_whatever_stands_on_it() -> None:
    rng = np.random.default_rng(5)
    xy = a_road(rng)
    road = np.concatenate([xy, (0.06 * xy[:, 0] - 0.03 * xy[:, 1] - 1.8)[:, None]], axis=1)
    places = rng.uniform(-40, 40, (60, 2))
    on_it = upright(rng, places, places @ (0.06, -0.03) - 1.8, 0.3, 2.0)
    fitted = fit_ground(np.concatenate([road, on_it]))
    assert fitted is not None
    assert np.abs(fitted.at(xy) - road[:, 2]).max() < 0.02
    is_ground = ground_returns(np.concatenate([road, on_it]), 0.2)
    assert is_ground[: len(road)].all() and not is_ground[len(road) :].any()


def test_slopes_are_followed_where_one_plane_cannot() -> None:
    """Level to 10 m ahead, then a ramp of 12 %, and the road falls to the sides: 4 m up at the end of it."""
    rng = np.random.default_rng(6)

    def height(p: np.ndarray) -> np.ndarray:
        return 0.12 * np.maximum(p[:, 1] - 10, 0) - 0.001 * p[:, 0] ** 2 - 1.8

    xy, places = a_road(rng, 9000), rng.uniform(-35, 35, (60, 2))
    road = np.concatenate([xy, (height(xy) + rng.normal(0, 0.02, len(xy)))[:, None]], axis=1)
    on_it = upright(rng, places, height(places), 0.5, 1.8)
    is_ground = ground_returns(np.concatenate([road, on_it]), 0.2)
    assert is_ground[: len(road)].mean() > 0.97 and is_ground[len(road) :].mean() < 0.03
    plane = np.linalg.lstsq(np.c_[xy, np.ones(len(xy))], road[:, 2], rcond=None)[0]
    assert (np.abs(np.c_[xy, np.ones(len(xy))] @ plane - road[:, 2]) < 0.2).mean() < 0.6


def test_mirror_images_and_walls_do_not_move_it() -> None:
    rng = np.random.default_rng(7)
    xy = a_road(rng)
    road = np.c_[xy, np.full(len(xy), -1.8)]
    below = np.c_[rng.uniform(-20, 20, (60, 2)), rng.uniform(-6, -2.5, 60)]
    y = rng.uniform(-50, 50, 4000)
    wall = np.c_[np.full(4000, 30.0) + rng.normal(0, 0.1, 4000), y, rng.uniform(1.0, 9, 4000)]  # its foot is hidden
    fitted = fit_ground(np.concatenate([road[road[:, 0] < 29], below, wall]))
    assert fitted is not None
    inner = np.abs(xy).max(axis=1) < 28
    assert np.abs(fitted.at(xy[inner]) + 1.8).max() < 0.03


def test_equal_clouds_in_any_order_give_equal_bytes() -> None:
    rng = np.random.default_rng(8)
    cloud = np.c_[a_road(rng, 2000), rng.normal(-1.8, 0.1, 2000).round(1)].astype(np.float32)  # many of equal height
    first, again, shuffled = (fit_ground(c) for c in (cloud, cloud.copy(), rng.permutation(cloud)))
    assert first is not None and again is not None and shuffled is not None
    assert first.heights.tobytes() == again.heights.tobytes() == shuffled.heights.tobytes()


def test_too_few_returns_tell_of_no_ground() -> None:
    for cloud in (np.zeros((0, 5)), np.zeros((40, 5)), np.full((40, 5), np.nan), np.full((9, 3), 1e6)):
        assert fit_ground(cloud) is None and not ground_returns(cloud, 0.2).any()
    line = np.c_[np.linspace(-20, 20, 50), np.zeros((50, 1)), np.full((50, 1), -1.8)]
    fitted = fit_ground(line)
    assert fitted is not None and np.abs(fitted.at(line[:, :2]) + 1.8).max() < 0.01


def test_classes_decide_for_the_key_sweep_and_the_fit_for_the_rest() -> None:
    rng = np.random.default_rng(9)
    xy = a_road(rng, 3000)
    cloud = np.c_[xy, np.full(3000, -1.8), np.zeros((3000, 2))]
    cloud[2000::2, 2] += 1.0
    classes = rng.integers(0, 32, 1000).astype(np.uint8)
    found = ground_returns(cloud, 0.2, classes)
    expected = [label in (0, 24, 25, 26, 27) for label in classes.tolist()] + [True] * 1000 + [False, True] * 500
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ground_returns(cloud[:1000], 0.2, classes), expected[:1000])
    with pytest.raises(DataError, match="1000 lidarseg classes for 999 points"):
        ground_returns(cloud[:999], 0.2, classes)


def test_points_that_are_not_finite_are_no_ground() -> None:
    cloud = np.c_[a_road(np.random.default_rng(1), 500), np.full(500, -1.8)]
    cloud[3, 0], cloud[4, 2] = np.nan, np.inf
    found = ground_returns(cloud, 0.2)
    assert not found[3:5].any() and found[5:].all()
