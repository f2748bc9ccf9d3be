"""One camera image: backdrop, then every visible face as a projected polygon with a depth buffer, texture, light and haze.

A face's inverse depth is affine in pixels, so the buffer is exact; work is confined to each face's bounding rectangle. Gives
the picture, which thing owns each pixel, and how many pixels each thing would own if alone. About 30 ms an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.simulator.backdrop import draw_backdrop
from pipeline.simulator.geometry import Parts, Posed, yaw_matrix
from pipeline.simulator.ground import HAZE_COLOUR, GroundPicture, haze_share
from pipeline.simulator.rig import IMAGE_HEIGHT, IMAGE_WIDTH, rig
from pipeline.simulator.solids import FACE_CORNERS
from pipeline.simulator.textures import Texture, texture
from pipeline.simulator.world import Daylight

NEAR_PLANE_M = 0.2
VIEW_M = 115.0
NOTHING = -1
_TEXTURED_PX = 5  # smaller faces get their mean colour
_UNIT_INVERSE = np.linalg.inv(np.array([[0.0, 1, 1], [0, 0, 1], [1, 1, 1]]))  # columns: (0,0), (1,0), (1,1)


@dataclass(frozen=True)
class View:
    """image (900, 1600, 3) uint8 blue-green-red; owner (900, 1600) int16: the thing each pixel shows, -1 none; alone (N,):
    pixels each thing would cover if nothing else stood there."""

    image: np.ndarray
    owner: np.ndarray
    alone: np.ndarray

    def visible(self, things: int) -> np.ndarray:
        """(N,) pixels each thing does cover."""
        return np.bincount(self.owner[self.owner >= 0], minlength=things)


@dataclass(frozen=True)
class _Faces:
    """Visible faces, nearest thing first: part (F,), face (F,), quads (F, 4, 3) in the camera frame, inverse depth
    coefficients (F, 3), texture homographies (F, 3, 3), light factor and haze share (F,)."""

    part: np.ndarray
    face: np.ndarray
    quads: np.ndarray
    inverse_depth: np.ndarray
    homographies: np.ndarray
    light: np.ndarray
    haze: np.ndarray


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
    """The view of one camera with things at poses (N, 3) and the car at ego_pose (3,), both at the camera's own time."""
    image = draw_backdrop(rig_name, camera, ego_pose, picture, picture_pose, daylight.sky, daylight.exposure)
    depth = np.zeros((IMAGE_HEIGHT, IMAGE_WIDTH), np.float32)
    owner = np.full((IMAGE_HEIGHT, IMAGE_WIDTH), NOTHING, np.int16)
    alone = np.zeros(len(poses), np.int64)
    mount = rig(rig_name).cameras[camera]
    assert mount.intrinsic is not None
    to_global = yaw_matrix(ego_pose[2])
    sensor = mount.pose.matrix()
    rotation = (to_global @ sensor[:3, :3]).T
    origin = to_global @ sensor[:3, 3] + [ego_pose[0], ego_pose[1], 0.0]
    faces = _visible_faces(parts, poses, rotation, origin, mount.intrinsic, daylight)
    silhouette = np.zeros((IMAGE_HEIGHT, IMAGE_WIDTH), np.uint8)
    owners = parts.owner[faces.part]
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]]) if len(owners) else np.zeros(0, int)
    for start, end in zip(starts, np.r_[starts[1:], len(owners)], strict=True):
        rectangle = [IMAGE_WIDTH, IMAGE_HEIGHT, 0, 0]
        for i in range(start, end):
            polygon = _project(faces.quads[i], mount.intrinsic)
            if polygon is None:
                continue
            area = _rectangle(polygon)
            if area is None:
                continue
            _draw_face(image, depth, owner, silhouette, parts, faces, i, polygon, area, daylight.exposure)
            rectangle = [min(rectangle[0], area[0]), min(rectangle[1], area[1]), max(rectangle[2], area[2]), max(rectangle[3], area[3])]
        x0, y0, x1, y1 = rectangle
        if x1 > x0 and y1 > y0:
            covered = silhouette[y0:y1, x0:x1]
            alone[owners[start]] = np.count_nonzero(covered)
            covered[:] = 0
    cv2.add(image, _sensor_noise(noise % 4), dst=image)
    return View(image, owner, alone)


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
    part, face = np.nonzero((offsets < -1e-3) & onscreen[:, None])
    normals, shift = view.normals[part, face], offsets[part, face]
    quads = view.corners[part[:, None], FACE_CORNERS[face]]
    inverse = np.linalg.inv(intrinsic)
    weights = parts.quad[keep][part, face]
    basis = np.einsum("ij,fkj->fik", intrinsic, quads[:, :3]) * weights[:, None, :3]
    distance = np.linalg.norm(quads.mean(axis=1), axis=1)
    global_normals = world.normals[part, face]
    light = daylight.ambient * (0.8 + 0.2 * global_normals[:, 2]) + daylight.sun * np.clip(global_normals @ daylight.to_sun, 0, None)
    # far things first would be overdrawn: near ones first, so that hidden faces cost no writing
    thing_distance = np.full(len(poses), np.inf)
    np.minimum.at(thing_distance, parts.owner[keep][part], distance)
    owners = parts.owner[keep][part]
    order = np.lexsort((distance, owners, thing_distance[owners]))
    return _Faces(
        keep[part[order]],
        face[order],
        quads[order],
        ((normals @ inverse) / shift[:, None])[order],
        (basis @ _UNIT_INVERSE)[order],
        (light * parts.brightness[keep][part] * daylight.exposure)[order],
        haze_share(distance, daylight.haze_m)[order],
    )


def _bounds(view: Posed, intrinsic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) lower and upper pixel bounds of the parts; empty for those behind, unbounded for those that cross the near plane."""
    z = view.corners[..., 2]
    pixels = (view.corners @ intrinsic.T)[..., :2] / np.maximum(z, 1e-6)[..., None]
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    crossing = (z < NEAR_PLANE_M).any(axis=1)
    low[crossing], high[crossing] = -np.inf, np.inf
    low[(z < NEAR_PLANE_M).all(axis=1)] = np.inf
    return low, high


def _project(quad: np.ndarray, intrinsic: np.ndarray) -> np.ndarray | None:
    """(K, 2) pixels of a quad (4, 3) clipped at the near plane; None where nothing is left."""
    z = quad[:, 2]
    if z.min() < NEAR_PLANE_M:
        kept = []
        for a, b in zip(quad, np.roll(quad, -1, axis=0), strict=True):
            if a[2] >= NEAR_PLANE_M:
                kept.append(a)
            if (a[2] >= NEAR_PLANE_M) != (b[2] >= NEAR_PLANE_M):
                kept.append(a + (NEAR_PLANE_M - a[2]) / (b[2] - a[2]) * (b - a))
        if len(kept) < 3:
            return None
        quad = np.array(kept)
    projected = quad @ intrinsic.T
    return projected[:, :2] / projected[:, 2:]


def _rectangle(polygon: np.ndarray) -> tuple[int, int, int, int] | None:
    x0, y0 = np.floor(polygon.min(axis=0)).astype(int)
    x1, y1 = np.ceil(polygon.max(axis=0)).astype(int) + 1
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, IMAGE_WIDTH), min(y1, IMAGE_HEIGHT)
    return (int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None


_COLUMNS = np.arange(IMAGE_WIDTH, dtype=np.float32)
_ROWS = np.arange(IMAGE_HEIGHT, dtype=np.float32)[:, None]


def _draw_face(
    image: np.ndarray,
    depth: np.ndarray,
    owner: np.ndarray,
    silhouette: np.ndarray,
    parts: Parts,
    faces: _Faces,
    i: int,
    polygon: np.ndarray,
    area: tuple[int, int, int, int],
    exposure: float,
) -> None:
    x0, y0, x1, y1 = area
    window = (slice(y0, y1), slice(x0, x1))
    points = np.rint((polygon - (x0, y0)) * 16).astype(np.int32)
    inside = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillConvexPoly(inside, points, 1, cv2.LINE_8, 4)
    covered = silhouette[window]
    cv2.bitwise_or(covered, inside, dst=covered)
    a, b, c = faces.inverse_depth[i].astype(np.float32)
    inverse = (a * _COLUMNS[x0:x1] + c) + b * _ROWS[y0:y1]
    shown = (inverse > depth[window]) & inside.view(np.bool_)
    if not shown.any():
        return
    part = parts.parts[faces.part[i]]
    alpha, beta = faces.light[i] * (1 - faces.haze[i]), faces.haze[i] * HAZE_COLOUR * exposure
    painted = texture(part.faces[faces.face[i]], part.colour)
    if painted is None or max(x1 - x0, y1 - y0) < _TEXTURED_PX:
        colour = np.array(part.colour if painted is None else painted.mean)
        image[window][shown] = np.clip(colour * alpha + beta, 0, 255).astype(np.uint8)
    else:
        warped, mask = _warp(painted, faces.homographies[i], polygon, area, alpha, beta)
        if mask is not None:
            shown &= mask > 127
        cv2.copyTo(warped, shown.view(np.uint8), image[window])
    np.copyto(depth[window], inverse, where=shown)
    np.copyto(owner[window], np.int16(parts.owner[faces.part[i]]), where=shown)


def _warp(
    painted: Texture, homography: np.ndarray, polygon: np.ndarray, area: tuple[int, int, int, int], alpha: float, beta: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """The texture as it appears in the rectangle, lit and hazed, and its mask there."""
    x0, y0, x1, y1 = area
    edges = np.linalg.norm(polygon - np.roll(polygon, -1, axis=0), axis=1)
    if len(edges) == 4:
        ratio = min(painted.levels[0].shape[1] / max(edges[0], edges[2], 1.0), painted.levels[0].shape[0] / max(edges[1], edges[3], 1.0))
        level = int(min(len(painted.levels) - 1, max(0, np.log2(max(ratio, 1.0)))))
    else:
        level = 0
    source = cv2.convertScaleAbs(painted.levels[level], alpha=alpha, beta=beta)
    h, w = source.shape[:2]
    to_unit = np.array([[1 / w, 0, 0.5 / w], [0, 1 / h, 0.5 / h], [0, 0, 1]])
    shift = np.array([[1.0, 0, -x0], [0, 1, -y0], [0, 0, 1]])
    matrix = shift @ homography @ to_unit
    size = (x1 - x0, y1 - y0)
    warped = cv2.warpPerspective(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if painted.masks is None:
        return warped, None
    return warped, cv2.warpPerspective(painted.masks[level], matrix, size, flags=cv2.INTER_LINEAR)


@lru_cache(maxsize=4)
def _sensor_noise(index: int) -> np.ndarray:
    """(900, 1600, 3) uint8 grain of standard deviation about 1.5, never negative."""
    rng = np.random.default_rng([901, index])
    return np.clip(np.rint(rng.normal(3.0, 1.5, (IMAGE_HEIGHT, IMAGE_WIDTH, 3))), 0, 9).astype(np.uint8)
