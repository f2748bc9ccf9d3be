"""One scene, from its seed to files and rows: the task of the Dask graph.

Files go straight under the folder being written; only rows, road outlines and counts travel back. The result depends
on the plan alone, never on the process that runs it.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cache.errors import OutOfSpaceError
from cache.frame import CAMERA_CHANNELS, Pose
from pipeline.between import choose_evenly
from pipeline.simulator.camera import render
from pipeline.simulator.geometry import Parts
from pipeline.simulator.ground import paint_ground
from pipeline.simulator.layout import draw_world
from pipeline.simulator.lidar import scan
from pipeline.simulator.rig import CAMERA_OFFSET_US, IMAGE_HEIGHT, IMAGE_WIDTH, KEYFRAME_US, SWEEP_US, rig
from pipeline.simulator.tables import Row, link, pose_row, token, yaw_quaternion
from pipeline.simulator.world import World

JPEG_QUALITY = 88
LABEL_RADIUS_M = 75.0  # things farther than this are not annotated


@dataclass(frozen=True)
class Log:
    """Where and with which car a scene is recorded."""

    token: str
    logfile: str
    vehicle: str
    rig: str
    location: str
    date: str


@dataclass(frozen=True)
class ScenePlan:
    """All that determines one scene's bytes: where it goes, the data set's seed, its index, name, log, length; of how
    many sweeps between two key frames there are camera images, too."""

    out: str
    seed: int
    index: int
    name: str
    log: Log
    frames: int
    sweeps: int
    annotated: bool
    between_images: int = 0

    def token(self, *names: object) -> str:
        return token(self.seed, self.name, *names)


def build_world(plan: ScenePlan) -> World:
    """The world of a scene: at scene time 0 s the first keyframe is taken."""
    rng = np.random.default_rng(np.random.SeedSequence([plan.seed, plan.index]))
    return draw_world(rng, (plan.frames - 1) * KEYFRAME_US * 1e-6, plan.log.location.startswith("boston"))


def simulate_scene(plan: ScenePlan) -> dict[str, Any]:
    """Writes the scene's clouds and images and returns {"rows": table -> rows, "road": (N, 2) outline, "frames",
    "bytes", "boxes": class -> count, "quarantined": 0}. Raises OutOfSpaceError where the disk is full."""
    cv2.setNumThreads(1)
    try:
        return _Recorder(plan).record()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(
                f"{plan.out}: no space left while writing {plan.name}; free some, or ask for fewer --scenes"
            ) from None
        raise


class _Recorder:
    """Drives through the world and records what the sensors see."""

    def __init__(self, plan: ScenePlan) -> None:
        self.plan = plan
        self.rig = rig(plan.log.rig)
        self.world = build_world(plan)
        self.parts = Parts(self.world)
        # sensors' noise has its own stream: how many sweeps are written never changes the world
        self.noise_seed = np.random.SeedSequence([plan.seed, plan.index, 1])
        started = datetime.fromisoformat(plan.log.date).replace(tzinfo=UTC) + timedelta(
            hours=2, minutes=20 + 2 * (plan.index % 300)
        )
        self.start_us = int(started.timestamp()) * 1_000_000 + 1_000 * (plan.index % 997)
        self.bytes = 0
        self.data: dict[str, list[Row]] = {"LIDAR_TOP": [], **{channel: [] for channel in CAMERA_CHANNELS}}
        self.rows: dict[str, list[Row]] = {"ego_pose": [], "sample": [], "sample_annotation": [], "instance": []}
        self.boxes: Counter[str] = Counter()

    def record(self) -> dict[str, Any]:
        plan = self.plan
        per_thing: dict[int, list[Row]] = {}
        for frame in range(plan.frames):
            time_us = self.start_us + frame * KEYFRAME_US
            sample = plan.token("sample", frame)
            self.rows["sample"].append({"token": sample, "timestamp": time_us, "scene_token": plan.token("scene")})
            sweeps = [time_us - back * SWEEP_US for back in range(plan.sweeps, 0, -1)]
            # the sweeps that `cache-frames --between` chooses when it asks for as many; none before the first key frame
            photographed = choose_evenly(sweeps, time_us - KEYFRAME_US, time_us, plan.between_images) if frame else []
            for number, at_us in enumerate(sweeps):
                self._lidar(sample, at_us, False)
                if number in photographed:
                    self._cameras(sample, at_us, False)
            points, lidar_to_global = self._lidar(sample, time_us, True)
            visible = self._cameras(sample, time_us, True)
            if plan.annotated:
                for thing, row in self._annotations(sample, frame, time_us, points, lidar_to_global, visible):
                    per_thing.setdefault(thing, []).append(row)
        link(self.rows["sample"])
        for thing in sorted(per_thing):
            self._instance(thing, per_thing[thing])
        for rows in self.data.values():
            link(rows)
        return {
            "rows": {
                **self.rows,
                "sample_data": [row for rows in self.data.values() for row in rows],
                "scene": [self._scene_row()],
            },
            "road": self._road_outline(),
            "frames": plan.frames,
            "bytes": self.bytes,
            "boxes": dict(self.boxes),
            "quarantined": 0,
        }

    def _time_s(self, time_us: int) -> float:
        return 1e-6 * (time_us - self.start_us)

    def _ego(self, time_us: int) -> np.ndarray:
        return self.world.ego.poses(np.array([self._time_s(time_us)]))[0]

    def _lidar(self, sample: str, time_us: int, keyframe: bool) -> tuple[np.ndarray, np.ndarray]:
        poses, ego = self.world.poses(self._time_s(time_us)), self._ego(time_us)
        rng = np.random.default_rng(
            np.random.SeedSequence(self.noise_seed.entropy, spawn_key=(time_us - self.start_us + 10**9,))
        )
        sweep = scan(self.parts, poses, ego, self.rig.lidar, self.world.road, rng)
        self._store("LIDAR_TOP", sample, time_us, keyframe, sweep.points.tobytes(), ego)
        to_global = Pose(np.array([ego[0], ego[1], 0.0]), np.array(yaw_quaternion(ego[2]))).matrix()
        return sweep.points, to_global @ self.rig.lidar.pose.matrix()

    def _cameras(self, sample: str, time_us: int, keyframe: bool) -> np.ndarray:
        """Writes six images about a sweep, each at its camera's own offset from it; gives the share of each thing's
        pixels that is visible over all of them (N,)."""
        things = len(self.world.things)
        middle_us = time_us + int(np.mean(list(CAMERA_OFFSET_US.values())))
        picture_pose = self._ego(middle_us)
        solids = self.parts.posed(self.world.poses(self._time_s(middle_us)))
        picture = paint_ground(self.world.road, self.world.daylight, picture_pose, solids)
        seen, alone = np.zeros(things), np.zeros(things)
        for camera, channel in enumerate(CAMERA_CHANNELS):
            at_us = time_us + CAMERA_OFFSET_US[channel]
            ego = self._ego(at_us)
            view = render(
                self.parts,
                self.world.poses(self._time_s(at_us)),
                ego,
                self.plan.log.rig,
                camera,
                self.world.daylight,
                picture,
                picture_pose,
                noise=len(self.rows["sample"]) + camera,
            )
            seen += view.visible(things)
            alone += view.alone
            _, encoded = cv2.imencode(".jpg", view.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            self._store(channel, sample, at_us, keyframe, encoded.tobytes(), ego)
        return seen / np.maximum(alone, 1)

    def _store(self, channel: str, sample: str, time_us: int, keyframe: bool, payload: bytes, ego: np.ndarray) -> None:
        lidar = channel == "LIDAR_TOP"
        folder = "samples" if keyframe else "sweeps"
        name = f"{folder}/{channel}/{self.plan.log.logfile}__{channel}__{time_us}" + (".pcd.bin" if lidar else ".jpg")
        (Path(self.plan.out) / name).write_bytes(payload)
        self.bytes += len(payload)
        row_token = self.plan.token("sample_data", channel, time_us)
        self.rows["ego_pose"].append(pose_row(row_token, time_us, ego))
        self.data[channel].append(
            {
                "token": row_token,
                "sample_token": sample,
                "ego_pose_token": row_token,
                "calibrated_sensor_token": token("calibrated_sensor", self.plan.log.token, channel),
                "timestamp": time_us,
                "fileformat": "pcd" if lidar else "jpg",
                "is_key_frame": keyframe,
                "height": 0 if lidar else IMAGE_HEIGHT,
                "width": 0 if lidar else IMAGE_WIDTH,
                "filename": name,
            }
        )

    def _annotations(
        self,
        sample: str,
        frame: int,
        time_us: int,
        points: np.ndarray,
        lidar_to_global: np.ndarray,
        visible: np.ndarray,
    ) -> list[tuple[int, Row]]:
        """Rows of one keyframe for the labelled things within LABEL_RADIUS_M, in the order of the things."""
        poses, ego = self.world.poses(self._time_s(time_us)), self._ego(time_us)
        out = []
        points_global = points[:, :3].astype(np.float64) @ lidar_to_global[:3, :3].T + lidar_to_global[:3, 3]
        points_global = points_global[np.argsort(points_global[:, 0])]
        for index, thing in enumerate(self.world.things):
            model, (x, y, yaw) = thing.model, poses[index]
            if model.category is None or np.hypot(x - ego[0], y - ego[1]) > LABEL_RADIUS_M:
                continue
            centre = [round(float(x), 3), round(float(y), 3), round(self.world.box_centre_z(index), 3)]
            attributes = [] if model.attribute is None else [token("attribute", model.attribute)]
            self.boxes[model.name] += 1
            row = {
                "token": self.plan.token("sample_annotation", frame, index),
                "sample_token": sample,
                "instance_token": self.plan.token("instance", index),
                "visibility_token": str(visibility_level(float(visible[index]))),
                "attribute_tokens": attributes,
                "translation": centre,
                "size": list(model.size),
                "rotation": yaw_quaternion(float(yaw)),
                "num_lidar_pts": count_points(points_global, np.array(centre), model.size, float(yaw)),
                "num_radar_pts": 0,
            }
            out.append((index, row))
        return out

    def _instance(self, thing: int, rows: list[Row]) -> None:
        link(rows)
        self.rows["sample_annotation"].extend(rows)
        category = self.world.things[thing].model.category
        self.rows["instance"].append(
            {
                "token": self.plan.token("instance", thing),
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0]["token"],
                "last_annotation_token": rows[-1]["token"],
                "category_token": token("category", category),
            }
        )

    def _scene_row(self) -> Row:
        seen = ", ".join(f"{count} {name}" for name, count in sorted(self.boxes.items())) or "no labels"
        samples = self.rows["sample"]
        return {
            "token": self.plan.token("scene"),
            "log_token": self.plan.log.token,
            "nbr_samples": len(samples),
            "first_sample_token": samples[0]["token"],
            "last_sample_token": samples[-1]["token"],
            "name": self.plan.name,
            "description": f"Simulated drive at {self.world.ego.speed:.0f} m/s: {seen}",
        }

    def _road_outline(self) -> np.ndarray:
        """(2, N, 2) float32 metres: the left and right edge of the road, for the map mask."""
        road = self.world.road
        s = np.arange(-60.0, road.length_m + 60.0, 2.0)
        return np.stack([road.pose(s, side * road.section.kerb_m)[:, :2] for side in (1, -1)]).astype(np.float32)


def visibility_level(share: float) -> int:
    """nuScenes' level 1..4 of the visible share of an object."""
    return 1 + int(share >= 0.4) + int(share >= 0.6) + int(share >= 0.8)


def count_points(points_global: np.ndarray, centre: np.ndarray, size: tuple[float, float, float], yaw: float) -> int:
    """Points (P, 3), sorted by x, inside a box, faces included: the devkit's points_in_box rule."""
    w, l, h = size
    reach = np.hypot(w, l) / 2 + 1e-6
    first, last = np.searchsorted(points_global[:, 0], (centre[0] - reach, centre[0] + reach))
    offset = points_global[first:last] - centre
    c, s = np.cos(yaw), np.sin(yaw)
    along, across = c * offset[:, 0] + s * offset[:, 1], -s * offset[:, 0] + c * offset[:, 1]
    inside = (np.abs(along) <= l / 2) & (np.abs(across) <= w / 2) & (np.abs(offset[:, 2]) <= h / 2)
    return int(inside.sum())
