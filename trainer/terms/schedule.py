"""How much a term weighs as the run goes on: a factor on its weight, a pure function of the step.

    factor = rise * fall
    rise   (step + 1) / warmup_steps below warmup_steps, else 1; 0 before `start`, from which steps are counted
    fall   1 up to decay_from; from there to the run's end down to `floor`, in a line or half a cosine

Steps count from 0. `start`, `warmup_steps` and `decay_from` are whole numbers of steps, or, given with a point, shares
of the run below 1 (0.5), so that a recipe keeps its shape when its length changes. A term at factor 0 gives parts of
weight 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator

from models.config import Config
from models.detector import LossPart


class Schedule(Config):
    """The default is constant. kind: of the fall. floor: the factor at the run's last step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    start: int | float = Field(default=0, ge=0)
    warmup_steps: int | float = Field(default=0, ge=0)
    decay_from: int | float = Field(default=0, ge=0)
    floor: float = Field(default=0.0, ge=0, le=1)

    @field_validator("start", "warmup_steps", "decay_from", mode="before")
    @classmethod
    def _steps_or_a_share(cls, value: object) -> object:
        if isinstance(value, bool) or (isinstance(value, float) and not value < 1):
            raise ValueError(
                "expected a whole number of steps, such as 500, or a share of the run below 1, such as 0.5"
            )
        return value

    @model_validator(mode="after")
    def _falls_if_it_says_so(self) -> Schedule:
        if self.kind == "constant" and (self.decay_from or self.floor):
            raise ValueError('decay_from and floor are of a fall: set kind = "linear" or "cosine", or leave them out')
        return self

    def first_step(self, steps: int) -> int:
        """The first step of a run of `steps` at which the factor is not 0."""
        return _in_steps(self.start, steps)

    def factor(self, step: int, steps: int) -> float:
        """Of step 0 .. steps - 1."""
        return factor(self, step, steps)


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """0..1, of step 0 .. steps - 1 of a run of `steps`. The last step has exactly `floor`, unless it is constant."""
    start, warmup, fall_from = (
        _in_steps(value, steps) for value in (schedule.start, schedule.warmup_steps, schedule.decay_from)
    )
    if step < start:
        return 0.0
    rise = min(1.0, (step - start + 1) / warmup) if warmup else 1.0
    if schedule.kind == "constant" or step <= fall_from:
        return rise
    done = min(1.0, (step - fall_from) / max(1, steps - 1 - fall_from))
    left = 1 - done if schedule.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return rise * (schedule.floor + (1 - schedule.floor) * left)


def scheduled(parts: Mapping[str, LossPart], share: float) -> dict[str, LossPart]:
    """The parts of a term at this factor. At 0 they are cut off the graph: no gradient, and 0 times infinity is 0."""
    if share == 0:
        return {name: LossPart(torch.zeros_like(part.numerator), part.normaliser, 0.0) for name, part in parts.items()}
    return {name: dataclasses.replace(part, weight=part.weight * share) for name, part in parts.items()}


def _in_steps(value: int | float, steps: int) -> int:
    """A number of steps, or of a share of the run."""
    return value if isinstance(value, int) else round(value * steps)
