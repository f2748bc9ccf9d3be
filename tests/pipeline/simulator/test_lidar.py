"""The fast ray caster equals a slow one that tests every ray against every triangle; what it hits is what it counts."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.simulator.geometry import Parts, Posed
from pipeline.simulator.layout import draw_world
from pipeline.simulator.lidar import GROUND, NOTHING, OWN_CAR, Turn, cast, scan
from pipeline.simulator.rig import RINGS, beam_directions, rig
from pipeline.simulator.scene import count_points
from pipeline.simulator.solids import FACE_CORNERS, block, mesh, turned


def cast_slowly(directions: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ray against both triangles of every face of every part (Moeller and Trumbore)."""
    quads = corners[:, FACE_CORNERS]
    best, who = np.full(len(directions), np.inf), np.full(len(directions), -1)
    for part in range(len(corners)):
        for face in range(6):
            for a, b, c in ((0, 1, 2), (0, 2, 3)):
                p, q, r = quads[part, face, [a, b, c]]
                e1, e2 = q - p, r - p
                h = np.cross(directions, e2)
                det = h @ e1
                with np.errstate(divide="ignore", invalid="ignore"):
                    u = (h @ -p) / det
                    w = np.cross(-p, e1)
                    v = directions @ w / det
                    t = (e2 @ w) / det
                    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & (t < best)
                best[hit], who[hit] = t[hit], part
    return best, who


def _random_geometry(rng: np.random.Generator, count: int) -> Posed:
    parts = []
    for _ in range(count):
        l, w, h = rng.uniform(0.2, 6.0, 3)
        shrink = rng.uniform(0.2, 1.0)
        shape = block(
            (-l / 2, l / 2), (-w / 2, w / 2), (0, h), (0, 0, 0),
            top_x=(-l / 2 * shrink, l / 2 * shrink), top_y=(-w / 2, w / 2 * shrink),
        )  # fmt: skip
        distance, bearing = rng.uniform(5.5, 60.0), rng.uniform(-np.pi, np.pi)
        place = (distance * np.cos(bearing), distance * np.sin(bearing), rng.uniform(-2.5, 3.0))
        parts.append(turned(shape, rng.uniform(-np.pi, np.pi), place))
    shape = mesh(parts)
    return Posed(shape.corners, shape.normals)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fast_caster_equals_the_slow_one(seed: int) -> None:
    geometry = _random_geometry(np.random.default_rng(seed), 30)
    turn = Turn(1086, -179.3 + 100 * seed)
    fast, fast_who = cast(turn, geometry)
    some = np.arange(seed, len(fast), 5)
    slow, slow_who = cast_slowly(beam_directions(turn.columns, turn.start_deg)[some], geometry.corners)
    grazing = np.isfinite(fast[some]) != np.isfinite(slow)  # a ray along an edge may go either way
    assert grazing.mean() < 1e-3
    both = np.isfinite(fast[some]) & np.isfinite(slow)
    assert both.sum() > 100
    agree = np.isclose(fast[some][both], slow[both], atol=1e-6)
    assert agree.mean() > 0.999
    assert (fast_who[some][both] == slow_who[both])[agree].all()


def test_a_turn_of_more_than_360_degrees_sees_the_overlap_twice() -> None:
    geometry = _random_geometry(np.random.default_rng(9), 1)
    middle = geometry.corners.mean(axis=(0, 1))
    turn = Turn(1087, float(np.degrees(np.arctan2(middle[1], middle[0]))) + 0.3)
    ranges, _ = cast(turn, geometry)
    by_column = np.isfinite(ranges).reshape(-1, RINGS).any(axis=1)
    assert by_column[0] and by_column[-1] and by_column[-2]


def test_a_thing_in_front_hides_what_is_behind() -> None:
    front = turned(block((-1, 1), (-3, 3), (-3, 3), (0, 0, 0)), 0.0, (10, 0, 0))
    behind = turned(block((-1, 1), (-2, 2), (-2, 2), (0, 0, 0)), 0.0, (20, 0, 0))
    shape = mesh([behind, front])
    _, who = cast(Turn(1085, -179.0), Posed(shape.corners, shape.normals))
    assert 1 in who
    assert 0 not in who


def test_points_counted_in_a_box_are_those_that_hit_its_thing() -> None:
    """A thing's own hits lie in its box, and hardly anything else does: range noise and the ground stay out."""
    rng = np.random.default_rng(4)
    own = counted = 0
    for scene in range(3):
        world = draw_world(np.random.default_rng([5, scene]), 0.5, True)
        parts, poses, ego = Parts(world), world.poses(0.0), world.ego.poses(np.array([0.0]))[0]
        mount = rig("boston").lidar
        sweep = scan(parts, poses, ego, mount, world.road, rng)
        to_global = np.eye(4)
        to_global[:2, :2] = [[np.cos(ego[2]), -np.sin(ego[2])], [np.sin(ego[2]), np.cos(ego[2])]]
        to_global[:2, 3] = ego[:2]
        to_global = to_global @ mount.pose.matrix()
        points = sweep.points[:, :3].astype(np.float64) @ to_global[:3, :3].T + to_global[:3, 3]
        near_car = (np.abs(sweep.points[:, 0]) < 1) & (np.abs(sweep.points[:, 1]) < 1)
        assert near_car[(sweep.hit == NOTHING) | (sweep.hit == OWN_CAR)].all()
        assert np.abs(points[sweep.hit == GROUND, 2]).max() < 0.06
        ordered = points[np.argsort(points[:, 0])]
        for index, thing in enumerate(world.things):
            if thing.model.category is None:
                continue
            x, y, yaw = poses[index]
            centre = np.array([x, y, world.box_centre_z(index)])
            inside = count_points(ordered, centre, thing.model.size, yaw)
            hits = points[sweep.hit == index]
            hits = hits[np.argsort(hits[:, 0])]
            own += len(hits)
            counted += inside
            assert count_points(hits, centre, thing.model.size, yaw) >= 0.97 * len(hits) - 1
    assert own > 2000
    assert counted == pytest.approx(own, rel=0.02)
