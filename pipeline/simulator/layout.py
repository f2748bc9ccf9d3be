"""Fills a road with traffic, parked vehicles, people, road works and clutter, at the rates the data set needs.

Rates are per 100 m of road and were set so that 15 to 35 labelled boxes lie within 50 m of the car, rare classes (bus,
trailer, construction vehicle, cycles) far more often than in reality, or 400 frames would not teach them.
"""

from __future__ import annotations

import numpy as np

from pipeline.simulator.builder import Builder
from pipeline.simulator.catalogue import Model, draw_model
from pipeline.simulator.clutter import CLUTTER_SIZES, clutter
from pipeline.simulator.road import LANE_M, CrossSection
from pipeline.simulator.solids import mesh
from pipeline.simulator.world import Daylight, Track, World

# moving on lanes, per 100 m
TRAFFIC = {
    "car": 2.6,
    "truck": 0.6,
    "bus": 0.55,
    "motorcycle": 0.9,
    "bicycle": 0.9,
    "trailer": 0.45,
    "construction_vehicle": 0.25,
}
# standing at the kerb or in the parking strip
KERBSIDE = {"car": 3.2, "truck": 0.6, "bus": 0.5, "trailer": 0.3}
# beyond the sidewalks, any direction
LOTS = {"car": 1.6, "truck": 0.7, "bus": 0.35, "trailer": 1.0, "construction_vehicle": 1.4, "motorcycle": 0.4}
SIDEWALK_CYCLES = {"motorcycle": 0.9, "bicycle": 1.3}
PEOPLE = 6.0
CONE_GROUPS, BARRIER_ROWS, RACKS = 1.3, 1.1, 0.25
CLUTTER = {
    "building": 3.0,
    "wall": 1.0,
    "tree": 3.5,
    "pole": 3.5,
    "bush": 3.0,
    "crate": 1.2,
    "bin": 1.2,
    "bollard": 1.6,
    "sign": 1.2,
    "hydrant": 0.5,
}


def draw_world(rng: np.random.Generator, duration_s: float, drives_on_right: bool) -> World:
    """A world for a drive of that duration; the same generator state gives the same world."""
    section = CrossSection(int(rng.integers(1, 3)), bool(rng.random() < 0.7), drives_on_right)
    builder = Builder(rng, section, duration_s)
    _traffic(builder)
    _road_works(builder)
    _kerbside(builder)
    _lots(builder)
    _people(builder)
    _clutter(builder)
    return World(builder.road, builder.ego, tuple(builder.things), _daylight(rng))


def _traffic(b: Builder) -> None:
    section = b.section
    for name, rate in TRAFFIC.items():
        for _ in range(b.count(rate)):
            state = "stopped" if b.rng.random() < 0.15 else "moving"
            model = draw_model(name, state, b.rng)
            b.put(model, lambda name=name, state=state: _lane_track(b, name, state, section), 0.5)  # type: ignore[misc]


def _lane_track(b: Builder, name: str, state: str, section: CrossSection) -> Track:
    forward = b.rng.random() < 0.45
    offset = section.lane_offset(int(b.rng.integers(section.lanes_each_way)), forward) + float(b.rng.uniform(-0.3, 0.3))
    if name == "bicycle":  # at the road's edge
        offset = float(np.sign(offset)) * (section.road_edge_m - 0.7)
    speed = float(b.rng.uniform(2.0, 6.0) if name in ("bicycle", "construction_vehicle") else b.rng.uniform(3.0, 12.0))
    if forward and abs(offset - b.ego.offset_m) < LANE_M / 2:
        speed = float(
            np.clip(b.ego.speed + b.rng.uniform(-1.5, 1.5), 1.5, 12.0)
        )  # in the own lane: keeps up with the car
    if state == "stopped":
        return b.standing(b.along(), offset, 0.0 if forward else np.pi)
    direction = 1.0 if forward else -1.0
    # around the middle of the drive it should be near
    s = b.along() - direction * speed * b.duration_s / 2
    return Track((s, offset), (direction * speed, 0.0), 0.0 if forward else np.pi, b.road)


def _kerbside(b: Builder) -> None:
    section = b.section
    strip = section.kerb_m - 1.25
    for name, rate in KERBSIDE.items():
        for _ in range(b.count(rate if section.parking or name == "bus" else 0.35 * rate)):
            state = "stopped" if name == "bus" and b.rng.random() < 0.6 else "parked"
            model = draw_model(name, state, b.rng)

            def track() -> Track:
                side = b.side()
                with_traffic = (side < 0) == section.drives_on_right
                return b.standing(
                    b.along(),
                    side * (strip + b.rng.uniform(-0.1, 0.1)),
                    (0.0 if with_traffic else np.pi) + b.rng.normal(0, 0.03),
                )

            b.put(model, track, 0.3)
    for name, rate in SIDEWALK_CYCLES.items():
        for _ in range(b.count(rate)):
            model = draw_model(name, "parked", b.rng)
            b.put(
                model,
                lambda: b.standing(
                    b.along(), b.side() * (section.kerb_m + b.rng.uniform(0.6, 2.6)), b.rng.uniform(-np.pi, np.pi)
                ),
                0.15,
            )
    for _ in range(b.count(RACKS)):
        model = draw_model("bicycle_rack", "parked", b.rng)
        b.put(model, lambda: b.standing(b.along(), b.side() * (section.kerb_m + 1.7), 0.0), 0.3)


def _lots(b: Builder) -> None:
    near = b.section.sidewalk_edge_m
    for name, rate in LOTS.items():
        for _ in range(b.count(rate)):
            model = draw_model(name, "parked", b.rng)
            room = model.size[1] / 2 if name != "car" else 2.6

            def track(room: float = room) -> Track:
                across = b.rng.integers(4) * np.pi / 2 + b.rng.normal(0, 0.15)
                return b.standing(b.along(), b.side() * (near + room + 0.4 + 17.0 * b.rng.random() ** 1.4), across)

            b.put(model, track, 0.3)


def _people(b: Builder) -> None:
    section = b.section
    for _ in range(b.count(PEOPLE)):
        kind = b.rng.random()
        state = "moving" if kind < 0.62 else "standing" if kind < 0.9 else "sitting"
        model = draw_model("pedestrian", state, b.rng)

        def track(state: str = state) -> Track:
            s, side = b.along(), b.side()
            d = side * (section.kerb_m + b.rng.uniform(0.4, 2.7))
            if state != "moving":
                if b.rng.random() < 0.25:  # in the lots
                    d = side * (section.sidewalk_edge_m + b.rng.uniform(0.5, 12.0))
                return b.standing(s, d, b.rng.uniform(-np.pi, np.pi))
            speed, direction = b.rng.uniform(0.7, 1.8), b.side()
            if b.rng.random() < 0.2:  # crosses the road
                x, y, heading = b.road.pose(np.array([s]), b.rng.uniform(-section.kerb_m, section.kerb_m))[0]
                yaw = heading + direction * np.pi / 2 + b.rng.normal(0, 0.1)
                return Track((float(x), float(y)), (float(speed * np.cos(yaw)), float(speed * np.sin(yaw))), float(yaw))
            return Track(
                (s - direction * speed * b.duration_s / 2, d),
                (direction * speed, 0.0),
                0.0 if direction > 0 else np.pi,
                b.road,
            )

        b.put(model, track, 0.12)


def _road_works(b: Builder) -> None:
    for _ in range(b.count(BARRIER_ROWS)):
        _barrier_row(b)
    for _ in range(b.count(CONE_GROUPS)):
        _cone_group(b)


def _barrier_row(b: Builder) -> None:
    section = b.section
    places = (section.road_edge_m + 0.2, section.kerb_m + 0.4, section.sidewalk_edge_m + float(b.rng.uniform(0.5, 6)))
    s, d, gap = b.along(), b.side() * places[b.rng.integers(3)], float(b.rng.uniform(0.15, 0.6))
    turn = float(b.rng.normal(0, 0.12))
    facing = np.pi / 2 + (0.0 if b.rng.random() < 0.5 else np.pi) + turn
    first = draw_model("barrier", "parked", b.rng)
    pitch = first.size[0] + gap
    for i in range(int(b.rng.integers(3, 8))):
        model = first if i % 2 == 0 else draw_alike(first, b.rng)
        b.stand(model, s + i * pitch * np.cos(turn), d + i * pitch * np.sin(turn), facing, 0.05)


def _cone_group(b: Builder) -> None:
    section = b.section
    s = b.along()
    d = b.side() * float(b.rng.uniform(section.road_edge_m - 0.5, section.sidewalk_edge_m + 4))
    pitch = b.rng.uniform(1.2, 3.0, 2) * (1.0, 0.35 * b.side())
    for i in range(int(b.rng.integers(2, 6))):
        shift = i * pitch + b.rng.normal(0, 0.1, 2)
        model = draw_model("traffic_cone", "parked", b.rng)
        b.stand(model, s + shift[0], d + shift[1], float(b.rng.uniform(-np.pi, np.pi)), 0.1)


def draw_alike(model: Model, rng: np.random.Generator) -> Model:
    """A barrier of the same size as its neighbour in the row, in another colour."""
    other = draw_model("barrier", "parked", rng)
    return other if abs(other.size[0] - model.size[0]) < 0.25 else model


def _clutter(b: Builder) -> None:
    section = b.section
    for kind, rate in CLUTTER.items():
        for _ in range(b.count(rate)):
            l, w, h = (float(b.rng.uniform(*span)) for span in CLUTTER_SIZES[kind])
            style = float(b.rng.random())
            model = Model(
                kind, None, None, (w, l, h), mesh(clutter(kind, l, w, h, style)), float(b.rng.uniform(0.8, 1.15))
            )

            def track(kind: str = kind, w: float = w) -> Track:
                edge = section.sidewalk_edge_m
                if kind == "building":
                    d, yaw = edge + w / 2 + b.rng.uniform(1.5, 26.0), float(b.rng.integers(2)) * np.pi
                elif kind in ("wall", "tree", "bush"):
                    d, yaw = edge + w / 2 + b.rng.uniform(0.2, 14.0), b.rng.normal(0, 0.05)
                elif kind in ("pole", "sign", "hydrant", "bollard"):
                    d, yaw = section.kerb_m + b.rng.uniform(0.3, 0.7), b.rng.integers(2) * np.pi
                else:
                    d, yaw = section.kerb_m + b.rng.uniform(0.4, 8.0), b.rng.uniform(-np.pi, np.pi)
                return b.standing(b.along(), b.side() * d, yaw)

            b.put(model, track, 0.2)


def _daylight(rng: np.random.Generator) -> Daylight:
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.15)
    sunny = float(np.clip(rng.normal(0.6, 0.35), 0.05, 1.0))
    to_sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    return Daylight(
        to_sun,
        0.62 * sunny,
        0.80 - 0.28 * sunny,
        float(rng.uniform(140, 320)),
        float(rng.uniform(0.85, 1.15)),
        int(rng.integers(6)),
        int(rng.integers(4)),
    )
