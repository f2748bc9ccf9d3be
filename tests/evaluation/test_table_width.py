"""The terminal's table at 80 columns, where pipes, logs and most terminals stand: no figure is cropped."""

from __future__ import annotations

import io

from rich.console import Console

from evaluation.official import SUMMARY_KEYS, FilterCounts, Metrics
from evaluation.table import NO_CLAIM, MetricsRow, figure, metrics_table


def test_every_figure_and_the_caveat_are_whole_at_80_columns() -> None:
    counts = FilterCounts(9, 9, 9, 9)
    values = [
        dict(zip(SUMMARY_KEYS, (0.111 + i, 0.222, 0.333, 0.444, 1.555, 2.666, 0.777), strict=True)) for i in (0, 1)
    ]
    rows = [
        MetricsRow(name, Metrics(**value, ap={}, tp_errors={}, truth_counts=counts, detection_counts=counts))
        for name, value in zip(("student", "distilled"), values, strict=True)
    ]
    text = io.StringIO()
    Console(file=text, width=80).print(metrics_table(rows, compared=("distilled", "student")))
    shown = text.getvalue()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    for row in rows:
        line = next(line for line in shown.splitlines() if line.strip().startswith(f"{row.name} "))
        assert [figure(getattr(row.metrics, key)) for key in SUMMARY_KEYS] == line.split()[1:]
    assert NO_CLAIM in shown and "+1.000" in shown
