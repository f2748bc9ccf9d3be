"""The HDL-32E: rays against all parts and the ground, then noise, drop-out and intensity, in the real file's layout.

`cast` tests each part only against the rays in its azimuth and elevation window, all (part, ray) pairs in one flat
pass, and keeps the nearest hit per ray. About 30 ms a sweep on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulator.geometry import Parts, Posed, yaw_matrix
from pipeline.simulator.rig import AZIMUTH_STEP_DEG, MAX_RANGE_M, RING_ELEVATION_DEG, RINGS, Mount, beam_directions
from pipeline.simulator.road import Road

GROUND, NOTHING, OWN_CAR = -1, -2, -3
RANGE_NOISE_M = 0.02
# the own car's roof about the LiDAR, ego frame, metres: blocks the lowest rings, as in real files
_ROOF_M = ((-0.02, 1.9), (-0.6, 0.6), 1.48)

# material -> (mean intensity, drop-out at normal incidence)
MATERIALS: dict[str, tuple[float, float]] = {
    "paint": (22.0, 0.05),
    "glass": (7.0, 0.45),
    "metal": (26.0, 0.06),
    "rubber": (4.0, 0.10),
    "panel": (38.0, 0.03),
    "cloth": (11.0, 0.04),
    "plastic": (30.0, 0.03),
    "retro": (75.0, 0.01),
    "spokes": (18.0, 0.50),
    "wood": (14.0, 0.04),
    "leaves": (13.0, 0.12),
    "concrete": (16.0, 0.03),
}


@dataclass(frozen=True)
class Turn:
    """The rays of one sweep: number of firing columns and azimuth of the first (degrees, LiDAR frame)."""

    columns: int
    start_deg: float


@dataclass(frozen=True)
class Sweep:
    """points (P, 5) float32 as in a .pcd.bin; hit (P,) int: index of the thing hit, or GROUND, NOTHING, OWN_CAR."""

    points: np.ndarray
    hit: np.ndarray


def draw_turn(rng: np.random.Generator) -> Turn:
    """1,084 to 1,087 columns from about azimuth 180 degrees, as measured."""
    return Turn(int(rng.integers(1084, 1088)), float(-179.0 + rng.uniform(-0.6, 0.6)))


def cast(turn: Turn, geometry: Posed) -> tuple[np.ndarray, np.ndarray]:
    """Nearest part on every ray: range (R,) metres, inf where none, and part index (R,), -1 where none.

    geometry: in the LiDAR frame, sensor at the origin. Exact for convex parts that don't hold the sensor.
    """
    directions = beam_directions(turn.columns, turn.start_deg)
    best = np.full(len(directions), np.inf)
    who = np.full(len(directions), -1)
    if not len(geometry.corners):
        return best, who
    part, ray = _candidate_pairs(turn, geometry.corners)
    normals, offsets = geometry.normals, geometry.offsets()
    dx, dy, dz = np.ascontiguousarray(directions.T)[:, ray]
    enter, leave = np.full(len(ray), -np.inf), np.full(len(ray), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for face in range(6):
            n = normals[:, face]
            slope = n[part, 0] * dx + n[part, 1] * dy + n[part, 2] * dz
            t = offsets[part, face] / slope
            np.maximum(enter, t, out=enter, where=slope < 0)
            np.minimum(leave, t, out=leave, where=slope > 0)
    found = (enter <= leave) & (enter > 0)
    part, ray, enter = part[found], ray[found], enter[found]
    np.minimum.at(best, ray, enter)
    nearest = enter == best[ray]
    who[ray[nearest]] = part[nearest]
    return best, who


def _candidate_pairs(turn: Turn, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(part, ray) index pairs (Q,), (Q,): for every part all rays of the smallest window that surely holds it."""
    centre = corners.mean(axis=1)
    azimuth = np.arctan2(corners[..., 1], corners[..., 0])
    middle = np.arctan2(centre[:, 1], centre[:, 0])
    relative = np.mod(azimuth - middle[:, None] + np.pi, 2 * np.pi) - np.pi
    low, high = relative.min(axis=1), relative.max(axis=1)
    horizontal = _least_distance(corners[..., :2])
    around = (horizontal < 0.8) | (high - low > np.pi)
    # columns run clockwise: a larger azimuth is an earlier column
    step = np.radians(AZIMUTH_STEP_DEG)
    at = np.mod(np.radians(turn.start_deg) - middle, 2 * np.pi) / step
    first = np.floor(at - high / step).astype(np.int64)
    count = np.ceil(at - low / step).astype(np.int64) - first + 1
    first, count = np.where(around, 0, first), np.where(around, turn.columns, np.minimum(count, turn.columns))
    # elevation: the top edge is seen highest at the part's nearest point, or, below the horizon, at its farthest
    far = np.hypot(corners[..., 0], corners[..., 1]).max(axis=1)
    top, bottom = corners[..., 2].max(axis=1), corners[..., 2].min(axis=1)
    near = np.maximum(horizontal, 0.05)
    up = np.degrees(np.arctan2(top, np.where(top > 0, near, far)))
    down = np.degrees(np.arctan2(bottom, np.where(bottom > 0, far, near)))
    spacing = RING_ELEVATION_DEG[1] - RING_ELEVATION_DEG[0]
    ring0 = np.clip(np.floor((down - RING_ELEVATION_DEG[0]) / spacing), 0, RINGS).astype(np.int64)
    ring1 = np.clip(np.ceil((up - RING_ELEVATION_DEG[0]) / spacing), -1, RINGS - 1).astype(np.int64)
    rings = np.maximum(ring1 - ring0 + 1, 0)
    sizes = count * rings
    part = np.repeat(np.arange(len(corners)), sizes)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    column = first[part] + within // rings[part]
    # a turn is a little more or less than 360 degrees: a column index past either end comes round again
    per_turn = round(360.0 / AZIMUTH_STEP_DEG)
    column = np.where(column < 0, column + per_turn, column)
    column = np.where(column >= turn.columns, column - per_turn, column)
    ray = column * RINGS + ring0[part] + within % rings[part]
    valid = (column >= 0) & (column < turn.columns)
    part, ray = part[valid], ray[valid]
    # where the turn overlaps itself (first columns fired again at the end) both copies see the part
    overlap = ray // RINGS + per_turn < turn.columns
    if overlap.any():
        part = np.concatenate([part, part[overlap]])
        ray = np.concatenate([ray, ray[overlap] + per_turn * RINGS])
    return part, ray


_EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]])


def _least_distance(xy: np.ndarray) -> np.ndarray:
    """(P,) a lower bound, tight in practice, of the horizontal distance from the origin to each part's outline."""
    a, b = xy[:, _EDGES[:, 0]], xy[:, _EDGES[:, 1]]
    along = b - a
    share = np.clip(-(a * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12), 0, 1)
    nearest = a + share[..., None] * along
    return np.hypot(nearest[..., 0], nearest[..., 1]).min(axis=1)


def scan(
    parts: Parts, poses: np.ndarray, ego_pose: np.ndarray, mount: Mount, road: Road, rng: np.random.Generator
) -> Sweep:
    """One sweep at one instant: things at poses (N, 3), the car at ego_pose (3,) x, y, yaw.

    Points are in the sensor frame at that instant; a ray without return leaves a point near the origin, as real files
    do.
    """
    turn = draw_turn(rng)
    sensor = mount.pose.matrix()
    to_global = yaw_matrix(ego_pose[2])
    rotation = (to_global @ sensor[:3, :3]).T
    origin = to_global @ sensor[:3, 3] + [ego_pose[0], ego_pose[1], 0.0]
    keep = parts.within(poses, origin[:2], MAX_RANGE_M + 8.0)
    geometry = parts.posed(poses, keep).moved(rotation, -rotation @ origin)
    ranges, part = cast(turn, geometry)
    directions = beam_directions(turn.columns, turn.start_deg)
    hit = np.where(part >= 0, parts.owner[keep][part], NOTHING) if len(keep) else np.full(len(directions), NOTHING)
    vertical = directions @ rotation[:, 2]
    with np.errstate(divide="ignore"):
        ground = np.where(vertical < 0, -origin[2] / vertical, np.inf)
    hit = np.where(ground < ranges, GROUND, hit)
    ranges = np.minimum(ranges, ground)
    hit, ranges = _own_car(hit, ranges, directions, sensor)

    cosine, intensity, drop = np.abs(vertical), np.zeros(len(ranges)), np.ones(len(ranges))
    on_thing = hit >= 0
    which = part[on_thing]
    face_cosine = -np.einsum("rfi,ri->rf", geometry.normals[which], directions[on_thing])
    at = directions[on_thing] * ranges[on_thing, None]
    depth = geometry.offsets()[which] - np.einsum("rfi,ri->rf", geometry.normals[which], at)
    cosine[on_thing] = np.take_along_axis(face_cosine, np.abs(depth).argmin(axis=1)[:, None], axis=1)[:, 0].clip(
        0.02, 1
    )
    table = np.array([MATERIALS[parts.parts[i].material] for i in keep]).reshape(-1, 2)
    intensity[on_thing], drop[on_thing] = table[which].T
    drop[on_thing] += (ranges[on_thing] / 115.0) ** 3 + 0.25 * (1 - cosine[on_thing]) ** 4
    on_ground = (hit == GROUND) & (ranges < MAX_RANGE_M)
    spots = directions[on_ground] * ranges[on_ground, None] @ rotation + origin
    intensity[on_ground] = _ground_intensity(road, spots[:, :2])
    drop[on_ground] = 0.02 + np.clip((ranges[on_ground] - 22.0) / 45.0, 0.0, 0.97)

    noise = rng.normal(0.0, RANGE_NOISE_M, len(ranges))
    kept = (rng.random(len(ranges)) >= drop) & (ranges < MAX_RANGE_M)
    brightness = intensity * (0.45 + 0.55 * np.sqrt(cosine)) * np.exp(rng.normal(0.0, 0.22, len(ranges)))
    nowhere = rng.uniform(0.05, 0.6, len(ranges))
    hit = np.where((hit == OWN_CAR) | kept, hit, NOTHING)
    distance = np.where(
        kept & (hit != OWN_CAR), ranges + noise, np.where(hit == OWN_CAR, np.minimum(ranges, 0.95), nowhere)
    )
    points = np.empty((len(ranges), 5), np.float32)
    points[:, :3] = directions * distance[:, None]
    points[:, 3] = np.clip(np.floor(brightness), np.where(hit == NOTHING, 0, 1), 255)
    points[:, 4] = np.tile(np.arange(RINGS), turn.columns)
    return Sweep(points, hit)


def _own_car(
    hit: np.ndarray, ranges: np.ndarray, directions: np.ndarray, sensor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rays that meet the own roof end there."""
    (x0, x1), (y0, y1), z = _ROOF_M
    in_ego = directions @ sensor[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (z - sensor[2, 3]) / in_ego[:, 2]
        x, y = sensor[0, 3] + t * in_ego[:, 0], sensor[1, 3] + t * in_ego[:, 1]
        on_roof = (t > 0) & (x > x0) & (x < x1) & (y > y0) & (y < y1)
    return np.where(on_roof, OWN_CAR, hit), np.where(on_roof, t, ranges)


def _ground_intensity(road: Road, xy: np.ndarray) -> np.ndarray:
    """Mean intensity of the ground at points (N, 2): asphalt dark, paint and grass brighter."""
    section = road.section
    _, d = road.locate(xy)
    away = np.abs(d)
    out = np.where(away < section.kerb_m, 6.0, np.where(away < section.sidewalk_edge_m, 13.0, 19.0))
    return np.where(np.abs(away - section.road_edge_m) < 0.08, 34.0, out)
