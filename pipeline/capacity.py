"""How much room a Zarr store's arrays need: counted where annotations fix it, elsewhere probed with a margin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cache.coverage import Coverage
from cache.errors import ConfigError, DataError
from cache.fields import FieldSpec, letters_of
from cache.grid import BevGrid
from cache.store import FrameStore
from pipeline.coverage import coverage_weights
from pipeline.evidence import evidence_of
from pipeline.points import Sweep
from pipeline.teacher_shard import TeacherPass, read_cloud, run_teacher

PROBED_FRAMES = 16
MARGIN = 1.5  # of the largest probed frame; a frame above it fails its shard and names --capacity
_FROM_ANNOTATIONS = {"gaussian", "footprint", "view", "random", "dense"}  # and from calibration


def capacities(
    frames: FrameStore,
    fields: Sequence[FieldSpec],
    job: TeacherPass,
    sweeps: Mapping[str, tuple[Sweep, ...]] | None,
    given: Mapping[str, int],
) -> dict[str, int]:
    """Sizes for all letters of `fields`; `given` ones are taken as they are. ConfigError for one that is no letter."""
    letters = letters_of(fields)
    unknown = sorted(set(given) - set(letters))
    if unknown or any(size < 1 for size in given.values()):
        raise ConfigError(f"--capacity {dict(given)}: expected sizes of 1 or more for some of {', '.join(letters)}")
    out = dict(given)
    if "K" in letters and "K" not in out and {factor.kind for factor in job.coverage.factors} <= _FROM_ANNOTATIONS:
        out["K"] = _most_cells(frames, job)
    if set(letters) - set(out):
        out = {**_probed(frames, fields, job, sweeps), **out}
    return {letter: max(1, out[letter]) for letter in letters}


def _most_cells(frames: FrameStore, job: TeacherPass) -> int:
    """Cells of the fullest frame, by its annotations alone."""
    coverage, grid = job.coverage, job.model().grid
    if coverage.every_cell:
        return grid.height * grid.width
    return max((_count(frames, row, coverage, grid) for row in range(len(frames))), default=1)


def _count(frames: FrameStore, row: int, coverage: Coverage, grid: BevGrid) -> int:
    weights = coverage_weights(coverage, evidence_of(frames, row, coverage), grid)
    return int((weights > 0).any(axis=0).sum())


def _probed(
    frames: FrameStore, fields: Sequence[FieldSpec], job: TeacherPass, sweeps: Mapping[str, tuple[Sweep, ...]] | None
) -> dict[str, int]:
    """Letters' largest sizes over a few frames spread over the store, with a margin."""
    model = job.model()
    most: dict[str, int] = {}
    for row, cloud in _readable(frames, job, sweeps, PROBED_FRAMES):
        values = run_teacher(model, frames, [row], [cloud], job)[0]
        for spec in fields:
            for letter, size in spec.sizes_to_write(values[spec.name]).items():
                most[letter] = max(most.get(letter, 0), size)
    if not most:
        raise DataError(f"{frames.root}: no probed frame's cloud could be read; repair them or give --capacity")
    return {letter: int(np.ceil(size * MARGIN)) for letter, size in most.items()}


def probe_clouds(
    frames: FrameStore, job: TeacherPass, sweeps: Mapping[str, tuple[Sweep, ...]] | None, count: int
) -> list[np.ndarray]:
    """Clouds (P, 5) of up to `count` frames spread over the store; DataError where none of them can be read."""
    clouds = [cloud for _, cloud in _readable(frames, job, sweeps, count)]
    if not clouds:
        raise DataError(f"{frames.root}: no probed frame's cloud could be read; repair them or give --batch")
    return clouds


def _readable(
    frames: FrameStore, job: TeacherPass, sweeps: Mapping[str, tuple[Sweep, ...]] | None, count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows spread over the store, of each kind of frame as many, with their clouds; what cannot be read the pass itself
    quarantines."""
    # apart by kind: frames come in a fixed beat, a key frame and those behind it, of which one comb may meet one only
    kinds = [np.flatnonzero(frames.index.kind == kind) for kind in np.unique(frames.index.kind)]
    combs = [rows[np.linspace(0, len(rows) - 1, min(len(rows), -(-count // len(kinds)))).astype(int)] for rows in kinds]
    for row in np.unique(np.concatenate(combs)).tolist() if kinds else ():
        with contextlib.suppress(DataError):
            yield row, read_cloud(frames, row, None if sweeps is None else sweeps[frames.token(row)], job.data_root)
