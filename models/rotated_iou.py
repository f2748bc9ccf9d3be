"""Overlap of turned boxes seen from above, in plain torch: pairs of rectangles, all at once.

The boundary of an intersection is what lies of each rectangle's edges inside the other one, and its area the sum of
p x q / 2 over those pieces p -> q, counter-clockwise (Green's theorem): eight edges cut by four half-planes, nothing to
sort. In float64; 1.5 us a pair on one core.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of the second rectangle: edges that coincide are then counted once. Areas are off by twice as much, relatively.
INFLATION = 1e-7


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """(P,) float64 intersection over union of P pairs of rectangles (P, 5): x, y, l, w (m), yaw. Without area: 0."""
    first, second = first.double(), second.double()
    intersection = paired_intersection(first, second)
    union = first[:, 2] * first[:, 3] + second[:, 2] * second[:, 3] - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def rectangles(boxes: Tensor) -> Tensor:
    """(N, 5) of boxes (N, >= 7) x, y, z, l, w, h, yaw, ..."""
    return boxes[:, [0, 1, 3, 4, 6]]


def every_iou(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) float64 intersection over union of every pair of rectangles (N, 5) and (M, 5); costs the pairs that are
    near enough to meet."""
    first, second = first.double(), second.double()
    reach = [torch.hypot(side[:, 2], side[:, 3]) / 2 for side in (first, second)]
    distance = (first[:, None, :2] - second[None, :, :2]).norm(dim=-1)
    i, j = (distance < reach[0][:, None] + reach[1][None]).nonzero(as_tuple=True)
    out = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    out[i, j] = paired_iou(first[i], second[j])
    return out


def paired_intersection(first: Tensor, second: Tensor) -> Tensor:
    """(P,) float64 square metres that the rectangles of each pair share; arguments as `paired_iou`."""
    first, second = first.double().clone(), second.double().clone()
    second[:, 2:4] *= 1 + INFLATION
    second[:, :2] -= first[:, :2]  # near the origin, where the cross products are small
    first[:, :2] = 0.0
    area = _boundary_inside(first, second) + _boundary_inside(second, first)
    return area.clamp(min=0.0)


def corners(boxes: Tensor) -> Tensor:
    """(P, 4, 2) of rectangles (P, 5), counter-clockwise from the front left one."""
    signs = boxes.new_tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    along = signs * boxes[:, None, 2:4] / 2  # (P, 4, 2)
    cos, sin = boxes[:, 4].cos()[:, None], boxes[:, 4].sin()[:, None]
    x = along[..., 0] * cos - along[..., 1] * sin
    y = along[..., 0] * sin + along[..., 1] * cos
    return torch.stack([x, y], dim=-1) + boxes[:, None, :2]


def _boundary_inside(rectangles: Tensor, others: Tensor) -> Tensor:
    """(P,): half the sum of p x q over what lies of each edge of `rectangles` inside `others`."""
    start = corners(rectangles)  # (P, 4, 2)
    step = start.roll(-1, dims=1) - start
    cos, sin = others[:, 4].cos()[:, None], others[:, 4].sin()[:, None]
    low = start.new_zeros(start.shape[:2])
    high = torch.ones_like(low)
    from_centre = start - others[:, None, :2]
    for axis_x, axis_y, half in ((cos, sin, others[:, 2:3] / 2), (-sin, cos, others[:, 3:4] / 2)):
        place = from_centre[..., 0] * axis_x + from_centre[..., 1] * axis_y  # (P, 4), along that axis of the other
        speed = step[..., 0] * axis_x + step[..., 1] * axis_y
        for sign in (1.0, -1.0):  # sign * (place + t * speed) <= half, for t in [low, high]
            room, towards = half - sign * place, sign * speed
            at = room / torch.where(towards == 0, 1.0, towards)
            high = torch.where(towards > 0, torch.minimum(high, at), high)
            low = torch.where(towards < 0, torch.maximum(low, at), low)
            high = torch.where((towards == 0) & (room < 0), -1.0, high)
    p, q = (start + t[..., None] * step for t in (low, high))
    cross = p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]
    return torch.where(high > low, cross, 0.0).sum(dim=1) / 2
