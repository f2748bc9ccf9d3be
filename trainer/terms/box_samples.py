"""A batch's annotated boxes seen from above, at the points where the teacher's map was sampled: both maps' features.

The store has the teacher's features at P points of every annotated box (`samples(boxes=truth,...)`); the student's map
is read at the same points of the boxes as the batch has them, so under the BEV augmentation. The order of points is
that of `cache.box_points`: along the length from back to front, and for each step across from right to left; a mirror
swaps left and right, so across changes its sign there and each point stays the one it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.errors import DataError
from cache.grid import BevGrid
from models.detector import Batch
from trainer.said import TeacherSaid
from trainer.terms.annotations import annotated_frames
from trainer.terms.map_places import augmentation_of, places_on
from trainer.terms.sampling import inside_grid, sample_bilinear


@dataclass(frozen=True)
class BoxSamples:
    """N boxes of the batch's annotated frames, those with a point that both maps hold.

    teacher: (N, P, C); student: (N, P, C'), 0 where `valid` (N, P) says no.
    """

    teacher: Tensor
    student: Tensor
    valid: Tensor


def sampled_boxes(
    bev: Tensor, grid: BevGrid, batch: Batch, said: TeacherSaid, item: str, points: str, enlarge: float
) -> BoxSamples:
    """Both maps at the points of the batch's boxes. bev: (B, C', H, W) on `grid`; item: the samples' canonical text.

    Raises DataError where the stored rows are not those of the batch's boxes.
    """
    values, inside = said.samples[item], said.sample_inside[item]
    found, wanted = [len(rows) for rows in values], [len(boxes) for boxes in batch.boxes]
    if found != wanted:
        raise DataError(
            f"{item}: {found} boxes of each frame were sampled, the batch has {wanted}; both must be the annotated "
            "boxes that the batch kept, in its order"
        )
    samples = torch.repeat_interleave(torch.tensor(wanted, device=bev.device))
    boxes = torch.cat([b.reshape(-1, 9) for b in batch.boxes]).to(bev.device)
    matrices = augmentation_of(batch).to(bev.device)
    x, y = points_of_boxes(boxes, points, enlarge, torch.linalg.det(matrices[:, :2, :2])[samples] < 0)
    row, col = places_on(x, y, grid)  # (N, P)
    valid = torch.cat(inside).to(bev.device) & inside_grid(row, col, grid)
    valid = valid & annotated_frames(batch, bev.device)[samples, None] & torch.isfinite(x) & torch.isfinite(y)
    kept = valid.any(dim=1)
    teacher, valid, samples = torch.cat(values).to(bev.device)[kept], valid[kept], samples[kept]
    student = bev.new_zeros(*valid.shape, bev.shape[1])
    which = samples[:, None].expand_as(valid)[valid]
    student[valid] = sample_bilinear(bev, which, row[kept][valid], col[kept][valid])
    return BoxSamples(teacher.to(bev.dtype), student, valid)


def points_of_boxes(boxes: Tensor, points: str, enlarge: float, mirrored: Tensor) -> tuple[Tensor, Tensor]:
    """x, y (N, P) float64 (m) of the points of boxes (N, 9); mirrored: (N,) bool, boxes of a mirrored world."""
    boxes, share = boxes.double(), point_shares(points).to(boxes.device)
    along, across = share[:, 0] * boxes[:, 3:4] * enlarge, share[:, 1] * boxes[:, 4:5] * enlarge  # (N, P)
    across = torch.where(mirrored[:, None], -across, across)
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    return boxes[:, 0:1] + along * cos - across * sin, boxes[:, 1:2] + along * sin + across * cos


def point_shares(points: str) -> Tensor:
    """(P, 2) float64 for `9` (corners, edge middles, centre) or `AxB` (centres of A x B parts): along and across, as
    shares -0.5..0.5 of length and width."""
    if points == "9":
        along = across = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)
    else:
        a, b = map(int, points.split("x"))
        along, across = ((torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5 for n in (a, b))
    return torch.cartesian_prod(along, across)


def item_text(points: str, level: str, enlarge: float) -> str:
    """The canonical text of samples of annotated boxes, as `cache-teacher --fields` and `TeacherSaid.samples` have it:
    options at their defaults (points=9, the main map, enlarge=1) are left out."""
    given = {"points": points if points != "9" else "", "level": level}
    written = [f"{key}={value}" for key, value in given.items() if value]
    written += [f"enlarge={repr(float(enlarge)).removesuffix('.0')}"] if enlarge != 1 else []
    return f"samples({','.join(written)})" if written else "samples"
