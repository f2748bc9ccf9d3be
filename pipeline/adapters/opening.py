"""What a teacher's name and its file are together: our own weights, a foreign checkpoint, or a callable's argument."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.build import load_weights, read_metadata
from models.detector import Detector
from models.import_path import is_import_path
from pipeline.adapters.foreign import load_foreign
from pipeline.adapters.imported import load_imported
from pipeline.adapters.mapping import Report
from pipeline.adapters.reading import is_torch_file


@dataclass(frozen=True)
class Opened:
    """adapter: how the file became a detector, for a store's header; empty for our own weights. report: of a foreign
    checkpoint."""

    model: Detector
    adapter: str = ""
    report: Report | None = None


def open_teacher(path: Path, teacher: str) -> Opened:
    """The detector of `teacher` with the weights at `path`, in evaluation mode.

    teacher: package.module:callable gets the path; for a foreign checkpoint a preset's name, see
    `pipeline.adapters.foreign`; our own weights know what they are, whatever the name.
    Raises DataError or ConfigError with the reason and the remedy.
    """
    if is_import_path(teacher):
        return Opened(load_imported(teacher, path), f"callable {teacher}")
    if not is_torch_file(path) and "config" in read_metadata(path):
        return Opened(load_weights(path))
    model, report = load_foreign(path, teacher)
    return Opened(model, f"{report.family} as {report.preset}", report)
