"""The terms benchmark on a small world: every term has its figures, and they are of what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cache.errors import ConfigError
from studies.benches.registry import run_bench
from trainer.terms import RELABELS, TERMS

SMALL: dict[str, Any] = {
    "student": "lift-splat-tiny",
    "query_student": "bevformer-demo",
    "frames": 2,
    "boxes": 5,
    "cells": 60,
    "channels": 8,
    "queries": 12,
    "repeats": 1,
}


def test_every_term_is_timed_beside_the_students_step(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = run_bench("terms", tmp_path, Console(quiet=True), SMALL)
    assert torch.get_num_threads() == threads
    assert set(found["terms"]) == {*TERMS, *RELABELS} and found["student_step_ms"] > 0
    for row in found["terms"].values():
        assert row["ms"] > 0 and row["share"] == row["ms"] / found["student_step_ms"] and row["stored_bytes"] > 0
    rows = found["terms"]
    assert {name for name, row in rows.items() if row["student"] == "bevformer-demo"} == {
        "bevdistill_sparse", "set2set",
    }  # fmt: skip
    one_cell = 4 + 2 * 8 + 4  # index, 8 values, one weight
    assert rows["fg"]["stored_bytes"] == 2 * 60 * one_cell
    assert rows["kd_logits"]["stored_bytes"] == 2 * 64 * 64 * (one_cell + 2 * 10)
    assert rows["sparsekd_logits"]["stored_bytes"] == 2 * 60 * (one_cell + 2 * 10)
    assert set(found["methods"]) == {"BEVDistill", "SparseKD", "BEV-LGKD"}
    shares = [method["share"] for method in found["methods"].values()]
    assert found["together_share"] == pytest.approx(sum(shares)) and found["goal"] == 0.1


def test_an_unknown_term_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"terms: magic unknown; there are bevdistill_dense"):
        run_bench("terms", tmp_path, Console(quiet=True), {**SMALL, "terms": "fg,magic"})
