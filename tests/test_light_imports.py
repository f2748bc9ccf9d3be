"""What processes start with: imports that a run has no use for cost every rank, worker and command seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
RARELY_USED = ("nuscenes", "sklearn", "scipy", "pandas", "torch._dynamo")


@pytest.mark.parametrize("module", ["trainer.main", "studies.ablation.job", "studies.demo", "pipeline.frames"])
def test_what_few_runs_use_is_not_loaded_with_a_module(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {RARELY_USED} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_names_are_those_of_modules() -> None:
    """So that the test above cannot pass by a wrong name."""
    code = f"import importlib, sys; [importlib.import_module(name) for name in {RARELY_USED}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert set(RARELY_USED) <= set(done.stdout.split())
