"""What a run reads, fixed before its first step: stores, the rows of each kind of frame, how long it is, which terms
apply to what.

An epoch's list is every labelled frame of the split and, where the recipe asks for them, a share of the unlabelled
ones. Opening the stores is all that it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cache.classes import require_detection_classes
from cache.errors import ConfigError, StoreError
from cache.layout import frames_place
from cache.store import FrameStore
from models.detector import Detector
from trainer.batches import Needs, model_needs, moments_before
from trainer.epoch_order import Frames
from trainer.past import Pasts
from trainer.recipe import Recipe
from trainer.run_order import RunOrder
from trainer.teachers import TeachersReader, join_teachers
from trainer.terms import JoinedTeacher, skipped_on


@dataclass(frozen=True)
class Plan:
    """What a run reads, fixed before its first step: rows of the frame store, and the same frames in every teacher
    store by its name. The first `labelled` rows are annotated; of the others an epoch uses `drawn`.
    """

    recipe: Recipe
    frames: FrameStore
    teachers: dict[str, JoinedTeacher]
    rows: list[int]
    labelled: int
    drawn: int = 0

    @cached_property
    def run_order(self) -> RunOrder:
        """Which entries, positions in `rows`, make up any step, under the recipe's options of the order."""
        config, frames = self.recipe.train, self.frames
        return RunOrder(
            Frames.of(frames, self.rows, self.labelled, self.drawn, self.manifests()),
            self.recipe.data.order,
            config.seed,
            config.batch,
        )

    @property
    def epoch_frames(self) -> int:
        """How long an epoch's list is."""
        return self.run_order.epoch_frames

    @property
    def steps(self) -> int:
        """Of the whole run."""
        config = self.recipe.train
        return config.steps or self.run_order.steps_per_epoch * (config.epochs or 0)

    def order(self, epoch: int) -> np.ndarray:
        """An epoch's entries, positions in `rows`, in the order in which they are used."""
        return self.run_order.epoch(epoch).slice(0, self.epoch_frames)[0]

    def unlabelled_before(self, step: int) -> int:
        """How many of the frames of the steps before `step` have no annotations."""
        if not self.drawn:
            return 0
        order, whole = self.run_order, self.run_order.steps_per_epoch * self.run_order.batch
        epoch, within = divmod(step, order.steps_per_epoch)
        ends = [whole if order.dropped else 0] * epoch + [within * order.batch]  # without drop_last an epoch has all
        counted = [int((order.epoch(e).slice(0, end)[0] >= self.labelled).sum()) for e, end in enumerate(ends) if end]
        return sum(counted) + (0 if order.dropped else epoch * self.drawn)

    def manifests(self) -> dict[str, str]:
        """Digest of every store's manifest that the run reads."""
        teachers = {f"teachers/{name}": teacher.store.manifest.digest for name, teacher in self.teachers.items()}
        return {"frames": self.frames.manifest.digest, **teachers}


def make_plan(recipe: Recipe, cache_root: str | Path) -> Plan:
    """Opens the stores and fixes what epochs are made of: the labelled frames of the split, in store order, and, where
    the recipe asks for them, the unlabelled ones."""
    frames = FrameStore(frames_place(cache_root))
    require_detection_classes(frames.classes, str(frames.root))
    rows = [row for row in frames.split_rows(recipe.data.split) if frames.is_labelled(row)]
    if not rows:
        raise StoreError(
            f"{frames.root}: split {recipe.data.split!r} has no annotated frame to train on; choose another split"
        )
    labelled, drawn = len(rows), 0
    if recipe.data.unlabelled_per_labelled:
        others = [row for row in frames.split_rows(recipe.data.split) if not frames.is_labelled(row)]
        if not others:
            raise StoreError(
                f"{frames.root}: split {recipe.data.split!r} has no unlabelled frame; cache the frames with "
                "`cache-frames --between N`, or set [data] unlabelled_per_labelled = 0"
            )
        drawn = max(1, round(min(recipe.data.unlabelled_per_labelled * labelled, len(others))))
        rows += others
    plan = Plan(recipe, frames, join_teachers(cache_root, recipe.teachers(), frames, rows), rows, labelled, drawn)
    if not plan.steps:
        raise ConfigError(f"recipe {recipe.name}: no step to take; set [train] epochs or steps")
    for term in recipe.terms:
        if (first := term.schedule.first_step(plan.steps)) >= plan.steps:
            raise ConfigError(
                f"recipe {recipe.name}: term {term.known_as} starts at step {first}, the run has {plan.steps}: it "
                "would never add to the loss; give a share of the run, such as start = 0.5, or drop the term"
            )
    return plan


def training_needs(model: Detector, recipe: Recipe) -> Needs:
    """What a step reads of the stores."""
    base = model_needs(model)
    depth = base.image_size is not None and recipe.data.depth
    return Needs(points=base.points, image_size=base.image_size, depth=depth, labels=True)


def pasts_of(plan: Plan, model: Detector) -> Pasts | None:
    """The earlier moments of the run's frames; None where `model` is of single frames."""
    length, data = moments_before(model), plan.recipe.data
    if not length:
        return None
    return Pasts(plan.frames, data.split, plan.rows, length, data.past, plan.recipe.train.seed)


def said_reader(plan: Plan) -> TeachersReader | None:
    """The reader of what the run's terms need of the teacher stores; None without terms."""
    if not plan.recipe.terms:
        return None
    return TeachersReader.of(plan.recipe.term_specs(), plan.frames, plan.rows, plan.teachers)


def require_use_of_unlabelled(plan: Plan, model: Detector) -> list[str]:
    """The terms that do not apply to the run's unlabelled frames. ConfigError where nothing learns from those: no depth
    labels, and no term that applies."""
    if not plan.drawn:
        return []
    specs = plan.recipe.term_specs()
    skipped = skipped_on("unlabelled", specs, model, plan.teachers)
    if len(skipped) == len(specs) and not training_needs(model, plan.recipe).depth:
        reasons = "; ".join(f"term {name} {reason}" for name, reason in skipped.items()) or "the recipe has no term"
        raise ConfigError(
            f"recipe {plan.recipe.name}: nothing learns from unlabelled frames: {reasons}; use a selector that needs "
            "no annotations, such as confident, or set [data] unlabelled_per_labelled = 0"
        )
    return list(skipped)
