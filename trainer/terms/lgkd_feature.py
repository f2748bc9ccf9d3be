"""BEV-LGKD's feature term: the student's map should be the teacher's where LiDAR returns are, camera by camera.

    L = sum_v  sum_k m_vk sum_c q_kc (adaptor(S)(A p_k) - T_kc)^2 / max(sum_k m_vk sum_c q_kc, 1)

over all cached cells k of the whole batch. m_vk = w_k [camera v looks over cell k]: w the store's LiDAR weight, so each
of the six cameras has a mean of its own and the means are added (released); or one v for all cameras together, or none.
q says which of the teacher's values count: all of them, those of cells that the teacher reached (any channel is not 0;
default), or those that are not 0 themselves (released). Masks live in the canonical frame and move with the cells.

Differs from the release in that the masks of every frame of the batch are used (it takes those of sample 0) and follow
the BEV augmentation (its points do not). fp32 inside; 90 ms of one core for 4 frames of 1,500 cells of 256 channels on
128 x 128, forward and backward with the 1 x 1 adaptor, a third of it the map's dense gradient. Source: BEV-LGKD, arXiv
2212.00623, and its first released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cache.errors import ConfigError, DataError
from cache.frame import CAMERA_CHANNELS
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.adaptor import PlainAdaptor, adapted_at, student_adaptor
from trainer.terms.places import augmentation_of, cell_centres, cell_places
from trainer.terms.standardise import Standard, Standardise
from trainer.terms.store_facts import columns_of, map_fields, require_exact_zeros, said_map, teacher_map
from trainer.terms.student import MapFacts, map_of, student_map
from trainer.terms.term import TermNeeds
from trainer.terms.views import cells_in_view, lidar_to_camera


class LgkdFeatureOptions(Config):
    """selector: whose weights; level, student_level: the maps compared, "" for the main ones (released: both `splat`,
    the lifted features before the BEV encoder). views: each (released: six means added), union, or none. views_from:
    calibration of the batch's pictures, or columns `SELECTOR*view(camera=NAME)` of the store. counted: which teacher
    values (released: nonzero). adaptor: conv1x1, or none (released; the maps then need as many channels)."""

    selector: str = "lidar"
    level: str = ""
    student_level: str = ""
    views: Literal["each", "union", "none"] = "each"
    views_from: Literal["calibration", "store"] = "calibration"
    counted: Literal["all", "reached", "nonzero"] = "reached"
    adaptor: PlainAdaptor = "conv1x1"
    standardise: Standard = "channels"


class LgkdFeature(nn.Module):
    """A `trainer.terms.term.Term`; its part has one group per view."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: LgkdFeatureOptions,
        student: MapFacts,
        teacher: MapFacts,
        standardise: Standardise | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, student.grid
        self.needs, self.columns = needs_of(options), columns_of(needs_of(options).selectors)
        self.standardise = standardise or Standardise()
        self.adaptor = student_adaptor(options.adaptor, student.channels, teacher.channels, name)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: LgkdFeatureOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> LgkdFeature:
        """The term for a student and the frames it will be trained on."""
        if options.views_from == "calibration" and options.views != "none" and model.modality != "camera":
            raise ConfigError(
                f"term {name}: views from calibration are those of a camera student's pictures, this one reads LiDAR; "
                'set views_from = "store" or views = "none"'
            )
        if options.counted != "all":
            require_exact_zeros(name, 'set counted = "all"', teacher, options.level, teacher_rows)
        student, said = student_map(name, model, options.student_level), teacher_map(teacher, options.level)
        columns = columns_of(needs_of(options).selectors)
        standardise = Standardise.fit(options.standardise, teacher, options.level, teacher_rows, columns)
        return cls(name, weight, options, student, said, standardise)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options = self.options
        cells, grid = said_map(said, options.level)
        bev = map_of(output, options.student_level)
        with torch.autocast(bev.device.type, enabled=False):
            at = cell_places(cells, self._masks(cells, grid, batch), batch, grid, self.grid)
            masks, values = at.weights.to(bev.dtype), cells.values[at.chosen].to(bev.dtype)  # (K, views), (K, C)
            student = adapted_at(self.adaptor, bev, at.samples, at.row, at.col)
            counted = self._counted(values)
            error = ((student - self.standardise(values)).square() * counted).sum(dim=1)
            numerator, normaliser = masks.T @ error, masks.T @ counted.sum(dim=1)
        return {self.name: LossPart(numerator, normaliser, self.weight)}

    def _counted(self, values: Tensor) -> Tensor:
        """(K, C) of ones and zeros, judged on the values as stored."""
        if self.options.counted == "all":
            return torch.ones_like(values)
        alive = values != 0
        return (alive if self.options.counted == "nonzero" else alive.any(dim=1, keepdim=True).expand_as(alive)).to(
            values.dtype
        )

    def _masks(self, cells: TeacherCells, grid: BevGrid, batch: Batch) -> Tensor:
        """(N, views) weights of each cell in each view's mean."""
        weights = cells.weights[:, [cells.selectors.index(column) for column in self.columns]]
        if self.options.views == "none" or self.options.views_from == "store":
            return weights
        if batch.images is None or batch.intrinsics is None or batch.camera_to_lidar is None:
            raise DataError(f'term {self.name}: the batch holds no pictures with calibration; set views = "none"')
        to_camera = lidar_to_camera(batch.camera_to_lidar, augmentation_of(batch, cells.index.device))
        size = (batch.images.shape[-1], batch.images.shape[-2])
        seen = cells_in_view(cell_centres(cells.index, grid), cells.samples(), batch.intrinsics, to_camera, size)
        return weights * (seen if self.options.views == "each" else seen.any(dim=1, keepdim=True))


def needs_of(options: LgkdFeatureOptions) -> TermNeeds:
    """What the term reads under these options."""
    selectors: tuple[str, ...] = (options.selector,)
    views = options.views != "none"
    if views and options.views_from == "store":
        cameras = [f"(camera={channel})" for channel in CAMERA_CHANNELS] if options.views == "each" else [""]
        selectors = tuple(f"{options.selector}*view{camera}" for camera in cameras)
    student = "levels" if options.student_level else "bev"
    from_batch = ("images", "intrinsics", "camera_to_lidar") if views and options.views_from == "calibration" else ()
    return TermNeeds(map_fields(options.level), selectors, (student,), any_grid=True, batch=from_batch)
