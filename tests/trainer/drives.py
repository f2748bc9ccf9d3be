"""A frame store of several short drives, each frame where the vehicle had got to, at its own time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.commit import begin, finish
from cache.files import digest_of
from cache.frame import CAMERA_CHANNELS
from cache.frame_fields import frame_fields, frame_identity
from cache.plan import FrameEntry, Scene, StorePlan
from cache.shard_writer import open_shard
from tests.trainer.synthetic import ANNOTATIONS, frame_values, token_of

STEP_US = 500_000


def write_drives(
    cache: Path, lengths: Sequence[int], *, between: Sequence[tuple[int, int]] = (), size: tuple[int, int] = (96, 54)
) -> None:
    """<cache>/frames: scene s has lengths[s] moments, half a second and 3 m and 5 degrees apart; (scene, moment) in
    `between` are unlabelled moments, not key frames. A shard a scene."""
    fields = frame_fields(CAMERA_CHANNELS, points=False)
    scenes = tuple(Scene(token_of(900 + s), f"scene-{s:04d}", "train") for s in range(len(lengths)))
    shards = tuple(tuple(token_of(100 * s + i) for i in range(n)) for s, n in enumerate(lengths))
    plan = StorePlan(
        kind="frames",
        identity=frame_identity("v1.0-synthetic-0", DETECTION_CLASSES),
        header={"points": False, "sweeps": 0, "cameras": list(CAMERA_CHANNELS), "between": 1, "annotated": True},
        fields=fields,
        scenes=scenes,
        shards=shards,
    )
    for shard in begin(cache / "frames", plan):
        with open_shard(cache / "frames", shard) as writer:
            for token in shard.tokens:
                scene, moment = divmod(int(token, 16), 100)
                values = frame_values(int(token, 16), size, False, 3, "train", 0)
                key = (scene, moment) not in between
                half = np.deg2rad(5.0 * moment) / 2
                pose = {
                    "translation": [500.0 + 3.0 * moment, 900.0 + 0.4 * moment, 0.0],
                    "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
                }
                values["frame"] |= {
                    "scene_token": token_of(900 + scene),
                    "scene_name": scenes[scene].name,
                    "timestamp_us": STEP_US * moment,
                    "ego_to_global": pose,
                    **({} if key else {"keyframe": False}),
                }
                if not key:
                    values = {name: value for name, value in values.items() if name not in ANNOTATIONS}
                counts = (0,) * len(DETECTION_CLASSES)
                entry = FrameEntry(
                    token, token_of(900 + scene), STEP_US * moment, int(not key), counts, digest_of([token])[:16]
                )
                writer.write(entry, values)
    finish(cache / "frames", plan)
