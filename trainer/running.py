"""The steps of a run one after another, on every rank: data, step, log, checkpoints, observers, and how it ends.

Before each step the ranks exchange one small note: whether this one could read its part, whether it was asked to stop,
and the digests of its frames, of which the log's digest of the global batch is made. So all of them fail, stop and save
at the same step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from models.detector import Detector
from trainer.checkpoint import Training, save_checkpoint
from trainer.checkpoints import checkpoint_path, prune
from trainer.clock import Clock
from trainer.distributed import Ranks
from trainer.feed import FedStep, Feed
from trainer.loader import LeavingError, Loader
from trainer.loader_options import LoaderOptions, Reading, loader_of
from trainer.metrics import MetricsLog
from trainer.norms import sync_norms
from trainer.observer import Observers, RunBegin, RunEnd, StepReport, Validation
from trainer.optimiser import lr_at, set_lr
from trainer.order_state import OrderState
from trainer.plan import Plan
from trainer.preemption import PreemptedError, StopRequest
from trainer.run_files import METRICS
from trainer.step import Stepper, require_finite_weights
from trainer.step_digest import FRAME_BYTES, step_digest

_FINE, _FAILED, _STOP = 0, 1, 2


class Run:
    """A rank's run. skipping: terms that leave unlabelled frames out."""

    def __init__(
        self,
        plan: Plan,
        training: Training,
        identity: dict[str, Any],
        run_dir: Path,
        ranks: Ranks,
        stop: StopRequest,
        observers: Observers,
        validation: Validation | None,
        skipping: Sequence[str],
    ) -> None:
        self.plan, self.training, self.identity, self.run_dir = plan, training, identity, run_dir
        self.ranks, self.stop, self.observers, self.validation = ranks, stop, observers, validation
        self.skipping = skipping
        self.clock = Clock()
        self.rate = self.stall = 0.0
        self.unlabelled = 0
        self.saved = 0  # steps of the newest checkpoint

    def go(self, start: OrderState, reading: LoaderOptions) -> dict[str, Any]:
        """All steps from `start` on. Returns the figures of `trainer.loop.TrainResult`."""
        plan, ranks, done, loss = self.plan, self.ranks, start.step, float("nan")
        self.saved = start.step
        self.unlabelled = plan.unlabelled_before(done)
        try:
            feed = self._feed()
            cursor = feed.steps(start)
            sync = None
            if plan.recipe.train.sync_bn and not ranks.alone:
                sync = sync_norms(self.training.objective, ranks)
            stepper = Stepper(self.training, plan, ranks, sync)
            self.observers.begin(RunBegin(self.run_dir, plan, self.training, ranks.device, done, ranks.world))
            self.clock = Clock()
            with (
                MetricsLog(self.run_dir / METRICS if ranks.first else None, done) as self.log,
                feed.prefetch(start) as prefetch,
                loader_of(cursor, feed.build, reading, lambda: self.stop.asked) as loader,
            ):
                self.reading = Reading(loader)
                if done == plan.steps and self.log.last is not None:
                    loss = self.log.last["loss"]  # killed after its last checkpoint, before its record
                if self.validation is not None:
                    self.validation.begin()
                    if self.validation.owed(done):
                        self.clock.left_out(self.validation.start(self.training, done, lambda: self.stop.asked))
                while done < plan.steps:
                    fed, digest = self._next(loader, done, cursor.get_state())
                    self.clock.fed(loader.stalled_s)
                    cursor.reached(done)
                    if prefetch is not None:
                        prefetch.reached(done)
                    report = self._step(stepper, fed, feed, digest)
                    done, loss = report.done, report.loss
                    self._after(report, cursor.get_state())
                self._tell_found(wait=True)
        except BaseException as error:
            if self.validation is not None:
                self.validation.close()
            outcome: Literal["preempted", "failed"] = "preempted" if isinstance(error, PreemptedError) else "failed"
            self.observers.end(RunEnd(outcome, done, str(error)))
            raise
        self.observers.end(RunEnd("finished", done))
        return {
            "steps": plan.steps,
            "loss": loss,
            **self.clock.whole_run(),
            "unlabelled_frames": self.unlabelled,
            "skipped": dict.fromkeys(self.skipping, self.unlabelled),
            "world": ranks.world,
        }

    def _feed(self) -> Feed:
        error: Exception | None = None
        try:
            ranks = self.ranks
            packed = ranks.device.type != "cpu"
            feed = Feed(self.plan, cast(Detector, self.training.model), ranks.rank, ranks.world, packed)
        except Exception as found:
            error = found
        self.ranks.raise_together(error)
        return feed

    def _next(self, loader: Loader[Any, FedStep], done: int, state: OrderState) -> tuple[FedStep, str]:
        """This rank's part of the next step and the digest of all parts; ends all ranks where one cannot read its own,
        or was asked to stop."""
        error: Exception | None = None
        fed: FedStep | None = None
        try:
            fed = next(loader)
        except LeavingError:
            pass  # asked to stop, and a read that hangs must not keep it from that
        except Exception as found:
            error = found
        own = b"" if fed is None else b"".join(fed.digests)
        flag = _FAILED if error is not None else _STOP if self.stop.asked else _FINE
        order = self.plan.run_order  # its batch may be larger than an epoch, without end
        most = -(-min(order.batch, order.epoch_frames) // self.ranks.world) * FRAME_BYTES
        notes = self.ranks.gather(bytes([flag]) + len(own).to_bytes(4, "little") + own, 5 + most)
        flags = {note[0] for note in notes}
        if _FAILED in flags:
            self.ranks.raise_all(error)
        if _STOP in flags:
            self._leave(done, state)
        assert fed is not None
        frames = b"".join(note[5 : 5 + int.from_bytes(note[1:5], "little")] for note in notes)
        return fed, step_digest(frames[at : at + FRAME_BYTES] for at in range(0, len(frames), FRAME_BYTES))

    def _leave(self, done: int, state: OrderState) -> None:
        """Saves what is not saved yet, on rank 0, and raises PreemptedError on all."""
        error: Exception | None = None
        try:
            if done != self.saved:
                self._save(done, state)
        except Exception as found:
            error = found
        self.ranks.raise_together(error)
        saved = f"saved after step {done} of {self.plan.steps}" if done else "before the first step"
        raise PreemptedError(f"asked to stop: {saved}; the same command with --resume goes on", self.stop.by_hand)

    def _step(self, stepper: Stepper, fed: FedStep, feed: Feed, digest: str) -> StepReport:
        """Trains on one step's batch."""
        plan, step = self.plan, fed.part.step
        config = plan.recipe.train
        lr = lr_at(step, plan.steps, config)
        set_lr(self.training.optimiser, lr)
        scalars = stepper.take(fed.on(self.ranks.device), step, functools.partial(feed.one_by_one, fed.part))
        self.unlabelled += int((plan.run_order.step(step).entries >= plan.labelled).sum())
        done = step + 1
        logged = done % config.log_every == 0 or done == plan.steps
        step_s, wait_s = self.clock.stepped(fed.part.batch)
        if logged:
            self.rate, self.stall = self.clock.window()
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
            digest=digest,
            step_s=step_s,
            wait_s=wait_s,
            logged=logged,
        )

    def _after(self, report: StepReport, state: OrderState) -> None:
        """Log, checkpoint, observers and validation, after a step."""
        config, done = self.plan.recipe.train, report.done
        if report.logged:
            self.log.write(self._line(report))
        if done % config.checkpoint_every == 0 or done == report.total:
            self._save(done, state)
        self.observers.step(report)
        if self.validation is not None and self.validation.due(done):
            self.clock.left_out(self.validation.start(self.training, done, lambda: self.stop.asked))
        self._tell_found()

    def _tell_found(self, wait: bool = False) -> None:
        """Tells what validations have found meanwhile; wait: for the one that is at work."""
        for found in self.validation.found(wait) if self.validation is not None else ():
            self.log.write({"step": found.step, **found.figures})
            self.observers.validated(found)

    def _line(self, report: StepReport) -> dict[str, Any]:
        """A step's line of the log."""
        line: dict[str, Any] = {"step": report.done, "epoch": report.epoch, "lr": report.lr, "loss": report.loss}
        line |= report.parts
        if self.plan.drawn:
            line |= {"unlabelled_frames": self.unlabelled, "skipped": dict.fromkeys(self.skipping, self.unlabelled)}
        line |= {"frames_per_s": round(report.frames_per_s, 3), "stall_share": round(report.stall_share, 4)}
        return {**line, "loader_s": self.reading.window(), "digest": report.digest}

    def _save(self, done: int, state: OrderState) -> None:
        """The checkpoint after `done` steps, on rank 0; the oldest make room."""
        self._tell_found(wait=True)  # a checkpoint leaves no validation before it untold
        self.saved = done
        if not self.ranks.first:
            return
        require_finite_weights(self.training, done)
        path = checkpoint_path(self.run_dir, done)
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, self.training, {**self.identity, "order": state.to_dict(), "step": done})
        prune(self.run_dir, self.plan.recipe.train.keep, done)
        self.observers.checkpoint(done, path)
