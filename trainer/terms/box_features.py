"""Mimic and GID-F: inside boxes, on a rotated grid of points, the student's BEV map should be the teacher's.

    mimic          sum_{boxes, points} mean_c (adaptor(S)(A p) - T(p))^2 / points
    gid_features   mimic, and relation_weight * mean over frames of
                   mean_{i,j} smooth_l1(D_S[i,j] / mean(D_S), D_T[i,j] / mean(D_T)),  D[i,j] = |f_i - f_j|^2

over points that lie on both maps; f_i is a box's points and channels in one row, and takes part where all its points
are known. Points are those of the canonical box, moved by A, so that a mirrored box is not read the wrong way round.
With 40 boxes of 49 points and 256 channels in each of 4 frames 90 ms (mimic) and 220 ms (gid_features), forward and
backward, on one core. Source: SparseKD's benchmark of 2-D methods and its released code; see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.adaptor import PlainAdaptor, adapted_at, student_adaptor
from trainer.terms.annotations import annotated_frames
from trainer.terms.box_samples import box_points, canonical_boxes, require_rows, samples_item, stored_samples
from trainer.terms.places import augmentation_of, inside_grid, moved, rows_and_columns
from trainer.terms.sampling import sample_bilinear
from trainer.terms.store_facts import map_fields
from trainer.terms.student import map_of
from trainer.terms.teacher_map import stored_bilinear
from trainer.terms.term import TermNeeds


class MimicOptions(Config):
    """boxes: annotated (truth) or the teacher's. points: a side of the grid of points a box. source: the teacher's
    values from the store's `samples(points=7x7)`, or read from its cells, where those of the points' neighbourhood are
    stored (dense, or a footprint with a margin of 1.5 cells or more; selector says which). min_score, limit: of the
    teacher's boxes, those that score as much, and the best so many a frame (0: all). adaptor: conv1x1, or none."""

    boxes: Literal["truth", "teacher"] = "truth"
    points: int = Field(default=7, ge=1, le=99)
    source: Literal["samples", "cells"] = "samples"
    selector: str = "footprint"
    min_score: float = Field(default=0.3, ge=0, le=1)
    limit: int = Field(default=100, ge=0)
    adaptor: PlainAdaptor = "conv1x1"


class GidFeaturesOptions(MimicOptions):
    """relation_weight: of the relation term beside mimic's."""

    relation_weight: float = Field(default=1.0, ge=0)


def samples_of(options: MimicOptions) -> str:
    """What the store is asked for."""
    limit = options.limit if options.boxes == "teacher" else 0
    return samples_item(boxes=options.boxes, points=f"{options.points}x{options.points}", limit=limit)


def needs_of(options: MimicOptions) -> TermNeeds:
    """Samples at the boxes, or cells around them; any grid will do."""
    boxes = ("boxes", "scores") if options.boxes == "teacher" else ()
    if options.source == "cells":
        return TermNeeds((*map_fields(), *boxes), (options.selector,), ("bev",), any_grid=True)
    return TermNeeds((samples_of(options), *boxes), (), ("bev",), any_grid=True)


class BoxFeatures(nn.Module):
    """A `trainer.terms.term.Term` that owns the adaptor; under GidFeaturesOptions with the relation term."""

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
        self.adaptor = student_adaptor(options.adaptor, student_channels, teacher_channels, name)

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
            bev = map_of(output)
            boxes, samples, counts = self._boxes(batch, said, device)
            places = box_points(boxes, f"{self.options.points}x{self.options.points}")  # (N, P, 2), canonical
            teacher, known = self._teacher(said, samples, places)
            row, col = rows_and_columns(moved(places, augmentation_of(batch, device)[samples][:, None]), self.grid)
            valid = known & counts[:, None] & inside_grid(row, col, self.grid)  # (N, P)
            at = (samples[:, None].expand_as(row)[valid], row[valid], col[valid])
            wanted = teacher[valid].to(bev.dtype)
            error = (adapted_at(self.adaptor, bev, *at) - wanted).square().mean(dim=1)
            count = error.new_tensor(float(len(error)))
            parts = {self.name: LossPart(error.sum()[None], count[None], self.weight)}
            if isinstance(self.options, GidFeaturesOptions):
                whole = valid.all(dim=1)
                rows = (samples[whole, None].expand(-1, row.shape[1]), row[whole], col[whole])
                found = sample_bilinear(bev, *(part.reshape(-1) for part in rows)).view(-1, row.shape[1] * bev.shape[1])
                relation = _relation(found, teacher[whole].to(bev.dtype).flatten(1), samples[whole], len(bev))
                parts[f"{self.name}_relation"] = LossPart(*relation, self.weight * self.options.relation_weight)
        return parts

    def _boxes(self, batch: Batch, said: TeacherSaid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Canonical boxes (N, 9) float64, the frame of each (N,), and which of them count (N,) bool."""
        if self.options.boxes == "truth":
            boxes, samples = canonical_boxes(batch, device)
            return boxes, samples, annotated_frames(batch, device)[samples]
        limit = self.options.limit or None  # best first
        found = [boxes[:limit] for boxes in said.boxes]
        samples = torch.repeat_interleave(torch.tensor([len(boxes) for boxes in found])).to(device)
        good = torch.cat([scores[:limit] for scores in said.scores]).to(device) >= self.options.min_score
        return torch.cat(found).to(device, torch.float64), samples, good

    def _teacher(self, said: TeacherSaid, samples: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N, P, C) of the teacher at canonical points, and which are known (N, P) bool."""
        if self.options.source == "cells":
            assert said.cells is not None
            row, col = rows_and_columns(places.flatten(0, 1), said.grid)
            frame = samples[:, None].expand(places.shape[:2]).flatten()
            values, known = stored_bilinear(said.cells, said.grid, frame, row, col)
            return values.view(*places.shape[:2], -1), known.view(places.shape[:2])
        item = samples_of(self.options)
        stored, inside = stored_samples(said, item)
        require_rows(f"term {self.name}: {item}", stored, torch.bincount(samples, minlength=len(stored)).tolist())
        return torch.cat(stored).to(samples.device), torch.cat(inside).to(samples.device)


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
                f'--fields "{samples_of(options)}" and set source = "samples"'
            )
