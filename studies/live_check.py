"""`./bevcask verify --live N`: a teacher run again on a few frames and compared with what its store holds.

Whole batches of the pass are repeated for the frames asked for, so that on the device and libraries that wrote the
store every byte comes out again. Elsewhere sums run in other orders: values may then differ by `TOLERANCE` of their
channel's spread, and `CELLS` of the cells may, at a selector's threshold. Costs the pass's own time for N batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import ConfigError
from cache.layout import frames_place, teacher_names, teacher_place
from cache.store import FrameStore, TeacherStore
from models.import_path import is_import_path
from pipeline.device import choose_device
from pipeline.fields.offer import adaptor_of
from pipeline.inputs import image_size_of, read_input
from pipeline.points import Sweep
from pipeline.teacher import resolve_checkpoint, sweeps_from_tables
from pipeline.teacher_shard import TeacherPass, load_teacher, run_teacher
from studies.live_fields import cells_apart, further_apart, values_apart

TOLERANCE = {"float16": 2e-3, "float32": 1e-3, "u8": 5e-2}  # u8: a value may fall into the next of its 255 steps
CELLS = 1e-2


@dataclass(frozen=True)
class LiveCheck:
    """identical: frames of which every field has the same bytes; cells: largest share of a frame's cells, queries or
    boxes that only one of the two has; worst: largest difference of a stored value, over its channel's spread in the
    frame. Further fields count too."""

    store: str
    frames: int
    identical: int
    cells: float
    worst: float
    tolerance: float

    @property
    def held(self) -> bool:
        """Whether the store says what the teacher says."""
        return self.cells <= CELLS and self.worst <= self.tolerance

    @property
    def line(self) -> str:
        """One line for a person."""
        return (
            f"{self.store}: the teacher again on {self.frames} frames: {self.identical} with the same bytes, largest "
            f"difference {self.worst:.2g} of a channel's spread (tolerance {self.tolerance:g}), cells that differ "
            f"{self.cells:.2g} (tolerance {CELLS:g})" + ("" if self.held else "; cache the teacher again")
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for --json."""
        return {**self.__dict__, "held": self.held}


def run_live(
    cache: str | Path,
    teacher: str | None,
    count: int,
    *,
    checkpoint: Path | None = None,
    data_root: Path | None = None,
    callable: str | None = None,
    ensemble: Sequence[Path] = (),
) -> list[LiveCheck]:
    """Runs the teacher of one store, or of every teacher store, again on `count` frames spread over the store.

    checkpoint: the weights, needed where the teacher is not a shipped one; data_root: needed where the frame store
    holds no points; callable: the teacher's import path where it is one, for a store's word alone runs no code;
    ensemble: the further checkpoints of one, in order. Raises ConfigError where the weights are not those that the
    store was made with.
    """
    if count < 1:
        raise ConfigError(f"--live {count}: expected 1 frame or more")
    names = [teacher] if teacher is not None else teacher_names(cache)
    for name in names:
        said = str(TeacherStore(teacher_place(cache, name)).manifest.header["teacher"])
        if is_import_path(said) and said != callable:
            raise ConfigError(
                f"teachers/{name}: says that the callable {said} made it; if you trust that module to run here, add "
                f"--callable {said}"
            )
    return [_live(cache, name, count, checkpoint, data_root, ensemble) for name in names]


def _live(
    cache: str | Path,
    name: str,
    count: int,
    checkpoint: Path | None,
    data_root: Path | None,
    ensemble: Sequence[Path],
) -> LiveCheck:
    store, frames = TeacherStore(teacher_place(cache, name)), FrameStore(frames_place(cache))
    header = store.manifest.header
    digests = [str(digest) for digest in header.get("ensemble_sha256", ())]
    if len(digests) != len(ensemble):
        raise ConfigError(
            f"{store.root}: made with {len(digests)} further checkpoints, --ensemble names {len(ensemble)}"
        )
    job = TeacherPass(
        frames=frames.root.url,
        data_root=str(data_root) if data_root else None,
        weights=str(resolve_checkpoint(str(header["teacher"]), checkpoint)),
        digest=str(header["weights_sha256"]),
        coverage=store.coverage,
        encoding=store.bev,
        device=choose_device(str(header.get("device", "cpu"))),
        autocast=str(header.get("autocast", "")),
        batch=int(header["batch"]),
        teacher=str(header["teacher"]),
        tta=str(header.get("tta", "")),
        others=tuple(zip(map(str, ensemble), digests, strict=True)),
        further=store.further if store.further.asked.items else None,
    )
    job = replace(job, image_size=image_size_of(load_teacher(job.weights, job.digest, job.device, job.teacher)))
    model = job.model()
    sweeps = None
    if job.image_size is None and not frames.manifest.header["points"]:
        sweeps = sweeps_from_tables(frames, data_root, int(header["sweeps"]), int(header.get("sweeps_after", 0)))
    wanted = set(np.linspace(0, len(store) - 1, min(count, len(store))).round().astype(int).tolist())
    identical, cells, worst = 0, 0.0, 0.0
    for batch in _batches(store, job.batch):
        if not wanted & set(batch):
            continue
        rows = [frames.row_of(store.token(row)) for row in batch]
        inputs = [
            read_input(frames, row, _sweeps_of(sweeps, frames, row), job.data_root, job.image_size) for row in rows
        ]
        for row, values in zip(batch, run_teacher(model, frames, rows, inputs, job), strict=True):
            if row in wanted:
                identical += all(_same(values[name], store.read(row, name)) for name in values)
                found, stored = store.bev.to_cells(values, store.root), store.cells(row)
                share, apart = further_apart(store, row, values, TOLERANCE[store.bev.dtype])
                cells = max(cells, cells_apart(found, stored), share)
                worst = max(worst, values_apart(found, stored), apart)
    now = adaptor_of(store.further.asked, model)
    if now is not None and now.header() != store.manifest.header["adaptor"]:
        worst = float("inf")
    return LiveCheck(f"teachers/{name}", len(wanted), identical, cells, worst, TOLERANCE[store.bev.dtype])


def _batches(store: TeacherStore, size: int) -> list[list[int]]:
    """Rows by the batches in which the pass ran them: in a shard's order, never across shards."""
    out = []
    for number in range(len(store.manifest.shards)):
        rows = np.flatnonzero(store.index.shard == number).tolist()
        out += [rows[start : start + size] for start in range(0, len(rows), size)]
    return out


def _sweeps_of(sweeps: Mapping[str, Sequence[Sweep]] | None, frames: FrameStore, row: int) -> tuple[Sweep, ...] | None:
    return None if sweeps is None else tuple(sweeps[frames.token(row)])


def _same(found: np.ndarray, stored: np.ndarray) -> bool:
    return found.dtype == stored.dtype and found.shape == stored.shape and found.tobytes() == stored.tobytes()
