"""How much room a Zarr store's arrays need: counted where annotations fix it, elsewhere probed with a margin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cache.errors import ConfigError, DataError
from cache.fields import FieldSpec, letters_of
from cache.levels import level_weights
from cache.store import FrameStore
from pipeline.coverage import coverage_weights
from pipeline.evidence import evidence_of
from pipeline.inputs import FrameInput, read_input
from pipeline.points import Sweep
from pipeline.teacher_shard import TeacherPass, run_teacher

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
    if {factor.kind for factor in job.coverage.factors} <= _FROM_ANNOTATIONS:
        out = {**{letter: most for letter, most in _most_cells(frames, job).items() if letter in letters}, **out}
    if "T" in letters and "T" not in out:  # annotated boxes that samples are taken at
        labelled = [row for row in range(len(frames)) if frames.is_labelled(row)]
        out["T"] = int(frames.lengths(labelled, "gt_lidar").max()) if labelled else 1
    if set(letters) - set(out):
        out = {**_probed(frames, fields, job, sweeps), **out}
    return {letter: max(1, out[letter]) for letter in letters}


def _most_cells(frames: FrameStore, job: TeacherPass) -> dict[str, int]:
    """Cells of the fullest frame by letter, of the feature and of levels with cells of their own; from annotations."""
    coverage, grid = job.coverage, job.model().grid
    ratios = {"K": 1, **{level.letter: level.ratio for level in (job.further.levels if job.further else ())}}
    most = dict.fromkeys(ratios, 1)
    for row in range(1 if coverage.every_cell else len(frames)):
        weights = coverage_weights(coverage, evidence_of(frames, row, coverage), grid)
        for letter, ratio in ratios.items():
            most[letter] = max(most[letter], int((level_weights(weights, ratio) > 0).any(axis=0).sum()))
    return most


def _probed(
    frames: FrameStore, fields: Sequence[FieldSpec], job: TeacherPass, sweeps: Mapping[str, tuple[Sweep, ...]] | None
) -> dict[str, int]:
    """Letters' largest sizes over a few frames spread over the store, with a margin."""
    model = job.model()
    most: dict[str, int] = {}
    for row, shown in _readable(frames, job, sweeps, PROBED_FRAMES):
        values = run_teacher(model, frames, [row], [shown], job)[0]
        for spec in fields:
            for letter, size in spec.sizes_to_write(values[spec.name]).items():
                most[letter] = max(most.get(letter, 0), size)
    if not most:
        raise DataError(f"{frames.root}: no probed frame could be read; repair them or give --capacity")
    return {letter: int(np.ceil(size * MARGIN)) for letter, size in most.items()}


def probe_inputs(
    frames: FrameStore, job: TeacherPass, sweeps: Mapping[str, tuple[Sweep, ...]] | None, count: int
) -> list[FrameInput]:
    """What the teacher is shown of up to `count` frames spread over the store; DataError where none can be read."""
    inputs = [shown for _, shown in _readable(frames, job, sweeps, count)]
    if not inputs:
        raise DataError(f"{frames.root}: no probed frame could be read; repair them or give --batch")
    return inputs


def first_input(frames: FrameStore, job: TeacherPass, sweeps: Mapping[str, tuple[Sweep, ...]] | None) -> FrameInput:
    """What the teacher is shown of the first of some frames that can be read; DataError where none of them can."""
    for _, shown in _readable(frames, job, sweeps, PROBED_FRAMES):
        return shown
    raise DataError(f"{frames.root}: no probed frame could be read; repair them")


def _readable(
    frames: FrameStore, job: TeacherPass, sweeps: Mapping[str, tuple[Sweep, ...]] | None, count: int
) -> Iterator[tuple[int, FrameInput]]:
    """Rows spread over the store, of each kind of frame as many, with what they show; what cannot be read the pass
    itself quarantines."""
    # apart by kind: frames come in a fixed beat, a key frame and those behind it, of which one comb may meet one only
    kinds = [np.flatnonzero(frames.index.kind == kind) for kind in np.unique(frames.index.kind)]
    combs = [rows[np.linspace(0, len(rows) - 1, min(len(rows), -(-count // len(kinds)))).astype(int)] for rows in kinds]
    for row in np.unique(np.concatenate(combs)).tolist() if kinds else ():
        with contextlib.suppress(DataError):
            files = None if sweeps is None else sweeps[frames.token(row)]
            yield row, read_input(frames, row, files, job.data_root, job.image_size)
