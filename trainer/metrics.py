"""The run's log: one JSON line per logged step in `metrics.jsonl`, cut back to the checkpoint when a run is resumed.

Validations have lines of their own among these, whose keys begin with `val/`. docs/training.md tells every key.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from cache.files import no_space_as_error, write_bytes

VALIDATION = "val/"  # what keys of a validation's line begin with, `step` aside
# Keys of a step's line beside the parts of the loss and what terms counted.
STEP_KEYS = (
    *("step", "epoch", "lr", "loss", "gradient_norm", "frames_per_s", "stall_share", "loader_s"),
    *("unlabelled_frames", "skipped", "digest"),
)


class MetricsLog:
    """Context manager over the log; lines of steps after `start_step` that an earlier, killed process wrote are
    dropped. path: None for a rank that writes none. last: the newest step's line that was there at the beginning.
    """

    def __init__(self, path: Path | None, start_step: int) -> None:
        self.path = path
        self.last: dict[str, Any] | None = None
        if path is None:
            return
        lines = [line for line in _lines(path) if line["step"] <= start_step] if path.is_file() else []
        self.last = next((line for line in reversed(lines) if not _of_validation(line)), None)
        write_bytes(path, b"".join(_line(values) for values in lines))

    def __enter__(self) -> MetricsLog:
        if self.path is not None:
            self._file = open(self.path, "ab", buffering=0)  # a line is visible as soon as it is written
        return self

    def write(self, values: dict[str, Any]) -> None:
        if self.path is not None:
            with no_space_as_error(self.path):
                self._file.write(_line(values))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            self._file.close()


def _line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values) + "\n").encode()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The logged steps in order; a last line that a killed process left half-written is left out."""
    return [line for line in _lines(path) if not _of_validation(line)]


def read_validations(path: Path) -> list[dict[str, Any]]:
    """The lines of validations, by step; none where there is no log yet."""
    lines = _lines(path) if path.is_file() else []
    return sorted((line for line in lines if _of_validation(line)), key=lambda line: line["step"])


def _of_validation(line: dict[str, Any]) -> bool:
    return any(key.startswith(VALIDATION) for key in line)


def _lines(path: Path) -> list[dict[str, Any]]:
    out = []
    for line in path.read_text().splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            break
    return out
