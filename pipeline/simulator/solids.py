"""The one primitive that every simulated thing is made of: a frustum with six flat quadrilateral faces.

A box, a wedge, a windscreen slope, a cone or a slanted excavator arm are all frusta whose top rectangle may differ from
the bottom one. Convex parts keep both ray casting (six half-spaces) and drawing (six quads) exact and fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FRONT, BACK, LEFT, RIGHT, TOP, BOTTOM = range(6)

# corners of each face, texture order: top-left, top-right, bottom-right, bottom-left; sides run from front to back
FACE_CORNERS = np.array([[5, 6, 2, 1], [7, 4, 0, 3], [6, 7, 3, 2], [5, 4, 0, 1], [6, 7, 4, 5], [2, 3, 0, 1]])

Colour = tuple[int, int, int]  # blue, green, red, 0..255


_MATERIAL_OF_KIND = {
    "cloth": "cloth",
    "crate": "wood",
    "bark": "wood",
    "leaves": "leaves",
    "panel": "panel",
    "plastic": "plastic",
    "bricks": "concrete",
    "facade": "concrete",
    "stripes": "retro",
    "cone": "retro",
    "engine": "metal",
    "bucket": "metal",
    "container": "metal",
    "none": "spokes",
}


@dataclass(frozen=True)
class Part:
    """A frustum in its thing's own frame (x forward, y left, z up, origin on the ground under the box centre).

    corners (8, 3): bottom rectangle then top, each (-x,-y), (+x,-y), (+x,+y), (-x,+y). faces: a texture kind per face.
    material names its LiDAR reflectivity.
    """

    corners: np.ndarray
    faces: tuple[str, str, str, str, str, str]
    colour: Colour
    material: str


def block(
    x: tuple[float, float],
    y: tuple[float, float],
    z: tuple[float, float],
    colour: Colour,
    *,
    top_x: tuple[float, float] | None = None,
    top_y: tuple[float, float] | None = None,
    kind: str = "plain",
    front: str | None = None,
    back: str | None = None,
    side: str | None = None,
    top: str | None = None,
    material: str | None = None,
) -> Part:
    """A part from its extents; top_x and top_y move or shrink the top rectangle, face names override `kind`.

    The material follows from the kind where it is not given.
    """
    top_x, top_y = top_x or x, top_y or y
    corners = np.empty((8, 3))
    for base, (xs, ys, height) in ((0, (x, y, z[0])), (4, (top_x, top_y, z[1]))):
        corners[base : base + 4] = [
            (xs[0], ys[0], height),
            (xs[1], ys[0], height),
            (xs[1], ys[1], height),
            (xs[0], ys[1], height),
        ]
    faces = (front or kind, back or kind, side or kind, side or kind, top or kind, "plain")
    return Part(corners, faces, colour, material or _MATERIAL_OF_KIND.get(kind, "paint"))


def turned(part: Part, yaw: float, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Part:
    """The part turned about z by yaw (radians), then moved."""
    c, s = np.cos(yaw), np.sin(yaw)
    corners = part.corners @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]) + np.asarray(shift)
    return Part(corners, part.faces, part.colour, part.material)


@dataclass(frozen=True)
class Mesh:
    """The parts of a thing as arrays: corners (P, 8, 3), normals (P, 6, 3) outward, quad (P, 6, 4) texture weights."""

    corners: np.ndarray
    normals: np.ndarray
    quad: np.ndarray
    parts: tuple[Part, ...]


def mesh(parts: Sequence[Part]) -> Mesh:
    """Arrays of the parts. quad holds, for each face, the weights by which its four corners' projections span the
    homography of a unit texture (a projective basis: it stays right where a corner lies behind the camera)."""
    corners = np.stack([part.corners for part in parts])
    quads = corners[:, FACE_CORNERS]  # (P, 6, 4, 3)
    normals = np.cross(quads[:, :, 2] - quads[:, :, 0], quads[:, :, 3] - quads[:, :, 1])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = normals / np.maximum(length, 1e-12)
    outward = ((quads.mean(axis=2) - corners.mean(axis=1)[:, None]) * normals).sum(-1, keepdims=True)
    normals = np.where(outward < 0, -normals, normals)
    return Mesh(corners, normals, _texture_weights(quads), tuple(parts))


def _texture_weights(quads: np.ndarray) -> np.ndarray:
    """Weights a, b, c with corner3 = a corner0 + b corner1 + c corner2 and a + b + c = 1, as (a, -b, c) in (P, 6,
    4)."""
    first, second = quads[..., 1, :] - quads[..., 0, :], quads[..., 2, :] - quads[..., 0, :]
    target = quads[..., 3, :] - quads[..., 0, :]
    g11, g12, g22 = (first * first).sum(-1), (first * second).sum(-1), (second * second).sum(-1)
    r1, r2 = (first * target).sum(-1), (second * target).sum(-1)
    det = np.maximum(g11 * g22 - g12 * g12, 1e-18)
    b, c = (g22 * r1 - g12 * r2) / det, (g11 * r2 - g12 * r1) / det
    return np.stack([1 - b - c, -b, c, np.ones_like(b)], axis=-1)
