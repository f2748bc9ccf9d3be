"""All parts of a world as flat arrays, posed at one instant: what both the ray caster and the renderer work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulator.solids import FACE_CORNERS
from pipeline.simulator.world import World


@dataclass(frozen=True)
class Posed:
    """Parts at one instant in one frame: corners (P, 8, 3), outward face normals (P, 6, 3)."""

    corners: np.ndarray
    normals: np.ndarray

    def offsets(self) -> np.ndarray:
        """(P, 6) plane offsets: a point x is inside face f where normal . x <= offset."""
        return np.einsum("pfi,pfi->pf", self.normals, self.corners[:, FACE_CORNERS[:, 0]])

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> Posed:
        """In another frame: x -> rotation x + translation."""
        return Posed(self.corners @ rotation.T + translation, self.normals @ rotation.T)


class Parts:
    """The static side of a world's geometry: every part's shape, owner and looks.

    owner (P,) int: index of the thing in world.things. drawn (P, 6) bool: faces that cameras see. quad (P, 6, 4):
    texture weights of `solids.Mesh`.
    """

    def __init__(self, world: World) -> None:
        meshes = [thing.model.shape for thing in world.things]
        self._corners = np.concatenate([m.corners for m in meshes])
        self._normals = np.concatenate([m.normals for m in meshes])
        self.quad = np.concatenate([m.quad for m in meshes])
        self.owner = np.repeat(np.arange(len(meshes)), [len(m.parts) for m in meshes])
        self.parts = tuple(part for m in meshes for part in m.parts)
        # spoked wheels have no tread worth drawing
        self.drawn = np.array([[kind != "none" for kind in part.faces] for part in self.parts])
        self.brightness = np.array([world.things[i].model.brightness for i in self.owner])

    def __len__(self) -> int:
        return len(self.owner)

    def posed(self, poses: np.ndarray, keep: np.ndarray | None = None) -> Posed:
        """Global geometry for the things' poses (N, 3) x, y, yaw; keep: indices of the parts wanted."""
        keep = np.arange(len(self)) if keep is None else keep
        x, y, yaw = poses[self.owner[keep]].T
        rotation = np.zeros((len(keep), 3, 3))
        rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(yaw)
        rotation[:, 1, 0] = np.sin(yaw)
        rotation[:, 0, 1] = -rotation[:, 1, 0]
        rotation[:, 2, 2] = 1.0
        turn = rotation.transpose(0, 2, 1)
        corners = self._corners[keep] @ turn
        corners[:, :, 0] += x[:, None]
        corners[:, :, 1] += y[:, None]
        return Posed(corners, self._normals[keep] @ turn)

    def within(self, poses: np.ndarray, centre_xy: np.ndarray, radius_m: float) -> np.ndarray:
        """Indices of the parts of things whose reference point lies within radius_m of centre_xy."""
        near = ((poses[:, :2] - centre_xy) ** 2).sum(axis=1) < radius_m**2
        return np.flatnonzero(near[self.owner])


def yaw_matrix(yaw: float) -> np.ndarray:
    """(3, 3) rotation about z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
