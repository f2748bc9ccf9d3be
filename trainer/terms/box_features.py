"""Mimic and GID-F: inside boxes, on a rotated grid of points, the student's BEV map should be the teacher's.

    mimic          sum_{boxes, points} mean_c (lift(S)(A p) - T(p))^2 / points
    gid_features   mimic, and relation_weight * mean over frames of
                   mean_{i,j} smooth_l1(D_S[i,j] / mean(D_S), D_T[i,j] / mean(D_T)),  D[i,j] = |f_i - f_j|^2

over points that lie on both maps; f_i is a box's points and channels in one row, and takes part where all its points
are known. Points are those of the canonical box, moved by A, so that a mirrored box is not read the wrong way round.
With 40 boxes of 49 points and 256 channels in each of 4 frames 90 ms (mimic) and 220 ms (gid_features), forward and
backward, on one core. Source: SparseKD's benchmark of 2-D methods and its released code; see docs/methods-sparsekd.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cache.errors import ConfigError, StoreError
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.annotations import annotated_frames
from trainer.terms.masked_features import lifted_at, make_lift
from trainer.terms.moved_boxes import move_boxes
from trainer.terms.places import augmentation_of, moved, rows_and_columns, stored_bilinear
from trainer.terms.sampling import inside_grid, sample_bilinear
from trainer.terms.student_heads import at_least_fp32
from trainer.terms.term import TermNeeds


class MimicOptions(Config):
    """boxes: annotated (truth) or the teacher's. points: a side of the grid of points a box. source: the teacher's
    values from the store's `samples(points=7x7)`, or read from its cells, where those of the points' neighbourhood are
    stored (dense, or a footprint with a margin of 1.5 cells or more; selector says which). min_score, limit: of the
    teacher's boxes, those that score as much, and the best so many a frame (0: all). lift: see `masked_features`."""

    boxes: Literal["truth", "teacher"] = "truth"
    points: int = Field(default=7, ge=1, le=99)
    source: Literal["samples", "cells"] = "samples"
    selector: str = "footprint"
    min_score: float = Field(default=0.3, ge=0, le=1)
    limit: int = Field(default=100, ge=0)
    lift: Literal["conv1x1", "none"] = "conv1x1"


class GidFeaturesOptions(MimicOptions):
    """relation_weight: of the relation term beside mimic's."""

    relation_weight: float = Field(default=1.0, ge=0)


def samples_item(options: MimicOptions) -> str:
    """What the store is asked for, as `cache-teacher --fields` writes it, and the key of `TeacherSaid.samples`."""
    points = f"points={options.points}x{options.points}"
    if options.boxes == "truth":
        return f"samples({points})"
    return f"samples(boxes=teacher,{points}{f',limit={options.limit}' if options.limit else ''})"


def needs_of(options: MimicOptions) -> TermNeeds:
    """Samples at the boxes, or cells around them; any grid will do."""
    boxes = ("boxes", "scores") if options.boxes == "teacher" else ()
    if options.source == "cells":
        fields = ("bev_index", "bev_weights", *boxes)
        return TermNeeds(fields, (options.selector,), ("bev",), any_grid=True)
    return TermNeeds((samples_item(options), *boxes), (), ("bev",), any_grid=True)


class BoxFeatures(nn.Module):
    """A `trainer.terms.term.Term` that owns the lift; under GidFeaturesOptions with the relation term."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: MimicOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs = needs_of(options)
        self.lift = make_lift(name, options.lift, student_channels, teacher_channels)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: MimicOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> BoxFeatures:
        """The term for a student and a store. ConfigError where the store's footprints end too near the boxes."""
        if options.source == "cells":
            _require_margin(name, options, teacher)
        return cls(name, weight, options, model.bev_channels, teacher.bev.channels, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        device = output.bev.device
        with torch.autocast(device.type, enabled=False):
            bev = at_least_fp32(output.bev)
            chosen = self._boxes(batch, said, device)
            samples = torch.cat([torch.full((len(boxes),), i, device=device) for i, (boxes, _) in enumerate(chosen)])
            boxes = torch.cat([boxes for boxes, _ in chosen])
            places = box_points(boxes, self.options.points)  # (N, P, 2), canonical
            teacher, known = self._teacher(said, chosen, samples, places)
            matrices = augmentation_of(batch, len(bev), device)
            row, col = rows_and_columns(moved(places, matrices[samples][:, None]), self.grid)
            valid = known & inside_grid(row, col, self.grid)  # (N, P)
            at = (samples[:, None].expand_as(row)[valid], row[valid], col[valid])
            wanted = teacher[valid].to(bev.dtype)
            error = (lifted_at(self.lift, bev, *at) - wanted).square().mean(dim=1)
            count = error.new_tensor(float(len(error)))
            parts = {self.name: LossPart(error.sum()[None], count[None], self.weight)}
            if isinstance(self.options, GidFeaturesOptions):
                whole = valid.all(dim=1)
                rows = (samples[whole, None].expand(-1, row.shape[1]), row[whole], col[whole])
                found = sample_bilinear(bev, *(part.reshape(-1) for part in rows)).view(-1, row.shape[1] * bev.shape[1])
                relation = _relation(found, teacher[whole].to(bev.dtype).flatten(1), samples[whole], len(bev))
                parts[f"{self.name}_relation"] = LossPart(*relation, self.weight * self.options.relation_weight)
        return parts

    def _boxes(self, batch: Batch, said: TeacherSaid, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Of every frame: canonical boxes (T, 9) float64, and which of them count (T,) bool."""
        out = []
        if self.options.boxes == "teacher":
            limit = self.options.limit or None
            for boxes, scores in zip(said.boxes, said.scores, strict=True):  # best first
                good = scores[:limit].to(device) >= self.options.min_score
                out.append((boxes[:limit].to(device, torch.float64), good))
            return out
        annotated = annotated_frames(batch, device)
        inverse = torch.linalg.inv(augmentation_of(batch, len(batch.boxes), device))
        for i, boxes in enumerate(batch.boxes):
            canonical = move_boxes(boxes.to(device), inverse[i].expand(len(boxes), 4, 4))
            out.append((canonical, annotated[i].expand(len(boxes))))
        return out

    def _key(self, said: TeacherSaid) -> str:
        """Of the samples; a store may hold more of the teacher's boxes than are asked for."""
        wanted = samples_item(self.options)
        alike = [key for key in said.samples if _without_limit(key) == _without_limit(wanted)]
        return wanted if wanted in said.samples or not alike else alike[0]

    def _teacher(
        self, said: TeacherSaid, chosen: list[tuple[Tensor, Tensor]], samples: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values (N, P, C) of the teacher at canonical points, and which are known (N, P) bool."""
        counts = torch.cat([good for _, good in chosen])[:, None]
        if self.options.source == "cells":
            assert said.cells is not None
            row, col = rows_and_columns(places.flatten(0, 1), said.grid)
            frame = samples[:, None].expand(places.shape[:2]).flatten()
            values, known = stored_bilinear(said.cells, said.grid, frame, row, col)
            return values.view(*places.shape[:2], -1), known.view(places.shape[:2]) & counts
        key = self._key(said)
        stored, inside = said.samples[key], said.sample_inside[key]
        if self.options.boxes == "teacher" and self.options.limit:
            stored, inside = ([part[: self.options.limit] for part in parts] for parts in (stored, inside))
        for i, ((boxes, _), values) in enumerate(zip(chosen, stored, strict=True)):
            if len(boxes) != len(values):
                raise StoreError(
                    f"term {self.name}: frame {i} of the batch has {len(boxes)} boxes, the store sampled "
                    f"{len(values)}: frame and teacher store were made of other annotations, cache the teacher again"
                )
        return torch.cat(list(stored)), torch.cat(list(inside)) & counts


def _without_limit(item: str) -> str:
    return re.sub(r",limit=\d+", "", item)


def box_points(boxes: Tensor, side: int) -> Tensor:
    """(N, side * side, 2) float64 x, y (m): centres of side x side equal parts of boxes (N, 9), along the length from
    back to front, and for each step across from right to left; as a store's samples lie."""
    boxes = boxes.double()
    share = (torch.arange(side, dtype=torch.float64, device=boxes.device) + 0.5) / side - 0.5
    along, across = (part.flatten() for part in torch.meshgrid(share, share, indexing="ij"))
    along, across = along * boxes[:, 3:4], across * boxes[:, 4:5]
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    return torch.stack([boxes[:, 0:1] + along * cos - across * sin, boxes[:, 1:2] + along * sin + across * cos], -1)


def _relation(found: Tensor, wanted: Tensor, samples: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Numerator and normaliser (1,): the mean over a frame's pairs of boxes, summed over frames of two or more."""
    total, count = found.new_zeros(1) + found.sum() * 0, 0
    for frame in range(frames):
        mine = samples == frame
        if int(mine.sum()) > 1:
            student, teacher = (_relative_distances(part[mine]) for part in (found, wanted))
            total = total + nn.functional.smooth_l1_loss(student, teacher)
            count += 1
    return total, found.new_tensor([float(count)])


def _relative_distances(rows: Tensor) -> Tensor:
    """(T, T): squared distances between rows (T, D) over their mean."""
    squares = rows.square().sum(dim=1)
    distances = (squares[:, None] + squares[None] - 2 * rows @ rows.T).clamp(min=0)
    return distances / distances.mean().clamp(min=1e-12)


def _require_margin(name: str, options: MimicOptions, teacher: TeacherStore) -> None:
    """ConfigError where footprints with a margin below 1.5 cells are read: outer points lack neighbours."""
    needed = NeededSelector.parse(options.selector)
    if needed.name not in teacher.coverage.names or teacher.coverage.every_cell:
        return
    wanted = 1.5 * teacher.grid.cell_m
    for factor in teacher.coverage[needed.name].factors:
        if factor.kind == "footprint" and factor["margin"] < wanted - 1e-6:
            raise ConfigError(
                f"term {name}: {teacher.root}: it holds {factor}, but points in boxes read cells "
                f"up to {wanted:g} m away; "
                f'run `cache-teacher --coverage "footprint(margin={wanted:g})"` under another --name, or cache '
                f'--fields "{samples_item(options)}" and set source = "samples"'
            )
