"""UniDistill's two feature terms: what the maps say at nine points of every annotated box, and how the points relate.

    feature    L = sum_n mean over valid points p and channels of |adaptor(S)_np - T_np| / max(N, 1)
    relation   L = sum_n mean over pairs p, q of |cos(S_np, S_nq) - cos(T_np, T_nq)| / max(N, 1)

over the N boxes of the batch's annotated frames with a point on both maps: each box counts once, whatever its size.
`feature` is taken on the maps before the BEV encoders in the release (`level`, weight 100), `relation` on the encoded
maps (weight 40); relation needs no adaptor, since it compares points with points. fp32 inside; 38 ms of one core each
for 4 frames of 40 boxes of 256 channels on 128 x 128, forward and backward, nearly all of it the map's dense gradient.
Source: UniDistill, CVPR 2023, and its released code, which has no adaptor because its maps have equal channels: adaptor
= "none" is that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cache.grid import BevGrid
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.adaptor import PlainAdaptor, adapted_rows, student_adaptor
from trainer.terms.box_relations import mean_over_pairs, point_relation
from trainer.terms.box_samples import BoxSamples, sampled_boxes, samples_item
from trainer.terms.store_facts import sampled_channels
from trainer.terms.student import MapFacts, map_of, student_map
from trainer.terms.term import TermNeeds


class PointOptions(Config):
    """level, student_level: the maps compared, "" for the main ones."""

    level: str = ""
    student_level: str = ""


class UniDistillFeatureOptions(PointOptions):
    """adaptor: conv1x1, or none (released; the maps then need as many channels)."""

    adaptor: PlainAdaptor = "conv1x1"


class UniDistillFeature(nn.Module):
    """A `trainer.terms.term.Term`."""

    def __init__(
        self, name: str, weight: float, options: UniDistillFeatureOptions, student: MapFacts, channels: int
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, student.grid
        self.needs = needs_of(options)
        self.adaptor = student_adaptor(options.adaptor, student.channels, channels, name)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: UniDistillFeatureOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> UniDistillFeature:
        """The term for a student."""
        student = student_map(name, model, options.student_level)
        return cls(name, weight, options, student, sampled_channels(teacher, _item(options)))

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        with torch.autocast(output.bev.device.type, enabled=False):
            both = _sampled(output, batch, said, self.options, self.grid)
            error = (adapted_rows(self.adaptor, both.student) - both.teacher).abs().mean(dim=2) * both.valid  # (N, P)
            per_box = error.sum(dim=1) / both.valid.sum(dim=1)
        return {self.name: _over_boxes(per_box, self.weight)}


class UniDistillRelation(nn.Module):
    """A `trainer.terms.term.Term`."""

    def __init__(self, name: str, weight: float, options: PointOptions, student: MapFacts) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, student.grid
        self.needs = needs_of(options)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: PointOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> UniDistillRelation:
        """The term for a student."""
        sampled_channels(teacher, _item(options))  # refuses a store without them
        return cls(name, weight, options, student_map(name, model, options.student_level))

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        with torch.autocast(output.bev.device.type, enabled=False):
            both = _sampled(output, batch, said, self.options, self.grid)
            relations = [point_relation(features, both.valid) for features in (both.student, both.teacher)]
            per_box = mean_over_pairs((relations[0] - relations[1]).abs(), both.valid)
        return {self.name: _over_boxes(per_box, self.weight)}


def _item(options: PointOptions) -> str:
    return samples_item(level=options.level)


def _sampled(
    output: DetectorOutput, batch: Batch, said: TeacherSaid, options: PointOptions, grid: BevGrid
) -> BoxSamples:
    return sampled_boxes(map_of(output, options.student_level), grid, batch, said, _item(options))


def _over_boxes(per_box: Tensor, weight: float) -> LossPart:
    """The mean over the boxes of the global batch."""
    return LossPart(per_box.sum()[None], per_box.new_tensor([float(len(per_box))]), weight)


def needs_of(options: PointOptions) -> TermNeeds:
    """What either term reads under these options."""
    return TermNeeds((_item(options),), (), ("levels" if options.student_level else "bev",), batch=("boxes",))
