"""`re-encode`: a teacher store is read and written again in another encoding, coverage or format, without the teacher.

Nothing is invented: a cell that the source does not hold is a refusal that names it. Values of the same dtype are
passed on bit by bit; others are rounded once, from what is stored, and the header says what they went through. Runs on
Dask, one task a shard (`pipeline.reencode_shard`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache.bev import DTYPES, LAYOUTS
from cache.commit import begin, finish, read_plan
from cache.coverage import Coverage
from cache.errors import ConfigError, StoreError
from cache.fields import FieldSpec, letters_of
from cache.files import digest_of
from cache.layout import frames_place, teacher_place
from cache.manifest import Manifest
from cache.merge import Source
from cache.plan import FORMATS, Format, StorePlan
from cache.roots import open_root
from cache.same_frames import require_same_frames
from cache.store import FrameStore, TeacherStore
from pipeline.coverage import READ_HEAT
from pipeline.engine import Cluster, run_shards
from pipeline.evidence import require_names
from pipeline.progress import FrameProgress
from pipeline.reencode_shard import Reencoding, count_cells, recomputed, reencoded, write_reencoded_shard

PROBED_FRAMES = 8


@dataclass(frozen=True)
class ReencodeOptions:
    """What changes; "" leaves it as it is in the source. capacity {letter: size} of a Zarr store's arrays, what is left
    out is counted."""

    format: str = ""
    encoding: str = ""
    dtype: str = ""
    coverage: str = ""
    capacity: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--format", self.format, FORMATS),
            ("--encoding", self.encoding, LAYOUTS),
            ("--dtype", self.dtype, DTYPES),
        ):
            if value and value not in known:
                raise ConfigError(f"{option} {value!r} is unknown, expected one of {', '.join(known)}")


def reencode(
    cache: str | Path,
    name: str,
    out: str,
    *,
    options: ReencodeOptions,
    workers: int | None = None,
    cluster: Cluster | None = None,
) -> Manifest:
    """Writes <cache>/teachers/<out> from <cache>/teachers/<name>; a rerun goes on, also where the source has grown.

    Raises StoreError where the source does not hold what is asked for, ConfigError for options that contradict each
    other, FingerprintError where <out> was begun otherwise.
    """
    if name == out:
        raise ConfigError(f"--out {out} is the source itself; give the new store another name")
    place = teacher_place(cache, out)
    source = TeacherStore(teacher_place(cache, name))
    planned = Source.open(source.root).plan
    job = _job(cache, source, options)
    earlier = read_plan(open_root(place))
    _probe(source, job)
    fields = (*job.encoding.fields(), *_other_fields(source), *source.further.with_bev(job.encoding).fields())
    plan = StorePlan(
        kind="teacher",
        identity=planned.identity,
        header=_header(source, planned, job, earlier),
        fields=fields,
        scenes=planned.scenes,
        shards=planned.shards,
        format=_format(source, planned, fields, job, options, earlier, workers, cluster),
    )
    todo = begin(place, plan, grow=True)
    reasons = {row["token"]: row["reason"] for row in source.manifest.quarantined}
    url = open_root(place).url
    jobs = [(url, shard, job, {t: reasons[t] for t in shard.tokens if t in reasons}) for shard in todo]
    total = sum(len(tokens) for tokens in plan.shards)
    with FrameProgress("re-encode", total, total - sum(len(shard.tokens) for shard in todo)) as progress:
        run_shards(write_reencoded_shard, jobs, workers=workers, cluster=cluster, progress=progress)
    source.close()
    return finish(place, plan)


def _job(cache: str | Path, source: TeacherStore, options: ReencodeOptions) -> Reencoding:
    """What every task needs; refuses what can be told from the headers alone."""
    have = source.coverage
    wanted = Coverage.parse(options.coverage, source.grid) if options.coverage else have
    encoding = dataclasses.replace(
        source.bev,
        selectors=len(wanted.names),
        layout=options.encoding or source.bev.layout,
        dtype=options.dtype or source.bev.dtype,
    )
    job = Reencoding(source.root.url, None, have, wanted, encoding)
    of_heat = [selector for selector in recomputed(job) if selector.kind in READ_HEAT]
    if of_heat:
        raise StoreError(
            f"{source.root}: holds {have}; {of_heat[0]} needs the teacher's heat, which no store keeps: leave it out, "
            "keep its options, raise its threshold only, or cache the teacher again with that coverage"
        )
    if recomputed(job):
        frames = FrameStore(frames_place(cache))
        require_same_frames(frames, source, _rows_in(frames, source))
        require_names(wanted, frames)
        of_points = [selector for selector in recomputed(job) if selector.kind == "lidar"]
        if of_points and not frames.manifest.header["points"]:
            raise StoreError(
                f"{frames.root}: holds no points, which {of_points[0]} needs; cache the frames with --points, or "
                "leave it out"
            )
        job = dataclasses.replace(job, frames=frames.root.url)
        frames.close()
    return job


def _rows_in(frames: FrameStore, source: TeacherStore) -> list[int]:
    """The frame store's rows of the source's frames."""
    rows = frames.index.rows_of(source.index.token)
    if (rows < 0).any():
        row = int(np.flatnonzero(rows < 0)[0])
        raise StoreError(
            f"{frames.root}: {int((rows < 0).sum())} frames of {source.root} are missing, the first "
            f"{source.token(row)}; the coverage's weights come from their annotations"
        )
    return rows.tolist()


def _probe(source: TeacherStore, job: Reencoding) -> None:
    """A few frames, so that what the source does not hold is refused before anything is written."""
    frames = FrameStore(job.frames) if job.frames else None
    for row in np.unique(np.linspace(0, len(source) - 1, min(len(source), PROBED_FRAMES)).astype(int)).tolist():
        reencoded(source, frames, row, job)
    if frames is not None:
        frames.close()


def _other_fields(source: TeacherStore) -> tuple[FieldSpec, ...]:
    """Neither the BEV feature's nor further ones: they are copied."""
    bev = {spec.name for spec in (*source.bev.fields(), *source.further.fields())}
    return tuple(spec for spec in source.manifest.fields if spec.name not in bev)


def _header(source: TeacherStore, planned: StorePlan, job: Reencoding, earlier: StorePlan | None) -> dict[str, Any]:
    """The teacher's provenance stays. `source`: settings of the store it was made from, its manifest's digest when this
    one was begun, and the dtypes, narrower than that of the teacher, that the values went through before."""
    header = source.manifest.header
    rounded = list(header.get("source", {}).get("rounded_to", []))
    if source.bev.dtype != "float32" and source.bev.dtype != job.encoding.dtype and source.bev.dtype not in rounded:
        rounded.append(source.bev.dtype)
    settings = digest_of(planned.settings())
    manifests = [source.manifest.digest]
    begun = earlier.header.get("source", {}) if earlier is not None else {}
    if begun.get("settings") == settings:
        manifests = list(begun["manifests"])  # the source has grown since: this store goes on as it was begun
    return {
        **header,
        "coverage": job.wanted.header(),
        "bev": job.encoding.to_dict(),
        "source": {"settings": settings, "manifests": manifests, "rounded_to": rounded},
    }


def _format(
    source: TeacherStore,
    planned: StorePlan,
    fields: tuple[FieldSpec, ...],
    job: Reencoding,
    options: ReencodeOptions,
    earlier: StorePlan | None,
    workers: int | None,
    cluster: Cluster | None,
) -> Format:
    """Rows and room of a Zarr store: as it was begun, else counted over every frame, so that none is ever too large."""
    name = options.format or source.manifest.format.name
    if name != "zarr":
        if options.capacity:
            raise ConfigError("--capacity is for --format zarr; leave it out, other formats hold any number")
        return Format(name)
    letters = letters_of(fields)
    unknown = sorted(set(options.capacity) - set(letters))
    if unknown or any(size < 1 for size in options.capacity.values()):
        raise ConfigError(f"--capacity {dict(options.capacity)}: expected sizes of 1 or more for {', '.join(letters)}")
    if earlier is not None and earlier.format.name == "zarr" and not options.capacity:
        return earlier.format
    sizes = np.asarray(source.index.sizes)
    most = dict(zip(source.manifest.letters, sizes.max(axis=0, initial=0).tolist(), strict=True))
    if job.wanted != job.have:
        counted = run_shards(
            count_cells, [(job, tokens) for tokens in planned.shards], workers=workers, cluster=cluster
        )
        most |= {letter: max(summary[letter] for summary in counted) for letter in counted[0]}
    short = {letter: most[letter] for letter in options.capacity if options.capacity[letter] < most[letter]}
    if short:
        needed = ",".join(f"{letter}={size}" for letter, size in short.items())
        found = ",".join(f"{letter}={options.capacity[letter]}" for letter in short)
        raise StoreError(
            f"{source.root}: the fullest frames hold {needed}, but --capacity says {found}; give --capacity {needed}, "
            "or leave it out: it is counted then"
        )
    capacity = {letter: max(1, int(options.capacity.get(letter, most.get(letter, 0)))) for letter in letters}
    return Format("zarr", max(len(tokens) for tokens in planned.shards), capacity)
