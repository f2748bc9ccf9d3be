"""A run's student as one file for others: weights as safetensors, or a program through torch.export, checked before it
is kept.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache.errors import ConfigError
from cache.layout import frames_place
from cache.store import FrameStore
from models.build import load_weights, save_weights
from models.detector import Batch, Detector
from models.export import ExportError, export_program, made_up_frame, require_exportable
from studies.scoring import choose_split
from trainer.predict import load_run
from trainer.predict_work import work_of
from trainer.run_files import CHECKPOINTS, OWN

FORMATS = ("safetensors", "pt2")


@dataclass(frozen=True)
class Exported:
    """What was written: bytes, the frame that it was checked on, and the largest difference found there, of a map's
    largest value, with the tolerance; 0 of 0 for weights."""

    path: Path
    format: str
    bytes: int
    frame: str
    difference: float
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}

    @property
    def line(self) -> str:
        checked = f"read back and run on frame {self.frame}"
        if self.tolerance:
            apart = (
                f"{self.difference:.1e} of a map's largest value away from the run's model, {self.tolerance:.0e} may be"
            )
        else:
            apart = "bit for bit as the run's model"
        return f"{self.path}: {self.bytes / 1e6:.1f} MB ({self.format}); {checked}: {apart}"


def export_run(
    run: Path,
    out: Path,
    file_format: str = "safetensors",
    *,
    cache: str | Path | None = None,
    weights: str = "last",
    trusted: str = "",
) -> Exported:
    """Writes the run's student at `out`, atomically, after it was read back and compared on a frame: the first of the
    cache's val split, or a made-up one where there is no cache.

    weights: `last` or `best`. Raises ConfigError for what cannot be written so, naming what can.
    """
    if file_format not in FORMATS:
        raise ConfigError(f"--format {file_format!r}: expected {' or '.join(FORMATS)}")
    if weights not in ("last", "best"):
        raise ConfigError(f"--weights {weights!r}: expected last or best")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file in it")
    if (
        out.resolve() in [(run / name).resolve() for name in OWN]
        or out.resolve().parent == (run / CHECKPOINTS).resolve()
    ):
        raise ConfigError(f"--out {out} is a file of the run itself; give another name")
    model = load_run(run, trusted, "best" if weights == "best" else "last")
    if file_format == "pt2":
        require_exportable(model)
        frame = _frame(model, cache)
        difference = export_program(model, out, frame)
        checked_on: Batch | None = frame
        worst, tolerance = difference.worst, difference.tolerance
    else:
        checked_on = _frame(model, cache) if cache is not None or "image_size" in model.config else None
        _write_weights(model, out, checked_on, trusted, run)
        worst = tolerance = 0.0
    token = checked_on.tokens[0] if checked_on is not None else "none"
    return Exported(out, file_format, out.stat().st_size, token, worst, tolerance)


def _frame(model: Detector, cache: str | Path | None) -> Batch:
    if cache is None:
        return made_up_frame(model)
    store = FrameStore(frames_place(cache))
    rows = store.key_rows(choose_split(store, None))[:1]
    work = work_of(model, store, rows, 1, past="window")
    return work.build(work.units[0][0])[0]


def _write_weights(model: Detector, out: Path, frame: Batch | None, trusted: str, run: Path) -> None:
    """Through a file beside it, so that `out` holds what was checked or what it held before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / "weights"
        save_weights(model, made, {"exported_from": run.name})
        again = load_weights(made, trusted)
        if frame is not None:
            _require_same(model, again, frame)
        made.replace(out)


def _require_same(model: Detector, again: Detector, frame: Batch) -> None:
    with torch.inference_mode():
        found, expected = again(frame).bev, model(frame).bev
    if not torch.equal(found, expected):
        raise ExportError("the weights read back say something else of the same frame; write them to another disk")
