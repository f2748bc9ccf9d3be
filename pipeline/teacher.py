"""The teacher pass: a detector runs once over every frame of a frame store, on Dask, into a teacher store.

The client fixes the plan (coverage, encoding, format, capacities); one task is one shard (`pipeline.teacher_shard`).
The model is loaded once per process from a path and a digest; tasks carry no weights and return no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cache.bev import DTYPES, LAYOUTS, BevEncoding
from cache.commit import begin, finish, read_plan
from cache.coverage import Coverage
from cache.errors import ConfigError, DataError, StoreError
from cache.field_list import FieldList
from cache.fields import FieldSpec
from cache.files import file_sha256
from cache.layout import frames_place, teacher_place
from cache.manifest import Manifest
from cache.plan import FORMATS, Format, StorePlan
from cache.roots import open_root
from cache.store import FrameStore
from models.detector import Detector
from pipeline.averaging import VIEWS
from pipeline.capacity import capacities, first_input, probe_inputs
from pipeline.coverage import reads_heat
from pipeline.device import AUTOCAST, DEVICES, autocast_difference, choose_device, probe_batch, visible_gpus
from pipeline.engine import Cluster, run_shards
from pipeline.evidence import default_coverage, nothing_on_unlabelled, require_names
from pipeline.fields.offer import adaptor_of, further_of
from pipeline.fields.raw import heat_classes_of
from pipeline.inputs import image_size_of
from pipeline.overlap import STAGES
from pipeline.points import Sweep
from pipeline.progress import FrameProgress
from pipeline.tables import open_tables
from pipeline.teacher_shard import BATCH, TeacherPass, answer, open_once, write_teacher_shard

SHIPPED_TEACHERS = {"demo": Path(__file__).parent.parent / "models" / "checkpoints" / "demo-teacher.safetensors"}
DEFAULT_SWEEPS = 9


@dataclass(frozen=True)
class TeacherOptions:
    """coverage: see `cache.coverage`, "" for `pipeline.evidence.default_coverage`; encoding and dtype of the stored BEV
    feature, see `cache.bev`; format of the store; capacity {letter: size} of a Zarr store's arrays, what is left out is
    measured first; sweeps read with a data root (None: 9); device, autocast and batch of the forward pass (None: as
    many frames as fit), see `pipeline.device`; tta and ensemble: views and further checkpoints that are averaged, see
    `pipeline.averaging`; sweeps_after: sweeps behind the key frame, which an offline pass may read;
    fields: further ones, see `cache.field_list`.
    """

    coverage: str = ""
    encoding: str = "cells"
    dtype: str = "float16"
    format: str = "webdataset"
    capacity: Mapping[str, int] = field(default_factory=dict)
    sweeps: int | None = None
    device: str = "auto"
    autocast: str = ""
    batch: int | None = None
    tta: str = ""
    ensemble: tuple[Path, ...] = ()
    sweeps_after: int = 0
    fields: str = ""

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--dtype", self.dtype, DTYPES),
            ("--encoding", self.encoding, LAYOUTS),
            ("--format", self.format, FORMATS),
            ("--device", self.device, DEVICES),
            ("--autocast", self.autocast, AUTOCAST),
            ("--tta", self.tta, VIEWS),
        ):
            if value not in known:
                raise ConfigError(f"{option} {value!r} is unknown, expected one of {', '.join(filter(None, known))}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: expected 1 frame or more")
        if self.sweeps is not None and self.sweeps < 0:
            raise ConfigError(f"--sweeps {self.sweeps} is negative, expected 0 or more")
        if self.sweeps_after < 0:
            raise ConfigError(f"--sweeps-after {self.sweeps_after} is negative, expected 0 or more")
        FieldList.parse(self.fields)
        if self.capacity and self.format != "zarr":
            raise ConfigError("--capacity is for --format zarr; leave it out, other formats hold any number")


def resolve_checkpoint(teacher: str, checkpoint: Path | None) -> Path:
    """The weights file of a shipped name or of any checkpoint; ConfigError where there is none.

    What the file and the name are together is for `pipeline.adapters.opening` to say.
    """
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


def detection_fields() -> tuple[FieldSpec, ...]:
    """The fields of decoded boxes."""
    return (
        FieldSpec("boxes", "npy", "float32", ("N", "9"), "m, rad, m/s", "decoded boxes, canonical frame"),
        FieldSpec("scores", "npy", "float32", ("N",), "0..1", "scores, descending"),
        FieldSpec("labels", "npy", "int32", ("N",), "class id", "labels"),
    )


def cache_teacher(
    cache: str | Path,
    name: str,
    *,
    teacher: str = "demo",
    checkpoint: Path | None = None,
    data_root: Path | None = None,
    options: TeacherOptions | None = None,
    workers: int | None = None,
    cluster: Cluster | None = None,
    told: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Manifest:
    """Writes <cache>/teachers/<name> beside <cache>/frames; skips what an earlier run with the same settings committed,
    and goes on where the frame store has grown.

    teacher: a shipped name; a preset for a foreign checkpoint, package.module:callable (see docs/teachers.md), or any
    name for own weights. Clouds come from the frame store where it holds points, else from data_root (the folder the
    frames came from); images from the frame store. told: is handed the tasks' summaries, see `write_teacher_shard`.
    Returns the manifest. Raises ConfigError, StoreError, DataError or FingerprintError with the remedy.
    """
    options = options or TeacherOptions()
    place = teacher_place(cache, name)
    frames = FrameStore(frames_place(cache))
    weights = resolve_checkpoint(teacher, checkpoint)
    digest = file_sha256(weights)
    device = choose_device(options.device)
    opened = open_once(str(weights), digest, device, teacher)
    model = opened.model
    coverage = Coverage.parse(options.coverage or default_coverage(frames), model.grid)
    require_names(coverage, frames)
    image_size = image_size_of(model)
    count, sweeps = _clouds(frames, data_root, options) if image_size is None else _no_clouds(frames, options, coverage)
    encoding = BevEncoding(model.bev_channels, *model.grid.shape, len(coverage.names), options.encoding, options.dtype)
    job = TeacherPass(
        frames=frames.root.url,
        data_root=str(data_root) if data_root else None,
        weights=str(weights.resolve()),
        digest=digest,
        coverage=coverage,
        encoding=encoding,
        device=device,
        autocast=options.autocast,
        teacher=teacher,
        tta=options.tta,
        others=tuple((str(path.resolve()), file_sha256(path)) for path in _present(options.ensemble)),
        image_size=image_size,
    )
    model = job.model()
    asked = FieldList.parse(options.fields)
    unsure = reads_heat(coverage) and not heat_classes_of(model)
    if asked.items or options.tta or job.others or unsure:  # what the answer holds decides whether these can be had
        output = answer(model, job, first_input(frames, job, sweeps))
        if reads_heat(coverage) and not output.heads:
            whose = "" if options.coverage else " (the default where there are unlabelled frames)"
            raise ConfigError(
                f"--coverage {coverage}{whose}: it reads heatmaps, which this teacher does not give; name selectors "
                "that read none, such as --coverage gaussian+lidar or dense"
            )
        job = replace(job, further=further_of(asked, model, output, encoding) if asked.items else None)
    adaptor = adaptor_of(asked, model)
    earlier = read_plan(open_root(place))
    job = replace(job, batch=_batch(options, earlier, job, model, frames, sweeps))
    header = {
        "teacher": teacher,
        "weights_sha256": digest,
        "grid": model.grid.to_dict(),
        "coverage": coverage.header(),
        "bev": encoding.to_dict(),
        "sweeps": count,
        "batch": job.batch,
        "device": device,
        "autocast": options.autocast,
        **({"tta": options.tta} if options.tta else {}),
        **({"sweeps_after": options.sweeps_after} if options.sweeps_after else {}),
        **({"ensemble_sha256": [digest for _, digest in job.others]} if job.others else {}),
        **({"adapter": opened.adapter} if opened.adapter else {}),
        **({"modality": model.modality} if image_size is not None else {}),
        **({"further": job.further.header()} if job.further is not None else {}),
        **({"adaptor": adaptor.header()} if adaptor is not None else {}),
    }
    plan = _store_plan(frames, header, options, job, sweeps, earlier)
    todo = begin(place, plan, grow=True)
    url = open_root(place).url
    jobs = [
        (url, shard, job, None if sweeps is None else [sweeps.get(token, ()) for token in shard.tokens])
        for shard in todo
    ]
    total = sum(len(tokens) for tokens in plan.shards)
    with FrameProgress("cache-teacher", total, total - sum(len(shard.tokens) for shard in todo)) as progress:
        gpus = visible_gpus() if device == "cuda" else ()
        if missing := nothing_on_unlabelled(coverage, frames):
            progress.note(missing)
        if jobs and job.autocast:
            change = autocast_difference(model, job, probe_inputs(frames, job, sweeps, 2))
            progress.note(f"autocast {job.autocast}: the feature differs from float32's by {change:.1e} of its size")
        summaries = run_shards(
            write_teacher_shard, jobs, workers=workers, cluster=cluster, gpus=gpus, progress=progress
        )
        if summaries:
            progress.note(stage_line(summaries))
    if told:
        told(summaries)
    if summaries and not any(s["frames"] for s in summaries) and len(todo) == len(plan.shards):
        raise DataError(f"not one of {len(frames)} frames could be read; the first: {summaries[0]['first_problem']}")
    return finish(place, plan)


def _clouds(
    frames: FrameStore, data_root: Path | None, options: TeacherOptions
) -> tuple[int, dict[str, tuple[Sweep, ...]] | None]:
    """How many sweeps the clouds have, and where they are read from: None for the frame store, else files by token."""
    stored = frames.manifest.header["sweeps"] if frames.manifest.header["points"] else None
    if stored is None:
        count = DEFAULT_SWEEPS if options.sweeps is None else options.sweeps
        return count, sweeps_from_tables(frames, data_root, count, options.sweeps_after)
    if options.sweeps not in (None, stored):
        raise ConfigError(
            f"--sweeps {options.sweeps}: {frames.root} holds clouds of {stored} sweeps; leave the option out, "
            "or cache the frames with other sweeps"
        )
    if options.sweeps_after:
        raise ConfigError(
            f"--sweeps-after {options.sweeps_after}: {frames.root} holds clouds, of earlier sweeps only; cache the "
            "frames without --points, and sweeps are read from --data-root"
        )
    return int(stored), None


def _no_clouds(frames: FrameStore, options: TeacherOptions, coverage: Coverage) -> tuple[int, None]:
    """As `_clouds`, for a teacher of cameras: 0 sweeps. ConfigError for options and selectors that need clouds."""
    if options.sweeps is not None or options.sweeps_after:
        raise ConfigError("--sweeps and --sweeps-after are for LiDAR teachers, this one reads images; leave them out")
    of_points = [factor for factor in coverage.factors if factor.kind == "lidar"]
    if of_points and not frames.manifest.header["points"]:
        raise ConfigError(
            f"--coverage: {of_points[0]} reads points, which {frames.root} does not hold and a teacher of cameras does "
            "not read; cache the frames with --points, or drop it"
        )
    return 0, None


def _present(paths: Sequence[Path]) -> Sequence[Path]:
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path}: no such checkpoint; name those of the ensemble with commas between")
    return paths


def stage_line(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Where all tasks' time went, in words: seconds at work by stage, and that the forward pass waited."""
    total = {stage: sum(summary["stage_seconds"][stage] for summary in summaries) for stage in STAGES}
    return (
        f"seconds of all workers: reading {total['read']:.1f}, forward pass {total['forward']:.1f}, writing "
        f"{total['write']:.1f}; the forward pass waited {total['wait_read']:.1f} for input and "
        f"{total['wait_write']:.1f} for writing"
    )


def _batch(
    options: TeacherOptions,
    earlier: StorePlan | None,
    job: TeacherPass,
    model: Detector,
    frames: FrameStore,
    sweeps: Mapping[str, tuple[Sweep, ...]] | None,
) -> int:
    """Frames of a forward pass: as asked for, as the store was begun with, else as many as fit."""
    if options.batch is not None:
        return options.batch
    if earlier is not None and isinstance(earlier.header.get("batch"), int):
        return int(earlier.header["batch"])
    return probe_batch(model, job, probe_inputs(frames, job, sweeps, 2)) if job.device != "cpu" else BATCH


def _store_plan(
    frames: FrameStore,
    header: dict[str, Any],
    options: TeacherOptions,
    job: TeacherPass,
    sweeps: Mapping[str, tuple[Sweep, ...]] | None,
    earlier: StorePlan | None,
) -> StorePlan:
    """Teacher shards follow the frame store's plan, frames that it could not read included: once they are repaired
    there, this pass adds them too. A Zarr store's rows and capacities stay those it was begun with."""
    planned = read_plan(frames.root)
    if planned is None:
        raise StoreError(f"{frames.root}: no plan.json, which says what the shards hold; restore it or cache again")
    fields = (*job.encoding.fields(), *detection_fields(), *(job.further.fields() if job.further else ()))
    layout = Format(options.format)
    if options.format == "zarr" and earlier is not None and earlier.format.name == "zarr" and not options.capacity:
        layout = earlier.format
    elif options.format == "zarr":
        rows = max(len(tokens) for tokens in planned.shards)
        layout = Format("zarr", rows, capacities(frames, fields, job, sweeps, options.capacity))
    return StorePlan(
        kind="teacher",
        identity=frames.manifest.identity,
        header=header,
        fields=fields,
        scenes=planned.scenes,
        shards=planned.shards,
        format=layout,
    )


def sweeps_from_tables(
    frames: FrameStore, data_root: Path | None, count: int, after: int = 0
) -> dict[str, tuple[Sweep, ...]]:
    """The sweeps of every frame of a store, `count` before and `after` behind it, by token, from the raw data's tables;
    DataError where one is missing."""
    if data_root is None:
        raise StoreError(
            f"{frames.root}: holds no points; give --data-root (the nuScenes folder), or cache the frames with --points"
        )
    version = frames.manifest.identity["dataset_version"]
    between = int(frames.manifest.header.get("between", 0))
    data = open_tables(data_root, version, None, count, after, between=between)
    sweeps = {record.frame.token: record.sweeps for scene in data.records for record in scene}
    missing = [token for token in frames.tokens if token not in sweeps]
    if missing:
        raise DataError(
            f"{data_root}: {len(missing)} frames of {frames.root} are not in its {version}, the first {missing[0]}; "
            "give the data root that the frames came from"
        )
    return sweeps
