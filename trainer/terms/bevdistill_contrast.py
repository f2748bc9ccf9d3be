"""BEVDistill's contrastive term: at the same places of a frame both detectors' features should single each other out.

    L = sum_i q_i l_i / max(sum_i q_i, 1)         l_i of `trainer.terms.info_nce`, over the places i of all frames

The places are one of
    boxes    the teacher's objects; q is its quality score. The student's feature is its map at A times the centre, or
             the embedding of the matched query of the last layer (the paper's form).
    cells    stored cells of a selector, q = 1; teacher values as stored, the student's map at A p.
    queries  where the student's own queries see objects (the release's form), q = 1; the teacher's map is read at A^-1
             of such a place, so the store must hold every cell.
The teacher's features at boxes come from `samples(boxes=teacher,points=1x1)`, or from a store with every cell. Each
side has a projection head of its own, trained with the student. Four frames of 50 boxes, maps of 256 channels: 50 ms on
one core; of 512 cells: 270 ms; of 900 queries: 460 ms. Source: Chen et al. 2022 and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cache.store import TeacherStore
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.box_samples import samples_item, stored_samples
from trainer.terms.info_nce import Critic, Norm, ProjectionHead, contrast
from trainer.terms.matching import match_sets
from trainer.terms.places import (
    augmentation_of,
    canonical_points,
    cell_places,
    column_of,
    inside_grid,
    rows_and_columns,
)
from trainer.terms.precision import at_least_fp32
from trainer.terms.sampling import sample_bilinear
from trainer.terms.store_facts import column_name, map_fields
from trainer.terms.student import embeddings_of, map_of, queries_of, require_embeddings, require_queries
from trainer.terms.teacher_map import stored_bilinear
from trainer.terms.teacher_set import TeacherSetOptions, fields_of, quality_of, teacher_set
from trainer.terms.term import TermNeeds

COSTS = (1.0, 0.25)  # of class and box in matching, as released


class BevDistillContrastOptions(TeacherSetOptions):
    """places: see the module; teacher: where its features at boxes come from; student: its map, or the embeddings of
    `embedding_channels` of its queries; selector and limit: which cells, at most so many a frame, heaviest first (0:
    all); layers: whose queries are places; width, norm, tau, symmetric, critic, noise: see `trainer.terms.info_nce`;
    apart_cells: places nearer than that are no negatives of each other (released: 0).
    """

    places: Literal["boxes", "cells", "queries"] = "boxes"
    teacher: Literal["samples", "cells"] = "samples"
    student: Literal["bev", "embeddings"] = "bev"
    embedding_channels: int = Field(default=256, ge=1)
    selector: str = "gaussian"
    limit: int = Field(default=512, ge=0)
    layers: Literal["all", "last"] = "last"
    width: int = Field(default=512, ge=1)
    norm: Norm = "layer"
    tau: float = Field(default=0.07, gt=0)
    symmetric: bool = False
    critic: Critic = "softmax"
    noise: float = Field(default=1.0, gt=0)
    apart_cells: float = Field(default=2.0, ge=0)

    @model_validator(mode="after")
    def _go_together(self) -> BevDistillContrastOptions:
        if self.student == "embeddings" and self.places != "boxes":
            raise ValueError('student = "embeddings" goes with places = "boxes": other places have no matched query')
        if self.places == "boxes" and self.objects == "queries" and self.teacher == "samples":
            raise ValueError(
                'samples are stored at the teacher\'s decoded boxes; with objects = "queries" set teacher = "cells"'
            )
        return self


@dataclass(frozen=True)
class _Pairs:
    """M places, frames ascending. teacher: (M, C); student: (M, C'); samples: (M,); points: (M, 2) in the student's
    frame (m); weights: (M,)."""

    teacher: Tensor
    student: Tensor
    samples: Tensor
    points: Tensor
    weights: Tensor

    def only(self, kept: Tensor) -> _Pairs:
        return _Pairs(*(part[kept] for part in (self.teacher, self.student, self.samples, self.points, self.weights)))


class BevDistillContrast(nn.Module):
    """A `trainer.terms.term.Term`."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: BevDistillContrastOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs = needs_of(options)
        self.of_teacher = ProjectionHead(teacher_channels, options.width, options.norm)
        self.of_student = ProjectionHead(student_channels, options.width, options.norm)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: BevDistillContrastOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> BevDistillContrast:
        """The term for a student; ConfigError where that is known to lack the queries that are read."""
        if "queries" in needs_of(options).student:
            require_queries(name, model)
        if options.student == "embeddings":
            require_embeddings(name, model, options.embedding_channels)
        channels = options.embedding_channels if options.student == "embeddings" else model.bev_channels
        return cls(name, weight, options, channels, teacher.bev.channels, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options = self.options
        with torch.autocast(output.bev.device.type, enabled=False):
            pairs = {"boxes": self._at_boxes, "cells": self._at_cells, "queries": self._at_queries}[options.places](
                output, batch, said
            )
            loss = contrast(
                self.of_teacher(pairs.teacher),
                self.of_student(pairs.student),
                pairs.samples,
                pairs.points,
                len(output.bev),
                tau=options.tau,
                apart=options.apart_cells * self.grid.cell_m,
                symmetric=options.symmetric,
                critic=options.critic,
                noise=options.noise,
            )
            weights = pairs.weights.to(loss.dtype)
            return {self.name: LossPart((weights * loss).sum()[None], weights.sum()[None], self.weight)}

    def _at_boxes(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> _Pairs:
        options = self.options
        objects = teacher_set(said, batch, options, self.grid)
        quality, points = quality_of(objects, batch, options), objects.codes[:, :2]
        if options.teacher == "samples":
            values, known = _sampled(said, samples_of(options), objects.sample, objects.rank)
        else:
            assert said.cells is not None
            there = canonical_points(points, objects.sample, augmentation_of(batch, points.device))
            values, known = stored_bilinear(said.cells, said.grid, objects.sample, *rows_and_columns(there, said.grid))
        if options.student == "embeddings":
            queries = queries_of(self.name, output)
            last = queries.logits[-1:], queries.boxes[-1:]
            matches = match_sets(*last, objects.probs, objects.codes, objects.counts, COSTS)
            item = matches.item  # of one layer: frames ascend
            embeddings = embeddings_of(self.name, output, options.embedding_channels)
            found = at_least_fp32(embeddings[matches.sample, matches.query])
        else:
            item = torch.arange(len(points), device=points.device)
            row, col = rows_and_columns(points, self.grid)
            found = sample_bilinear(map_of(output), objects.sample, row, col)
        pairs = _Pairs(values[item].to(found.dtype), found, objects.sample[item], points[item], quality[item])
        return pairs.only(known[item])

    def _at_cells(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> _Pairs:
        assert said.cells is not None
        column = column_of(said.cells, column_name(self.options.selector))
        places = cell_places(said.cells, column, batch, said.grid, self.grid)
        bev = map_of(output)
        grid = self.grid
        points = torch.stack([places.col, places.row], dim=1) + 0.5
        points = points * grid.cell_m + points.new_tensor([grid.x_min, grid.y_min])
        chosen = heaviest(places.weights, places.samples, self.options.limit)
        samples, row, col = places.samples[chosen], places.row[chosen], places.col[chosen]
        values = said.cells.values[places.chosen][chosen].to(bev.dtype)
        found = sample_bilinear(bev, samples, row, col)
        return _Pairs(values, found, samples, points[chosen], torch.ones_like(row))

    def _at_queries(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> _Pairs:
        assert said.cells is not None
        points, samples = query_points(queries_of(self.name, output).boxes, self.options.layers)
        bev = map_of(output)
        row, col = rows_and_columns(points, self.grid)
        there = canonical_points(points, samples, augmentation_of(batch, points.device))
        values, known = stored_bilinear(said.cells, said.grid, samples, *rows_and_columns(there, said.grid))
        found = sample_bilinear(bev, samples, row, col)
        pairs = _Pairs(values.to(bev.dtype), found, samples, points, torch.ones_like(row))
        return pairs.only(known & inside_grid(row, col, self.grid))


def query_points(boxes: Tensor, layers: str) -> tuple[Tensor, Tensor]:
    """Centres (M, 2) in the student's frame (m), without gradient, and frames (M,) ascending, of query boxes (L, B, Q,
    10)."""
    centres = boxes[-1:] if layers == "last" else boxes
    centres = at_least_fp32(centres[..., :2].detach()).permute(1, 0, 2, 3).flatten(1, 2)  # (B, L * Q, 2)
    frames, each = centres.shape[:2]
    return centres.flatten(0, 1), torch.arange(frames, device=boxes.device).repeat_interleave(each)


def heaviest(weights: Tensor, samples: Tensor, limit: int) -> Tensor:
    """Positions of at most `limit` places of each frame (0: all), heaviest first, frames ascending; equal weights keep
    their order."""
    order = weights.argsort(descending=True, stable=True)
    order = order[samples[order].argsort(stable=True)]
    if not limit or not len(order):
        return order
    counts = torch.bincount(samples)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[samples[order]]
    return order[rank < limit]


def samples_of(options: BevDistillContrastOptions) -> str:
    """The features at box centres, as the store is asked for them."""
    return samples_item(boxes="teacher", points="1x1", limit=options.top)


def _sampled(said: TeacherSaid, item: str, samples: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The stored samples at box centres: (T, C), and (T,) whether there is one; boxes beyond the stored ones have
    none."""
    values, inside = stored_samples(said, item)
    counts = torch.tensor([len(part) for part in values], device=samples.device)
    there = rank < counts[samples]
    flat, known = torch.cat(values)[:, 0], torch.cat(inside)[:, 0]
    if not len(flat):
        return at_least_fp32(flat.new_zeros(len(samples), flat.shape[1])), there
    position = torch.where(there, (counts.cumsum(0) - counts)[samples] + rank, 0)
    return at_least_fp32(flat[position]), there & known[position]


def needs_of(options: BevDistillContrastOptions) -> TermNeeds:
    """What the term reads under these options."""
    if options.places == "cells":
        return TermNeeds(map_fields(), (options.selector,), ("bev",))
    if options.places == "queries":
        return TermNeeds(map_fields(), (), ("bev", "queries"), every_cell=True)
    student = ("queries",) if options.student == "embeddings" else ("bev",)
    if options.teacher == "samples":
        return TermNeeds((*fields_of(options), samples_of(options)), (), student)
    return TermNeeds((*fields_of(options), *map_fields()), (), student, every_cell=True)
