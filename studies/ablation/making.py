"""What a cell's jobs stand on, made by a process of its own, so that students go on training beside it.

One JSON file in: a sweep as plain values and the cell's row and student. The same file out, with the digests of what
was made. What a killed process leaves half done goes on when the next one is asked for the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from cache.errors import BevcaskError
from cache.files import write_json
from studies.ablation.plan import Cell, Sweep, make_ready
from studies.ablation.prepare import Settings
from studies.ablation.regimes import Regime, Scale
from studies.ablation.suite import Suite
from studies.lock import alone_in
from trainer.orphans import end_with_parent

ORIGIN = "origin"


def written(sweep: Sweep, cell: Cell) -> dict[str, Any]:
    """What `read` needs for a sweep of this cell alone. Its settings' console stays behind."""
    settings = sweep.settings
    return {
        "suite": cell.suite.model_dump(mode="json"),
        "row": cell.row.name,
        "student": cell.student,
        "regime": asdict(sweep.regime),
        "round": sweep.round,
        "scale": asdict(sweep.scale),
        "results": str(sweep.results),
        "settings": {
            "folder": str(settings.folder),
            "teacher": dict(settings.teacher),
            "camera": dict(settings.camera),
            "workers": settings.workers,
            "kept": str(settings.kept) if settings.kept is not None else None,
        },
    }


def read(values: Mapping[str, Any], console: Console) -> tuple[Sweep, Cell]:
    """The sweep and the cell that were `written`; what is made is told on the console."""
    suite = Suite.model_validate(values["suite"])
    regime = values["regime"]
    sweep = Sweep(
        suites=[suite],
        regime=Regime(**{**regime, "recipe": tuple((key, value) for key, value in regime["recipe"])}),
        round=values["round"],
        seeds=1,
        settings=_settings_of(values["settings"], console),
        results=Path(values["results"]),
        scale=Scale(**values["scale"]),
    )
    return sweep, Cell(suite, suite.row(values["row"]), values["student"])


def _settings_of(values: Mapping[str, Any], console: Console) -> Settings:
    kept = Path(values["kept"]) if values["kept"] is not None else None
    return Settings(**{**values, "folder": Path(values["folder"]), "console": console, "kept": kept})


if __name__ == "__main__":
    end_with_parent()
    try:
        _path = Path(sys.argv[1])
        _values = json.loads(_path.read_text())
        _sweep, _cell = read(_values, Console(stderr=True))
        with alone_in(_path.parent, wait=True):  # the orphan of a killed command ends within a second
            write_json(_path, {**_values, ORIGIN: make_ready(_sweep, _cell)})
    except BevcaskError as _error:
        sys.exit(" ".join(str(_error).split()))
