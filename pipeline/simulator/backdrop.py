"""Ground and sky of one camera: which texel of the ground picture and of the sky panorama each pixel shows.

The pixels' ground points in the car's frame and their viewing directions are fixed per rig, so they are computed once
per process; a frame costs one small affine transform and two look-ups (about 20 ms an image).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.simulator.ground import FAR_M, FAR_TEXEL_M, NEAR_M, NEAR_TEXEL_M, GroundPicture
from pipeline.simulator.rig import IMAGE_HEIGHT, IMAGE_WIDTH, rig
from pipeline.simulator.sky import HIGHEST_RAD, TEXELS_PER_RAD, WIDTH, panorama

_LIMIT_M = FAR_M - 4.0  # farther ground is the skyline's foot


@dataclass(frozen=True)
class _PixelMaps:
    """ground (R, W, 2) float32: car-frame x, y of the pixels from row first_ground on; near_row: rows from there on lie
    within the near picture; no_ground (M, W) uint8: 1 where a pixel of the first M ground rows shows no ground; sky:
    fixed-point look-up of the first S rows in a slice of the panorama, which starts at column sky_start for a car that
    looks along +x."""

    first_ground: int
    near_row: int
    ground: np.ndarray
    no_ground: np.ndarray
    sky: tuple[np.ndarray, np.ndarray]
    sky_start: int
    sky_width: int


@lru_cache(maxsize=18)
def _pixel_maps(rig_name: str, camera: int) -> _PixelMaps:
    mount = rig(rig_name).cameras[camera]
    assert mount.intrinsic is not None
    pose = mount.pose.matrix()
    u, v = np.meshgrid(np.arange(IMAGE_WIDTH), np.arange(IMAGE_HEIGHT))
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(mount.intrinsic).T @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        reach = np.where(rays[..., 2] < 0, -pose[2, 3] / rays[..., 2], np.inf)
    xy = pose[:2, 3] + np.where(np.isfinite(reach), reach, 0.0)[..., None] * rays[..., :2]
    shows_ground = np.isfinite(reach) & (np.hypot(xy[..., 0], xy[..., 1]) < _LIMIT_M)
    first = int(np.flatnonzero(shows_ground.any(axis=1))[0])
    full = int(np.flatnonzero(shows_ground.all(axis=1))[0])
    inside = (np.abs(xy).max(axis=-1) < NEAR_M - 1.5) & shows_ground
    near = int(np.flatnonzero(~inside.all(axis=1))[-1]) + 1
    azimuth = np.arctan2(rays[:full, :, 1], rays[:full, :, 0])
    elevation = np.arctan2(rays[:full, :, 2], np.hypot(rays[:full, :, 0], rays[:full, :, 1]))
    column = -azimuth * TEXELS_PER_RAD
    column = column[:, :1] + np.mod(column - column[:, :1], WIDTH)  # no jump inside one image
    start = int(np.floor(column.min()))
    row = (HIGHEST_RAD - elevation) * TEXELS_PER_RAD - 0.5
    # fixed-point maps are twice as fast, and the sky never needs others: turning the car moves the slice
    sky = cv2.convertMaps((column - start).astype(np.float32), row.astype(np.float32), cv2.CV_16SC2)
    ground = np.where(shows_ground[..., None], xy, 0.0)[first:]
    return _PixelMaps(
        first,
        near,
        ground.astype(np.float32),
        (~shows_ground[first:full]).astype(np.uint8),
        (sky[0], sky[1]),
        start,
        int(np.ceil(column.max())) - start + 2,
    )


def draw_backdrop(
    rig_name: str,
    camera: int,
    ego_pose: np.ndarray,
    picture: GroundPicture,
    picture_pose: np.ndarray,
    sky_look: int,
    exposure: float,
) -> np.ndarray:
    """(900, 1600, 3) uint8 with ground and sky; picture_pose: the car's pose (x, y, yaw) that the ground was painted
    for."""
    maps = _pixel_maps(rig_name, camera)
    image = np.empty((IMAGE_HEIGHT, IMAGE_WIDTH, 3), np.uint8)
    start = round(maps.sky_start - ego_pose[2] * TEXELS_PER_RAD) % WIDTH
    around = _bright_panorama(sky_look, round(exposure, 2))[:, start : start + maps.sky_width]
    sky = cv2.remap(around, *maps.sky, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    image[: len(sky)] = sky
    c, s = np.cos(ego_pose[2] - picture_pose[2]), np.sin(ego_pose[2] - picture_pose[2])
    cp, sp = np.cos(picture_pose[2]), np.sin(picture_pose[2])
    dx, dy = ego_pose[0] - picture_pose[0], ego_pose[1] - picture_pose[1]
    to_picture = np.array([[c, -s, cp * dx + sp * dy], [s, c, -sp * dx + cp * dy], [0, 0, 1]])
    split = maps.near_row - maps.first_ground
    for rows, texture, half, texel in (
        (slice(0, split), picture.far, FAR_M, FAR_TEXEL_M),
        (slice(split, None), picture.near, NEAR_M, NEAR_TEXEL_M),
    ):
        affine = GroundPicture.texel_transform(half, texel) @ to_picture
        at = cv2.transform(maps.ground[rows], affine)
        looked_up = cv2.remap(texture, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        start = maps.first_ground + (rows.start or 0)
        if rows.start == 0:
            mixed = len(maps.no_ground)
            cv2.copyTo(sky[start : start + mixed], maps.no_ground, looked_up[:mixed])
        image[start : start + len(looked_up)] = looked_up
    return image


@lru_cache(maxsize=12)
def _bright_panorama(look: int, exposure: float) -> np.ndarray:
    """The panorama twice around, so that every slice of up to a turn is there."""
    once = cv2.convertScaleAbs(panorama(look), alpha=exposure)
    return np.concatenate([once, once], axis=1)
