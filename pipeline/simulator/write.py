"""Plans a simulated data set, runs its scenes, and writes tables and maps: nothing is visible until all is there.

Everything is written under `<out>.partial`, which is renamed to `<out>` at the end and removed on any failure.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cache.errors import ConfigError, DataError, OutOfSpaceError
from cache.frame import CAMERA_CHANNELS
from pipeline.engine import Progress, run_shards
from pipeline.simulator.rig import MAX_SWEEPS, rig
from pipeline.simulator.scene import Log, ScenePlan, simulate_scene
from pipeline.simulator.tables import TABLES, Row, calibration_rows, fixed_tables, token, write_tables

MAP_PIXELS_PER_M = 10

_SPLITS = {
    "v1.0-trainval": ("train", "val"),
    "v1.0-mini": ("mini_train", "mini_val"),
    "v1.0-test": ("test",),
}
_DEFAULT_SCENES = {
    "v1.0-trainval": {"train": 4, "val": 2},
    "v1.0-mini": {"train": 2, "val": 1},
    "v1.0-test": {"test": 2},
}
# (location, rig, logfile, date): right-hand traffic in Boston, left-hand in Singapore
_RECORDINGS = (
    ("singapore-onenorth", "singapore", "n015-2018-07-18-11-07-57+0800", "2018-07-18"),
    ("boston-seaport", "boston", "n008-2018-08-01-15-16-36-0400", "2018-08-01"),
    ("singapore-queenstown", "singapore", "n015-2018-09-25-13-17-43+0800", "2018-09-25"),
    ("boston-seaport", "boston", "n008-2018-09-18-13-10-39-0400", "2018-09-18"),
    ("singapore-hollandvillage", "late", "n015-2018-11-21-19-38-26+0800", "2018-11-21"),
)


@dataclass(frozen=True)
class Summary:
    """What `simulate` wrote: scenes and keyframes, bytes of clouds and images, boxes per class (empty without
    labels)."""

    out: Path
    version: str
    scenes: int
    frames: int
    bytes: int
    boxes: dict[str, int]


def simulate(
    out: Path,
    *,
    version: str = "v1.0-trainval",
    scenes: Mapping[str, int] | None = None,
    frames: int = 4,
    sweeps: int = 4,
    seed: int = 0,
    between_images: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Writes a simulated nuScenes folder at `out`.

    version: v1.0-trainval, v1.0-mini, or v1.0-test (which gets no annotations). scenes: split -> count, names taken in
    order from the official split ("train" and "val" also name the mini splits; default 4 + 2, mini 2 + 1, test 2).
    frames: keyframes per scene, 0.5 s apart. sweeps: LiDAR sweeps before each keyframe, 0..9, 50 ms apart.
    between_images: camera images, too, at so many of the sweeps between two keyframes, 0..sweeps; nothing else changes
    with it. workers: processes (None one per core, 1 this process). progress: told of every finished scene.

    Raises ConfigError for impossible options, DataError where `out` exists and is not empty, OutOfSpaceError.
    """
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    plans = plan_scenes(
        partial,
        version=version,
        scenes=scenes,
        frames=frames,
        sweeps=sweeps,
        seed=seed,
        between_images=between_images,
    )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; choose another --out or remove it")
    # a partial folder is what a killed run left: nobody else writes there
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _make_folders(partial, bool(between_images))
        results = run_shards(simulate_scene, [(plan,) for plan in plans], workers=workers, progress=progress)
        _write_metadata(partial, version, plans, results)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(f"{out}: no space left; free some, or simulate fewer --scenes or --sweeps") from None
        raise DataError(f"{out}: cannot be written ({error.strerror}); check the path and its permissions") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    boxes: Counter[str] = Counter()
    for result in results:
        boxes.update(result["boxes"])
    return Summary(
        out,
        version,
        len(plans),
        sum(r["frames"] for r in results),
        sum(r["bytes"] for r in results),
        dict(sorted(boxes.items())),
    )


def plan_scenes(
    out: Path,
    *,
    version: str,
    scenes: Mapping[str, int] | None,
    frames: int,
    sweeps: int,
    seed: int,
    between_images: int = 0,
) -> list[ScenePlan]:
    """One plan per scene, in the order of the splits; `out` is the folder that the scenes write into.

    Raises ConfigError for options that are out of range or unknown.
    """
    if version not in _SPLITS:
        raise ConfigError(f"version {version!r} is not one of {', '.join(_SPLITS)}; choose one of them")
    if frames < 1 or not 0 <= sweeps <= MAX_SWEEPS or seed < 0:
        raise ConfigError(
            f"frames={frames}, sweeps={sweeps}, seed={seed}: expected frames >= 1, sweeps 0..{MAX_SWEEPS}, seed >= 0"
        )
    if not 0 <= between_images <= sweeps:
        raise ConfigError(
            f"between_images={between_images}: expected 0..{sweeps}, the sweeps that images go with; ask for more "
            "sweeps, or fewer images"
        )
    # imported here: the devkit's package takes over a second, and workers never need it
    from nuscenes.utils.splits import create_splits_scenes

    counts = dict(_DEFAULT_SCENES[version] if scenes is None else scenes)
    official = create_splits_scenes()
    names: list[str] = []
    for split in _SPLITS[version]:
        count = counts.pop(split, None)
        if count is None:
            count = counts.pop(split.removeprefix("mini_"), 0)
        if not 0 <= count <= len(official[split]):
            raise ConfigError(
                f"{count} scenes asked of split {split}, which has {len(official[split])}; ask for 0 to that many"
            )
        names += official[split][:count]
    if any(counts.values()) or not names:
        wanted = ", ".join(split.removeprefix("mini_") for split in _SPLITS[version])
        raise ConfigError(
            f"scenes {dict(scenes or {})}: {version} has the splits {wanted}; name those, with at least one scene"
        )
    logs = [
        Log(token("log", logfile), logfile, rig(rig_name).vehicle, rig_name, location, date)
        for location, rig_name, logfile, date in _RECORDINGS
    ]
    return [
        ScenePlan(str(out), seed, i, name, logs[i % len(logs)], frames, sweeps, version != "v1.0-test", between_images)
        for i, name in enumerate(names)
    ]


def _make_folders(root: Path, between_images: bool) -> None:
    cameras = [f"{kind}/{c}" for kind in ("samples", *(["sweeps"] if between_images else [])) for c in CAMERA_CHANNELS]
    for folder in ("maps", "samples/LIDAR_TOP", "sweeps/LIDAR_TOP", *cameras):
        (root / folder).mkdir(parents=True)


def _write_metadata(root: Path, version: str, plans: Sequence[ScenePlan], results: Sequence[dict[str, Any]]) -> None:
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    tables.update(fixed_tables())
    for result in results:
        for name, rows in result["rows"].items():
            tables[name].extend(rows)
    logs = list({plan.log.token: plan.log for plan in plans}.values())
    for log in logs:
        tables["log"].append(
            {
                "token": log.token,
                "logfile": log.logfile,
                "vehicle": log.vehicle,
                "date_captured": log.date,
                "location": log.location,
            }
        )
        tables["calibrated_sensor"].extend(calibration_rows(rig(log.rig), log.token))
    for location in sorted({log.location for log in logs}):
        map_token = token("map", location)
        roads = [result["road"] for plan, result in zip(plans, results, strict=True) if plan.log.location == location]
        filename = f"maps/{map_token}.png"
        (root / filename).write_bytes(_map_mask(roads))
        tables["map"].append(
            {
                "category": "semantic_prior",
                "token": map_token,
                "filename": filename,
                "log_tokens": [log.token for log in logs if log.location == location],
            }
        )
    write_tables(root / version, tables)


def _map_mask(roads: Sequence[np.ndarray]) -> bytes:
    """PNG of a location's drivable surface, 10 pixels a metre, y upwards as the devkit reads it."""
    extent = max(float(edges.max()) for edges in roads) + 40.0
    size = int(np.ceil(extent / 50.0) * 50 * MAP_PIXELS_PER_M)
    mask = np.zeros((size, size), np.uint8)
    for edges in roads:
        outline = np.concatenate([edges[0], edges[1][::-1]]) * MAP_PIXELS_PER_M
        outline[:, 1] = size - outline[:, 1]
        cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 255)
    _, encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return encoded.tobytes()
