"""One task of the teacher pass: read a shard's clouds, forward in fixed batches, encode and write, side by side.

Batches follow the shard's order and never cross shards, so that a rerun gives the same bytes on the same device.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from cache.bev import BevEncoding
from cache.coverage import Coverage
from cache.errors import BevcaskError, ConfigError, DataError
from cache.field_list import FieldList
from cache.files import file_sha256
from cache.frame import Detections
from cache.further import Further
from cache.grid import BevGrid
from cache.plan import ShardPlan
from cache.shard_writer import ShardWriter, open_shard
from cache.store import FrameStore
from models.detector import Detector, DetectorOutput
from models.freed_memory import keep_freed_memory
from pipeline.adapters.opening import Opened, open_teacher
from pipeline.answers import own_code, require_boxes, require_whole
from pipeline.averaging import Averaged
from pipeline.coverage import coverage_weights, reads_heat
from pipeline.evidence import evidence_of
from pipeline.fields.raw import raw_of
from pipeline.fields.stored import stored_fields
from pipeline.inputs import FrameInput, batch_of, image_size_of, read_input
from pipeline.overlap import overlap
from pipeline.points import Sweep

BATCH = 4


@dataclass(frozen=True)
class TeacherPass:
    """What all tasks of a pass share. frames: URL of the frame store; data_root: where sweeps lie that it does not
    hold; weights and digest: the teacher's file and its sha256; device: "cpu" or "cuda"; autocast: "", "float16" or
    "bfloat16"; batch: frames in one forward pass; teacher: its name, as `cache-teacher --teacher` has it; tta: views
    that are averaged, see `pipeline.averaging`; others: (file, sha256) of further checkpoints of an ensemble; further:
    the further fields' layout, None for none; image_size: (width, height) that a camera teacher reads, None for LiDAR.
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
    further: Further | None = None
    image_size: tuple[int, int] | None = None

    def model(self) -> Detector:
        """The teacher; its checkpoints are loaded once per process."""
        files = [(self.weights, self.digest), *self.others]
        models = [load_teacher(path, digest, self.device, self.teacher) for path, digest in files]
        return cast(Detector, Averaged(models, self.tta).eval()) if self.tta or self.others else models[0]


@dataclass(frozen=True)
class Said:
    """What the teacher said of a batch of frames, on the CPU. bev: (B, C, H, W) float32; heat: (B, classes, H, W), None
    where no selector reads it; raw: what further fields are made of, see `pipeline.fields.raw`."""

    rows: list[int]
    inputs: list[FrameInput]
    bev: np.ndarray
    heat: np.ndarray | None
    found: list[Detections]
    grid: BevGrid
    raw: Mapping[str, np.ndarray]


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
    if device == "cpu":
        keep_freed_memory()
    opened = open_teacher(Path(path), teacher)
    try:
        image_size_of(opened.model)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; choose another checkpoint") from None
    return replace(opened, model=opened.model.eval().to(device))


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
) -> Iterator[tuple[list[int], list[FrameInput]]]:
    """Fixed batches in shard order; frames whose clouds or images cannot be read are quarantined."""
    rows: list[int] = []
    inputs: list[FrameInput] = []
    for i, token in enumerate(tokens):
        row = frames.index.row_of(token)
        if row is None:
            writer.quarantine(token, "not in the frame store: repair it there first")
            continue
        try:
            shown = read_input(frames, row, None if sweeps is None else sweeps[i], job.data_root, job.image_size)
        except DataError as error:
            writer.quarantine(token, str(error))
            continue
        rows.append(row)
        inputs.append(shown)
        if len(rows) == job.batch:
            yield rows, inputs
            rows, inputs = [], []
    if rows:
        yield rows, inputs


def run_teacher(
    model: Detector, frames: FrameStore, rows: Sequence[int], inputs: Sequence[FrameInput], job: TeacherPass
) -> list[dict[str, np.ndarray]]:
    """The teacher's fields of a batch of frames, by name: what a shard's task does, without its stages."""
    return fields_of(forward(model, job, (list(rows), list(inputs))), frames, job)


def forward(model: Detector, job: TeacherPass, item: tuple[list[int], list[FrameInput]]) -> Said:
    """The teacher over one batch (rows, inputs), without gradients; fp32 unless the pass has autocast."""
    rows, inputs = item
    asked = job.further.asked if job.further is not None else FieldList()
    with torch.inference_mode(), autocast(job):
        with own_code(job.teacher):
            output = model(batch_of(inputs, [str(row) for row in rows], job.device))
            found = model.decode(output)
        require_whole(model, output, found, len(rows))
        heat = output.class_heat().float().cpu().numpy() if reads_heat(job.coverage) and output.heads else None
        raw = raw_of(output, model, asked, len(rows))
    return Said(rows, inputs, output.bev.float().cpu().numpy(), heat, found, model.grid, raw)


def answer(model: Detector, job: TeacherPass, shown: FrameInput) -> DetectorOutput:
    """The model's whole answer to one frame, on its device."""
    with torch.inference_mode(), autocast(job), own_code(job.teacher):
        return model(batch_of([shown], ["0"], job.device))


def autocast(job: TeacherPass) -> contextlib.AbstractContextManager[Any]:
    """torch's autocast where the pass asks for it."""
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(job.autocast)
    return contextlib.nullcontext() if dtype is None else torch.autocast(job.device, dtype)


def fields_of(said: Said, frames: FrameStore, job: TeacherPass) -> list[dict[str, np.ndarray]]:
    """Each frame's fields by name: the feature under the coverage, the decoded boxes, and the further fields."""
    out = []
    for i, row in enumerate(said.rows):
        heat = None if said.heat is None else said.heat[i]
        evidence = evidence_of(frames, row, job.coverage, heat, said.inputs[i].cloud)
        weights = coverage_weights(job.coverage, evidence, said.grid)
        found = said.found[i]
        require_boxes(found, frames.token(row))
        further: dict[str, np.ndarray] = {}
        if job.further is not None:
            raw = {name: values[i] for name, values in said.raw.items()}
            truth = frames.boxes_lidar(row) if job.further.reads_truth and frames.is_labelled(row) else None
            further = stored_fields(job.further, raw, said.bev[i], said.grid, weights, found, truth)
        out.append(
            {
                **job.encoding.encode(said.bev[i], weights),
                "boxes": found.boxes_lidar,
                "scores": found.scores,
                "labels": found.labels,
                **further,
            }
        )
    return out
