"""Points of boxes seen from above: where a store has the teacher's features, and where the student's map is read.

A store's `samples` are the teacher's features at P points of every annotated or decoded box. Points are those of the
canonical box, moved by the BEV augmentation to the student's map: so each point stays the one it was, also where the
world is mirrored. Their order is that of `cache.box_points`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.box_points import point_offsets
from cache.errors import StoreError
from cache.field_list import Asked, FieldList, Value
from cache.grid import BevGrid
from models.detector import Batch
from trainer.said import TeacherSaid
from trainer.terms.annotations import annotated_frames
from trainer.terms.box_code import move_boxes
from trainer.terms.places import augmentation_of, inside_grid, moved, rows_and_columns
from trainer.terms.sampling import sample_bilinear


@dataclass(frozen=True)
class BoxSamples:
    """N boxes of the batch's annotated frames, those with a point that both maps hold.

    teacher: (N, P, C); student: (N, P, C'), 0 where `valid` (N, P) says no.
    """

    teacher: Tensor
    student: Tensor
    valid: Tensor


def samples_item(boxes: str = "truth", points: str = "9", level: str = "", enlarge: float = 1.0, limit: int = 0) -> str:
    """What the store is asked for, as `cache-teacher --fields` writes it."""
    options: dict[str, Value] = {"boxes": boxes, "points": points, "level": level, "enlarge": enlarge, "limit": limit}
    return str(Asked("samples", tuple(options.items())))


def stored_samples(said: TeacherSaid, item: str) -> tuple[list[Tensor], list[Tensor]]:
    """Of every frame the values (T, P, C) and which are on the map (T, P), of the stored item that has `item`: a store
    may hold more of the teacher's boxes than are asked for."""
    wanted = _asked(item)
    key = next(key for key in said.samples if _asked(key).holds(wanted))
    limit = wanted["limit"] or None
    return [part[:limit] for part in said.samples[key]], [part[:limit] for part in said.sample_inside[key]]


def require_rows(item: str, stored: list[Tensor], counts: list[int]) -> None:
    """StoreError where the rows of samples are not those of the boxes, `counts` a frame."""
    for frame, (values, count) in enumerate(zip(stored, counts, strict=True)):
        if len(values) != count:
            raise StoreError(
                f"{item}: frame {frame} of the batch has {count} boxes, the store sampled {len(values)}; frame and "
                "teacher store were made of other annotations, cache the teacher again"
            )


def canonical_boxes(batch: Batch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(N, 9) float64 of all of a batch's boxes, its augmentation undone, and (N,) int64 the frame of each."""
    counts = torch.tensor([len(boxes) for boxes in batch.boxes], dtype=torch.int64)
    samples = torch.repeat_interleave(counts).to(device)
    boxes = torch.cat([torch.zeros(0, 9), *(boxes.reshape(-1, 9).double() for boxes in batch.boxes)])
    return move_boxes(boxes.to(device), torch.linalg.inv(augmentation_of(batch, device))[samples]), samples


def box_points(boxes: Tensor, points: str, enlarge: float = 1.0) -> Tensor:
    """(N, P, 2) float64 x, y (m) of the points of boxes (N, 9): `cache.box_points.box_points` in torch."""
    boxes, share = boxes.double(), torch.from_numpy(point_offsets(points)).to(boxes.device)
    along, across = share[:, 0] * boxes[:, 3:4] * enlarge, share[:, 1] * boxes[:, 4:5] * enlarge  # (N, P)
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    return torch.stack([boxes[:, 0:1] + along * cos - across * sin, boxes[:, 1:2] + along * sin + across * cos], -1)


def sampled_boxes(bev: Tensor, grid: BevGrid, batch: Batch, said: TeacherSaid, item: str) -> BoxSamples:
    """Both maps at the points of the batch's boxes. bev: (B, C', H, W) on `grid`; item: of annotated boxes.

    Raises StoreError where the stored rows are not those of the batch's boxes.
    """
    values, inside = stored_samples(said, item)
    require_rows(item, values, [len(boxes) for boxes in batch.boxes])
    boxes, samples = canonical_boxes(batch, bev.device)
    places = box_points(boxes, _asked(item)["points"], _asked(item)["enlarge"])
    matrices = augmentation_of(batch, bev.device)[samples]
    row, col = rows_and_columns(moved(places, matrices[:, None]), grid)  # (N, P)
    valid = torch.cat(inside).to(bev.device) & inside_grid(row, col, grid)
    valid = valid & annotated_frames(batch, bev.device)[samples, None]
    kept = valid.any(dim=1)
    teacher, valid, samples = torch.cat(values).to(bev.device)[kept], valid[kept], samples[kept]
    student = bev.new_zeros(*valid.shape, bev.shape[1])
    which = samples[:, None].expand_as(valid)[valid]
    student[valid] = sample_bilinear(bev, which, row[kept][valid], col[kept][valid])
    return BoxSamples(teacher.to(bev.dtype), student, valid)


def _asked(item: str) -> Asked:
    return FieldList.parse(item, "field").items[0]
