"""One task of the teacher pass: read a shard's clouds, forward in fixed batches, encode and write, side by side.

Batches follow the shard's order and never cross shards, so that a rerun gives the same bytes on the same device.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from cache.bev import BevEncoding
from cache.coverage import Coverage
from cache.errors import BevcaskError, ConfigError, DataError
from cache.files import file_sha256
from cache.frame import Detections
from cache.grid import BevGrid
from cache.plan import ShardPlan
from cache.shard_writer import ShardWriter, open_shard
from cache.store import FrameStore
from models.detector import Batch, Detector
from pipeline.adapters.opening import Opened, open_teacher
from pipeline.averaging import Averaged
from pipeline.coverage import coverage_weights, reads_heat
from pipeline.evidence import evidence_of
from pipeline.overlap import overlap
from pipeline.points import Sweep, aggregate

BATCH = 4


@dataclass(frozen=True)
class TeacherPass:
    """What all tasks of a pass share. frames: URL of the frame store; data_root: where sweeps lie that it does not
    hold; weights and digest: the teacher's file and its sha256; device: "cpu" or "cuda"; autocast: "", "float16" or
    "bfloat16"; batch: frames in one forward pass; teacher: its name, as `cache-teacher --teacher` has it; tta: views
    that are averaged, see `pipeline.averaging`; others: (file, sha256) of further checkpoints of an ensemble.
    """

    frames: str
    data_root: str | None
    weights: str
    digest: str
    coverage: Coverage
    encoding: BevEncoding
    device: str = "cpu"
    autocast: str = ""
    batch: int = BATCH
    teacher: str = ""
    tta: str = ""
    others: tuple[tuple[str, str], ...] = ()

    def model(self) -> Detector:
        """The teacher; its checkpoints are loaded once per process."""
        files = [(self.weights, self.digest), *self.others]
        models = [load_teacher(path, digest, self.device, self.teacher) for path, digest in files]
        return cast(Detector, Averaged(models, self.tta).eval()) if self.tta or self.others else models[0]


@dataclass(frozen=True)
class Said:
    """What the teacher said of a batch of frames, on the CPU. bev: (B, C, H, W) float32; heat: (B, classes, H, W), None
    where no selector reads it."""

    rows: list[int]
    clouds: list[np.ndarray]
    bev: np.ndarray
    heat: np.ndarray | None
    found: list[Detections]
    grid: BevGrid


def load_teacher(path: str, digest: str, device: str = "cpu", teacher: str = "") -> Detector:
    """The model in evaluation mode, once per process; teacher: its name, see `pipeline.adapters.opening`."""
    return open_once(path, digest, device, teacher).model


@functools.lru_cache(maxsize=8)
def open_once(path: str, digest: str, device: str, teacher: str) -> Opened:
    """The model and how it came to be. The digest is checked so that every worker runs the very same weights."""
    found = file_sha256(Path(path))
    if found != digest:
        raise BevcaskError(
            f"{path}: sha256 {found[:16]} on this worker, the client has {digest[:16]}; copy the same file to all nodes"
        )
    opened = open_teacher(Path(path), teacher)
    model = opened.model
    if model.modality != "lidar":
        raise ConfigError(f"{path}: a {model.modality} model, expected a LiDAR teacher; choose another checkpoint")
    return replace(opened, model=model.eval().to(device))


def write_teacher_shard(
    url: str, shard: ShardPlan, job: TeacherPass, sweeps: Sequence[tuple[Sweep, ...]] | None
) -> dict[str, Any]:
    """The teacher over one shard's frames, written and committed. sweeps: per frame of the shard, None where the frame
    store holds the clouds. Returns counts only, the task's `seconds`, and `stage_seconds` as `pipeline.overlap` tells
    them."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    model = job.model()
    frames = FrameStore(job.frames)

    def put(said: Said) -> None:
        for row, values in zip(said.rows, fields_of(said, frames, job), strict=True):
            writer.write(frames.entry(row), values)

    try:
        with open_shard(url, shard) as writer:
            seconds = overlap(
                _batches(frames, shard.tokens, sweeps, job, writer), functools.partial(forward, model, job), put
            )
    finally:
        frames.close()
    return {**writer.summary, "seconds": time.perf_counter() - start, "stage_seconds": seconds}


def _batches(
    frames: FrameStore,
    tokens: Sequence[str],
    sweeps: Sequence[tuple[Sweep, ...]] | None,
    job: TeacherPass,
    writer: ShardWriter,
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Fixed batches in shard order; frames whose clouds cannot be read are quarantined."""
    rows: list[int] = []
    clouds: list[np.ndarray] = []
    for i, token in enumerate(tokens):
        row = frames.index.row_of(token)
        if row is None:
            writer.quarantine(token, "not in the frame store: repair it there first")
            continue
        try:
            cloud = read_cloud(frames, row, None if sweeps is None else sweeps[i], job.data_root)
        except DataError as error:
            writer.quarantine(token, str(error))
            continue
        rows.append(row)
        clouds.append(cloud)
        if len(rows) == job.batch:
            yield rows, clouds
            rows, clouds = [], []
    if rows:
        yield rows, clouds


def read_cloud(frames: FrameStore, row: int, sweeps: tuple[Sweep, ...] | None, data_root: str | None) -> np.ndarray:
    """(P, 5) points of a frame, from the store or, with sweeps, from the raw files under data_root."""
    if sweeps is None:
        return frames.points(row)
    assert data_root is not None
    return aggregate(sweeps, Path(data_root))


def run_teacher(
    model: Detector, frames: FrameStore, rows: Sequence[int], clouds: Sequence[np.ndarray], job: TeacherPass
) -> list[dict[str, np.ndarray]]:
    """The teacher's fields of a batch of frames, by name: what a shard's task does, without its stages."""
    return fields_of(forward(model, job, (list(rows), list(clouds))), frames, job)


def forward(model: Detector, job: TeacherPass, item: tuple[list[int], list[np.ndarray]]) -> Said:
    """The teacher over one batch (rows, clouds (P, 5)), without gradients; fp32 unless the pass has autocast."""
    rows, clouds = item
    points = [torch.from_numpy(np.array(cloud)).to(job.device, non_blocking=True) for cloud in clouds]
    with torch.inference_mode(), autocast(job):
        output = model(Batch(points=points, tokens=[str(row) for row in rows]))
        found = model.decode(output)
        heat = output.class_heat().float().cpu().numpy() if reads_heat(job.coverage) else None
    return Said(rows, clouds, output.bev.float().cpu().numpy(), heat, found, model.grid)


def autocast(job: TeacherPass) -> contextlib.AbstractContextManager[Any]:
    """torch's autocast where the pass asks for it."""
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(job.autocast)
    return contextlib.nullcontext() if dtype is None else torch.autocast(job.device, dtype)


def fields_of(said: Said, frames: FrameStore, job: TeacherPass) -> list[dict[str, np.ndarray]]:
    """Each frame's fields by name: the feature under the coverage, and the decoded boxes."""
    out = []
    for i, row in enumerate(said.rows):
        heat = None if said.heat is None else said.heat[i]
        evidence = evidence_of(frames, row, job.coverage, heat, said.clouds[i])
        found = said.found[i]
        out.append(
            {
                **job.encoding.encode(said.bev[i], coverage_weights(job.coverage, evidence, said.grid)),
                "boxes": found.boxes_lidar,
                "scores": found.scores,
                "labels": found.labels,
            }
        )
    return out
