"""`./bevcask inspect --order`: which rank and worker reads what of which store at a step, and what is read ahead.

Told from manifest, index and order alone, by the functions that training uses: nothing is read but the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from cache.errors import ConfigError
from cache.frame import CAMERA_CHANNELS
from cache.layout import frames_place
from cache.store import FrameStore, Store
from models.build import build_detector
from models.config import parse_config
from trainer.augment import frame_augment
from trainer.batches import PICTURES
from trainer.epoch_order import Frames, OrderConfig
from trainer.partition import worker_of
from trainer.past import Pasts
from trainer.plan import make_plan, pasts_of, said_reader, training_needs
from trainer.recipe import Recipe
from trainer.run_order import RankStep, RunOrder
from trainer.scene_windows import ABSENT
from trainer.step_digest import frame_digest, step_digest


@dataclass(frozen=True)
class OrderQuestion:
    """Whose reads are asked for. batch: of all ranks, the recipe's where None; step: within `epoch` where that is
    given, else counted over all epochs; ahead: steps; options: of `OrderConfig`."""

    recipe: Recipe | None = None
    batch: int | None = None
    world: int = 1
    workers: int = 1
    step: int = 0
    epoch: int | None = None
    ahead: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Read:
    """What is read of a store: its name, the row of every position of the order, the fields."""

    name: str
    store: Store
    rows: list[int]
    fields: list[str]

    def of(self, position: int) -> list[dict[str, Any]]:
        """What is read of the frame at a position of the order, as `of_row` tells it."""
        return self.of_row(self.rows[position])

    def of_row(self, row: int) -> list[dict[str, Any]]:
        """One entry a file: where the frame's first byte that is read lies, where the last ends, how many in all."""
        spans: dict[str, tuple[int, int, int]] = {}
        for place, spec in enumerate(self.store.manifest.fields):
            if spec.name in self.fields and (length := int(self.store.index.length[row, place])):
                file = self.store.manifest.shards[int(self.store.index.shard[row])].file_of(place).name
                start = int(self.store.index.offset[row, place])
                low, high, size = spans.get(file, (start, start, 0))
                spans[file] = (min(low, start), max(high, start + length), size + length)
        return [
            {"store": self.name, "file": file, "from": low, "to": high, "bytes": size}
            for file, (low, high, size) in spans.items()
        ]


@dataclass(frozen=True)
class _Run:
    """A run as far as its order goes."""

    frames: FrameStore
    rows: list[int]
    reads: list[_Read]
    order: RunOrder
    recipe: Recipe | None
    pasts: Pasts | None = None

    def past_rows(self, epoch: int, entry: int, key: int) -> list[int]:
        """The earlier moments that a temporal student is shown with the entry, oldest first."""
        return [row for row in self.pasts.of(entry, epoch, key) if row != ABSENT] if self.pasts else []

    def past_reads(self, epoch: int, entry: int, key: int) -> list[dict[str, Any]]:
        """What is read of those moments."""
        images = _Read("frames", self.frames, [], list(PICTURES))
        return [
            {**read, "past": self.frames.token(row)}
            for row in self.past_rows(epoch, entry, key)
            for read in images.of_row(row)
        ]

    @property
    def steps(self) -> float:
        """How many steps the recipe's run takes; without a recipe there is no end."""
        if self.recipe is None:
            return float("inf")
        return self.recipe.train.steps or (self.recipe.train.epochs or 0) * self.order.steps_per_epoch

    def digest(self, step: int) -> str | None:
        """The step's digest over tokens and augmentations, as a run of the recipe has it."""
        if self.recipe is None:
            return None
        whole, data = self.order.step(step), self.recipe.data
        frames = []
        for entry, key in zip(whole.entries.tolist(), whole.keys.tolist(), strict=True):
            augment = frame_augment(
                data.bev_augmentation, data.image_augmentation, len(CAMERA_CHANNELS), self.order.seed, whole.epoch, key
            )
            past = [self.frames.token(row).encode() for row in self.past_rows(whole.epoch, entry, key)]
            frames.append(frame_digest(self.frames.token(self.rows[entry]), augment, past))
        return step_digest(frames)


def order_view(cache: str | Path, asked: OrderQuestion) -> dict[str, Any]:
    """Plain values of who reads what at a step. Raises ConfigError for a step or options that there are not, StoreError
    where a store is missing."""
    for name, value in (("--world", asked.world), ("--workers", asked.workers), ("--batch", asked.batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: expected 1 or more")
    run = _run_of(cache, asked)
    order, steps = run.order, run.order.steps_per_epoch
    if asked.step < 0 or (asked.epoch or 0) < 0 or (asked.epoch is not None and asked.step >= steps):
        raise ConfigError(
            f"--step {asked.step} --epoch {asked.epoch or 0}: expected steps 0 .. {steps - 1} of an epoch"
        )
    step = asked.step + (asked.epoch or 0) * steps
    if step >= run.steps:
        raise ConfigError(f"step {step}: recipe {run.recipe.name if run.recipe else ''} ends before step {run.steps}")
    ahead = 2 * asked.workers if asked.ahead is None else asked.ahead
    ranks = range(asked.world)
    return {
        "step": step,
        "epoch": step // steps,
        "step_in_epoch": step % steps,
        "steps_per_epoch": steps,
        "epoch_frames": order.epoch_frames,
        "dropped_per_epoch": order.dropped,
        "batch": order.batch,
        "world": asked.world,
        "workers": asked.workers,
        "options": order.config.model_dump(mode="json"),
        "state": order.state(step).to_dict(),
        "digest": run.digest(step),
        "ranks": [_rank(run, order.rank_step(step, rank, asked.world), rank, asked.workers) for rank in ranks],
        "ahead": [
            _summary(run, order.rank_step(later, rank, asked.world), rank, asked.workers)
            for later in range(step + 1, int(min(step + 1 + ahead, run.steps)))
            for rank in ranks
        ],
    }


def order_tables(view: Mapping[str, Any]) -> list[RenderableType]:
    """The same for a person."""
    place = f"step {view['step_in_epoch']} of epoch {view['epoch']}, which has {view['steps_per_epoch']}"
    now = Table(title=f"step {view['step']}: {place}", title_justify="left")
    for column in ("rank", "worker", "frame", "scene", "store", "file", "bytes", "read kB"):
        now.add_column(column, justify="right" if column in ("rank", "worker", "bytes", "read kB") else "left")
    for rank in view["ranks"]:
        who = (str(rank["rank"]), str(rank["worker"]))
        for frame in rank["frames"]:
            first = (*who, frame["token"] + ("" if frame["weight"] else " (weight 0)"), frame["scene"])
            for read in frame["reads"]:
                span = f"{read['from']}..{read['to']}"
                now.add_row(*first, read["store"], read["file"], span, f"{read['bytes'] / 1e3:.1f}")
                first = ("", "", "", "")
    later = Table(title="read ahead", title_justify="left")
    for column in ("step", "rank", "worker", "frames", "MB", "files"):
        later.add_column(column, justify="left" if column == "files" else "right")
    for part in view["ahead"]:
        later.add_row(
            *(str(part[name]) for name in ("step", "rank", "worker", "frames")),
            f"{part['bytes'] / 1e6:.2f}",
            ", ".join(part["files"]),
        )
    dropped = view["dropped_per_epoch"]
    words = [
        f"batch of {view['batch']} over {view['world']} ranks with {view['workers']} workers each; an epoch has "
        f"{view['epoch_frames']} entries" + (f", of which drop_last leaves out {dropped}" if dropped else ""),
        "order: " + ", ".join(f"{name} = {value}" for name, value in view["options"].items()),
    ]
    if view["digest"]:
        words.append(f"digest of tokens and augmentations: {view['digest']}")
    return [now, later, *words]


def _run_of(cache: str | Path, asked: OrderQuestion) -> _Run:
    if asked.recipe is not None:
        recipe = asked.recipe
        plan = make_plan(recipe, cache)
        model = build_detector(recipe.model)
        needs = training_needs(model, recipe)
        reads = [_Read("frames", plan.frames, plan.rows, needs.fields())]
        reader = said_reader(plan)
        for name, teacher in plan.teachers.items():
            names = reader.fields(name) if reader else []
            reads.append(_Read(f"teachers/{name}", teacher.store, list(teacher.rows), names))
        config = parse_config(OrderConfig, {**recipe.data.order.model_dump(), **asked.options}, "--option")
        order = RunOrder(plan.run_order.frames, config, recipe.train.seed, asked.batch or recipe.train.batch)
        return _Run(plan.frames, plan.rows, reads, order, recipe, pasts_of(plan, model))
    if asked.batch is None:
        raise ConfigError("--recipe or --batch is missing; say whose order, or how many frames a step takes")
    config = parse_config(OrderConfig, dict(asked.options), "--option")
    store = FrameStore(frames_place(cache))
    rows = store.split_rows()
    frames = Frames.of(store, rows, len(rows), 0, {"frames": store.manifest.digest})
    every = [spec.name for spec in store.manifest.fields]
    return _Run(store, rows, [_Read("frames", store, rows, every)], RunOrder(frames, config, 0, asked.batch), None)


def _rank(run: _Run, part: RankStep, rank: int, workers: int) -> dict[str, Any]:
    frames = []
    for entry, key, weight in zip(part.entries.tolist(), part.keys.tolist(), part.weight.tolist(), strict=True):
        row = run.rows[entry]
        reads = [read for source in run.reads for read in source.of(entry)] + run.past_reads(part.epoch, entry, key)
        frames.append(
            {"token": run.frames.token(row), "scene": run.frames.scene_of(row), "weight": weight, "reads": reads}
        )
    return {"rank": rank, "worker": worker_of(part.step, workers), "first": part.first, "frames": frames}


def _summary(run: _Run, part: RankStep, rank: int, workers: int) -> dict[str, Any]:
    whole = _rank(run, part, rank, workers)
    reads = [read for frame in whole["frames"] for read in frame["reads"]]
    return {
        "step": part.step,
        "rank": rank,
        "worker": whole["worker"],
        "frames": int(np.count_nonzero(part.weight)),
        "bytes": sum(read["bytes"] for read in reads),
        "files": sorted({f"{read['store']}/{read['file']}" for read in reads}),
    }
