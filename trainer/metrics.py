"""The run's log: one JSON line per logged step in `metrics.jsonl`, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from cache.files import no_space_as_error, write_bytes


class MetricsLog:
    """Context manager over the log; lines of steps after `start_step` that an earlier, killed process wrote are
    dropped.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        lines = [line for line in read_metrics(path) if line["step"] <= start_step] if path.is_file() else []
        write_bytes(path, b"".join(_line(values) for values in lines))

    def __enter__(self) -> MetricsLog:
        self._file = open(self.path, "ab", buffering=0)  # a line is visible as soon as it is written
        return self

    def write(self, values: dict[str, Any]) -> None:
        with no_space_as_error(self.path):
            self._file.write(_line(values))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values) + "\n").encode()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The logged steps in order; a last line that a killed process left half-written is left out."""
    out = []
    for line in path.read_text().splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            break
    return out
