"""The teacher pass: a LiDAR detector runs once over every frame of a frame store, on Dask, into a teacher store.

One task is one shard of the frame store: read clouds, batched forward, BEV feature at the covered cells, decoded boxes.
The model is loaded once per process from a path and a digest; tasks carry no weights and return no tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cells import gather_cells
from cache.commit import StorePlan, begin, finish, shard_path, write_record
from cache.errors import BevcaskError, ConfigError, DataError, StoreError
from cache.fields import FieldSpec
from cache.files import file_sha256, read_json
from cache.index import KIND_LABELLED
from cache.manifest import Manifest
from cache.store import FrameStore
from cache.tar_writer import ShardWriter
from models.build import load_weights
from models.detector import Batch, Detector
from pipeline.coverage import Coverage
from pipeline.engine import run_shards
from pipeline.points import Sweep, aggregate
from pipeline.progress import FrameProgress
from pipeline.tables import open_tables

SHIPPED_TEACHERS = {"demo": Path(__file__).parent.parent / "models" / "checkpoints" / "demo-teacher.safetensors"}
BATCH = 4
DEFAULT_SWEEPS = 9


@dataclass(frozen=True)
class TeacherOptions:
    """coverage, dilate: see `pipeline.coverage`; dtype of the stored values; sweeps read with a data root (None: 9)."""

    coverage: str = "gaussian"
    dilate: int | None = None
    dtype: str = "float16"
    sweeps: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise ConfigError(f"--dtype {self.dtype!r} is unknown, expected float16 or float32")
        if self.sweeps is not None and self.sweeps < 0:
            raise ConfigError(f"--sweeps {self.sweeps} is negative, expected 0 or more")


def resolve_checkpoint(teacher: str, checkpoint: Path | None) -> Path:
    """The weights file of a shipped name or of an own checkpoint; ConfigError where there is none."""
    path = checkpoint or SHIPPED_TEACHERS.get(teacher)
    if path is None:
        raise ConfigError(
            f"teacher {teacher!r} is not shipped (only {', '.join(SHIPPED_TEACHERS)}); give its weights: --checkpoint"
        )
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such checkpoint; train it with `./bevcask train --recipe demo-teacher`, or set --checkpoint"
        )
    return path


def teacher_fields(channels: int, dtype: str) -> tuple[FieldSpec, ...]:
    """The fields of a teacher store, in the order of the index's columns."""
    return (
        FieldSpec("bev_index", "npy", "int32", ("K",), "cell", "flat cells row * W + col, ascending"),
        FieldSpec(
            "bev_values", "npy.zstd", dtype, ("K", str(channels)), "", "the teacher's BEV feature at those cells"
        ),
        FieldSpec("bev_weights", "npy", "float32", ("K", "S"), "0..1", "weight of each cell, one column a selector"),
        FieldSpec("boxes", "npy", "float32", ("N", "9"), "m, rad, m/s", "decoded boxes, canonical frame"),
        FieldSpec("scores", "npy", "float32", ("N",), "0..1", "scores, descending"),
        FieldSpec("labels", "npy", "int32", ("N",), "class id", "labels"),
    )


def cache_teacher(
    cache: Path,
    name: str,
    *,
    teacher: str = "demo",
    checkpoint: Path | None = None,
    data_root: Path | None = None,
    options: TeacherOptions | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Manifest:
    """Writes <cache>/teachers/<name> beside <cache>/frames; skips what an earlier run with the same settings committed.

    Clouds come from the frame store where it holds points, else from data_root (the folder the frames came from).
    Returns the manifest. Raises ConfigError, StoreError, DataError or FingerprintError with the remedy.
    """
    options = options or TeacherOptions()
    if not name or set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_-"):
        raise ConfigError(f"--name {name!r}: expected lower-case letters, digits, '-' and '_'")
    frames = FrameStore(cache / "frames")
    weights = resolve_checkpoint(teacher, checkpoint)
    digest = file_sha256(weights)
    model = _teacher(str(weights), digest)
    coverage = Coverage.parse(options.coverage, options.dilate, model.grid)
    stored_sweeps = frames.manifest.header["sweeps"] if frames.manifest.header["points"] else None
    if stored_sweeps is not None and options.sweeps not in (None, stored_sweeps):
        raise ConfigError(
            f"--sweeps {options.sweeps}: {frames.root} holds clouds of {stored_sweeps} sweeps; leave the option out, "
            "or cache the frames with other sweeps"
        )
    count = DEFAULT_SWEEPS if options.sweeps is None else options.sweeps
    plan = _store_plan(
        frames, model, teacher, digest, options, coverage, count if stored_sweeps is None else stored_sweeps
    )
    sweeps = _sweeps_from_tables(frames, data_root, count) if stored_sweeps is None else None
    root = cache / "teachers" / name
    todo = begin(root, plan)
    known = set(frames.tokens)
    rows = [[frames.row_of(token) for token in tokens if token in known] for tokens in plan.shards]
    lost = [[token for token in tokens if token not in known] for tokens in plan.shards]
    jobs = [
        (
            str(root),
            str(cache),
            shard,
            plan.digest,
            rows[shard],
            lost[shard],
            None if sweeps is None else [sweeps[frames.tokens[row]] for row in rows[shard]],
            str(data_root) if data_root else None,
            str(weights.resolve()),
            digest,
            coverage,
            options.dtype,
        )
        for shard in todo
    ]
    with FrameProgress("cache-teacher", len(frames), len(frames) - sum(len(rows[s]) for s in todo)) as progress:
        summaries = run_shards(write_teacher_shard, jobs, workers=workers, scheduler=scheduler, progress=progress)
    if summaries and not any(s["frames"] for s in summaries) and len(todo) == len(rows):
        raise DataError(f"not one of {len(frames)} frames could be read; the first: {summaries[0]['first_problem']}")
    return finish(root, plan)


def _store_plan(
    frames: FrameStore,
    model: Detector,
    teacher: str,
    digest: str,
    options: TeacherOptions,
    coverage: Coverage,
    sweeps: int,
) -> StorePlan:
    """Teacher shards follow the frame store's plan, frames that it could not read included: once they are repaired
    there, this pass adds them too."""
    planned = read_json(frames.root / "plan.json", "the frame store's plan")["shards"]
    return StorePlan(
        kind="teacher",
        identity=frames.manifest.identity,
        header={
            "teacher": teacher,
            "weights_sha256": digest,
            "grid": model.grid.to_dict(),
            "bev_channels": model.bev_channels,
            "coverage": coverage.header(),
            "dtype": options.dtype,
            "sweeps": sweeps,
            "batch": BATCH,
        },
        fields=teacher_fields(model.bev_channels, options.dtype),
        scenes=frames.manifest.scenes,
        shards=tuple(tuple(str(token) for token in tokens) for tokens in planned),
    )


def _sweeps_from_tables(frames: FrameStore, data_root: Path | None, count: int) -> dict[str, tuple[Sweep, ...]]:
    if data_root is None:
        raise StoreError(
            f"{frames.root}: holds no points; give --data-root (the nuScenes folder), or cache the frames with --points"
        )
    version = frames.manifest.identity["dataset_version"]
    data = open_tables(data_root, version, None, count)
    sweeps = {record.frame.token: record.sweeps for scene in data.records for record in scene}
    missing = [token for token in frames.tokens if token not in sweeps]
    if missing:
        raise DataError(
            f"{data_root}: {len(missing)} frames of {frames.root} are not in its {version}, the first {missing[0]}; "
            "give the data root that the frames came from"
        )
    return sweeps


@functools.lru_cache(maxsize=2)
def _teacher(path: str, digest: str) -> Detector:
    """The model, once per process. The digest is checked so that every worker runs the very same weights."""
    found = file_sha256(Path(path))
    if found != digest:
        raise BevcaskError(
            f"{path}: sha256 {found[:16]} on this worker, the client has {digest[:16]}; copy the same file to all nodes"
        )
    model = load_weights(Path(path))
    if model.modality != "lidar":
        raise ConfigError(f"{path}: a {model.modality} model, expected a LiDAR teacher; choose another checkpoint")
    return model.eval()


def write_teacher_shard(
    root: str,
    cache: str,
    shard: int,
    plan_digest: str,
    rows: Sequence[int],
    lost: Sequence[str],
    sweeps: Sequence[tuple[Sweep, ...]] | None,
    data_root: str | None,
    weights: str,
    digest: str,
    coverage: Coverage,
    dtype: str,
) -> dict[str, Any]:
    """One task: the teacher over one shard's frames in fixed batches, written and committed. Returns counts only."""
    torch.set_num_threads(1)
    model = _teacher(weights, digest)
    frames = FrameStore(Path(cache) / "frames")
    specs = {spec.name: spec for spec in teacher_fields(model.bev_channels, dtype)}
    written: list[dict[str, Any]] = []
    quarantined = [{"token": token, "reason": "not in the frame store: repair it there first"} for token in lost]
    try:
        with ShardWriter(shard_path(Path(root), shard), specs) as writer:
            for batch_rows, clouds in _batches(frames, rows, sweeps, data_root, quarantined):
                for row, values in zip(
                    batch_rows, run_teacher(model, frames, batch_rows, clouds, coverage, dtype), strict=True
                ):
                    members = writer.write(frames.tokens[row], values)
                    written.append(
                        {
                            "token": frames.tokens[row],
                            "scene": int(frames.index.scene[row]),
                            "timestamp_us": int(frames.index.timestamp_us[row]),
                            "kind": int(frames.index.kind[row]),
                            "class_counts": frames.index.class_counts[row].tolist(),
                            "members": {field: location.to_list() for field, location in members.items()},
                        }
                    )
    finally:
        frames.close()
    return write_record(
        Path(root), shard, plan_digest, size=writer.size, sha256=writer.sha256, frames=written, quarantined=quarantined
    )


def _batches(
    frames: FrameStore,
    rows: Sequence[int],
    sweeps: Sequence[tuple[Sweep, ...]] | None,
    data_root: str | None,
    quarantined: list[dict[str, str]],
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Fixed batches in shard order; frames whose clouds cannot be read go to `quarantined`."""
    batch_rows: list[int] = []
    clouds: list[np.ndarray] = []
    for i, row in enumerate(rows):
        try:
            if sweeps is None:
                cloud = frames.points(row)
            else:
                assert data_root is not None
                cloud = aggregate(sweeps[i], Path(data_root))
        except DataError as error:
            quarantined.append({"token": frames.tokens[row], "reason": str(error)})
            continue
        batch_rows.append(row)
        clouds.append(cloud)
        if len(batch_rows) == BATCH:
            yield batch_rows, clouds
            batch_rows, clouds = [], []
    if batch_rows:
        yield batch_rows, clouds


def run_teacher(
    model: Detector,
    frames: FrameStore,
    rows: Sequence[int],
    clouds: Sequence[np.ndarray],
    coverage: Coverage,
    dtype: str,
) -> list[dict[str, np.ndarray]]:
    """The teacher's fields of a batch of frames, by name. Runs in fp32 without gradients."""
    batch = Batch(
        points=[torch.from_numpy(np.array(cloud)) for cloud in clouds], tokens=[frames.tokens[row] for row in rows]
    )
    with torch.inference_mode():
        output = model(batch)
        decoded = model.decode(output)
    bev = output.bev.float().numpy()
    out = []
    for i, row in enumerate(rows):
        labelled = int(frames.index.kind[row]) == KIND_LABELLED
        boxes = frames.boxes_lidar(row) if labelled else None
        cells = gather_cells(bev[i], coverage.weights(boxes, model.grid), dtype)
        out.append(
            {
                "bev_index": cells.index,
                "bev_values": cells.values,
                "bev_weights": cells.weights,
                "boxes": decoded[i].boxes_lidar,
                "scores": decoded[i].scores,
                "labels": decoded[i].labels,
            }
        )
    return out
