"""One camera image: backdrop, then every visible face as a projected polygon with a depth buffer, texture, light and
haze.

A face's inverse depth is affine in pixels, so the buffer is exact; work is confined to each face's bounding
rectangle. Gives the picture, which thing owns each pixel, and how many pixels each thing would own if alone. About 30
ms an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.simulator.backdrop import draw_backdrop
from pipeline.simulator.geometry import Parts, Posed, yaw_matrix
from pipeline.simulator.ground import HAZE_COLOUR, GroundPicture, haze_share
from pipeline.simulator.raster import Canvas, Face
from pipeline.simulator.rig import IMAGE_HEIGHT, IMAGE_WIDTH, rig
from pipeline.simulator.solids import FACE_CORNERS
from pipeline.simulator.world import Daylight

NEAR_PLANE_M = 0.2
VIEW_M = 115.0
_UNIT_INVERSE = np.linalg.inv(np.array([[0.0, 1, 1], [0, 0, 1], [1, 1, 1]]))  # columns: (0,0), (1,0), (1,1)


@dataclass(frozen=True)
class View:
    """image (900, 1600, 3) uint8 blue-green-red; owner (900, 1600) int16: the thing each pixel shows, -1 none; alone
    (N,): pixels each thing would cover if nothing else stood there."""

    image: np.ndarray
    owner: np.ndarray
    alone: np.ndarray

    def visible(self, things: int) -> np.ndarray:
        """(N,) pixels each thing does cover."""
        return np.bincount(self.owner[self.owner >= 0], minlength=things)


@dataclass(frozen=True)
class _Faces:
    """Visible faces, nearest thing first: part, face (F,); polygons, F of (K, 2) pixels; areas (F, 4) int on screen;
    inverse depth coefficients (F, 3) float32; texture homographies (F, 3, 3); gain and haze (F,)."""

    part: np.ndarray
    side: np.ndarray
    polygons: list[np.ndarray]
    areas: np.ndarray
    inverse_depth: np.ndarray
    homographies: np.ndarray
    gain: np.ndarray
    haze: np.ndarray

    def face(self, i: int, parts: Parts) -> Face:
        part = parts.parts[self.part[i]]
        x0, y0, x1, y1 = self.areas[i].tolist()
        return Face(
            self.polygons[i],
            (x0, y0, x1, y1),
            self.inverse_depth[i],
            self.homographies[i],
            part.faces[self.side[i]],
            part.colour,
            float(self.gain[i]),
            float(self.haze[i]),
        )


def render(
    parts: Parts,
    poses: np.ndarray,
    ego_pose: np.ndarray,
    rig_name: str,
    camera: int,
    daylight: Daylight,
    picture: GroundPicture,
    picture_pose: np.ndarray,
    noise: int = 0,
) -> View:
    """The view of one camera with things at poses (N, 3) and the car at ego_pose (3,), both at the camera's own
    time."""
    canvas = Canvas(draw_backdrop(rig_name, camera, ego_pose, picture, picture_pose, daylight.sky, daylight.exposure))
    alone = np.zeros(len(poses), np.int64)
    mount = rig(rig_name).cameras[camera]
    assert mount.intrinsic is not None
    to_global = yaw_matrix(ego_pose[2])
    sensor = mount.pose.matrix()
    rotation = (to_global @ sensor[:3, :3]).T
    origin = to_global @ sensor[:3, 3] + [ego_pose[0], ego_pose[1], 0.0]
    faces = _visible_faces(parts, poses, rotation, origin, mount.intrinsic, daylight)
    for owner, group in _by_thing(parts.owner[faces.part]):
        areas = faces.areas[group]
        for i in range(group.start, group.stop):
            canvas.draw(faces.face(i, parts), owner)
        whole = (*areas[:, :2].min(axis=0), *areas[:, 2:].max(axis=0))
        alone[owner] = canvas.take_silhouette(whole)
    cv2.add(canvas.image, _sensor_noise(noise % 4), dst=canvas.image)
    return View(canvas.image, canvas.owner, alone)


def _by_thing(owners: np.ndarray) -> list[tuple[int, slice]]:
    """(owner, slice) of each run of equal owners (F,)."""
    if not len(owners):
        return []
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    return [(int(owners[a]), slice(int(a), int(b))) for a, b in zip(starts, [*starts[1:], len(owners)], strict=True)]


def _visible_faces(
    parts: Parts, poses: np.ndarray, rotation: np.ndarray, origin: np.ndarray, intrinsic: np.ndarray, daylight: Daylight
) -> _Faces:
    keep = parts.within(poses, origin[:2], VIEW_M)
    world = parts.posed(poses, keep)
    view = world.moved(rotation, -rotation @ origin)
    offsets = view.offsets()
    low, high = _bounds(view, intrinsic)
    onscreen = (high[:, 0] > 0) & (low[:, 0] < IMAGE_WIDTH) & (high[:, 1] > 0) & (low[:, 1] < IMAGE_HEIGHT)
    # edge-on faces (offset near 0) have no area, and no stable inverse depth
    part, side = np.nonzero((offsets < -1e-3) & onscreen[:, None] & parts.drawn[keep])
    normals, shift = view.normals[part, side], offsets[part, side]
    quads = view.corners[part[:, None], FACE_CORNERS[side]]
    inverse = np.linalg.inv(intrinsic)
    weights = parts.quad[keep][part, side]
    basis = np.einsum("ij,fkj->fik", intrinsic, quads[:, :3]) * weights[:, None, :3]
    distance = np.linalg.norm(quads.mean(axis=1), axis=1)
    global_normals = world.normals[part, side]
    light = daylight.ambient * (0.8 + 0.2 * global_normals[:, 2]) + daylight.sun * np.clip(
        global_normals @ daylight.to_sun, 0, None
    )
    polygons = _polygons(quads, intrinsic)
    areas = _areas(polygons)
    # near things first, so that hidden faces cost no writing
    owners = parts.owner[keep][part]
    thing_distance = np.full(len(poses), np.inf)
    np.minimum.at(thing_distance, owners, distance)
    order = np.lexsort((distance, owners, thing_distance[owners]))
    order = order[(areas[order, 2] > areas[order, 0]) & (areas[order, 3] > areas[order, 1])]
    haze = haze_share(distance, daylight.haze_m)
    return _Faces(
        keep[part[order]],
        side[order],
        [polygons[i] for i in order],
        areas[order],
        ((normals @ inverse) / shift[:, None])[order].astype(np.float32),
        (basis @ _UNIT_INVERSE)[order],
        (light * parts.brightness[keep][part] * daylight.exposure * (1 - haze))[order],
        (haze * HAZE_COLOUR * daylight.exposure)[order],
    )


def _polygons(quads: np.ndarray, intrinsic: np.ndarray) -> list[np.ndarray]:
    """(K, 2) pixels of each quad (F, 4, 3), clipped at the near plane; an empty polygon where nothing is left."""
    projected = quads @ intrinsic.T
    with np.errstate(divide="ignore", invalid="ignore"):
        polygons = list(projected[..., :2] / projected[..., 2:])
    for i in np.flatnonzero((quads[..., 2] < NEAR_PLANE_M).any(axis=1)):
        polygons[i] = _clipped(quads[i], intrinsic)
    return polygons


def _clipped(quad: np.ndarray, intrinsic: np.ndarray) -> np.ndarray:
    kept = []
    for a, b in zip(quad, np.roll(quad, -1, axis=0), strict=True):
        if a[2] >= NEAR_PLANE_M:
            kept.append(a)
        if (a[2] >= NEAR_PLANE_M) != (b[2] >= NEAR_PLANE_M):
            kept.append(a + (NEAR_PLANE_M - a[2]) / (b[2] - a[2]) * (b - a))
    if len(kept) < 3:
        return np.zeros((0, 2))
    projected = np.array(kept) @ intrinsic.T
    return projected[:, :2] / projected[:, 2:]


def _areas(polygons: list[np.ndarray]) -> np.ndarray:
    """(F, 4) x0, y0, x1, y1 of the pixels that each polygon may touch on screen; empty where x1 <= x0 or y1 <= y0."""
    areas = np.zeros((len(polygons), 4), np.int64)
    if not polygons:
        return areas
    lengths = np.array([len(p) for p in polygons])
    some = np.flatnonzero(lengths)
    starts = np.cumsum(lengths[some]) - lengths[some]
    points = np.concatenate(polygons)
    size = (IMAGE_WIDTH, IMAGE_HEIGHT)
    areas[some, :2] = np.clip(np.floor(np.minimum.reduceat(points, starts)), 0, size)
    areas[some, 2:] = np.clip(np.ceil(np.maximum.reduceat(points, starts)) + 1, 0, size)
    return areas


def _bounds(view: Posed, intrinsic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) lower and upper pixel bounds of the parts; empty for those behind, unbounded for those that cross the
    near plane."""
    z = view.corners[..., 2]
    pixels = (view.corners @ intrinsic.T)[..., :2] / np.maximum(z, 1e-6)[..., None]
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    crossing = (z < NEAR_PLANE_M).any(axis=1)
    low[crossing], high[crossing] = -np.inf, np.inf
    low[(z < NEAR_PLANE_M).all(axis=1)] = np.inf
    return low, high


@lru_cache(maxsize=4)
def _sensor_noise(index: int) -> np.ndarray:
    """(900, 1600, 3) uint8 grain of standard deviation about 1.5, never negative."""
    rng = np.random.default_rng([901, index])
    return np.clip(np.rint(rng.normal(3.0, 1.5, (IMAGE_HEIGHT, IMAGE_WIDTH, 3))), 0, 9).astype(np.uint8)
