"""Who watches a run: the loop tells its observers that it begins, every step, every checkpoint and how it ended.

An observer changes nothing of the training: figures on a screen, TensorBoard, files. With several ranks only rank 0's
observers are told. What must run on every rank, as a validation does, is a `Validation`, which the loop calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from trainer.checkpoint import Training
from trainer.plan import Plan


@dataclass(frozen=True)
class RunBegin:
    """A run before its first step here, which is `first_step`, more than 0 where it goes on."""

    run_dir: Path
    plan: Plan
    training: Training
    device: torch.device
    first_step: int
    world: int = 1


@dataclass(frozen=True)
class StepReport:
    """One finished step of the global batch: how many are done and in all, its loss and learning rate, frames/s and the
    share spent waiting for data since the last logged step.

    parts: every weighted part of the loss, gradient_norm and counts; tokens: of the global batch, in order; digest: of
    that batch (`trainer.step_digest`); step_s: what the step took, wait_s: before it, for its data; logged: whether it
    has a line in metrics.jsonl.
    """

    done: int
    total: int
    loss: float
    lr: float
    frames_per_s: float
    stall_share: float
    epoch: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)
    tokens: Sequence[str] = ()
    digest: str = ""
    step_s: float = 0.0
    wait_s: float = 0.0
    logged: bool = False


@dataclass(frozen=True)
class RunEnd:
    """How a run ended and after how many steps; message: of the error, where there was one."""

    outcome: Literal["finished", "preempted", "failed"]
    steps: int
    message: str = ""


@dataclass(frozen=True)
class Found:
    """What a validation after `step` steps found, by the keys of its line in metrics.jsonl (docs/training.md)."""

    step: int
    figures: Mapping[str, float | str | bool]


class StepListener(Protocol):
    """Called after every step; what suffices where only that matters."""

    def __call__(self, report: StepReport) -> None: ...


class TrainObserver(Protocol):
    """What an observer is told, in this order; `end` comes whatever happens."""

    def begin(self, run: RunBegin) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def validated(self, found: Found) -> None:
        """What the run's `Validation` found, some steps after those that it looked at."""
        ...

    def checkpoint(self, step: int, path: Path) -> None:
        """The checkpoint after `step` steps lies at `path`, whole."""
        ...

    def end(self, end: RunEnd) -> None: ...


class Validation(Protocol):
    """What looks at the student while a run goes on; made on every rank. `trainer.validation.Validator` is one."""

    def begin(self) -> None:
        """Before the first step, once the log is cut back to the checkpoint."""
        ...

    def owed(self, done: int) -> bool:
        """Whether the checkpoint after `done` steps lies where a validation is due that the log lacks."""
        ...

    def due(self, done: int) -> bool:
        """Whether to look after `done` steps."""
        ...

    def start(self, training: Training, done: int, stop: Callable[[], bool] | None = None) -> float:
        """Looks, on every rank; returns its seconds. What it found comes later. stop: where it turns true on any rank,
        all of them give up."""
        ...

    def found(self, wait: bool = False) -> Sequence[Found]:
        """What has been found since the last call, on rank 0; wait: for all that was started."""
        ...

    def close(self) -> None:
        """Gives up what is at work."""
        ...


class Listening:
    """The observer that hands every step to a `StepListener`."""

    def __init__(self, listener: StepListener) -> None:
        self._listener = listener

    def begin(self, run: RunBegin) -> None:
        pass

    def step(self, report: StepReport) -> None:
        self._listener(report)

    def validated(self, found: Found) -> None:
        pass

    def checkpoint(self, step: int, path: Path) -> None:
        pass

    def end(self, end: RunEnd) -> None:
        pass


class Observers:
    """Several observers as one, told in order."""

    def __init__(self, each: Sequence[TrainObserver]) -> None:
        self._each = tuple(each)

    def begin(self, run: RunBegin) -> None:
        for observer in self._each:
            observer.begin(run)

    def step(self, report: StepReport) -> None:
        for observer in self._each:
            observer.step(report)

    def validated(self, found: Found) -> None:
        for observer in self._each:
            observer.validated(found)

    def checkpoint(self, step: int, path: Path) -> None:
        for observer in self._each:
            observer.checkpoint(step, path)

    def end(self, end: RunEnd) -> None:
        for observer in self._each:
            observer.end(end)
