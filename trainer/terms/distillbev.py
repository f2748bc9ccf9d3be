"""DistillBEV's feature term: foreground and background apart, each cell and channel by the teacher's own attention.

Over the cells k of frame b that the term reads, E_kc = a_k h_bc (adaptor(S)(A p_k) - T_kc)^2:

    foreground   sum_k f_k sum_c E_kc      f: the footprints' weight, sqrt(cell area / box area) by default
    background   sum_k g_k sum_c E_kc      g: 1 at background cells outside every footprint
    false        sum_k e_k sum_c E_kc      e: 1 where the teacher sees something and no box is (off by default; such
                                           cells then leave the background)
    spatial      sum_k |mean_c |S_kc| - mean_c |T_kc||
    channel      sum_b mean_c |mean_k |S_kc| - mean_k |T_kc||
    a_k = K_b softmax over the frame's cells of mean_c |T_kc| / t,    h_bc = C softmax_c of mean_k |T_kc| / t

    sound      the first three by C times their masses, spatial by cells, channel by frames, all of the global batch
    released   all by annotated frames, background with g = 1 / (background cells of its frame): sums, not means, which
               is why the released weights are tiny

Attention is a softmax over the whole map in the release: with background = "dense" it is here, with "random" it is over
the cells that are read. Attention of the teacher's does not depend on the augmentation. Frames without annotations are
left out: their objects would count as background. fp32 inside; 90 ms of one core for 4 frames of 1,500 cells of 256
channels on 128 x 128, forward and backward. Source: DistillBEV, ICCV 2023 (arXiv 2309.15109), and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.adaptor import adapted_at, student_adaptor
from trainer.terms.annotations import annotated_frames
from trainer.terms.places import cell_places
from trainer.terms.standardise import Standard, Standardise
from trainer.terms.store_facts import columns_of, map_fields, said_map, teacher_map
from trainer.terms.student import MapFacts, map_of, student_map
from trainer.terms.term import TermNeeds


class DistillBevOptions(Config):
    """foreground, background, false_positives ("": none): selectors; level, student_level: the maps compared, "" for
    the main ones; attention: whether a and h are used, and temperature: t (released: 0.5); the weights of the parts are
    ours for the sound form, and not tuned."""

    foreground: str = "footprint(by_size=1)"
    background: str = "random"
    false_positives: str = ""
    level: str = ""
    student_level: str = ""
    form: Literal["sound", "released"] = "sound"
    attention: bool = True
    temperature: float = Field(default=0.5, gt=0)
    standardise: Standard = "channels"
    foreground_weight: float = Field(default=1.0, ge=0)
    background_weight: float = Field(default=0.25, ge=0)
    false_weight: float = Field(default=0.25, ge=0)
    spatial_weight: float = Field(default=0.1, ge=0)
    channel_weight: float = Field(default=0.1, ge=0)


class DistillBev(nn.Module):
    """A `trainer.terms.term.Term` with the parts `<name>.foreground`, `.background`, `.false`, `.spatial`,
    `.channel`."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: DistillBevOptions,
        student: MapFacts,
        teacher: MapFacts,
        standardise: Standardise | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, student.grid
        self.needs, self.columns = needs_of(options), columns_of(needs_of(options).selectors)
        self.standardise = standardise or Standardise()
        self.adaptor = student_adaptor("conv1x1", student.channels, teacher.channels)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: DistillBevOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> DistillBev:
        """The term for a student and the frames it will be trained on."""
        columns = columns_of(needs_of(options).selectors)
        standardise = Standardise.fit(options.standardise, teacher, options.level, teacher_rows, columns)
        student, said = student_map(name, model, options.student_level), teacher_map(teacher, options.level)
        return cls(name, weight, options, student, said, standardise)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        options = self.options
        cells, grid = said_map(said, options.level)
        bev = map_of(output, options.student_level)
        with torch.autocast(bev.device.type, enabled=False):
            samples = cells.samples()
            masks = self._masks(cells.weights[:, [cells.selectors.index(name) for name in self.columns]].to(bev.dtype))
            annotated = annotated_frames(batch, bev.device)
            read = annotated[samples] & (masks > 0).any(dim=1)
            samples, masks = samples[read], masks[read]
            teacher = self.standardise(cells.values[read].to(bev.dtype))  # (K, C)
            attention = frame_attention(teacher, samples, len(bev), options.temperature) if options.attention else None
            at = cell_places(cells, read, batch, grid, self.grid)
            inside, samples = at.chosen[read], at.samples
            masks, teacher = masks[inside], teacher[inside]
            student = adapted_at(self.adaptor, bev, samples, at.row, at.col)
            error = (student - teacher).square()
            if attention is not None:
                by_cell, by_channel = attention
                error = by_cell[inside, None] * by_channel[samples] * error
            values = self._regions(masks, error.sum(dim=1), error.shape[1], samples, annotated)
            values |= self._attention_maps(student.abs(), teacher.abs(), samples, annotated)
        weights = {
            "foreground": options.foreground_weight,
            "background": options.background_weight,
            "false": options.false_weight,
            "spatial": options.spatial_weight,
            "channel": options.channel_weight,
        }
        return {
            f"{self.name}.{part}": LossPart(numerator[None], normaliser[None], self.weight * weights[part])
            for part, (numerator, normaliser) in values.items()
        }

    def _masks(self, weights: Tensor) -> Tensor:
        """(K, 2 or 3) weights as foreground, background, false positive; a cell has one of them."""
        outside = weights[:, 0] == 0
        false = outside & (weights[:, 2] > 0) if weights.shape[1] == 3 else torch.zeros_like(outside)
        background = (outside & ~false & (weights[:, 1] > 0)).to(weights.dtype)
        return torch.stack([weights[:, 0], background, *((false.to(weights.dtype),) * (weights.shape[1] - 2))], dim=1)

    def _regions(
        self, masks: Tensor, error: Tensor, channels: int, samples: Tensor, annotated: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Numerator and normaliser of the regions; error: (K,) summed over channels."""
        names = ("foreground", "background", "false")[: masks.shape[1]]
        if self.options.form == "sound":
            return dict(zip(names, zip(masks.T @ error, channels * masks.sum(dim=0), strict=True), strict=True))
        cells = error.new_zeros(len(annotated)).index_add_(0, samples, masks[:, 1]).clamp(min=1)
        shares = [masks[:, 0], masks[:, 1] / cells[samples], *masks[:, 2:].T]
        count = annotated.sum().to(error.dtype)
        return {name: ((share * error).sum(), count) for name, share in zip(names, shares, strict=True)}

    def _attention_maps(
        self, student: Tensor, teacher: Tensor, samples: Tensor, annotated: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The L1 of mean |F| over channels at each cell, and over cells in each frame; both (K, C), not negative."""
        frames, channels = len(annotated), student.shape[1]
        cells = student.new_zeros(frames).index_add_(0, samples, torch.ones_like(student[:, 0]))
        difference = student.new_zeros(frames, channels).index_add_(0, samples, student - teacher)
        spatial = (student.mean(dim=1) - teacher.mean(dim=1)).abs().sum()
        channel = (difference / cells.clamp(min=1)[:, None]).abs().mean(dim=1).sum()
        held = (cells > 0).sum().to(student.dtype)
        by_frames = annotated.sum().to(student.dtype)
        released = self.options.form == "released"
        return {
            "spatial": (spatial, by_frames if released else cells.sum()),
            "channel": (channel, by_frames if released else held),
        }


def frame_attention(teacher: Tensor, samples: Tensor, frames: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The teacher's attention: (K,) by cell, with mean 1 over each frame's cells, and (frames, C) by channel, with mean
    1 over channels. teacher: (K, C); samples: (K,) frame of each cell. Frames without cells get ones."""
    size = teacher.abs()
    logits = size.mean(dim=1) / temperature
    ones = torch.ones_like(logits)
    highest = logits.new_full((frames,), -torch.inf).scatter_reduce(0, samples, logits, "amax")
    raised = (logits - highest[samples]).exp()
    cells, total = (logits.new_zeros(frames).index_add_(0, samples, part) for part in (ones, raised))
    by_cell = raised / total[samples] * cells[samples]
    mean = size.new_zeros(frames, size.shape[1]).index_add_(0, samples, size) / cells.clamp(min=1)[:, None]
    return by_cell, (mean / temperature).softmax(dim=1) * size.shape[1]


def needs_of(options: DistillBevOptions) -> TermNeeds:
    """What the term reads under these options."""
    selectors = (options.foreground, options.background, *filter(None, (options.false_positives,)))
    student = "levels" if options.student_level else "bev"
    return TermNeeds(map_fields(options.level), selectors, (student,), any_grid=True)
