"""TiG-BEV's inner-feature term: how channels, and how points, of an object relate, the teacher's against the student's.

    channels   L = sum_n mean over c, d of (cos(adaptor(S)_n.c, adaptor(S)_n.d) - cos(T_n.c, T_n.d))^2 / max(N, 1)
    points     L = sum_n mean over p, q of (cos(adaptor(S)_np., adaptor(S)_nq.) - cos(T_np., T_nq.))^2 / max(N, 1)

over a grid of points in every annotated box, enlarged. Values themselves are never compared, so the two modalities need
not agree in them. Released: 24 x 24 points (590 KB a box of 512 channels in a store), enlarge 1.6, weights 20
(channels) and 100 (points), a 1 x 1 convolution to the teacher's channels; a normalisation of the Gram matrices that
was not seen in detail is taken as cosines. fp32 inside; 400 ms of one core for 4 frames of 40 boxes, 8 x 8 points and
256 channels, forward and backward, nearly all of it the channels' relation. Source: TiG-BEV (2022) and its released
code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.adaptor import adapted_rows, student_adaptor
from trainer.terms.box_relations import channel_relation, mean_over_pairs, point_relation
from trainer.terms.box_samples import sampled_boxes, samples_item
from trainer.terms.store_facts import sampled_channels
from trainer.terms.student import MapFacts, map_of, student_map
from trainer.terms.term import TermNeeds


class TigBevOptions(Config):
    """points: a grid in each box (released: 24x24); enlarge: factor on length and width; level, student_level: the maps
    compared, "" for the main ones; the weights of the two parts."""

    points: str = Field(default="8x8", pattern=r"^[1-9][0-9]?x[1-9][0-9]?$")
    enlarge: float = Field(default=1.6, ge=0.1, le=10)
    level: str = ""
    student_level: str = ""
    channel_weight: float = Field(default=1.0, ge=0)
    point_weight: float = Field(default=5.0, ge=0)


class TigBevInner(nn.Module):
    """A `trainer.terms.term.Term` with the parts `<name>.channels` and `<name>.points`."""

    def __init__(self, name: str, weight: float, options: TigBevOptions, student: MapFacts, channels: int) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, student.grid
        self.needs = needs_of(options)
        self.adaptor = student_adaptor("conv1x1", student.channels, channels)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: TigBevOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> TigBevInner:
        """The term for a student."""
        student = student_map(name, model, options.student_level)
        return cls(name, weight, options, student, sampled_channels(teacher, _item(options)))

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options = self.options
        bev = map_of(output, options.student_level)
        with torch.autocast(bev.device.type, enabled=False):
            both = sampled_boxes(bev, self.grid, batch, said, _item(options))
            student = adapted_rows(self.adaptor, both.student)
            pairs = [(channel_relation(f, both.valid), point_relation(f, both.valid)) for f in (student, both.teacher)]
            channels = (pairs[0][0] - pairs[1][0]).square().mean(dim=(1, 2))
            points = mean_over_pairs((pairs[0][1] - pairs[1][1]).square(), both.valid)
            count = bev.new_tensor([float(len(points))])
        weights = {"channels": options.channel_weight, "points": options.point_weight}
        return {
            f"{self.name}.{part}": LossPart(values.sum()[None], count, self.weight * weights[part])
            for part, values in (("channels", channels), ("points", points))
        }


def _item(options: TigBevOptions) -> str:
    return samples_item(points=options.points, level=options.level, enlarge=options.enlarge)


def needs_of(options: TigBevOptions) -> TermNeeds:
    """What the term reads under these options."""
    return TermNeeds((_item(options),), (), ("levels" if options.student_level else "bev",), batch=("boxes",))
