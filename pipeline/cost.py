"""`plan`: what a caching run would cost before it runs. Counts come from the tables, bytes and time from a short probe.

The probe writes a few frames, spread over the data set, with the very code of the real run into a temporary folder, in
this process. It says nothing of what a slower disk or a busier machine will do.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.commit import begin, finish
from cache.errors import DataError
from cache.files import file_sha256
from cache.layout import frames_place, teacher_place
from cache.roots import open_root
from cache.store import FrameStore, Store, TeacherStore
from pipeline.engine import default_workers
from pipeline.frames import FrameOptions, frame_plan, plan_shards, write_frame_shard
from pipeline.inputs import image_size_of
from pipeline.points import aggregate
from pipeline.tables import DataSet, FrameRecord
from pipeline.teacher import TeacherOptions, cache_teacher, resolve_checkpoint
from pipeline.teacher_shard import BATCH, load_teacher

PROBED_FRAMES = 2 * BATCH
CONTAINER = "files and index"  # tar headers or padding rows, checksums, index columns


@dataclass(frozen=True)
class StoreCost:
    """One store's estimate. bytes_per_frame by field and for what is around them; seconds_per_frame of one worker."""

    bytes_per_frame: dict[str, float]
    seconds_per_frame: float


@dataclass(frozen=True)
class Cost:
    """Estimates for `frames` and, where one was asked for, `teacher`; both with the same frames and shards."""

    scenes: int
    frames: int
    shards: int
    probed: int
    workers: int
    stores: dict[str, StoreCost]

    def to_dict(self) -> dict[str, Any]:
        """For scripts: totals, too."""
        return {
            **{name: getattr(self, name) for name in ("scenes", "frames", "shards", "probed", "workers")},
            "stores": {
                name: {
                    "bytes_per_frame": {field: round(size, 1) for field, size in cost.bytes_per_frame.items()},
                    "bytes": self.bytes_of(name),
                    "seconds_per_frame": round(cost.seconds_per_frame, 4),
                    "seconds": round(self.seconds_of(name), 1),
                }
                for name, cost in self.stores.items()
            },
        }

    def bytes_of(self, store: str) -> int:
        """Bytes of the whole store."""
        return round(self.frames * sum(self.stores[store].bytes_per_frame.values()))

    def seconds_of(self, store: str) -> float:
        """Seconds with all workers; shards are what they share."""
        return self.frames * self.stores[store].seconds_per_frame / max(1, min(self.workers, self.shards))


def estimate(
    data_root: Path,
    version: str,
    *,
    split: str | None = None,
    options: FrameOptions | None = None,
    teacher: str | None = None,
    checkpoint: Path | None = None,
    teacher_options: TeacherOptions | None = None,
    workers: int | None = None,
) -> Cost:
    """What `cache_frames` and, where a teacher is named, `cache_teacher` would cost with these options, both with the
    sweeps of `options`.

    Raises as those do; DataError also where none of the probed frames can be read.
    """
    options, teacher_options = options or FrameOptions(), teacher_options or TeacherOptions()
    asks_teacher = teacher is not None or checkpoint is not None
    reads_clouds = asks_teacher and _reads_clouds(teacher or "own", checkpoint)
    sweeps = options.sweeps if options.points or reads_clouds else 0
    data = replace(options, points=sweeps > 0, sweeps=sweeps).open_tables(data_root, version, split)
    probe = _spread(data)
    stores = {}
    with tempfile.TemporaryDirectory(prefix="bevcask-plan-") as folder:
        plain = Path(folder) / "plain"
        frames = _write_frames(_key_sweeps(probe, options), options, data_root, plain)
        stores["frames"] = frames
        if asks_teacher:
            cache = plain
            if reads_clouds and not options.points:  # the real run reads the sweeps' files: here a store is read
                cache = Path(folder) / "points"
                _write_frames(probe, replace(options, points=True, sweeps=sweeps), data_root, cache)
            seconds = _reading_seconds(probe, data_root) if reads_clouds and not options.points else 0.0
            stores["teacher"] = _run_teacher(cache, teacher or "own", checkpoint, teacher_options, seconds)
    return Cost(
        scenes=len(data.scenes),
        frames=len(data),
        shards=len(plan_shards(data, options)),
        probed=len(probe),
        workers=default_workers() if workers is None else workers,
        stores=stores,
    )


def _reads_clouds(teacher: str, checkpoint: Path | None) -> bool:
    """Whether it is a LiDAR teacher. Raises as `resolve_checkpoint` and `load_teacher`."""
    weights = resolve_checkpoint(teacher, checkpoint)
    return image_size_of(load_teacher(str(weights), file_sha256(weights), teacher=teacher)) is None


def _spread(data: DataSet) -> DataSet:
    """A few frames spread evenly over the data set."""
    every = [(i, record) for i, records in enumerate(data.records) for record in records]
    chosen = np.unique(np.linspace(0, len(every) - 1, min(len(every), PROBED_FRAMES)).astype(int)).tolist()
    by_scene: dict[int, list[FrameRecord]] = {}
    for at in chosen:
        scene, record = every[at]
        by_scene.setdefault(scene, []).append(record)
    return replace(
        data, scenes=tuple(data.scenes[i] for i in by_scene), records=tuple(tuple(r) for r in by_scene.values())
    )


def _key_sweeps(data: DataSet, options: FrameOptions) -> DataSet:
    """As the frame pass reads it: without points, the frames' own sweeps only."""
    if options.points:
        return data
    return replace(
        data,
        records=tuple(tuple(replace(record, sweeps=record.sweeps[:1]) for record in scene) for scene in data.records),
    )


def _write_frames(data: DataSet, options: FrameOptions, data_root: Path, cache: Path) -> StoreCost:
    place = frames_place(cache)
    records = [record for scene in data.records for record in scene]
    plan = frame_plan(data, options, [records])
    [shard] = begin(place, plan)
    start = time.perf_counter()
    summary = write_frame_shard(open_root(place).url, shard, records, str(data_root), options)
    seconds = time.perf_counter() - start
    if not summary["frames"]:
        raise DataError(f"not one of {len(records)} probed frames could be read: {summary['first_problem']}")
    finish(place, plan)
    store = FrameStore(place)
    cost = StoreCost(_bytes_per_frame(store), seconds / len(store))
    store.close()
    return cost


def _reading_seconds(data: DataSet, data_root: Path) -> float:
    """Seconds a frame that a teacher pass without stored points spends on the sweeps' files."""
    start, read = time.perf_counter(), 0
    for record in (record for scene in data.records for record in scene):
        with contextlib.suppress(DataError):
            aggregate(record.sweeps, data_root)
            read += 1
    return (time.perf_counter() - start) / max(read, 1)


def _run_teacher(
    cache: Path, teacher: str, checkpoint: Path | None, options: TeacherOptions, reading_seconds: float
) -> StoreCost:
    """The pass over the probe's store. The model is loaded, and has seen a batch, before the clock starts."""
    weights = resolve_checkpoint(teacher, checkpoint)
    load_teacher(str(weights), file_sha256(weights), teacher=teacher)
    plain = replace(options, format="webdataset", capacity={}, sweeps=None)
    with _quiet():
        cache_teacher(cache, "warm", teacher=teacher, checkpoint=checkpoint, options=plain, workers=1)
        start = time.perf_counter()
        cache_teacher(cache, "timed", teacher=teacher, checkpoint=checkpoint, options=plain, workers=1)
        seconds = time.perf_counter() - start
        if options.format != "webdataset":
            asked = replace(options, sweeps=None)
            cache_teacher(cache, "sized", teacher=teacher, checkpoint=checkpoint, options=asked, workers=1)
    store = TeacherStore(teacher_place(cache, "timed" if options.format == "webdataset" else "sized"))
    cost = StoreCost(_bytes_per_frame(store), seconds / len(store) + reading_seconds)
    store.close()
    return cost


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the probe's own progress, which counts frames of a store that nobody asked for."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _bytes_per_frame(store: Store) -> dict[str, float]:
    """Mean bytes by field, then what its files and index take beyond the fields."""
    fields = np.asarray(store.index.length, np.int64).sum(axis=0) / len(store)
    files = sum(file.size for shard in store.manifest.shards for file in shard.files)
    # npy headers of the index weigh nothing in a store of some size
    index = sum(row["size"] - 128 for row in store.manifest.index.values())
    out = {spec.name: float(size) for spec, size in zip(store.manifest.fields, fields, strict=True)}
    return {**out, CONTAINER: max(0.0, (files + index) / len(store) - float(fields.sum()))}
