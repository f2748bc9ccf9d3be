"""The trainer's loader alone: frames per second by readers, threads against worker processes, seconds by stage.

Frames are those of the stream benchmark: simulated pictures of 1600 x 900 and teacher cells at nuScenes width, built
into batches of a 704 x 256 student under BEVDepth's augmentations, by the very code that training runs. Processes are
torch's DataLoader over the same function. Rounds go round all contenders; the median counts, after one epoch that is
not counted. Decoding at a reduced scale is measured beside decoding whole, in time and in pixels.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from cache.errors import ConfigError
from cache.frame import CAMERA_CHANNELS
from cache.store import FrameStore, TeacherStore
from models.detector import Batch
from models.pictures import ImageAugment, cameras_in_order, draw_picture, picture_geometry
from studies.benches.stream_contender import cpu_seconds
from studies.benches.stream_data import World, prepare
from trainer.augment import BevAugmentConfig, ImageAugmentConfig, frame_augment
from trainer.batches import BatchBuilder, Needs
from trainer.loader import Loader
from trainer.order import epoch_order, step_entries, steps_per_epoch
from trainer.said import TeachersSaid
from trainer.said_reader import SaidReader, Wanted
from trainer.teachers import TeachersReader
from trainer.watch import STAGES

ABOUT = "frames per second of the loader alone: 1, 2, 4 readers, threads against processes, seconds by stage"
STUDENT = (704, 256)
BEV = BevAugmentConfig(flip_x=0.5, flip_y=0.5, rotation_deg=22.5, scale=(0.95, 1.05))
IMAGE = ImageAugmentConfig(resize=(0.88, 1.25), crop_x=True, flip=0.5)
DECODED = 60  # pictures that reduced decoding is measured on

Built = tuple[Batch, TeachersSaid | None]


def run(
    work: Path,
    console: Console,
    *,
    readers: str = "1,2,4",
    processes: bool = True,
    rounds: int = 3,
    batch: int = 4,
    scenes: int = 4,
    frames: int = 3,
    copies: int = 10,
) -> dict[str, Any]:
    """`threads` and `processes`: frames/s by number of readers; `stages_ms`: a frame's milliseconds by stage, of one
    thread; `scaling`: of threads, over one; `cpu_ms`: processor time a frame of all processes together, which other
    work beside disturbs least; `decode`: reduced against whole.

    readers: numbers with commas between; processes: false leaves them out; the rest is the size of the world.
    """
    try:
        counts = [int(part) for part in str(readers).split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or rounds < 1 or batch < 1:
        raise ConfigError(f"readers {readers!r}, rounds {rounds}, batch {batch}: expected numbers of 1 or more")
    data = prepare(work, World(scenes=scenes, frames=frames, copies=copies, fields=32), console)
    reading = Reading(data.frames, data.teacher, batch)
    contenders: dict[tuple[str, int], Callable[[], contextlib.AbstractContextManager[_Epoch]]] = {}
    for count in counts:
        contenders["threads", count] = lambda count=count: _threads(reading, count)  # type: ignore[misc]
        if processes:
            contenders["processes", count] = lambda count=count: _processes(reading, count)  # type: ignore[misc]
    rates: dict[tuple[str, int], list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {f"{kind} {count}": [] for kind, count in contenders}
    stages: list[dict[str, float]] = []
    for _ in range(rounds):
        for name, opened in contenders.items():
            with opened() as epoch:
                epoch.run(0)
                before = cpu_seconds()
                rate, took = epoch.run(1)
                after = cpu_seconds()
                rates[name].append(rate)
                if before is not None and after is not None:
                    cpu[f"{name[0]} {name[1]}"].append(1e3 * (after - before) / len(reading))
                if name == ("threads", counts[0]):
                    stages.append(took)
            console.print(f"[dim]{name[0]} {name[1]}: {rates[name][-1]:.1f} frames/s[/dim]")
    found = {kind: _by_count(rates, kind) for kind in ("threads", "processes")}
    first = found["threads"][str(counts[0])]
    out: dict[str, Any] = {
        **found,
        "scaling": {count: round(rate / first, 3) for count, rate in found["threads"].items()},
        "stages_ms": {name: round(1e3 * statistics.median(took[name] for took in stages), 3) for name in STAGES},
        "cpu_ms": {name: round(statistics.median(times), 2) for name, times in cpu.items() if times},
        "decode": _decode(data.frames),
        "frames": len(reading),
        "batch": batch,
        "image": list(STUDENT),
        "rounds": {f"{kind} {count}": [round(r, 2) for r in rs] for (kind, count), rs in rates.items()},
    }
    console.print(_table(out))
    return out


class Reading(Dataset[Built]):
    """Batches of an epoch by their number: what every contender builds."""

    def __init__(self, frames: Path, teacher: Path, batch: int) -> None:
        self.frames, self.teacher, self.batch = frames, teacher, batch
        self._builder: BatchBuilder | None = None
        self._count = len(FrameStore(frames))

    def __len__(self) -> int:
        """Frames of an epoch."""
        return self._count

    def jobs(self, epoch: int) -> list[tuple[int, list[int]]]:
        """(epoch, rows) of every batch of the epoch."""
        order, steps = epoch_order(0, epoch, self._count), steps_per_epoch(self._count, self.batch)
        return [(epoch, step_entries(order, step, self.batch).tolist()) for step in range(steps)]

    def build(self, job: tuple[int, Sequence[int]]) -> Built:
        if self._builder is None:  # once a process
            frames, teacher = FrameStore(self.frames), TeacherStore(self.teacher)
            reader = SaidReader(teacher, frames, Wanted(cells=True, detections=True))
            said = TeachersReader({"t": reader}, {"t": np.arange(len(frames))})
            self._builder = BatchBuilder(frames, Needs(image_size=STUDENT, depth=True, labels=True), said)
        epoch, rows = job
        augments = [frame_augment(BEV, IMAGE, len(CAMERA_CHANNELS), 0, epoch, row) for row in rows]
        return self._builder.build(rows, augments)

    def __getitem__(self, job: tuple[int, Sequence[int]]) -> Built:
        return self.build(job)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_builder": None}  # a process opens its own


@dataclass(frozen=True)
class _Epoch:
    """A contender with its workers: iterates over an epoch's batches, and tells what its stages have taken so far."""

    reading: Reading
    batches: Callable[[int], Iterator[Built]]
    stages: Callable[[], dict[str, float]]

    def run(self, number: int) -> tuple[float, dict[str, float]]:
        """Frames per second of one epoch, and seconds a frame by stage."""
        before, start, count = self.stages(), time.perf_counter(), 0
        for built, _ in self.batches(number):
            count += len(built)
        seconds, after = time.perf_counter() - start, self.stages()
        if count != len(self.reading):
            raise ConfigError(f"an epoch gave {count} frames, expected {len(self.reading)}")
        return count / seconds, {name: (after[name] - before[name]) / count for name in after}


@contextlib.contextmanager
def _threads(reading: Reading, count: int) -> Iterator[_Epoch]:
    spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    def batches(number: int) -> Iterator[Built]:
        with Loader(reading.jobs(number), reading.build, threads=count) as loader:
            yield from loader
            for name in STAGES:
                spent[name] += loader.stages[name]

    yield _Epoch(reading, batches, lambda: dict(spent))


@contextlib.contextmanager
def _processes(reading: Reading, count: int) -> Iterator[_Epoch]:
    jobs: list[tuple[int, list[int]]] = []
    loader = DataLoader(
        reading,
        batch_size=None,
        sampler=jobs,  # type: ignore[arg-type]
        num_workers=count,
        prefetch_factor=2,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )

    def batches(number: int) -> Iterator[Built]:
        jobs[:] = reading.jobs(number)
        return iter(loader)

    yield _Epoch(reading, batches, dict)


def _by_count(rates: dict[tuple[str, int], list[float]], kind: str) -> dict[str, float]:
    return {str(count): round(statistics.median(rs), 2) for (name, count), rs in rates.items() if name == kind}


def _decode(root: Path) -> dict[str, float]:
    """Milliseconds a picture to the student's input, decoded at the scale that suffices (as always) and decoded whole,
    and how the pixels differ: mean and 99.9th percentile of the absolute difference of 0..255, and PSNR in dB."""
    frames = FrameStore(root)
    times: dict[str, list[float]] = {"reduced": [], "whole": []}
    gaps: list[np.ndarray] = []
    for number in range(DECODED):
        row, place = number // len(CAMERA_CHANNELS) % len(frames), number % len(CAMERA_CHANNELS)
        camera, jpeg = cameras_in_order(frames.frame(row))[place], frames.image(row, CAMERA_CHANNELS[place])
        reduced = picture_geometry((camera.width, camera.height), STUDENT, ImageAugment())
        made = {}
        for name, geometry in (("reduced", reduced), ("whole", replace(reduced, reduction=1))):
            made[name] = np.empty((STUDENT[1], STUDENT[0], 3), np.uint8)
            start = time.perf_counter()
            draw_picture(jpeg, geometry, made[name], "bench")
            times[name].append(1e3 * (time.perf_counter() - start))
        gaps.append(np.abs(made["reduced"].astype(np.int16) - made["whole"]))
    gap = np.stack(gaps)
    return {
        "reduction": reduced.reduction,
        "reduced_ms": round(statistics.median(times["reduced"]), 3),
        "whole_ms": round(statistics.median(times["whole"]), 3),
        "speedup": round(statistics.median(times["whole"]) / statistics.median(times["reduced"]), 3),
        "mean_abs_diff": round(float(gap.mean()), 4),
        "p999_abs_diff": float(np.percentile(gap, 99.9)),
        "psnr_db": round(float(10 * np.log10(255**2 / max(np.mean(gap.astype(np.float64) ** 2), 1e-9))), 2),
    }


def _table(out: dict[str, Any]) -> Table:
    table = Table("readers", "threads", "processes", title="frames per second of the loader alone")
    for count, rate in out["threads"].items():
        other = out["processes"].get(count)
        table.add_row(count, f"{rate:.1f}", "" if other is None else f"{other:.1f}")
    return table
