"""One training of the ablation and its score: a process in, one small JSON file out.

A job is plain values. Its key is a digest of what they say before defaults are filled in: a new default key elsewhere
in the project does not orphan results, a changed weight, world or preset does. A default that is changed elsewhere must
therefore be written into the rows that stood on it; the commit in every result says which defaults were meant. The file
is written whole or not at all; a killed job goes on from its last checkpoint. Cost: minutes, on one thread.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cache.classes import DETECTION_CLASSES
from cache.errors import BevcaskError
from cache.files import digest_of, read_json, write_json
from cache.layout import frames_place, teacher_place
from cache.manifest import Manifest
from cache.roots import open_root
from cache.store import FrameStore
from models.build import load_preset
from models.detector import Detector
from studies.ablation.suite import laid_over
from studies.benches.machine import machine
from studies.claims.claim import commit
from studies.lock import alone_in
from studies.scoring import score
from studies.training import train_run
from trainer.metrics import read_metrics
from trainer.orphans import end_with_parent
from trainer.predict import load_run, predict
from trainer.recipe import RECIPES
from trainer.run_files import CHECKPOINTS

FORMAT = "bevcask-ablation-1"
FAILED = "failed"
CURVE_POINTS = 10


@dataclass(frozen=True)
class Label:
    """Where a result stands in the tables. The key does not depend on suite and row: suites share what is the same."""

    suite: str
    row: str
    student: str
    regime: str
    round: int
    seed: int

    def __str__(self) -> str:
        return f"{self.row} ({self.student}, {self.regime}), seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """recipe and overrides: what is trained; train_cache: its stores; score_cache and split: what it is scored on; run:
    the training's folder; result: the file; key: see `key_of`; origin: digests of the files that it stands on."""

    label: Label
    key: str
    recipe: str
    overrides: Mapping[str, Any]
    train_cache: str
    score_cache: str
    split: str
    run: str
    result: str
    origin: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Job:
        return cls(**{**values, "label": Label(**values["label"])})


@functools.cache
def recipe_source(name: str) -> dict[str, Any]:
    """A shipped recipe as written over what it extends, without defaults. Not to be changed: it is read once."""
    values = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    base = values.pop("extends", None)
    if base is not None:
        return laid_over(recipe_source(base), values)
    return values


def as_written(recipe: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe under its overrides with its preset's keys in place of the preset's name, without defaults: what a
    digest must know of a training."""
    written = laid_over(recipe_source(recipe), overrides)
    model = dict(written["model"])
    if "preset" in model:
        model = laid_over(_preset(str(model.pop("preset"))), model)
    return {**written, "model": model}


def key_of(recipe: str, overrides: Mapping[str, Any], stands_on: Mapping[str, Any]) -> str:
    """Hex digest of a training as written, and of the worlds and stores that it stands on."""
    return digest_of({"format": FORMAT, "recipe": as_written(recipe, overrides), **stands_on})[:16]


@functools.cache
def _preset(name: str) -> dict[str, Any]:
    return load_preset(name)


def is_done(job: Job) -> bool:
    """Whether its result is there."""
    return Path(job.result).is_file()


def run_job(values: Mapping[str, Any], threads: int = 1) -> dict[str, Any]:
    """Trains and scores one job, and writes its result; comes back at once where that is there."""
    job = Job.of(values)
    if is_done(job):
        return dict(read_json(Path(job.result), "an ablation's result"))
    run = Path(job.run)
    torch.set_num_threads(threads)
    trained = train_run(job.recipe, job.train_cache, run, resume=True, threads=threads, overrides=job.overrides)
    lines = read_metrics(run / "metrics.jsonl")
    result = {
        "format": FORMAT,
        "key": job.key,
        **asdict(job.label),
        **score_of(load_run(run), job.score_cache, job.split),
        "steps": trained["steps"],
        "loss": round(trained["loss"], 5),
        "loss_curve": curve_of(lines),
        "train_minutes": minutes_of(lines, int(as_written(job.recipe, job.overrides)["train"]["batch"])),
        "stall_share": round(trained["stall_share"], 4),
        "store_bytes": store_bytes(job),
        "origin": dict(job.origin),
        "commit": commit(tell_dirty=True),
        "cpu": machine()["cpu"],
        "torch": torch.__version__,
    }
    write_json(Path(job.result), result)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)  # optimiser states; the weights stay
    return result


def run_job_or_say(values: Mapping[str, Any]) -> dict[str, Any]:
    """`run_job` for a cluster, where one failure is not to end all others: its words under `FAILED`."""
    try:
        return run_job(values)
    except Exception as error:
        kind = "" if isinstance(error, BevcaskError) else f"{type(error).__name__}: "
        return {"key": values["key"], FAILED: kind + " ".join(str(error).split())}


def store_bytes(job: Job) -> float | None:
    """Bytes a frame of the teacher store that the job learns from: every file that the manifest names, over the frames
    in them. None for a job without one."""
    name = job.overrides.get("data", {}).get("teacher")
    if name is None:
        return None
    manifest = Manifest.read(open_root(teacher_place(job.train_cache, name)))
    return round(sum(file.size for file in manifest.files) / sum(shard.frames for shard in manifest.shards), 1)


def score_of(model: Detector, cache: str | Path, split: str) -> dict[str, Any]:
    """The metric's figures of a detector on a split's labelled key frames, the AP of each class, and the minutes."""
    start = time.monotonic()
    store = FrameStore(frames_place(cache))
    rows = [row for row in store.key_rows(split) if store.is_labelled(row)]
    metrics = score(store, rows, predict(model, store, rows, progress=lambda done, total: None))
    return {
        **metrics.summary(),
        "class_ap": {name: round(float(metrics.class_ap(name)), 5) for name in DETECTION_CLASSES},
        "frames": len(rows),
        "score_minutes": round((time.monotonic() - start) / 60, 3),
    }


def minutes_of(lines: list[dict[str, Any]], batch: int) -> float:
    """Of all steps of a run by the rates in its log, those before an interruption too; a run's record tells the seconds
    of the process that ended it."""
    steps = [0, *(int(line["step"]) for line in lines)]
    rates = [float(line["frames_per_s"]) for line in lines]
    seconds = sum((b - a) * batch / rate for a, b, rate in zip(steps, steps[1:], rates, strict=False))
    return round(seconds / 60, 3)


def curve_of(lines: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, detection loss averaged since the point before) at tenths of a run: whether it is flat at its end. The
    terms' own losses are left out: rows have different ones."""
    size = max(1, len(lines) // CURVE_POINTS)
    chunks = [lines[i : i + size] for i in range(0, len(lines) - size + 1, size)]
    names = ("heatmap", "center", "height", "dim", "rot", "vel")
    own = [[sum(line.get(name, 0.0) for name in names) for line in chunk] for chunk in chunks]
    return [
        (int(chunk[-1]["step"]), round(sum(values) / len(values), 4)) for chunk, values in zip(chunks, own, strict=True)
    ]


if __name__ == "__main__":
    end_with_parent()
    try:
        _values = json.loads(Path(sys.argv[1]).read_text())
        with alone_in(Path(_values["run"]), wait=True):  # the orphan of a killed command ends within a second
            run_job(_values)
    except BevcaskError as _error:
        sys.exit(" ".join(str(_error).split()))
