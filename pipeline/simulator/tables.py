"""Rows of the 13 nuScenes tables: the fixed ones complete as in the real data, and tokens made from the seed and names.

Rows are plain dicts; `write_tables` checks nothing and writes them as the real files look (a JSON list, one key a
line).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.frame import CAMERA_CHANNELS
from pipeline.simulator.rig import Rig

Row = dict[str, Any]

TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)

ATTRIBUTES: dict[str, str] = {
    "vehicle.moving": "Vehicle is moving.",
    "vehicle.stopped": "Vehicle, with a driver/rider in/on it, is currently stationary but has an intent to move.",
    "vehicle.parked": "Vehicle is stationary (usually for longer duration) with no immediate intent to move.",
    "cycle.with_rider": "There is a rider on the bicycle or motorcycle.",
    "cycle.without_rider": "There is NO rider on the bicycle or motorcycle.",
    "pedestrian.sitting_lying_down": "The human is sitting or lying down.",
    "pedestrian.standing": "The human is standing.",
    "pedestrian.moving": "The human is moving.",
}
CATEGORIES: dict[str, str] = {
    "human.pedestrian.adult": "Adult subcategory.",
    "human.pedestrian.child": "Child subcategory.",
    "human.pedestrian.wheelchair": "Wheelchairs, with the person in them.",
    "human.pedestrian.stroller": "Strollers, with the person in them.",
    "human.pedestrian.personal_mobility": "Skateboards, scooters and the like, with their rider.",
    "human.pedestrian.police_officer": "Police officer.",
    "human.pedestrian.construction_worker": "Construction worker.",
    "animal": "All animals.",
    "vehicle.car": "Vehicle for personal use: sedans, hatch-backs, wagons, vans, SUVs.",
    "vehicle.motorcycle": "Gasoline or electric powered two-wheeled vehicle.",
    "vehicle.bicycle": "Human or electric powered two-wheeled vehicle for lower speeds.",
    "vehicle.bus.bendy": "Bus with two or more rigid sections.",
    "vehicle.bus.rigid": "Rigid bus.",
    "vehicle.truck": "Vehicle primarily designed to haul cargo.",
    "vehicle.construction": "Vehicle primarily designed for construction.",
    "vehicle.emergency.ambulance": "Ambulance.",
    "vehicle.emergency.police": "Police vehicle.",
    "vehicle.trailer": "Any vehicle trailer.",
    "movable_object.barrier": "Temporary road barrier.",
    "movable_object.trafficcone": "All types of traffic cones.",
    "movable_object.pushable_pullable": "Objects that a pedestrian may push or pull.",
    "movable_object.debris": "Debris left on the road that is too large to be driven over safely.",
    "static_object.bicycle_rack": "Area or device intended to park or secure bicycles in a row.",
}
VISIBILITY: dict[str, tuple[str, str]] = {
    "1": ("v0-40", "visibility of whole object is between 0 and 40%"),
    "2": ("v40-60", "visibility of whole object is between 40 and 60%"),
    "3": ("v60-80", "visibility of whole object is between 60 and 80%"),
    "4": ("v80-100", "visibility of whole object is between 80 and 100%"),
}
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")


def token(*names: object) -> str:
    """32 hex digits that depend on the names only."""
    return hashlib.blake2b("/".join(str(name) for name in names).encode(), digest_size=16).hexdigest()


def fixed_tables() -> dict[str, list[Row]]:
    """attribute, category, visibility and sensor: the same in every data set, tokens included."""
    return {
        "attribute": [{"token": token("attribute", n), "name": n, "description": d} for n, d in ATTRIBUTES.items()],
        "category": [{"token": token("category", n), "name": n, "description": d} for n, d in CATEGORIES.items()],
        "visibility": [{"description": d, "token": t, "level": level} for t, (level, d) in VISIBILITY.items()],
        "sensor": [
            {"token": token("sensor", c), "channel": c, "modality": c.split("_")[0].lower().replace("cam", "camera")}
            for c in (*CAMERA_CHANNELS, "LIDAR_TOP", *RADARS)
        ],
    }


def calibration_rows(rig: Rig, log_token: str) -> list[Row]:
    """calibrated_sensor rows of one log."""
    return [
        {
            "token": token("calibrated_sensor", log_token, mount.channel),
            "sensor_token": token("sensor", mount.channel),
            "translation": [float(v) for v in mount.pose.translation],
            "rotation": [float(v) for v in mount.pose.rotation],
            "camera_intrinsic": [] if mount.intrinsic is None else mount.intrinsic.tolist(),
        }
        for mount in rig.mounts
    ]


def pose_row(row_token: str, timestamp_us: int, ego_pose: np.ndarray) -> Row:
    """ego_pose row for x, y, yaw on the plane z = 0."""
    x, y, yaw = (float(v) for v in ego_pose)
    return {
        "token": row_token,
        "timestamp": timestamp_us,
        "rotation": yaw_quaternion(yaw),
        "translation": [x, y, 0.0],
    }


def yaw_quaternion(yaw: float) -> list[float]:
    """(w, x, y, z) of a turn about z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def link(rows: Sequence[Row]) -> None:
    """Fills prev and next along the sequence; the ends get empty strings."""
    for i, row in enumerate(rows):
        row["prev"] = rows[i - 1]["token"] if i else ""
        row["next"] = rows[i + 1]["token"] if i + 1 < len(rows) else ""


def write_tables(folder: Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Writes all 13 tables under folder; those without rows are empty lists."""
    folder.mkdir(parents=True)
    for name in TABLES:
        text = json.dumps(list(tables.get(name, ())), indent=0)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
