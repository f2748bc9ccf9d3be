"""The world itself: nothing ever overlaps, shapes fill their boxes, sizes follow the statistics, all classes appear."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cache.classes import DETECTION_CLASSES, class_id
from pipeline.simulator.catalogue import FIGURES, FLOOR_M, draw_model
from pipeline.simulator.layout import draw_world
from pipeline.simulator.rig import EGO_OUTLINE_M
from pipeline.simulator.road import CrossSection, draw_road
from pipeline.simulator.world import Occupancy, World

WORLDS = [
    draw_world(np.random.default_rng([21, i]), duration, i % 2 == 0) for i, duration in enumerate((0.5, 0.5, 6.0))
]


def _separated(a: np.ndarray, a_size: tuple[float, float], b: np.ndarray, b_size: tuple[float, float]) -> bool:
    """Slow separating axis test of two rectangles (x, y, yaw), (length, width): projects all corners on all axes."""

    def corners(pose: np.ndarray, size: tuple[float, float]) -> np.ndarray:
        c, s = np.cos(pose[2]), np.sin(pose[2])
        local = np.array([[i * size[0] / 2, j * size[1] / 2] for i in (-1, 1) for j in (-1, 1)])
        return local @ np.array([[c, s], [-s, c]]) + pose[:2]

    first, second = corners(a, a_size), corners(b, b_size)
    for yaw in (a[2], a[2] + np.pi / 2, b[2], b[2] + np.pi / 2):
        axis = np.array([np.cos(yaw), np.sin(yaw)])
        p, q = first @ axis, second @ axis
        if p.max() < q.min() or q.max() < p.min():
            return True
    return False


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_ever_overlaps_anything_or_the_car(world: World) -> None:
    back, front, half_width = EGO_OUTLINE_M
    times = np.arange(-0.45, 6.1 if world is WORLDS[2] else 0.6, 0.15)
    sizes = [(t.model.size[1], t.model.size[0]) for t in world.things] + [(front - back, 2 * half_width)]
    for time in times:
        poses, ego = world.poses(time), world.ego.poses(np.array([time]))[0]
        ahead = (front + back) / 2
        poses = np.vstack([poses, ego + np.array([ahead * np.cos(ego[2]), ahead * np.sin(ego[2]), 0.0])])
        reach = np.array([np.hypot(*size) / 2 for size in sizes])
        distance = np.hypot(*(poses[:, None, :2] - poses[None, :, :2]).transpose(2, 0, 1))
        for i, j in np.argwhere(np.triu(distance < reach[:, None] + reach[None, :], 1)):
            assert _separated(poses[i], sizes[i], poses[j], sizes[j]), (time, i, j)


def test_occupancy_tells_touching_rectangles_from_free_ones() -> None:
    rng = np.random.default_rng(3)
    free = 0
    for _ in range(300):
        space = Occupancy(np.array([0.0]))
        a, b = rng.uniform(-3, 3, (2, 1, 3))
        sizes = rng.uniform(0.5, 4, (2, 2))
        space.add(a, *sizes[0])
        expected = _separated(a[0], tuple(sizes[0]), b[0], tuple(sizes[1]))
        assert space.is_free(b, *sizes[1], 0.0) == expected
        free += expected
    assert 30 < free < 270


@pytest.mark.parametrize("name", [*DETECTION_CLASSES, "bicycle_rack"])
def test_all_parts_lie_within_the_annotated_box(name: str) -> None:
    rng = np.random.default_rng(7)
    states = ("moving", "standing", "sitting") if name == "pedestrian" else ("moving", "stopped", "parked")
    for i in range(40):
        model = draw_model(name, states[i % 3], rng)
        w, l, h = model.size
        corners = model.shape.corners.reshape(-1, 3)
        assert (np.abs(corners[:, 0]) <= l / 2).all()
        assert (np.abs(corners[:, 1]) <= w / 2).all()
        assert corners[:, 2].min() >= FLOOR_M - 1e-9
        assert corners[:, 2].max() <= FLOOR_M + h + 1e-9
        if name != "bicycle_rack":  # the shape fills its box, else annotations would be loose
            extent = np.ptp(corners, axis=0)
            assert (extent >= np.array([l, w, h]) * 0.6 - 0.1).all(), extent
        assert model.category is not None
        if name != "bicycle_rack":
            assert class_id(model.category) == DETECTION_CLASSES.index(name)


@pytest.mark.parametrize("name", ["car", "truck", "bus", "pedestrian", "barrier"])
def test_sizes_follow_the_statistics(name: str) -> None:
    rng = np.random.default_rng(8)
    state = "standing" if name == "pedestrian" else "parked"
    sizes = np.array([draw_model(name, state, rng).size for _ in range(150)])
    np.testing.assert_allclose(sizes.mean(axis=0), FIGURES[name].mean, rtol=0.08)


@pytest.mark.parametrize("name", ["car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle", "pedestrian"])
def test_front_and_back_differ_in_shape(name: str) -> None:
    """Turned by 180 degrees the silhouette from the side is another one, so LiDAR can tell the heading."""
    rng = np.random.default_rng(9)
    for _ in range(5):
        model = draw_model(name, "moving", rng)
        half = model.size[1] / 2
        tops = []
        for sign in (1, -1):
            x = sign * model.shape.corners[..., 0]
            z = model.shape.corners[..., 2]
            # highest point within each tenth of the length, from the front
            tops.append(
                [z[(x > half - (i + 1) * half / 5) & (x <= half - i * half / 5)].max(initial=0) for i in range(10)]
            )
        assert np.abs(np.subtract(*tops)).max() > 0.08 * model.size[2]


def test_every_class_is_frequent_enough_to_learn() -> None:
    """Rates over 60 worlds: each class on average at least every second frame within its range of the metric."""
    ranges = {"pedestrian": 40, "motorcycle": 40, "bicycle": 40, "traffic_cone": 30, "barrier": 30}
    counts: Counter[str] = Counter()
    for i in range(60):
        world = draw_world(np.random.default_rng([30, i]), 0.5, True)
        ego = world.ego.poses(np.array([0.0]))[0]
        for thing, pose in zip(world.things, world.poses(0.0), strict=True):
            if np.hypot(*(pose[:2] - ego[:2])) < ranges.get(thing.model.name, 50):
                counts[thing.model.name] += 1
    for name in DETECTION_CLASSES:
        assert counts[name] / 60 > 0.5, (name, counts)
    assert 15 < sum(counts[name] for name in DETECTION_CLASSES) / 60 < 35


def test_road_coordinates_invert() -> None:
    road = draw_road(60.0, CrossSection(2, True, True), np.random.default_rng(2))
    rng = np.random.default_rng(1)
    s, d = rng.uniform(-80, 140, 400), rng.uniform(-30, 30, 400)
    found = road.locate(road.pose(s, d)[:, :2])
    np.testing.assert_allclose(found[0], s, atol=0.1)
    np.testing.assert_allclose(found[1], d, atol=0.1)


def test_the_car_never_stands_and_never_races() -> None:
    for world in WORLDS:
        times = np.arange(0, 20, 0.05)
        speed = np.hypot(*np.diff(world.ego.poses(times)[:, :2], axis=0).T) / 0.05
        assert speed.min() > 1.9
        assert speed.max() < 11
