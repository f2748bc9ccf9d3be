"""The training loop: a recipe and the stores in, a run folder out (recipe, log, checkpoint, exported model).

One process. What a step does is a function of the step's number and the state in the checkpoint, so a resumed run goes
on exactly: same batches, same augmentation, same losses. Batches are built ahead in a background thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cache.errors import BevcaskError, ConfigError
from cache.files import read_json, write_json
from cache.frame import CAMERA_CHANNELS
from models.backbone_weights import load_backbone
from models.build import build_detector, save_weights
from models.detector import Batch, Detector, total_of
from trainer.augment import frame_augment
from trainer.batches import BatchBuilder
from trainer.checkpoint import Training, read_state, require_same_run, restore, save_checkpoint
from trainer.initialise import REPORT, begin_from
from trainer.loader import Loader
from trainer.metrics import MetricsLog
from trainer.optimiser import Average, lr_at, make_optimiser, set_lr
from trainer.order import step_entries, steps_per_epoch
from trainer.plan import Plan, make_plan, pasts_of, require_use_of_unlabelled, said_reader, training_needs
from trainer.progress import StepBar, StepListener, StepReport
from trainer.recipe import Recipe
from trainer.said import TeacherSaid
from trainer.terms import build_relabels, build_terms, scheduled

WEIGHTS = "model.safetensors"
CHECKPOINT = "checkpoint.safetensors"


class DivergedError(BevcaskError):
    """A loss or gradient is no longer finite."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run: exported weights, log, steps, the last logged loss, and how long this call trained.

    backbone: what became of `backbone_weights`, in words; empty without; began_from: of `init_from`, likewise.
    unlabelled_frames: how many of the frames of
    all steps had no annotations; skipped: by term that does not apply to those, how many it has left out.
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
    device: str | None = None,
) -> TrainResult:
    """Trains as `recipe` says from <cache_root>/frames (and a teacher store) into `run_dir`.

    threads: torch's (default: its own choice). loader_threads: that build batches (default 1 on a CPU, where the model
    wants the cores, and up to 8 beside a GPU); results do not depend on it. progress: called after every step; None
    shows a bar. device: default cuda where there is one. With `resume` a run goes on from its last checkpoint, or
    begins where there is none, or comes back at once where it had ended. Raises ConfigError, StoreError or
    FingerprintError before any training, DivergedError later.
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
    identity: dict[str, Any] = {"recipe": recipe.to_dict(), "stores": plan.manifests()}
    if training.began is not None:
        identity["init"] = training.began.identity()
    first_step = 0
    if (run_dir / CHECKPOINT).is_file():
        state = read_state(run_dir / CHECKPOINT)
        require_same_run(run_dir / CHECKPOINT, state, identity)
        restore(run_dir / CHECKPOINT, training)
        first_step = int(state["step"])
        if first_step == plan.steps and (run_dir / WEIGHTS).is_file() and (run_dir / "run.json").is_file():
            return TrainResult(run_dir, run_dir / WEIGHTS, run_dir / "metrics.jsonl", **_saved_figures(run_dir))
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "recipe.json", recipe.to_dict())
    if training.began is not None:
        training.began.write(run_dir / REPORT)
    with contextlib.ExitStack() as stack:
        listener = progress or stack.enter_context(StepBar(recipe.name, plan.steps, first_step))
        pool = loader_threads or (min(8, os.cpu_count() or 1) if target.type == "cuda" else 1)
        figures = _run_steps(plan, training, identity, first_step, run_dir, listener, target, pool, skipping)
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
    result = TrainResult(run_dir, run_dir / WEIGHTS, run_dir / "metrics.jsonl", **figures)
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


def make_training(plan: Plan, device: torch.device) -> Training:
    """Model, terms and optimiser as at step 0; from one seed, the same student with and without terms."""
    config = plan.recipe.train
    torch.manual_seed(config.seed)
    model = build_detector(plan.recipe.model)
    backbone = load_backbone(model, Path(config.backbone_weights)) if config.backbone_weights else None
    began = begin_from(model, config.init_from, config.init_scheme) if config.init_from else None
    specs = plan.recipe.term_specs()
    terms = build_terms(specs, model, plan.teacher, plan.teacher_rows).to(device)
    module = cast(nn.Module, model).to(device).train()
    named = {f"model.{n}": p for n, p in module.named_parameters()} | {
        f"terms.{n}": p for n, p in terms.named_parameters()
    }
    average = Average(module, config.ema) if config.ema else None
    optimiser = make_optimiser(named, config)
    return Training(module, terms.train(), optimiser, average, backbone, build_relabels(specs), began)


def _jobs(plan: Plan, first_step: int) -> Iterator[tuple[int, list[int]]]:
    """(epoch, entries of the epoch's list) of every step from `first_step` on."""
    batch = plan.recipe.train.batch
    per_epoch = steps_per_epoch(plan.epoch_frames, batch)
    order, order_epoch = None, -1
    for step in range(first_step, plan.steps):
        epoch, step_in_epoch = divmod(step, per_epoch)
        if order is None or epoch != order_epoch:
            order, order_epoch = plan.order(epoch), epoch
        yield epoch, step_entries(order, step_in_epoch, batch).tolist()


def _run_steps(
    plan: Plan,
    training: Training,
    identity: dict[str, Any],
    first_step: int,
    run_dir: Path,
    listener: StepListener,
    device: torch.device,
    loader_threads: int,
    skipping: Sequence[str],
) -> dict[str, Any]:
    """Steps first_step .. plan.steps, with log and checkpoints. skipping: terms that leave unlabelled frames out.
    Returns the figures of `TrainResult`."""
    config, data = plan.recipe.train, plan.recipe.data
    builder = BatchBuilder(plan.frames, training_needs(cast(Detector, training.model), plan.recipe), said_reader(plan))
    pasts = pasts_of(plan, cast(Detector, training.model))
    builder.require(plan.rows[: plan.labelled], plan.rows[plan.labelled :], pasts.rows() if pasts else ())

    def build(job: tuple[int, list[int]]) -> tuple[Batch, TeacherSaid | None]:
        epoch, entries = job
        augments = [
            frame_augment(
                data.bev_augmentation, data.image_augmentation, len(CAMERA_CHANNELS), config.seed, epoch, entry
            )
            for entry in entries
        ]
        teacher_rows = [plan.teacher_rows[entry] for entry in entries] if plan.teacher_rows else []
        past = [pasts.of(entry, epoch, entry) for entry in entries] if pasts else []
        return builder.build([plan.rows[entry] for entry in entries], augments, teacher_rows, past)

    per_epoch = steps_per_epoch(plan.epoch_frames, config.batch)
    unlabelled = plan.unlabelled_before(first_step)
    start = window_start = time.perf_counter()
    window_frames, all_frames, window_stall, loss, rate, stall = 0, 0, 0.0, float("nan"), 0.0, 0.0
    with (
        MetricsLog(run_dir / "metrics.jsonl", first_step) as log,
        Loader(_jobs(plan, first_step), build, threads=loader_threads, depth=2 * loader_threads) as loader,
    ):
        for step, (batch, said) in enumerate(loader, first_step):
            lr = lr_at(step, plan.steps, config)
            set_lr(training.optimiser, lr)
            scalars = train_step(training, batch.to(device), said.to(device) if said else None, plan, step)
            done, loss = step + 1, scalars["loss"]
            unlabelled += 0 if batch.labelled is None else int((~batch.labelled).sum())
            window_frames, all_frames = window_frames + len(batch), all_frames + len(batch)
            if done % config.log_every == 0 or done == plan.steps:
                now = time.perf_counter()
                rate = window_frames / (now - window_start)
                stall = (loader.stalled_s - window_stall) / (now - window_start)
                window_start, window_frames, window_stall = now, 0, loader.stalled_s
                line: dict[str, Any] = {"step": done, "epoch": step // per_epoch, "lr": lr, **scalars}
                if plan.drawn:
                    line |= {"unlabelled_frames": unlabelled, "skipped": dict.fromkeys(skipping, unlabelled)}
                log.write({**line, "frames_per_s": round(rate, 3), "stall_share": round(stall, 4)})
            if done % config.checkpoint_every == 0 or done == plan.steps:
                save_checkpoint(run_dir / CHECKPOINT, training, {**identity, "step": done})
            listener(StepReport(done, plan.steps, loss, lr, rate, stall))
        seconds = time.perf_counter() - start
        stalled = loader.stalled_s
    return {
        "steps": plan.steps,
        "loss": loss,
        "seconds": seconds,
        "frames_per_s": all_frames / max(seconds, 1e-9),
        "stall_share": stalled / max(seconds, 1e-9),
        "unlabelled_frames": unlabelled,
        "skipped": dict.fromkeys(skipping, unlabelled),
    }


def train_step(training: Training, batch: Batch, said: TeacherSaid | None, plan: Plan, step: int) -> dict[str, float]:
    """One optimiser step. Returns the total loss, every weighted part, the gradient's norm before clipping, and what
    changes of labels counted.

    Raises DivergedError, before the weights are touched, where loss or gradient is not finite.
    """
    config = plan.recipe.train
    # randomness inside the model is a function of the step too, so that no generator state needs to be kept
    torch.manual_seed((config.seed * 1_000_003 + step) % 2**63)
    model = cast(Detector, training.model)
    with torch.autocast(_device_of(batch), torch.bfloat16, enabled=config.precision == "bf16"):
        output = model(batch)
    labelled, counts = batch, dict[str, int]()
    for relabel in training.relabels:  # the detection loss alone reads these labels: masks are of the annotated boxes
        assert said is not None
        changed = relabel(labelled, said)
        labelled, counts = changed.batch, {**counts, **changed.counts}
    parts = model.loss_parts(output, labelled)
    for term in plan.recipe.terms:
        if term.name in training.terms:
            given = training.terms[term.name](output, batch, said)
            parts.update(scheduled(given, term.schedule.factor(step, plan.steps)))
    values = total_of(parts)
    loss = torch.stack(list(values.values())).sum()
    training.optimiser.zero_grad(set_to_none=True)
    if bool(torch.isfinite(loss)):
        loss.backward()  # type: ignore[no-untyped-call]
    scalars = {"loss": float(loss.detach()), **{name: float(value.detach()) for name, value in values.items()}}
    norm = _clip(training, config.clip) if bool(torch.isfinite(loss)) else loss
    if not bool(torch.isfinite(norm)):
        bad = {name: value for name, value in scalars.items() if value - value != 0} or "the gradient"
        raise DivergedError(
            f"step {step + 1}: not finite: {bad}; frames {', '.join(batch.tokens)}; lower [train] lr, or precision = "
            '"fp32"'
        )
    training.optimiser.step()
    if training.average is not None:
        training.average.update(training.model, step)
    return {**scalars, "gradient_norm": float(norm), **counts}


def _clip(training: Training, limit: float) -> Tensor:
    """Gradient norm over all parameters, clipped to `limit` where that is above 0."""
    parameters = [p for group in training.optimiser.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))


def _device_of(batch: Batch) -> str:
    part = batch.images if batch.images is not None else batch.points[0] if batch.points else None
    return "cpu" if part is None else part.device.type


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
