"""The ground around the car as a picture seen from above: asphalt, markings, kerb, sidewalk, grass, shadows, haze.

Painted once per keyframe in the car's own axes at two scales (0.05 m near, 0.2 m far) from a strip texture that repeats
along the road; every camera then looks its pixels up in it. About 35 ms a keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.simulator.geometry import Posed
from pipeline.simulator.road import PARKING_M, CrossSection, Road
from pipeline.simulator.world import Daylight

HAZE_COLOUR = 196.0
NEAR_M, NEAR_TEXEL_M = 36.0, 0.05
FAR_M, FAR_TEXEL_M = 120.0, 0.2
_NODE_M = 2.0  # spacing of the nodes at which (s, d) is computed; bends of 1/45 m leave under 2 cm of error between
_STRIP_PERIOD_M = 48.0
_STRIP_HALF_M = 44.0


@dataclass(frozen=True)
class GroundPicture:
    """near, far: (H, W, 3) uint8, centred on the car, rows from the left (+y) to the right, columns from back to
    front."""

    near: np.ndarray
    far: np.ndarray

    @staticmethod
    def texel_transform(half_m: float, texel_m: float) -> np.ndarray:
        """(2, 3) car x, y in metres -> texel column, row."""
        middle = half_m / texel_m - 0.5
        return np.array([[1 / texel_m, 0, middle], [0, -1 / texel_m, middle]])


def haze_share(distance_m: np.ndarray | float, haze_m: float) -> np.ndarray:
    """How much of the haze's colour covers what lies that far away: 0 near, towards 1 far."""
    return 1.0 - np.exp(-np.asarray(distance_m, np.float64) / haze_m)


def paint_ground(road: Road, daylight: Daylight, ego_pose: np.ndarray, solids: Posed) -> GroundPicture:
    """The ground about ego_pose (x, y, yaw); solids: the parts' global geometry, which throw the shadows."""
    return GroundPicture(
        _paint(road, daylight, ego_pose, solids, NEAR_M, NEAR_TEXEL_M),
        _paint(road, daylight, ego_pose, solids, FAR_M, FAR_TEXEL_M),
    )


def _paint(
    road: Road, daylight: Daylight, ego_pose: np.ndarray, solids: Posed, half_m: float, texel_m: float
) -> np.ndarray:
    size = round(2 * half_m / texel_m)
    s, d = _road_coordinates(road, ego_pose, half_m, size)
    strip = _strip(road.section, daylight.ground, texel_m)
    rows = len(strip)
    # np.mod would cost three times as much on these two million texels
    turns = s * np.float32(1 / _STRIP_PERIOD_M)
    map_x = (turns - np.floor(turns)) * np.float32(_STRIP_PERIOD_M / texel_m) - np.float32(0.5)
    map_y = np.clip(d * np.float32(-1 / texel_m) + np.float32(_STRIP_HALF_M / texel_m - 0.5), 0, rows - 1)
    picture = cv2.remap(strip, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    light = daylight.exposure * (daylight.ambient + daylight.sun * daylight.to_sun[2])
    shade = _shadows(daylight, ego_pose, solids, half_m, texel_m, size)
    clear = _clearness(half_m, texel_m, 20 * round(daylight.haze_m / 20))
    # 8-bit products: three times faster than float ones, and 1/255 is finer than the sensor's grain
    factor = cv2.multiply(shade, clear, scale=1 / 255)
    picture = cv2.multiply(picture, cv2.merge((factor, factor, factor)), scale=light / 255)
    haze = cv2.convertScaleAbs(cv2.bitwise_not(clear), alpha=HAZE_COLOUR * daylight.exposure / 255)
    return cv2.add(picture, cv2.merge((haze, haze, haze)))


def _folded(d: np.ndarray) -> np.ndarray:
    """Offsets beyond the strip folded back into its outer part, which holds open land."""
    away = np.abs(d)
    over = np.maximum(away - _STRIP_HALF_M, 0)
    span = 0.4 * _STRIP_HALF_M
    back = span - np.abs(np.mod(over, 2 * span) - span)
    return np.copysign(np.minimum(away, _STRIP_HALF_M) - back, d)


def _road_coordinates(road: Road, ego_pose: np.ndarray, half_m: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(s, d) float32 (size, size) of every texel: exact at nodes, linear between."""
    count = round(2 * half_m / _NODE_M)
    at = (np.arange(count) + 0.5) * _NODE_M - half_m
    x, y = np.meshgrid(at, -at)
    c, sn = np.cos(ego_pose[2]), np.sin(ego_pose[2])
    xy = np.stack([ego_pose[0] + c * x - sn * y, ego_pose[1] + sn * x + c * y], axis=-1).reshape(-1, 2)
    s, d = road.locate(xy)
    grown = [cv2.resize(v.reshape(count, count).astype(np.float32), (size, size)) for v in (s, _folded(d))]
    return grown[0], grown[1]


@lru_cache(maxsize=24)  # two scales, some ten hazes
def _clearness(half_m: float, texel_m: float, haze_m: int) -> np.ndarray:
    """(size, size) uint8, 255 where the ground keeps all its own colour, less where haze covers it."""
    size = round(2 * half_m / texel_m)
    at = (np.arange(size, dtype=np.float32) + 0.5) * texel_m - half_m
    distance = np.hypot(at[None, :], at[:, None])
    return np.rint(255 * np.exp(-distance / haze_m)).astype(np.uint8)


def _shadows(
    daylight: Daylight, ego_pose: np.ndarray, solids: Posed, half_m: float, texel_m: float, size: int
) -> np.ndarray:
    """(size, size) uint8: light left after cast shadows of the sun and soft contact shadows."""
    shade = np.full((size, size), 255, np.uint8)
    contact = shade.copy()
    c, s = np.cos(ego_pose[2]), np.sin(ego_pose[2])
    local = solids.corners[..., :2] - ego_pose[:2]
    near = (np.abs(local).max(axis=(1, 2)) < half_m + 15) & (solids.corners[..., 2].min(axis=1) < 12)
    cast = local - solids.corners[..., 2:] * (daylight.to_sun[:2] / daylight.to_sun[2])
    total = daylight.ambient + daylight.sun * daylight.to_sun[2]
    dark = int(255 * daylight.ambient / total)
    to_texel = GroundPicture.texel_transform(half_m, texel_m)
    for points, layer, value in ((cast, shade, dark), (local, contact, 95)):
        x = c * points[..., 0] + s * points[..., 1]
        y = -s * points[..., 0] + c * points[..., 1]
        texels = np.stack([x, y], axis=-1) @ to_texel[:, :2].T + to_texel[:, 2]
        for index in np.flatnonzero(near):
            if layer is contact and solids.corners[index, :, 2].min() > 0.7:
                continue
            cv2.fillConvexPoly(layer, cv2.convexHull(np.rint(texels[index]).astype(np.int32)), value)
    blur = max(3, int(0.5 / texel_m) | 1)
    contact = cv2.blur(contact, (blur, blur))
    sharp = cv2.blur(shade, (3, 3))
    return cv2.multiply(sharp, contact, scale=1 / 255)


@lru_cache(maxsize=64)
def _strip(section: CrossSection, look: int, texel_m: float) -> np.ndarray:
    """(rows = d from +44 m down, columns = s over one period, 3) uint8 picture of the road's cross section."""
    if texel_m > NEAR_TEXEL_M:
        fine = _strip(section, look, NEAR_TEXEL_M)
        size = (round(_STRIP_PERIOD_M / texel_m), round(2 * _STRIP_HALF_M / texel_m))
        return cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng([look, section.lanes_each_way, section.parking])
    rows, columns = round(2 * _STRIP_HALF_M / texel_m), round(_STRIP_PERIOD_M / texel_m)
    d = _STRIP_HALF_M - (np.arange(rows) + 0.5) * texel_m
    away = np.abs(d)
    image = np.empty((rows, columns, 3), np.float32)
    asphalt = np.array([(88, 88, 86), (104, 105, 104), (76, 77, 80), (96, 94, 92)][look])
    grass = np.array([(52, 92, 78), (58, 100, 96), (48, 84, 66), (84, 112, 122)][look])
    image[:] = asphalt
    image[away > section.kerb_m] = (150, 154, 156)
    image[away > section.sidewalk_edge_m] = grass
    lots = away > section.sidewalk_edge_m + 6.0
    image[lots] = 0.5 * grass + 0.5 * np.array((128, 130, 130)) if look % 2 else (112, 114, 116)
    image *= _texture_noise(rng, rows, columns, np.where(lots, 0.4, (away > section.sidewalk_edge_m) * 1.0))[..., None]
    _markings(image, section, d, texel_m)
    return np.clip(image, 0, 255).astype(np.uint8)


def _texture_noise(rng: np.random.Generator, rows: int, columns: int, rough: np.ndarray) -> np.ndarray:
    """Multiplicative grain, periodic along the road; rough (rows,): from 0, fine-grained asphalt, to 1, tufty grass."""
    grain = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    padded = np.concatenate([grain[:, -60:], grain, grain[:, :60]], axis=1)
    blotch = cv2.GaussianBlur(padded, (0, 0), 14)[:, 60:-60]
    tufts = cv2.GaussianBlur(padded, (0, 0), 3)[:, 60:-60]
    blotch, tufts = blotch / blotch.std(), tufts / tufts.std()
    rough = rough[:, None].astype(np.float32)
    return 1 + 0.045 * grain + 0.13 * rough * tufts + (0.045 + 0.055 * rough) * blotch


def _markings(image: np.ndarray, section: CrossSection, d: np.ndarray, texel_m: float) -> None:
    """Centre line, dashes between lanes, edge lines, parking bays, kerb stones, slab joints."""
    columns = image.shape[1]
    s = (np.arange(columns) + 0.5) * texel_m
    white, yellow = np.array((205, 208, 208), np.float32), np.array((60, 165, 200), np.float32)
    dash = np.mod(s, 8.0) < 3.0

    def line(offset: float, width: float, colour: np.ndarray, where: np.ndarray | None = None) -> None:
        rows = np.flatnonzero(np.abs(d - offset) < width / 2)
        for row in rows:
            target = slice(None) if where is None else where
            image[row, target] = 0.85 * colour + 0.15 * image[row, target]

    line(0.12, 0.12, yellow)
    line(-0.12, 0.12, yellow)
    for side in (1.0, -1.0):
        for lane in range(1, section.lanes_each_way):
            line(side * 3.5 * lane, 0.15, white, dash)
        line(side * (section.road_edge_m - 0.1), 0.12, white)
        if section.parking:
            inside = (d * side > section.road_edge_m) & (d * side < section.road_edge_m + PARKING_M)
            image[np.ix_(inside, np.mod(s, 6.0) < 0.12)] = white
        stone = np.abs(d * side - section.kerb_m) < 0.14
        image[stone] = (175, 178, 180)
        image[np.ix_(stone, np.mod(s, 2.0) < 1.0)] = (70, 72, 74)
        slabs = (d * side > section.kerb_m + 0.15) & (d * side < section.sidewalk_edge_m)
        image[np.ix_(slabs, np.mod(s, 1.0) < 0.06)] *= 0.8
        joints = slabs & (np.mod(np.abs(d) - section.kerb_m, 1.0) < 0.06)
        image[joints] *= 0.82
