"""A run's TensorBoard folder: the scalars of metrics.jsonl and, at every validation, pictures of a few val frames.

Plain event files through tensorboard's own writer, one more for every call that goes on with the run; what a killed
call wrote beyond its checkpoint is told to be void. Costs 0.7 s to load and 0.14 ms a logged step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from cache.errors import StoreError
from trainer.memory import MemoryUse, memory_use
from trainer.observer import Found, RunBegin, RunEnd, StepReport

_RATES = ("gradient_norm",)


class EventLog:
    """A `trainer.observer.TrainObserver`. Raises StoreError where the folder cannot be written, before any training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: EventFileWriter | None = None
        self._device = "cpu"

    def begin(self, run: RunBegin) -> None:
        self._device = run.device.type
        earlier = any(self.folder.glob("*tfevents*"))
        try:
            self._writer = EventFileWriter(str(self.folder))
        except OSError as error:
            raise StoreError(
                f"{self.folder}: not a folder that TensorBoard's files can be written to ({error.strerror or error}); "
                "make room for it, or set [train] tensorboard = false"
            ) from None
        if earlier:  # readers drop what such a call wrote from here on
            log = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=run.first_step + 1, session_log=log))

    def step(self, report: StepReport) -> None:
        if report.logged:
            self.scalars(report.done, scalars_of(report, memory_use(self._device)))

    def validated(self, found: Found) -> None:
        figures = {k: v for k, v in found.figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        self.scalars(found.step, figures)
        self._flush()

    def checkpoint(self, step: int, path: Path) -> None:
        self._flush()

    def end(self, end: RunEnd) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by tag, of one step."""
        self._write(step, [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()])

    def picture(self, step: int, tag: str, png: bytes, size: tuple[int, int]) -> None:
        """A PNG of size (width, height)."""
        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
        self._write(step, [Summary.Value(tag=tag, image=image)])

    def _write(self, step: int, values: list[Summary.Value]) -> None:
        if self._writer is not None:
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()


def scalars_of(report: StepReport, memory: MemoryUse) -> dict[str, float]:
    """A logged step's values by tag: loss/, labels/ (counts of changed labels), rate/ and memory/."""
    out = {"loss/total": report.loss, "rate/lr": report.lr, "rate/frames_per_s": report.frames_per_s}
    out["rate/waiting"] = report.stall_share
    for name, value in report.parts.items():
        group = "rate" if name in _RATES else "labels" if "/" in name else "loss"
        out[f"{group}/{name}"] = value
    out["memory/rss_gib"] = memory.rss / 2**30
    if memory.cuda_peak:
        out |= {"memory/cuda_gib": memory.cuda / 2**30, "memory/cuda_peak_gib": memory.cuda_peak / 2**30}
    return out
