"""A camera's canvas: polygons drawn with a depth buffer, a texture, light and haze, and who owns each pixel.

A face's inverse depth is affine in pixels, so the buffer is exact; work is confined to each face's bounding rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.simulator.rig import IMAGE_HEIGHT, IMAGE_WIDTH
from pipeline.simulator.solids import Colour
from pipeline.simulator.textures import Texture, texture

NOTHING = -1
_TEXTURED_PX = 5  # smaller faces get their mean colour
_COLUMNS = np.arange(IMAGE_WIDTH, dtype=np.float32)
_ROWS = np.arange(IMAGE_HEIGHT, dtype=np.float32)[:, None]


@dataclass(frozen=True)
class Face:
    """A projected face: polygon (K, 2) pixels; area x0, y0, x1, y1 on screen; inverse_depth a, b, c with
    1 / z = a u + b v + c; homography (3, 3) unit texture -> pixels; gain and haze (added, 0..255) of its colours."""

    polygon: np.ndarray
    area: tuple[int, int, int, int]
    inverse_depth: np.ndarray
    homography: np.ndarray
    kind: str
    colour: Colour
    gain: float
    haze: float


class Canvas:
    """image (H, W, 3) uint8 is drawn into; owner (H, W) int16: index of the thing a pixel shows, -1 none."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.owner = np.full((IMAGE_HEIGHT, IMAGE_WIDTH), NOTHING, np.int16)
        self._inverse_depth = np.zeros((IMAGE_HEIGHT, IMAGE_WIDTH), np.float32)
        self._silhouette = np.zeros((IMAGE_HEIGHT, IMAGE_WIDTH), np.uint8)

    def draw(self, face: Face, owner: int) -> None:
        """Draws a face where nothing nearer stands."""
        x0, y0, x1, y1 = face.area
        window = (slice(y0, y1), slice(x0, x1))
        inside = np.zeros((y1 - y0, x1 - x0), np.uint8)
        points = np.rint((face.polygon - (x0, y0)) * 16).astype(np.int32)
        cv2.fillConvexPoly(inside, points, 1, cv2.LINE_8, 4)
        covered = self._silhouette[window]
        cv2.bitwise_or(covered, inside, dst=covered)
        a, b, c = face.inverse_depth
        inverse = (a * _COLUMNS[x0:x1] + c) + b * _ROWS[y0:y1]
        shown = inverse > self._inverse_depth[window]
        shown &= inside.view(np.bool_)
        if not cv2.countNonZero(shown.view(np.uint8)):
            return
        painted = texture(face.kind, face.colour)
        if painted is None or max(x1 - x0, y1 - y0) < _TEXTURED_PX:
            colour = np.array(face.colour if painted is None else painted.mean)
            self.image[window][shown] = np.clip(colour * face.gain + face.haze, 0, 255).astype(np.uint8)
        else:
            warped, mask = _warp(painted, face)
            if mask is not None:
                shown &= mask > 127
            cv2.copyTo(warped, shown.view(np.uint8), self.image[window])
        np.copyto(self._inverse_depth[window], inverse, where=shown)
        np.copyto(self.owner[window], np.int16(owner), where=shown)

    def take_silhouette(self, area: tuple[int, int, int, int]) -> int:
        """Pixels covered, hidden or not, by what was drawn since the last call; all of it must lie in the area."""
        x0, y0, x1, y1 = area
        covered = self._silhouette[y0:y1, x0:x1]
        count = int(np.count_nonzero(covered))
        covered[:] = 0
        return count


def _warp(painted: Texture, face: Face) -> tuple[np.ndarray, np.ndarray | None]:
    """The texture as it appears in the face's rectangle, lit and hazed, and its mask there."""
    x0, y0, x1, y1 = face.area
    level = 0
    if len(face.polygon) == 4:
        edges = np.linalg.norm(face.polygon - face.polygon[[3, 0, 1, 2]], axis=1)
        h, w = painted.levels[0].shape[:2]
        ratio = min(w / max(edges[1], edges[3], 1.0), h / max(edges[0], edges[2], 1.0))
        level = int(min(len(painted.levels) - 1, max(0.0, np.log2(max(ratio, 1.0)))))
    source = cv2.convertScaleAbs(painted.levels[level], alpha=face.gain, beta=face.haze)
    h, w = source.shape[:2]
    to_unit = np.array([[1 / w, 0, 0.5 / w], [0, 1 / h, 0.5 / h], [0, 0, 1]])
    shift = np.array([[1.0, 0, -x0], [0, 1, -y0], [0, 0, 1]])
    matrix = shift @ face.homography @ to_unit
    size = (x1 - x0, y1 - y0)
    warped = cv2.warpPerspective(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if painted.masks is None:
        return warped, None
    return warped, cv2.warpPerspective(painted.masks[level], matrix, size, flags=cv2.INTER_LINEAR)
