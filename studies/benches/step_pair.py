"""A teacher and a student of BEVDistill's dense term, trained either way: from the teacher's store, or with the teacher
in the loop.

The teacher in the loop is built as one would build it for speed: in evaluation mode, without gradient, under autocast,
on clouds that the same loader's threads read, which also find the cells that the term compares; of its answer those
cells alone are taken, on its device. No head is run for boxes that nobody asks for. Both sides read the same frames in
the same order under the same augmentations and take the same student step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from cache.frame import CAMERA_CHANNELS
from models.build import build_detector, load_weights, save_weights
from models.detector import Batch, Detector, total_of
from pipeline.coverage import coverage_weights
from pipeline.device import choose_device
from pipeline.evidence import evidence_of
from pipeline.teacher import SHIPPED_TEACHERS, TeacherOptions, cache_teacher
from studies.demo import DemoWorld
from studies.simulated_cache import simulated_cache
from trainer.augment import frame_augment
from trainer.batches import BatchBuilder
from trainer.loader import Loader
from trainer.plan import Plan, make_plan, said_reader, training_needs
from trainer.recipe import Recipe, make_recipe
from trainer.said import TeacherCells, TeacherSaid, TeachersSaid
from trainer.setup import make_training
from trainer.transfer import Packed, pack

Kind = Literal["cached", "online"]
NAME = "pair"


@dataclass(frozen=True)
class Pair:
    """teacher: a preset, or `demo` for the shipped one; student: a preset; world: of the frames; precision: of the
    student's step, and of the teacher beside it."""

    teacher: str
    student: str
    world: DemoWorld
    batch: int
    precision: str


PAIRS = {
    "tiny": Pair("demo", "lift-splat-tiny", DemoWorld(train_scenes=8, val_scenes=1), 4, "bf16"),
    "full": Pair(
        "centerpoint-pillar-0.2",
        "lift-splat-r50",
        DemoWorld(train_scenes=8, val_scenes=1, frames=4, sweeps=9, image_scale=1.0),
        8,
        "bf16",
    ),
}


@dataclass(frozen=True)
class Made:
    """A pair on disk: its stores and the teacher's weights."""

    cache: Path
    weights: Path
    recipe: Recipe


def make_pair(work: Path, pair: Pair, device: str) -> Made:
    """Simulates, caches and writes what is not there yet; an unshipped teacher has the weights of its initialisation,
    on which no time depends."""
    simulated_cache(work, pair.world)
    made = open_pair(work, pair)
    if not made.weights.is_file():
        torch.manual_seed(0)
        save_weights(build_detector({"preset": pair.teacher}), made.weights)
    teach(made, device)
    return made


def open_pair(work: Path, pair: Pair) -> Made:
    """What `make_pair` made in `work`."""
    weights = SHIPPED_TEACHERS.get(pair.teacher, work / "teacher.safetensors")
    return Made(work / "cache", weights, recipe_of(pair))


def teach(made: Made, device: str) -> None:
    """The teacher's store beside the frames."""
    options = TeacherOptions("gaussian", device=device)
    cache_teacher(made.cache, NAME, teacher="own", checkpoint=made.weights, options=options, workers=1)


def recipe_of(pair: Pair, split: str = "train") -> Recipe:
    """The student's training, under BEVDepth's augmentations of the bird's-eye view."""
    values: dict[str, Any] = {
        "model": {"preset": pair.student},
        "data": {
            "split": split,
            "teacher": NAME,
            "bev_augmentation": {"flip_x": 0.5, "flip_y": 0.5, "rotation_deg": 22.5, "scale": [0.95, 1.05]},
            "image_augmentation": {"resize": [0.9, 1.1]},
        },
        "train": {"steps": 10**6, "batch": pair.batch, "lr": 1e-4, "precision": pair.precision},
        "terms": [{"name": "bevdistill_dense"}],
    }
    return make_recipe(values, "bench step", "pair")


@dataclass(frozen=True)
class _Job:
    """What the threads build of a step. clouds, cells: of the teacher in the loop."""

    batch: Batch
    said: TeachersSaid | None
    clouds: list[torch.Tensor]
    cells: TeacherCells | None


@dataclass(frozen=True)
class Turn:
    """Some steps: seconds of each with the wait for the next batch, seconds waited in all, losses."""

    steps_s: list[float]
    waited_s: float
    losses: list[float]


class Side:
    """One way to train: a student of its own and, in the loop, the teacher."""

    def __init__(self, made: Made, kind: Kind, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self.plan: Plan = make_plan(made.recipe, made.cache)
        self.training = make_training(self.plan, device)
        model = cast(Detector, self.training.model)
        needs = training_needs(model, made.recipe)
        self._builder = BatchBuilder(self.plan.frames, needs, said_reader(self.plan) if kind == "cached" else None)
        self.teacher: Detector | None = None
        if kind == "online":
            self.teacher = load_weights(made.weights)
            cast(nn.Module, self.teacher).to(device).eval().requires_grad_(False)
        self._step = 0

    def run(self, steps: int, threads: int) -> Turn:
        """So many steps more, the loader begun anew and its first batch not counted as waited for."""
        parts = range(self._step, self._step + steps)
        took, losses = list[float](), list[float]()
        with Loader(parts, self._build, threads=threads) as loader:
            jobs = iter(loader)
            job = next(jobs)
            begun = loader.stalled_s
            while True:
                start = time.perf_counter()
                losses.append(self._train(job))  # reads the loss, so the device has done the step
                following = next(jobs, None)
                took.append(time.perf_counter() - start)
                if following is None:
                    break
                job = following
            self._step += steps
            return Turn(took, loader.stalled_s - begun, losses)

    def _build(self, step: int) -> _Job | Packed[_Job]:
        plan, data = self.plan, self.plan.recipe.data
        part = plan.run_order.step(step)
        rows = [plan.rows[entry] for entry in part.entries.tolist()]
        augments = [
            frame_augment(data.bev_augmentation, data.image_augmentation, len(CAMERA_CHANNELS), 0, part.epoch, key)
            for key in part.keys.tolist()
        ]
        batch, said = self._builder.build(rows, augments)
        clouds, cells = [], None
        if self.teacher is not None:
            clouds = [torch.from_numpy(np.array(plan.frames.points(row))) for row in rows]
            cells = self._cells(rows, clouds)
        job = _Job(batch, said, clouds, cells)
        return pack(job, pin=True) if self.device.type == "cuda" else job

    def _cells(self, rows: list[int], clouds: list[torch.Tensor]) -> TeacherCells:
        """Where the term compares: what the store's coverage chooses, found as `cache-teacher` finds it."""
        assert self.teacher is not None
        frames, store = self.plan.frames, self.plan.teachers[NAME].store
        index, weights, counts = [], [], [0]
        for row, cloud in zip(rows, clouds, strict=True):
            evidence = evidence_of(frames, row, store.coverage, None, cloud.numpy())
            maps = coverage_weights(store.coverage, evidence, self.teacher.grid).reshape(len(store.selectors), -1)
            at = np.flatnonzero((maps > 0).any(axis=0))
            index.append(torch.from_numpy(at))
            weights.append(torch.from_numpy(np.ascontiguousarray(maps[:, at].T, np.float32)))
            counts.append(counts[-1] + len(at))
        nothing = torch.zeros(0, self.teacher.bev_channels)
        return TeacherCells(torch.cat(index), nothing, torch.cat(weights), torch.tensor(counts), tuple(store.selectors))

    def _train(self, built: _Job | Packed[_Job]) -> float:
        """One optimiser step, the same on both sides; its loss."""
        job = built.to(self.device) if isinstance(built, Packed) else built
        said = job.said if self.teacher is None else self._said(job)
        parts, _ = self.training.objective(job.batch, said, 0)
        self.training.optimiser.zero_grad(set_to_none=True)
        loss = torch.stack(list(total_of(parts).values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.training.optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 35.0)
        self.training.optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def _said(self, job: _Job) -> TeachersSaid:
        teacher, cells = self.teacher, job.cells
        assert teacher is not None
        assert cells is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.recipe.train.precision == "bf16"):
            bev = teacher(Batch(points=job.clouds, tokens=job.batch.tokens)).bev
        size = bev.shape[2] * bev.shape[3]
        flat = bev.permute(0, 2, 3, 1).reshape(-1, bev.shape[1])
        values = flat[cells.samples() * size + cells.index].float()
        found = TeacherCells(cells.index, values, cells.weights, cells.offsets, cells.selectors)
        return TeachersSaid({NAME: TeacherSaid(grid=teacher.grid, cells=found)})


def device_of(asked: str) -> torch.device:
    """As `cache-teacher --device` takes it."""
    return torch.device(choose_device(asked))
