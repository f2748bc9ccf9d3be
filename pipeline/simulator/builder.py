"""Places things in a scene one by one: draws the road and the drive, then keeps what never touches anything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.simulator.catalogue import Model
from pipeline.simulator.rig import EGO_OUTLINE_M
from pipeline.simulator.road import CrossSection, draw_road
from pipeline.simulator.world import EgoDrive, Occupancy, Thing, Track

TRIES = 12
MARGIN_BEFORE_S = 0.6  # sweeps are taken before the first keyframe
AHEAD_M = 35.0  # things are placed this far beyond both ends of the drive: what a small camera model can place


class Builder:
    """Places things one by one where they fit."""

    def __init__(self, world_rng: np.random.Generator, section: CrossSection, duration_s: float) -> None:
        self.rng = world_rng
        self.duration_s = duration_s
        speed = float(world_rng.uniform(2.6, 9.0))
        swing = 0.15 * speed * float(world_rng.random())
        length = speed * max(duration_s, 0.1) * 1.1
        self.road = draw_road(length, section, world_rng)
        lane = int(world_rng.integers(section.lanes_each_way))
        self.ego = EgoDrive(
            self.road,
            section.lane_offset(lane, True),
            speed,
            swing,
            float(world_rng.uniform(0.2, 0.6)),
            float(world_rng.uniform(0, 6.28)),
            True,
        )
        self.section = section
        times = np.arange(-MARGIN_BEFORE_S, duration_s + 0.3, 0.2)
        self.space = Occupancy(times)
        back, front, half_width = EGO_OUTLINE_M
        ego_poses = self.ego.poses(times)
        middle = (back + front) / 2
        ego_poses[:, 0] += middle * np.cos(ego_poses[:, 2])
        ego_poses[:, 1] += middle * np.sin(ego_poses[:, 2])
        self.space.add(ego_poses, front - back + 1.6, 2 * half_width + 0.6)
        self.things: list[Thing] = []

    def count(self, per_100_m: float) -> int:
        return int(self.rng.poisson(per_100_m * (self.road.length_m + 2 * AHEAD_M) / 100))

    def along(self) -> float:
        return float(self.rng.uniform(-AHEAD_M, self.road.length_m + AHEAD_M))

    def side(self) -> float:
        return 1.0 if self.rng.random() < 0.5 else -1.0

    def put(self, model: Model, draw_track: Callable[[], Track], gap_m: float = 0.25) -> bool:
        """Tries some tracks; keeps the first on which the thing never touches another."""
        return any(self._keep(model, draw_track(), gap_m) for _ in range(TRIES))

    def stand(self, model: Model, s: float, d: float, yaw: float, gap_m: float) -> bool:
        """Puts a thing at road coordinates if it fits there."""
        track = self.standing(s, d, yaw)
        return self._keep(model, track, gap_m)

    def _keep(self, model: Model, track: Track, gap_m: float) -> bool:
        w, l, _ = model.size
        poses = track.poses(self.space.times_s)
        free = self.space.is_free(poses, l, w, gap_m)
        if free:
            self.space.add(poses, l, w)
            self.things.append(Thing(model, track))
        return free

    def standing(self, s: float, d: float, yaw: float) -> Track:
        """A standing track at road coordinates, yaw relative to the road."""
        x, y, heading = self.road.pose(np.array([s]), d)[0]
        return Track((float(x), float(y)), (0.0, 0.0), float(heading + yaw))
