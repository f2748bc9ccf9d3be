"""The evaluation benchmark at a small size: its figures, its stores, and equality with the devkit on its data."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from studies.benches.registry import run_bench

SMALL = {"samples": 45, "predictions": 40, "rounds": 1, "submission": True}


def test_both_sides_and_the_task_give_the_same_figures(tmp_path: Path) -> None:
    figures = run_bench("evaluate", tmp_path, Console(quiet=True), SMALL)
    assert figures["max_abs_diff"] <= 1e-12 and figures["speedup"] == figures["devkit_s"] / figures["ours_s"]
    assert 0.05 < figures["summary"]["mAP"] < 0.9
    assert {"total_s", "imports_s", "work_s", "cpu_s", "peak_mb", "cold_files"} == set(figures["task"])
    assert figures["task"]["peak_mb"] > 20
    assert figures["file"]["file_mb"] > 0.5 and figures["file"]["peak_mb"] > 20
