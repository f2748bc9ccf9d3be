"""A frame store of your own data: any rig, any classes, any number of cameras. For writers: it imports webdataset.

You name scenes and frames first (the plan), and hand over each frame when it is asked for. A run that was killed goes
on where it stopped when it is called again. See docs/integrate.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cache.commit import begin, finish
from cache.depth_labels import depth_labels
from cache.errors import StoreError
from cache.frame import Frame, GroundTruth
from cache.frame_fields import frame_entry, frame_fields, frame_identity, frame_values
from cache.manifest import Manifest
from cache.plan import Scene, StorePlan
from cache.shard_writer import open_shard


@dataclass(frozen=True)
class OwnFrame:
    """One moment of your data.

    frame: identity, poses and cameras, the cameras' sizes and intrinsics those of the images given here; images: JPEG
    bytes by channel; truth: annotations, None for a frame without; points: (P, 5) float32 x, y, z (m, canonical frame),
    intensity, dt (s, 0 for the key sweep), from which depth labels are made too.
    """

    frame: Frame
    images: Mapping[str, bytes] = field(default_factory=dict)
    truth: GroundTruth | None = None
    points: np.ndarray | None = None


def token_of(name: str) -> str:
    """A frame or scene token, 32 hexadecimal digits, for whatever your data calls it."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def write_frames(
    place: str | Path,
    *,
    dataset_version: str,
    classes: Sequence[str],
    cameras: Sequence[str],
    scenes: Sequence[tuple[Scene, Sequence[str]]],
    read: Callable[[str], OwnFrame],
    frames_per_shard: int = 200,
) -> Manifest:
    """Writes a frame store at `place` (<cache>/frames, or a URL) and returns its manifest.

    classes: names in label order; cameras: channels in the order of every frame's own list; scenes: each with its
    frames' tokens in time order; read(token) gives the frame, asked for in order. Shards hold whole scenes. Raises
    StoreError for a frame that does not fit what was announced, FingerprintError where `place` was begun otherwise.
    """
    first = next((token for _, tokens in scenes for token in tokens), None)
    if first is None:
        raise StoreError(f"{place}: no frame to write; give scenes with frame tokens")
    points = read(first).points is not None
    shards: list[list[str]] = []
    for _, tokens in scenes:
        if not shards or len(shards[-1]) + len(tokens) > frames_per_shard:
            shards.append([])
        shards[-1].extend(tokens)
    plan = StorePlan(
        kind="frames",
        identity=frame_identity(dataset_version, classes),
        header={"annotated": True, "cameras": list(cameras), "image_scale": 1.0, "points": points, "sweeps": 0},
        fields=frame_fields(cameras, points=points),
        scenes=tuple(scene for scene, _ in scenes),
        shards=tuple(tuple(tokens) for tokens in shards if tokens),
    )
    for shard in begin(place, plan):
        with open_shard(place, shard) as writer:
            for token in shard.tokens:
                own = read(token)
                _check(own, token, cameras, points)
                entry = frame_entry(own.frame, own.truth, len(classes))
                cloud = np.zeros((0, 5), np.float32) if own.points is None else own.points
                depth = depth_labels(cloud[cloud[:, 4] == 0], own.frame.cameras)
                writer.write(entry, frame_values(own.frame, own.images, own.truth, depth, own.points))
    return finish(place, plan)


def _check(own: OwnFrame, token: str, cameras: Sequence[str], points: bool) -> None:
    channels = [camera.channel for camera in own.frame.cameras]
    if own.frame.token != token:
        raise StoreError(f"frame {own.frame.token} came where {token} was asked for; check read()")
    if channels != list(cameras):
        raise StoreError(f"frame {token}: cameras {channels}, announced were {list(cameras)}")
    if (own.points is not None) != points:
        raise StoreError(
            f"frame {token}: {'has' if own.points is not None else 'lacks'} points, unlike the first frame"
        )
    if own.points is not None and (
        own.points.ndim != 2 or own.points.shape[1] != 5 or not np.isfinite(own.points).all()
    ):
        raise StoreError(f"frame {token}: points of shape {own.points.shape}, expected finite (P, 5)")
