"""The benchmark of a report's figures runs, and says what every step took."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from studies.benches.registry import run_bench


def test_the_report_benchmark_runs_on_a_small_split(tmp_path: Path) -> None:
    options = {"samples": 90, "predictions": 30, "draws": 5}
    figures = run_bench("report", tmp_path, Console(quiet=True), options)
    assert set(figures["steps"]) == {"matches and kinds", "ranking", "gains by kind", "parts", "intervals", "page"}
    assert figures["html_kb"] > 50 and figures["total"]["cpu_s"] > 0 and figures["draws"] == 5
