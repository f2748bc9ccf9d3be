"""Boxes as detectors of queries code them, and such codes under a BEV augmentation, exactly.

A code is (x, y, z, log l, log w, log h, sin yaw, cos yaw, vx, vy), see `models.detector.QueryOutput`; a box is (x, y,
z, l, w, h, yaw, vx, vy).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.center_head import LOG_SIZE_LIMIT

CODE = 10
VELOCITY = slice(8, 10)


def encode_boxes(boxes: Tensor) -> Tensor:
    """(N, 10) of boxes (N, 9) with sizes above 0; NaN velocities stay NaN."""
    yaw = boxes[:, 6]
    return torch.cat([boxes[:, :3], boxes[:, 3:6].log(), torch.stack([yaw.sin(), yaw.cos()], 1), boxes[:, 7:9]], dim=1)


def decode_codes(codes: Tensor) -> Tensor:
    """(N, 9), the inverse of `encode_boxes`; log sizes are held within what heads decode."""
    size = codes[:, 3:6].clamp(-LOG_SIZE_LIMIT, LOG_SIZE_LIMIT).exp()
    yaw = torch.atan2(codes[:, 6], codes[:, 7])
    return torch.cat([codes[:, :3], size, yaw[:, None], codes[:, VELOCITY]], dim=1)


def move_codes(codes: Tensor, matrices: Tensor) -> Tensor:
    """Codes (N, 10) under A (N, 4, 4), which turns, mirrors, scales and shifts; computed in float64, dtype of `codes`.

    Centres move, log sizes gain the log of A's scale, headings turn and mirror and keep their length, velocities move
    as positions do: what `trainer.augment.move_boxes` does to boxes.
    """
    code, a = codes.double(), matrices.double()
    linear, scale = a[:, :2, :2], a[:, 2, 2:3]
    centre = torch.einsum("nij,nj->ni", a[:, :3, :3], code[:, :3]) + a[:, :3, 3]
    heading = torch.einsum("nij,nj->ni", linear, code[:, [7, 6]]) / scale  # cos, sin
    velocity = torch.einsum("nij,nj->ni", linear, code[:, VELOCITY])
    return torch.cat([centre, code[:, 3:6] + scale.log(), heading.flip(1), velocity], dim=1).to(codes.dtype)
