"""MonoDistill's three losses in BEV: features in boxes, relations of the scene, responses around objects.

    feature    sum_k w_k mean_c (S_k - T_k)^2 / max(sum w, 1)                    w of `selector`, the boxes' footprints
    relation   mean over frames of 1/n^2 sum_(a, b) |cos(S_a, S_b) - cos(T_a, T_b)|
               over the n blocks of `block` x `block` cells of the teacher's grid, each the mean of its cells
    response   sum_k g_k sum_classes |sigmoid heat_S(A p_k) - sigmoid logit_T,k| / max(sum g, 1)      g of `around`

S = adaptor(student)(A p_k) at stored cells. MonoDistill works in the image; a row of BEVDistill's table, whose
re-implementation is not public. Blocks are means over every cell of a store that holds them, or over the cells of
`selector`, where a block without one is left out. Responses are classes only: regressed maps would have to be moved by
the augmentation. Four frames of 1,500 cells, 256 channels: 90 ms on one core; over every cell
590 ms. Source: Chong et al. 2022 (MonoDistill); its weights are not known to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.adaptor import AdaptorKind, adapted_at, student_adaptor
from trainer.terms.annotations import annotated_frames
from trainer.terms.masked import distance_per_cell
from trainer.terms.places import CellPlaces, cell_places, column_of
from trainer.terms.sampling import sample_bilinear
from trainer.terms.store_facts import column_name, map_fields
from trainer.terms.student import heat_logits_of, map_of, require_heat
from trainer.terms.term import TermNeeds


class MonoDistillOptions(Config):
    """feature, relation and response weights: of the parts, 0 leaves one out; selector, around: see the module; over:
    the cells that blocks are made of; block: in cells.
    """

    feature_weight: float = Field(default=1.0, ge=0)
    relation_weight: float = Field(default=1.0, ge=0)
    response_weight: float = Field(default=1.0, ge=0)
    selector: str = "footprint"
    around: str = "gaussian"
    over: Literal["selector", "every_cell"] = "selector"
    block: int = Field(default=8, ge=1)
    adaptor: AdaptorKind = "conv1x1"


class MonoDistill(nn.Module):
    """A `trainer.terms.term.Term`; parts `<name>.feature`, `<name>.relation` and `<name>.response`."""

    class_ids: Tensor

    def __init__(
        self,
        name: str,
        weight: float,
        options: MonoDistillOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs = needs_of(options)
        self.adaptor = student_adaptor(options.adaptor, student_channels, teacher_channels)
        ids = [DETECTION_CLASSES.index(name) for name in model.heat_classes]
        self.register_buffer("class_ids", torch.tensor(ids), persistent=False)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: MonoDistillOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> MonoDistill:
        """The term for a student; ConfigError where that has no heat and the response part is on."""
        if options.response_weight:
            require_heat(name, model)
        return cls(name, weight, options, model.bev_channels, teacher.bev.channels, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options, cells = self.options, said.cells
        assert cells is not None
        parts: dict[str, LossPart] = {}
        with torch.autocast(output.bev.device.type, enabled=False):
            bev, column = map_of(output), column_of(cells, column_name(options.selector))
            places = cell_places(cells, column, batch, said.grid, self.grid)
            if options.feature_weight or options.over == "selector":
                found, wanted = self._both(bev, cells, places)
            if options.feature_weight:
                weights = places.weights.to(bev.dtype)
                numerator = (weights * distance_per_cell(found - wanted, "mean", "squared")).sum()
                parts["feature"] = LossPart(numerator[None], weights.sum()[None], options.feature_weight)
            if options.relation_weight:
                if options.over == "every_cell":
                    annotated = annotated_frames(batch, bev.device)
                    places = cell_places(cells, annotated[cells.samples()], batch, said.grid, self.grid)
                    found, wanted = self._both(bev, cells, places)
                index = cells.index[places.chosen]
                numerator, frames = relation(found, wanted, places.samples, index, len(bev), said.grid, options.block)
                parts["relation"] = LossPart(numerator[None], frames[None], options.relation_weight)
            if options.response_weight:
                parts["response"] = self._response(output, batch, said, cells)
        return {
            f"{self.name}.{part}": LossPart(value.numerator, value.normaliser, self.weight * value.weight)
            for part, value in parts.items()
        }

    def _both(self, bev: Tensor, cells: TeacherCells, places: CellPlaces) -> tuple[Tensor, Tensor]:
        """(K, C) of student and teacher at the places."""
        found = adapted_at(self.adaptor, bev, places.samples, places.row, places.col)
        return found, cells.values[places.chosen].to(bev.dtype)

    def _response(self, output: DetectorOutput, batch: Batch, said: TeacherSaid, cells: TeacherCells) -> LossPart:
        assert said.logits is not None
        around = column_of(cells, column_name(self.options.around))
        places = cell_places(cells, around, batch, said.grid, self.grid)
        heat = heat_logits_of(self.name, output)
        found = sample_bilinear(heat, places.samples, places.row, places.col).sigmoid()
        wanted = said.logits[places.chosen][:, self.class_ids].to(found.dtype).sigmoid()
        weights = places.weights.to(found.dtype)
        numerator = (weights * (found - wanted).abs().sum(dim=1)).sum()
        return LossPart(numerator[None], weights.sum()[None], self.options.response_weight)


def relation(
    student: Tensor, teacher: Tensor, samples: Tensor, index: Tensor, frames: int, grid: BevGrid, block: int
) -> tuple[Tensor, Tensor]:
    """The sum over frames of the mean difference of affinities, and the number of frames that have a block.

    student, teacher: (K, C) at cells `index` (K,) of frames `samples` (K,).
    """
    wide = -(-grid.width // block)
    count = wide * -(-grid.height // block)
    row, col = torch.div(index, grid.width, rounding_mode="floor"), index % grid.width
    tile = torch.div(row, block, rounding_mode="floor") * wide + torch.div(col, block, rounding_mode="floor")
    slot = samples * count + tile
    cells = torch.bincount(slot, minlength=frames * count)
    present = (cells > 0).view(frames, count)

    def affinity(values: Tensor) -> Tensor:  # (B, blocks, blocks)
        total = values.new_zeros(frames * count, values.shape[1]).index_add(0, slot, values)
        mean = F.normalize(total / cells.clamp(min=1)[:, None], dim=1).view(frames, count, -1)
        return mean @ mean.transpose(1, 2)  # absent blocks are 0 on both sides: no difference

    blocks = present.sum(dim=1)
    difference = (affinity(student) - affinity(teacher)).abs().sum(dim=(1, 2))
    return (difference / blocks.clamp(min=1).square()).sum(), (blocks > 0).sum().to(student.dtype)


def needs_of(options: MonoDistillOptions) -> TermNeeds:
    """What the term reads under these options."""
    fields, selectors, student = [*map_fields()], [options.selector], ["bev"]
    if options.response_weight:
        fields.append("logits")
        selectors.append(options.around)
        student.append("heads")
    every = options.over == "every_cell" and options.relation_weight > 0
    return TermNeeds(tuple(fields), tuple(dict.fromkeys(selectors)), tuple(student), every_cell=every)
