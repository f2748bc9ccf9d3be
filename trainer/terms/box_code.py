"""Boxes, and boxes as detectors of queries code them, under a BEV augmentation, exactly.

A box is (x, y, z, l, w, h, yaw, vx, vy); a code is (x, y, z, log l, log w, log h, sin yaw, cos yaw, vx, vy), see
`models.detector.QueryOutput`. A centre head's raw regression moves in `trainer.terms.moved_regression`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.center_head import LOG_SIZE_LIMIT
from trainer.terms.places import moved

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


def move_boxes(boxes: Tensor, matrices: Tensor) -> Tensor:
    """Boxes (N, 9) under matrices (N, 4, 4), float64; NaN velocities stay NaN.

    As `trainer.augment.move_boxes`, one matrix a box.
    """
    a, boxes = matrices.double(), boxes.double()
    linear, scale = a[:, :2, :2], a[:, 2, 2]
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], dim=1)
    turned = (linear @ heading[..., None])[..., 0]
    still = (linear == torch.eye(2, dtype=a.dtype, device=a.device)).all(dim=2).all(dim=1)
    yaw = torch.where(still, boxes[:, 6], torch.atan2(turned[:, 1], turned[:, 0]))  # the very bits where nothing turns
    z = boxes[:, 2] * scale + a[:, 2, 3]
    velocity = (linear @ boxes[:, 7:9, None])[..., 0]
    velocity = torch.where(torch.isfinite(boxes[:, 7:9]).all(dim=1)[:, None], velocity, boxes[:, 7:9])
    xy, size = moved(boxes[:, :2], a), boxes[:, 3:6] * scale[:, None]
    return torch.cat([xy, z[:, None], size, yaw[:, None], velocity], dim=1)


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
