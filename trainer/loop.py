"""A training run: a recipe and the stores in, a run folder out (recipe, log, checkpoints, exported model).

What a step does is a function of the step's number and the state in the checkpoint, so a resumed run goes on exactly:
same batches, same augmentation, same losses. Under torchrun every process calls `train`, and the ranks take the steps
together. `trainer.setup` makes what a run begins with, `trainer.feed` its batches, `trainer.step` is one step,
`trainer.running` the sequence of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from cache.errors import ConfigError, FingerprintError
from cache.files import canonical_json, parse_json, read_json, write_json
from models.build import save_weights
from models.detector import Detector
from trainer.checkpoint import Training, require_same_run, restore, state_of
from trainer.checkpoints import list_checkpoints, newest_whole, remove_partials
from trainer.dashboard import Dashboard
from trainer.determinism import determinism
from trainer.distributed import TIMEOUT_S, Ranks, joined
from trainer.initialise import REPORT
from trainer.loader_options import loader_options
from trainer.observer import Listening, Observers, StepListener, TrainObserver, Validation
from trainer.order_state import OrderState
from trainer.plan import Plan, make_plan, require_use_of_unlabelled
from trainer.preemption import StopRequest
from trainer.recipe import Recipe, load_recipe
from trainer.run_files import EVENTS, METRICS, RECIPE, RECORD, WEIGHTS
from trainer.run_lock import RunLock
from trainer.running import Run
from trainer.setup import make_training, run_identity
from trainer.validation import Look, Validator

_RECORD = "the record of a run"


@dataclass(frozen=True)
class TrainResult:
    """A finished run: exported weights, log, steps, the last logged loss, and how long this call trained.

    backbone: what became of `backbone_weights`, in words; empty without; began_from: of `init_from`, likewise.
    unlabelled_frames: how many of the frames of all steps had no annotations; skipped: by term that does not apply to
    those, how many it has left out. resumed_from: the step that this call went on from; passed_over: what was wrong
    with newer checkpoints.
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
    world: int = 1
    resumed_from: int = 0
    passed_over: tuple[str, ...] = ()


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
    shows a dashboard. observers: told of all that happens; both on rank 0 alone. validation: in place of the recipe's,
    on every rank. device: default cuda where there is one.

    With `resume` a run goes on from its newest whole checkpoint, or begins where there is none, or comes back at once
    where it had ended; other numbers of ranks may go on with it. Raises ConfigError, StoreError or FingerprintError
    before any training, DivergedError later, PreemptedError where SIGTERM or Ctrl-C asked it to stop, once it has saved
    its state, and PeerError where another rank failed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    reading = loader_options()
    # ranks wait for each other until the watchdog of the one that hangs has named what it hangs on
    patience_s = max(TIMEOUT_S, 2 * (reading.stuck_s or 0.0))
    with (
        StopRequest() as stop,
        RunLock() as lock,
        joined(device, patience_s) as ranks,
        determinism(recipe.train.deterministic),
    ):
        begun = _begin_together(recipe, cache_root, run_dir, resume, ranks, validation, lock)
        if begun.finished:  # by rank 0's disk: the others need not see the run's folder
            record = ranks.broadcast((run_dir / RECORD).read_bytes() if ranks.first else None)
            return _result_of(parse_json(record, run_dir / RECORD, _RECORD), run_dir)
        plan, training = begun.plan, begun.training
        skipping = require_use_of_unlabelled(plan, cast(Detector, training.model))
        with contextlib.ExitStack() as stack:
            told = [*observers, *begun.watching] if ranks.first else []
            if ranks.first:
                told.append(Listening(progress) if progress else stack.enter_context(Dashboard(recipe.name)))
            pool = loader_threads or reading.threads
            pool = pool or (min(8, os.cpu_count() or 1) if ranks.device.type == "cuda" else 1)
            identity, all_told = run_identity(plan, training), Observers(told)
            run = Run(plan, training, identity, run_dir, ranks, stop, all_told, begun.validation, skipping)
            figures = run.go(begun.at, replace(reading, threads=pool))
        figures["resumed_from"], figures["passed_over"] = begun.at.step, begun.passed_over
        error: Exception | None = None
        try:
            result = _close(plan, training, run_dir, ranks, figures)
        except Exception as found:
            error = found
        ranks.raise_together(error)
        return result


@dataclass(frozen=True)
class _Begun:
    """A run that may take steps, from `at` on."""

    plan: Plan
    training: Training
    at: OrderState
    validation: Validation | None = None
    watching: tuple[TrainObserver, ...] = ()
    finished: bool = False
    passed_over: tuple[str, ...] = ()


def _begin_together(
    recipe: Recipe,
    cache_root: str | Path,
    run_dir: Path,
    resume: bool,
    ranks: Ranks,
    validation: Validation | None,
    lock: RunLock,
) -> _Begun:
    """Opens and builds all on every rank; what one of them cannot do ends all."""
    error: Exception | None = None
    plan, training, found, kept = cast(Plan, None), cast(Training, None), None, False
    watching: tuple[TrainObserver, ...] = ()
    try:
        if ranks.first:
            lock.take(run_dir)
        if ranks.first and not resume and (list_checkpoints(run_dir) or (run_dir / WEIGHTS).is_file()):
            raise ConfigError(f"{run_dir}: holds a run; add --resume to go on with it, or choose another folder")
        plan = make_plan(recipe, cache_root)
        training = make_training(plan, ranks.device)
        require_use_of_unlabelled(plan, cast(Detector, training.model))
        look: Look | None = None
        if recipe.train.tensorboard and ranks.first:
            from trainer.event_log import EventLog  # loading tensorboard takes most of a second
            from trainer.val_pictures import ValPictures

            events = EventLog(run_dir / EVENTS)
            watching, look = (events,), ValPictures(plan, events.picture)
        if validation is None and recipe.train.validate_every:
            validation = Validator(plan, run_dir, ranks.device, ranks, look)
        found = newest_whole(run_dir) if ranks.first else None
        kept = ranks.first and found is None and (run_dir / WEIGHTS).is_file()
        if kept:
            _require_ended(run_dir, plan)
    except Exception as caught:
        error = caught
    ranks.raise_together(error)
    for words in found.passed_over if found else ():
        Console(stderr=True).print(f"passed over: {words}", style="yellow", markup=False, soft_wrap=True)
    ranks.raise_together(_difference(run_identity(plan, training), ranks))
    # rank 0's, by its own disk: the others need not see the run's folder
    passed = found.passed_over if found else ()
    data = ranks.broadcast(found.data if found else b"")
    at = plan.run_order.state(0)
    if data:
        try:
            where = found.path if found else run_dir
            state = state_of(data, where)
            require_same_run(where, state, run_identity(plan, training))
            at = OrderState.from_dict(state.get("order"), str(where))
            at.require_same_order(plan.run_order.state(0), str(where))
            restore(where, training, data)
        except Exception as caught:
            error = caught
    ranks.raise_together(error)
    ended = (at.step == plan.steps and (run_dir / WEIGHTS).is_file() and (run_dir / RECORD).is_file()) or kept
    finished = ranks.broadcast(bytes([ended])) == b"\1"
    if ranks.first and not finished:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.take(run_dir)
        remove_partials(run_dir)
        write_json(run_dir / RECIPE, recipe.to_dict())
        if training.began is not None:
            training.began.write(run_dir / REPORT)
    return _Begun(plan, training, at, validation, watching, finished, passed)


def _require_ended(run_dir: Path, plan: Plan) -> None:
    """Of a run whose weights are there and whose checkpoints are not: it has ended, and must have been of this recipe
    and these stores. FingerprintError with both values where it was not; StoreError where its files do not say."""
    if not (run_dir / RECORD).is_file():
        raise ConfigError(
            f"{run_dir}: holds {WEIGHTS} and neither a checkpoint to go on from nor the record of a finished run; "
            "choose another folder"
        )
    record = read_json(run_dir / RECORD, _RECORD)
    was = {"recipe": load_recipe(run_dir / RECIPE).trained(), "stores": record.get("stores")}
    require_same_run(run_dir / RECORD, was, {"recipe": plan.recipe.trained(), "stores": plan.manifests()})


def _difference(identity: dict[str, Any], ranks: Ranks) -> Exception | None:
    """FingerprintError where this rank's recipe or stores are not rank 0's."""
    if ranks.alone:
        return None
    first = parse_json(ranks.broadcast(canonical_json(identity)), "rank 0", "what a run is of")
    try:
        require_same_run(Path("rank 0"), first, identity)
    except FingerprintError as error:
        return error
    return None


def _close(plan: Plan, training: Training, run_dir: Path, ranks: Ranks, figures: dict[str, Any]) -> TrainResult:
    """Exports the student and writes the run's record, on rank 0."""
    recipe = plan.recipe
    if training.average is not None:
        training.model.load_state_dict(training.average.tensors)
    if training.backbone is not None:
        figures["backbone"] = training.backbone.line()
    if training.began is not None:
        figures["began_from"] = training.began.line()
    if ranks.first:
        metadata = {
            "recipe": recipe.name,
            "recipe_digest": recipe.digest,
            **{f"store:{k}": v for k, v in plan.manifests().items()},
        }
        save_weights(cast(Detector, training.model), run_dir / WEIGHTS, metadata)
        record = {
            "recipe": recipe.name,
            "recipe_digest": recipe.digest,
            "stores": plan.manifests(),
            "frames": plan.labelled,
            "unlabelled_per_epoch": plan.drawn,
            "dropped_per_epoch": plan.run_order.dropped,
            "torch": torch.__version__,
            "device": ranks.device.type,
            "threads": torch.get_num_threads(),
            **figures,
        }
        write_json(run_dir / RECORD, record)
    return TrainResult(run_dir, run_dir / WEIGHTS, run_dir / METRICS, **figures)


def saved_result(run_dir: Path) -> TrainResult:
    """What `train` gave at the end of a finished run, from its record."""
    return _result_of(read_json(run_dir / RECORD, _RECORD), run_dir)


def _result_of(values: dict[str, Any], run_dir: Path) -> TrainResult:
    known = TrainResult.__dataclass_fields__.keys() - {"run_dir", "weights", "metrics"}
    figures = {name: values[name] for name in known if name in values}
    figures["passed_over"] = tuple(figures.get("passed_over", ()))
    return TrainResult(run_dir, run_dir / WEIGHTS, run_dir / METRICS, **figures)
