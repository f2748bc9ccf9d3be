"""Where the bounds of exactness end: a store's error is fixed, so the relative error grows as the residual shrinks.

Real students of a few hundred steps are far from their teacher. Here the student's map is the teacher's own,
standardised, plus noise of a chosen size, so that the residual is what we say; the map's gradient then differs by just
error over residual, with no adaptor in between to average it out. Seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from cache.layout import frames_place, teacher_place
from cache.store import FrameStore, TeacherStore
from models.detector import Batch, Detector, DetectorOutput
from studies.benches.exactness import Agreement, compare
from studies.benches.stages import LiveBatch, stored_cells, worst
from trainer.augment import no_augment
from trainer.terms.bevdistill_dense import BevDistillDense, BevDistillDenseOptions, channel_statistics

RESIDUALS = (1.0, 0.5, 0.25, 0.1, 0.05)


class _FreeMap(nn.Module):
    """A student that is nothing but its map."""

    def __init__(self, bev: Tensor) -> None:
        super().__init__()
        self.bev = nn.Parameter(bev)

    def forward(self, batch: Batch) -> DetectorOutput:
        return DetectorOutput(self.bev * 1.0, [])


def residual_curve(cache: Path, stores: Mapping[str, int], live: Sequence[LiveBatch]) -> dict[str, list[Any]]:
    """By store (name: dilation of its mask): the worst `Agreement` with the fp32 teacher at every residual."""
    frames = FrameStore(frames_place(cache))
    out: dict[str, list[Any]] = {}
    for name, dilate in stores.items():
        store = TeacherStore(teacher_place(cache, name))
        term = free_term(store)
        detector = cast(Detector, SimpleNamespace(grid=store.grid))
        out[name] = []
        for residual in RESIDUALS:
            found: list[Agreement] = []
            for number, batch in enumerate(live):
                cells = stored_cells(frames, store, batch.rows, [no_augment(6)] * len(batch.rows))
                student = _FreeMap(_near(term, batch.maps, residual, seed=number))
                inputs = Batch(bev_augmentation=torch.eye(4, dtype=torch.float64).repeat(len(batch.rows), 1, 1))
                found += compare(student, term, inputs, [cells], [batch.maps], batch.mask(detector, dilate))
            out[name].append({"asked": residual, **worst(found).to_dict()})
    return out


def free_term(store: TeacherStore) -> BevDistillDense:
    """The dense term with the store's statistics and no adaptor: the student's map is compared as it is."""
    channels = store.bev.channels
    options = BevDistillDenseOptions()
    statistics = channel_statistics(store, list(range(len(store))), options.selector)
    model = cast(Detector, SimpleNamespace(grid=store.grid))
    term = BevDistillDense("dense", 1.0, options, channels, channels, model, statistics)
    term.adaptor = nn.Identity()
    return term


def _near(term: BevDistillDense, maps: Tensor, residual: float, seed: int) -> Tensor:
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed))
    return (maps - term.teacher_mean[:, None, None]) / term.teacher_deviation[:, None, None] + residual * noise
