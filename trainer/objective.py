"""What a run minimises, as one module: the student and the terms on it, a batch and what the teachers said in, the
parts of the loss out.

One module, so that a data-parallel wrapper sees every parameter that is trained and every tensor that a loss comes of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from cache.errors import ConfigError
from models.detector import Batch, Detector, LossPart
from trainer.compiling import told_of_compiling
from trainer.recipe import Recipe
from trainer.said import TeachersSaid
from trainer.terms import scheduled
from trainer.terms.relabel import Relabel


class Objective(nn.Module):
    """model: a `models.detector.Detector`; terms: of the recipe, by what they are known as; relabels: what changes
    labels, likewise; steps: of the whole run, for the terms' schedules."""

    def __init__(
        self, model: nn.Module, terms: nn.ModuleDict, relabels: Mapping[str, Relabel], recipe: Recipe, steps: int
    ) -> None:
        super().__init__()
        self.model, self.terms = model, terms
        self.relabels, self.recipe, self.steps = dict(relabels), recipe, steps
        self._held: tuple[nn.Module, ...] = ()

    def keep_in_evaluation(self, parts: Sequence[nn.Module]) -> None:
        """These parts are held in evaluation mode while the rest is trained."""
        self._held = (*self._held, *parts)
        self.hold()

    def hold(self) -> None:
        """Puts them back there, after whatever else has put the model in training mode."""
        for part in self._held:
            if any(module.training for module in part.modules()):
                part.eval()

    def forward(self, batch: Batch, said: TeachersSaid | None, step: int) -> tuple[dict[str, LossPart], dict[str, int]]:
        """The parts of step `step`'s loss on this batch, and what changes of labels counted."""
        model = cast(Detector, self.model)
        config = self.recipe.train
        bf16 = config.precision == "bf16"
        with told_of_compiling(config.compile), torch.autocast(device_of(batch), torch.bfloat16, enabled=bf16):
            output = model(batch)
        labelled, counts = batch, dict[str, int]()
        for term in self.recipe.terms:
            if term.known_as not in self.relabels:
                continue
            assert said is not None
            # the detection loss alone reads these labels: masks are of the annotated boxes
            changed = self.relabels[term.known_as](labelled, said[self.recipe.teacher_of(term)])
            labelled, counts = changed.batch, {**counts, **changed.counts}
        parts = model.loss_parts(output, labelled)
        for term in self.recipe.terms:
            if term.known_as in self.terms:
                assert said is not None
                given = self.terms[term.known_as](output, batch, said[self.recipe.teacher_of(term)])
                if both := sorted(parts.keys() & given.keys()):
                    raise ConfigError(
                        f"term {term.known_as}: the loss has a part {both[0]!r} without it; rename the term"
                    )
                parts.update(scheduled(given, term.schedule.factor(step, self.steps)))
        return parts, counts


def device_of(batch: Batch) -> str:
    """The kind of device that the batch's inputs lie on."""
    part = batch.images if batch.images is not None else batch.points[0] if batch.points else None
    return "cpu" if part is None else part.device.type
