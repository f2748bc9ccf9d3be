"""The report of a run: one HTML file with everything in it (style, pictures, charts), to open, mail or archive.

Nothing is fetched: a content policy in the page forbids it. All text is escaped. Works in light and dark, on a phone
and on paper. About half a megabyte a frame shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.files import write_bytes
from evaluation import page
from evaluation.curves import LossCurve, chart
from evaluation.metrics import SUMMARY_KEYS, Metrics
from evaluation.table import NO_CLAIM, MetricsRow, difference, figure, heading, row_named

ERROR_COLUMNS = {
    "trans_err": "ATE (m)",
    "scale_err": "ASE (1-IoU)",
    "orient_err": "AOE (rad)",
    "vel_err": "AVE (m/s)",
    "attr_err": "AAE (1-acc)",
}


@dataclass(frozen=True)
class ReportFrame:
    """One frame of the gallery: RGB arrays of its bird's-eye view and its cameras (either may be None)."""

    title: str
    caption: str = ""
    bev: np.ndarray | None = None
    cameras: np.ndarray | None = None


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report says.

    about: one paragraph, what this is; compared: (row, base) names for the line of differences, with its caveat;
    made: (what, value) pairs: seeds, sizes, times, machine; commands: how it was made; notes: paragraphs under
    the table.
    """

    title: str
    about: str
    rows: Sequence[MetricsRow]
    compared: tuple[str, str] | None = None
    caveat: str = NO_CLAIM
    notes: Sequence[str] = ()
    frames: Sequence[ReportFrame] = ()
    curves: Sequence[LossCurve] = ()
    made: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()
    next_command: str = ""


def write_report(path: Path, content: ReportContent) -> None:
    """Writes the report at `path`, atomically. Raises OutOfSpaceError; ConfigError where `compared` names no row."""
    write_bytes(path, report_html(content).encode())


def report_html(content: ReportContent) -> str:
    """The report as one HTML string."""
    pictures = "".join(page.gallery(frame.title, frame.caption, frame.bev, frame.cameras) for frame in content.frames)
    sections = [
        page.section("Results", _results_table(content) + page.paragraphs(content.notes)),
        page.section("Average precision by class", _class_table(content.rows)) if content.rows else "",
        page.section("Frames", pictures) if pictures else "",
        page.section("Loss curves", f'<div class="charts">{loss_charts(content.curves)}</div>')
        if content.curves
        else "",
        page.section("How this was made", page.facts(content.made, content.commands))
        if content.made or content.commands
        else "",
        page.section("Next", f"<p>Try this:</p>{page.code([content.next_command])}") if content.next_command else "",
    ]
    return page.document(content.title, content.about, sections)


def _results_table(content: ReportContent) -> str:
    body = "".join(
        page.row(row.name, [f"<td>{figure(getattr(row.metrics, key))}</td>" for key in SUMMARY_KEYS])
        for row in content.rows
    )
    if content.compared is not None:
        one, base = (row_named(content.rows, name).metrics for name in content.compared)
        cells = []
        for key in SUMMARY_KEYS:
            change = difference(key, getattr(one, key), getattr(base, key))
            cells.append(f'<td class="{change.verdict}">{page.text(change.text)}</td>')
        body += page.row(f"{content.compared[0]} − {content.compared[1]}", cells, content.caveat, "difference")
    return page.table("results", ["model", *(heading(key) for key in SUMMARY_KEYS)], body)


def _class_table(rows: Sequence[MetricsRow]) -> str:
    counts = rows[0].metrics.truth_counts
    body = "".join(
        page.row(name.replace("_", " "), [_bar(row.metrics.class_ap(name)) for row in rows])
        for name in DETECTION_CLASSES
    )
    return (
        page.table("classes", ["class", *(row.name for row in rows)], body)
        + "<p>Mean over centre distances of 0.5, 1, 2 and 4 m. "
        f"Ground truth: {counts.given} boxes, {counts.in_range} in range, {counts.with_points} of them with points, "
        f"{counts.outside_racks} outside bicycle racks: these are scored.</p>{_error_tables(rows)}"
    )


def _error_tables(rows: Sequence[MetricsRow]) -> str:
    """Per-class errors of each model, folded away."""
    out = []
    for number, row in enumerate(rows):
        body = "".join(
            page.row(name.replace("_", " "), _errors(row.metrics, name, ERROR_COLUMNS)) for name in DETECTION_CLASSES
        )
        shown = page.table(f"errors-{number}", ["class", *ERROR_COLUMNS.values()], body)
        out.append(f"<details><summary>{page.text(row.name)}: errors by class</summary>{shown}</details>")
    return "".join(out)


def _errors(metrics: Metrics, name: str, keys: dict[str, str]) -> list[str]:
    return [f"<td>{figure(metrics.tp_errors[name][key])}</td>" for key in keys]


def _bar(value: float) -> str:
    return page.bar_cell(value, figure(value))


def loss_charts(curves: Sequence[LossCurve]) -> str:
    """A chart a panel; a run has one colour in all of them."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    panels: dict[str, list[LossCurve]] = {}
    for curve in curves:
        panels.setdefault(curve.panel, []).append(curve)
    return "".join(chart(panel, lines, [names.index(line.name) for line in lines]) for panel, lines in panels.items())
