"""One task of the teacher pass: read a shard's clouds, forward in fixed batches, encode and write.

Batches follow the shard's order and never cross shards, so that a rerun gives the same bytes on the same device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.bev import BevEncoding
from cache.coverage import Coverage
from cache.errors import BevcaskError, ConfigError, DataError
from cache.files import file_sha256
from cache.index import KIND_LABELLED
from cache.plan import ShardPlan
from cache.shard_writer import ShardWriter, open_shard
from cache.store import FrameStore
from models.detector import Batch, Detector
from pipeline.adapters.opening import Opened, open_teacher
from pipeline.coverage import Evidence, coverage_weights, reads_heat
from pipeline.points import Sweep, aggregate

BATCH = 4


@dataclass(frozen=True)
class TeacherPass:
    """What all tasks of a pass share. frames: URL of the frame store; data_root: where sweeps lie that it does not
    hold; weights and digest: the teacher's file and its sha256; teacher: its name, as `cache-teacher --teacher` has it.
    """

    frames: str
    data_root: str | None
    weights: str
    digest: str
    coverage: Coverage
    encoding: BevEncoding
    teacher: str = ""

    def model(self) -> Detector:
        """The teacher, loaded once per process."""
        return load_teacher(self.weights, self.digest, self.teacher).model


@functools.lru_cache(maxsize=2)
def load_teacher(path: str, digest: str, teacher: str = "") -> Opened:
    """The model in evaluation mode and how it came to be, once per process. The digest is checked so that every worker
    runs the very same weights."""
    found = file_sha256(Path(path))
    if found != digest:
        raise BevcaskError(
            f"{path}: sha256 {found[:16]} on this worker, the client has {digest[:16]}; copy the same file to all nodes"
        )
    opened = open_teacher(Path(path), teacher)
    if opened.model.modality != "lidar":
        modality = opened.model.modality
        raise ConfigError(f"{path}: a {modality} model, expected a LiDAR teacher; choose another checkpoint")
    opened.model.eval()
    return opened


def write_teacher_shard(
    url: str, shard: ShardPlan, job: TeacherPass, sweeps: Sequence[tuple[Sweep, ...]] | None
) -> dict[str, Any]:
    """The teacher over one shard's frames, written and committed. sweeps: per frame of the shard, None where the frame
    store holds the clouds. Returns counts only."""
    torch.set_num_threads(1)
    model = job.model()
    frames = FrameStore(job.frames)
    try:
        with open_shard(url, shard) as writer:
            for rows, clouds in _batches(frames, shard.tokens, sweeps, job.data_root, writer):
                for row, values in zip(rows, run_teacher(model, frames, rows, clouds, job), strict=True):
                    writer.write(frames.entry(row), values)
    finally:
        frames.close()
    return writer.summary


def _batches(
    frames: FrameStore,
    tokens: Sequence[str],
    sweeps: Sequence[tuple[Sweep, ...]] | None,
    data_root: str | None,
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
            cloud = read_cloud(frames, row, None if sweeps is None else sweeps[i], data_root)
        except DataError as error:
            writer.quarantine(token, str(error))
            continue
        rows.append(row)
        clouds.append(cloud)
        if len(rows) == BATCH:
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
    """The teacher's fields of a batch of frames, by name. Runs in fp32 without gradients."""
    batch = Batch(
        points=[torch.from_numpy(np.array(cloud)) for cloud in clouds], tokens=[frames.token(row) for row in rows]
    )
    with torch.inference_mode():
        output = model(batch)
        decoded = model.decode(output)
        heat = output.class_heat().float().numpy() if reads_heat(job.coverage) else None
    bev = output.bev.float().numpy()
    out = []
    for i, row in enumerate(rows):
        labelled = int(frames.index.kind[row]) == KIND_LABELLED
        evidence = Evidence(
            frames.token(row),
            boxes_lidar=frames.boxes_lidar(row) if labelled else None,
            heat=None if heat is None else heat[i],
            cloud=clouds[i],
        )
        out.append(
            {
                **job.encoding.encode(bev[i], coverage_weights(job.coverage, evidence, model.grid)),
                "boxes": decoded[i].boxes_lidar,
                "scores": decoded[i].scores,
                "labels": decoded[i].labels,
            }
        )
    return out
