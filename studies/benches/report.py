"""What a report costs beside the score itself: the table of matches, kinds of errors, breakdowns, intervals, the page.

The same made-up split as `bench evaluate`, in memory, without pictures. Seconds of the process and of the clock: beside
other work only the first say something.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cache.plan import Scene
from evaluation.array_metric import evaluate
from evaluation.breakdown import breakdown
from evaluation.error_kinds import summarise_errors
from evaluation.evaluation_report import ReportAround, evaluation_html
from evaluation.explained import Explained
from evaluation.match_table import detections_of, match_table
from evaluation.resampling import DRAWS, SceneMetric, bootstrap
from evaluation.working_point import frame_counts, working_scores
from studies.benches.evaluate_data import made_up_split
from studies.benches.resident import peak_resident

ABOUT = "a report's figures without pictures at 6,019 samples x 200 predictions: matches, errors, parts, intervals"


class _Clock:
    """Seconds of each step, of the process and of the clock."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}
        self._last = time.process_time(), time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.process_time(), time.perf_counter()
        self.steps[name] = {"cpu_s": now[0] - self._last[0], "wall_s": now[1] - self._last[1]}
        self._last = now


def run(
    work: Path, console: Console, *, samples: int = 6_019, predictions: int = 200, draws: int = DRAWS
) -> dict[str, Any]:
    """steps: {cpu_s, wall_s} of each; total: their sums; draw_cpu_ms: of one draw of the bootstrap; html_kb; peak_mb:
    of the process, the made-up split in it."""
    console.print(f"[dim]making up {samples} samples x {predictions} predictions ...[/dim]")
    split = made_up_split(samples, predictions)
    metrics = evaluate(split.frames, split.truth, split.detections)
    names = {frame.scene_token: Scene(frame.scene_token, frame.scene_name, "val", "Night") for frame in split.frames}
    scenes, boxes_of, clock = list(names.values()), detections_of(split.detections), _Clock()
    table = match_table(split.frames, split.truth, boxes_of)
    clock.lap("matches and kinds")
    metric = SceneMetric(table)
    clock.lap("ranking")
    working = working_scores(table)
    errors, counts = summarise_errors(table, working), frame_counts(table, working)
    clock.lap("gains by kind")
    parts = breakdown(table, metric, working, split.frames, split.truth, boxes_of, scenes)
    clock.lap("parts")
    drawn = bootstrap({"model": metric}, draws=draws).get("model")
    clock.lap("intervals")
    text = evaluation_html(
        Explained("model", metrics, table, drawn, working, errors, parts, counts), ReportAround("report", "bench")
    )
    clock.lap("page")
    total = {key: sum(step[key] for step in clock.steps.values()) for key in ("cpu_s", "wall_s")}
    peak = peak_resident() / 2**20
    for name, step in clock.steps.items():
        console.print(f"{name}: {step['cpu_s']:.2f} s of the process, {step['wall_s']:.2f} s of the clock")
    console.print(f"together {total['cpu_s']:.1f} s and {total['wall_s']:.1f} s, peak {peak:.0f} MB")
    return {
        "samples": samples,
        "predictions": predictions,
        "draws": draws,
        "steps": clock.steps,
        "total": total,
        "draw_cpu_ms": 1000 * clock.steps["intervals"]["cpu_s"] / draws,
        "html_kb": len(text) / 1000,
        "peak_mb": peak,
    }
