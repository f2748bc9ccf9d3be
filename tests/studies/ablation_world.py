"""A suite of three rows in a world of three scenes, with models of a few channels: minutes become seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from models.config import parse_config
from studies.ablation.plan import Sweep
from studies.ablation.prepare import CALLABLES, Settings
from studies.ablation.regimes import Regime, Scale
from studies.ablation.suite import Suite

SMALL_MODEL: dict[str, Any] = {
    "image_size": [64, 32],
    "fpn_channels": 16,
    "context_channels": 8,
    "depth": {"bins": 8},
    "backbone": {"base_width": 8},
}
SMALL_TEACHER: dict[str, Any] = {}
COVERAGE, FIELDS = "gaussian+gaussian*confident(threshold=0)", "logits"
SUITE = parse_config(
    Suite,
    {
        "name": "tiny",
        "about": "a test",
        "students": {"single": {"base": "ablation-student"}},
        "stores": {
            says: {"says": says, "coverage": COVERAGE, "fields": FIELDS}
            for says in ("trained", "untrained", *CALLABLES)
        },
        "rows": [
            {"name": "none", "rank": 10},
            {
                "name": "dense",
                "rank": 20,
                "store": "trained",
                "init": "trained",
                "controls": ["dense, untrained teacher"],
                "recipe": {"terms": [{"name": "bevdistill_dense"}]},
            },
            {
                "name": "dense, untrained teacher",
                "rank": 12,
                "store": "untrained",
                "init": "untrained",
                "like": "dense",
                "control": True,
            },
        ],
    },
    "the test's suite",
)


def tiny_sweep(folder: Path, console: Console) -> Sweep:
    """Two seeds of every row, three steps each."""
    train: dict[str, Any] = {"batch": 2, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 1}
    return Sweep(
        suites=[SUITE],
        regime=Regime("scarce", "a test", 2, 3, 3, 3),
        round=0,
        seeds=2,
        settings=Settings(folder / "run", console, {"model": SMALL_TEACHER, "train": train}, {}, workers=1),
        results=folder / "docs" / "results",
        over={"model": SMALL_MODEL, "train": train},
        scale=Scale(choosing_scenes=1, frames=1, sweeps=1),
    )


SWEEP_SCRIPT = """
import sys
from pathlib import Path
from rich.console import Console
from studies.ablation.running import run_sweep
from tests.studies.ablation_world import tiny_sweep
sweep = tiny_sweep(Path(sys.argv[1]), Console())
run_sweep(sweep, budget_min=None, at_once=2, console=sweep.settings.console)
"""
