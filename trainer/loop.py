"""A training run: a recipe and the stores in, a run folder out (recipe, log, checkpoint, exported model).

What a step does is a function of the step's number and the state in the checkpoint, so a resumed run goes on exactly:
same batches, same augmentation, same losses. Batches are built ahead in a background thread. `trainer.setup` makes what
a run begins with, `trainer.feed` its batches, `trainer.step` is one step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from cache.errors import ConfigError
from cache.files import read_json, write_json
from models.build import save_weights
from models.detector import Detector
from trainer.checkpoint import Training, read_state, require_same_run, restore, save_checkpoint
from trainer.clock import Clock
from trainer.feed import FedStep, Feed
from trainer.initialise import REPORT
from trainer.loader_options import LoaderOptions, Reading, loader_of, loader_options
from trainer.metrics import MetricsLog
from trainer.observer import (
    Listening,
    Observers,
    RunBegin,
    RunEnd,
    StepListener,
    StepReport,
    TrainObserver,
    Validation,
)
from trainer.optimiser import lr_at, set_lr
from trainer.order_state import OrderState
from trainer.plan import Plan, make_plan, require_use_of_unlabelled
from trainer.progress import StepBar
from trainer.recipe import Recipe
from trainer.run_files import CHECKPOINT, METRICS, WEIGHTS
from trainer.setup import make_training, run_identity
from trainer.step import train_step
from trainer.step_digest import step_digest
from trainer.validation import Validator


@dataclass(frozen=True)
class TrainResult:
    """A finished run: exported weights, log, steps, the last logged loss, and how long this call trained.

    backbone: what became of `backbone_weights`, in words; empty without; began_from: of `init_from`, likewise.
    unlabelled_frames: how many of the frames of all steps had no annotations; skipped: by term that does not apply to
    those, how many it has left out.
    """

    run_dir: Path
    weights: Path
    metrics: Path
    steps: int
    loss: float
    seconds: float
    frames_per_s: float
    stall_share: float
    backbone: str = ""
    began_from: str = ""
    unlabelled_frames: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def train(
    recipe: Recipe,
    cache_root: str | Path,
    run_dir: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    loader_threads: int | None = None,
    progress: StepListener | None = None,
    observers: Sequence[TrainObserver] = (),
    validation: Validation | None = None,
    device: str | None = None,
) -> TrainResult:
    """Trains as `recipe` says from <cache_root>/frames (and a teacher store) into `run_dir`.

    threads: torch's (default: its own choice). loader_threads: that build batches (default 1 on a CPU, where the model
    wants the cores, and up to 8 beside a GPU); results do not depend on it. progress: called after every step; None
    shows a bar. observers: told of all that happens. validation: in place of the recipe's. device: default cuda where
    there is one. With `resume` a run goes on from its last checkpoint, or begins where there is none, or
    comes back at once where it had ended. Raises ConfigError, StoreError or FingerprintError before any training,
    DivergedError later.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    started = (run_dir / CHECKPOINT).is_file() or (run_dir / WEIGHTS).is_file()
    if started and not resume:
        raise ConfigError(f"{run_dir}: holds a run already; add --resume to go on with it, or choose another folder")
    plan = make_plan(recipe, cache_root)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training = make_training(plan, target)
    skipping = require_use_of_unlabelled(plan, cast(Detector, training.model))
    identity, at = run_identity(plan, training), plan.run_order.state(0)
    if (run_dir / CHECKPOINT).is_file():
        state = read_state(run_dir / CHECKPOINT)
        require_same_run(run_dir / CHECKPOINT, state, identity)
        at = OrderState.from_dict(state.get("order"), str(run_dir / CHECKPOINT))
        restore(run_dir / CHECKPOINT, training)
        if at.step == plan.steps and (run_dir / WEIGHTS).is_file() and (run_dir / "run.json").is_file():
            return TrainResult(run_dir, run_dir / WEIGHTS, run_dir / METRICS, **_saved_figures(run_dir))
    looking = validation or (Validator(plan, run_dir, target) if recipe.train.validate_every else None)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "recipe.json", recipe.to_dict())
    if training.began is not None:
        training.began.write(run_dir / REPORT)
    with contextlib.ExitStack() as stack:
        shown = Listening(progress or stack.enter_context(StepBar(recipe.name, plan.steps, at.step)))
        reading = loader_options()
        pool = loader_threads or reading.threads or (min(8, os.cpu_count() or 1) if target.type == "cuda" else 1)
        run = _Run(plan, training, identity, run_dir, target, Observers([*observers, shown]), looking, skipping)
        figures = run.go(at, replace(reading, threads=pool))
    model = cast(Detector, training.model)
    if training.average is not None:
        training.model.load_state_dict(training.average.tensors)
    metadata = {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        **{f"store:{k}": v for k, v in plan.manifests().items()},
    }
    save_weights(model, run_dir / WEIGHTS, metadata)
    if training.backbone is not None:
        figures["backbone"] = training.backbone.line()
    if training.began is not None:
        figures["began_from"] = training.began.line()
    result = TrainResult(run_dir, run_dir / WEIGHTS, run_dir / METRICS, **figures)
    record = {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "stores": plan.manifests(),
        "frames": plan.labelled,
        "unlabelled_per_epoch": plan.drawn,
        "torch": torch.__version__,
        "device": target.type,
        "threads": torch.get_num_threads(),
        **figures,
    }
    write_json(run_dir / "run.json", record)
    return result


class _Run:
    """The steps of a run with their log, checkpoints and observers; skipping: terms that leave unlabelled frames
    out."""

    def __init__(
        self,
        plan: Plan,
        training: Training,
        identity: dict[str, Any],
        run_dir: Path,
        device: torch.device,
        observers: Observers,
        validation: Validation | None,
        skipping: Sequence[str],
    ) -> None:
        self.plan, self.training, self.identity, self.run_dir, self.device = plan, training, identity, run_dir, device
        self.observers, self.validation, self.skipping = observers, validation, skipping
        self.rate = self.stall = 0.0
        self.unlabelled = 0

    def go(self, start: OrderState, reading: LoaderOptions) -> dict[str, Any]:
        """All steps from `start` on. Returns the figures of `TrainResult`."""
        plan, done = self.plan, start.step
        feed = Feed(plan, cast(Detector, self.training.model), packed=self.device.type != "cpu")
        cursor = feed.steps(start)
        self.unlabelled = plan.unlabelled_before(done)
        self.observers.begin(RunBegin(self.run_dir, plan, self.training, self.device, done))
        clock, loss = Clock(), float("nan")
        try:
            with (
                MetricsLog(self.run_dir / METRICS, done) as log,
                feed.prefetch(start) as prefetch,
                loader_of(cursor, feed.build, reading) as loader,
            ):
                self.reading = Reading(loader)
                if self.validation is not None:
                    self.validation.begin()
                    if self.validation.owed(done):
                        clock.left_out(self.validation.start(self.training, done))
                for fed in loader:
                    clock.fed(loader.stalled_s)
                    cursor.reached(fed.part.step)
                    if prefetch is not None:
                        prefetch.reached(fed.part.step)
                    report = self._step(fed, feed, clock)
                    done, loss = report.done, report.loss
                    self._after(report, log, cursor.get_state())
                    self._look(done, log, clock)
                self._tell_found(log, wait=True)
        except BaseException as error:
            if self.validation is not None:
                self.validation.close()
            self.observers.end(RunEnd("failed", done, str(error)))
            raise
        self.observers.end(RunEnd("finished", done))
        return {
            "steps": plan.steps,
            "loss": loss,
            **clock.whole_run(),
            "unlabelled_frames": self.unlabelled,
            "skipped": dict.fromkeys(self.skipping, self.unlabelled),
        }

    def _step(self, fed: FedStep, feed: Feed, clock: Clock) -> StepReport:
        """Trains on one step's batch."""
        plan, step = self.plan, fed.part.step
        config = plan.recipe.train
        lr = lr_at(step, plan.steps, config)
        set_lr(self.training.optimiser, lr)
        if len(fed.pieces) > 1:
            raise ConfigError("[train] micro_batch: gradients are not accumulated yet; set it to 0")
        (piece,) = fed.on(self.device)
        scalars = train_step(self.training, piece.batch, piece.said, plan, step)
        self.unlabelled += int((plan.run_order.step(step).entries >= plan.labelled).sum())
        done = step + 1
        logged = done % config.log_every == 0 or done == plan.steps
        step_s, wait_s = clock.stepped(fed.part.batch)
        if logged:
            self.rate, self.stall = clock.window()
        return StepReport(
            done=done,
            total=plan.steps,
            loss=scalars["loss"],
            lr=lr,
            frames_per_s=self.rate,
            stall_share=self.stall,
            epoch=fed.part.epoch,
            parts={name: value for name, value in scalars.items() if name != "loss"},
            tokens=feed.tokens(step),
            digest=step_digest(fed.digests),
            step_s=step_s,
            wait_s=wait_s,
            logged=logged,
        )

    def _after(self, report: StepReport, log: MetricsLog, state: OrderState) -> None:
        """Log, checkpoint and observers, after a step."""
        config, done = self.plan.recipe.train, report.done
        if report.logged:
            line: dict[str, Any] = {"step": done, "epoch": report.epoch, "lr": report.lr, "loss": report.loss}
            line |= report.parts
            if self.plan.drawn:
                line |= {
                    "unlabelled_frames": self.unlabelled,
                    "skipped": dict.fromkeys(self.skipping, self.unlabelled),
                }
            line |= {"frames_per_s": round(report.frames_per_s, 3), "stall_share": round(report.stall_share, 4)}
            log.write({**line, "loader_s": self.reading.window(), "digest": report.digest})
        if done % config.checkpoint_every == 0 or done == report.total:
            self._tell_found(log, wait=True)  # a checkpoint leaves no validation before it untold
            path = self.run_dir / CHECKPOINT
            save_checkpoint(path, self.training, {**self.identity, "order": state.to_dict(), "step": done})
            self.observers.checkpoint(done, path)
        self.observers.step(report)

    def _look(self, done: int, log: MetricsLog, clock: Clock) -> None:
        """Validates where it is due, and tells what validations have found meanwhile."""
        if self.validation is not None and self.validation.due(done):
            clock.left_out(self.validation.start(self.training, done))
        self._tell_found(log)

    def _tell_found(self, log: MetricsLog, wait: bool = False) -> None:
        for found in self.validation.found(wait) if self.validation is not None else ():
            log.write({"step": found.step, **found.figures})
            self.observers.validated(found)


def _saved_figures(run_dir: Path) -> dict[str, Any]:
    values = read_json(run_dir / "run.json", "the record of a run")
    names = (
        "steps",
        "loss",
        "seconds",
        "frames_per_s",
        "stall_share",
        "unlabelled_frames",
        "skipped",
        "backbone",
        "began_from",
    )
    return {name: values[name] for name in names if name in values}
