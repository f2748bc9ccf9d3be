"""One scene's world: the road, the own car's drive, and everything beside it with its track, nothing overlapping ever.

`draw_world` is a pure function of the random generator. A thing's pose is defined at every instant, so sweeps,
cameras and annotations each see it where it truly is at their own time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulator.catalogue import FLOOR_M, Model
from pipeline.simulator.road import Road


@dataclass(frozen=True)
class Track:
    """Constant-speed motion: along a lane (road, s0, offset, signed speed along the road) or straight (x, y, velocity).

    yaw is added to the lane's heading, or is the heading itself.
    """

    start: tuple[float, float]  # (s0, offset) on a road, else (x, y)
    velocity: tuple[float, float]  # (speed along the road, 0), else (vx, vy)
    yaw: float
    road: Road | None = None

    def poses(self, times_s: np.ndarray) -> np.ndarray:
        """(T, 3) global x, y, yaw at the scene's times (T,)."""
        times_s = np.asarray(times_s, np.float64)
        if self.road is not None:
            # offsets inside a bend travel a shorter way: speed is that of the centre line
            out = self.road.pose(self.start[0] + self.velocity[0] * times_s, self.start[1])
            out[:, 2] += self.yaw
            return out
        out = np.empty((len(times_s), 3))
        out[:, 0] = self.start[0] + self.velocity[0] * times_s
        out[:, 1] = self.start[1] + self.velocity[1] * times_s
        out[:, 2] = self.yaw
        return out

    @property
    def moves(self) -> bool:
        return self.velocity != (0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """Something in the world: its looks and its track. model.category None means clutter that is not labelled."""

    model: Model
    track: Track


@dataclass(frozen=True)
class EgoDrive:
    """The own car on its lane with a slowly varying speed (m/s)."""

    road: Road
    offset_m: float
    speed: float
    swing: float
    rate: float
    phase: float
    forward: bool

    def poses(self, times_s: np.ndarray) -> np.ndarray:
        """(T, 3) global x, y, yaw of the rear axle."""
        t = np.asarray(times_s, np.float64)
        way = self.speed * t - self.swing / self.rate * (np.cos(self.rate * t + self.phase) - np.cos(self.phase))
        return self.road.pose(way, self.offset_m)


@dataclass(frozen=True)
class Daylight:
    """Light of a scene: unit vector to the sun, shares of sun and sky light, haze length (m), brightness, sky style."""

    to_sun: np.ndarray
    sun: float
    ambient: float
    haze_m: float
    exposure: float
    sky: int
    ground: int


@dataclass(frozen=True)
class World:
    """Everything that one scene shows."""

    road: Road
    ego: EgoDrive
    things: tuple[Thing, ...]
    daylight: Daylight

    def poses(self, time_s: float) -> np.ndarray:
        """(N, 3) x, y, yaw of all things at one instant."""
        time = np.array([time_s])
        return np.concatenate([thing.track.poses(time) for thing in self.things])

    def box_centre_z(self, index: int) -> float:
        return FLOOR_M + self.things[index].model.size[2] / 2


class Occupancy:
    """Footprints over time of what has been placed; tells whether another one would ever touch them.

    Rectangles are tested with the separating axis theorem at times fine enough that nothing jumps through.
    """

    def __init__(self, times_s: np.ndarray) -> None:
        self.times_s = times_s
        self._poses = np.zeros((0, len(times_s), 3))
        self._half = np.zeros((0, 2))

    def add(self, poses: np.ndarray, length_m: float, width_m: float) -> None:
        self._poses = np.concatenate([self._poses, poses[None]])
        self._half = np.concatenate([self._half, [[length_m / 2, width_m / 2]]])

    def is_free(self, poses: np.ndarray, length_m: float, width_m: float, gap_m: float) -> bool:
        """Whether a rectangle of that size, grown by gap_m, on poses (T, 3) never touches a placed one."""
        half = np.array([length_m / 2 + gap_m, width_m / 2 + gap_m])
        reach = np.hypot(*half) + np.hypot(self._half[:, 0], self._half[:, 1])
        delta = poses[None, :, :2] - self._poses[:, :, :2]
        who, when = np.nonzero((delta**2).sum(-1) < reach[:, None] ** 2)
        if not len(who):
            return True
        a, b = poses[when], self._poses[who, when]
        offset, turn = delta[who, when], a[:, 2] - b[:, 2]
        c, s = np.abs(np.cos(turn)), np.abs(np.sin(turn))
        apart = np.zeros(len(who), bool)
        theirs = self._half[who]
        for yaw, own, other in ((a[:, 2], half[None, :], theirs), (b[:, 2], theirs, half[None, :])):
            for axis in range(2):
                direction = np.stack([np.cos(yaw + axis * np.pi / 2), np.sin(yaw + axis * np.pi / 2)], axis=1)
                along, across = (c, s) if axis == 0 else (s, c)
                extent = own[:, axis] + other[:, 0] * along + other[:, 1] * across
                apart |= np.abs((offset * direction).sum(-1)) > extent
        return bool(apart.all())
