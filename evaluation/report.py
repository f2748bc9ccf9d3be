"""The report of a run: one HTML file with everything in it (style, pictures, charts), to open, mail or archive.

Nothing is fetched: a content policy in the page forbids it. All text is escaped. Works in light and dark, on a phone
and on paper. About half a megabyte a frame shown.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.files import write_bytes
from evaluation.curves import LossCurve, chart
from evaluation.draw import encode_jpeg, encode_png
from evaluation.official import SUMMARY_KEYS, Metrics
from evaluation.style import STYLE
from evaluation.table import NO_CLAIM, MetricsRow, difference, figure, heading, row_named

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    sections = [
        _section("Results", _results_table(content) + "".join(f"<p>{_text(note)}</p>" for note in content.notes)),
        _section("Average precision by class", _class_table(content.rows)) if content.rows else "",
        _section("Frames", "".join(_gallery(frame) for frame in content.frames)) if content.frames else "",
        _section("Loss curves", f'<div class="charts">{_charts(content.curves)}</div>') if content.curves else "",
        _section("How this was made", _made(content)) if content.made or content.commands else "",
        _section("Next", f"<p>Try this:</p>{_code([content.next_command])}") if content.next_command else "",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(content.title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{_text(content.title)}</h1><p>{_text(content.about)}</p></header>\n"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>\n"


def _table(name: str, head: Sequence[str], body: str) -> str:
    """name: the table's id and accessible name; head: column titles."""
    cells = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    return f'<div class="wide"><table id="{name}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(name: str, cells: Sequence[str], note: str = "", kind: str = "") -> str:
    """cells: HTML of the figures; note: a small line under the name."""
    small = f"<small>{_text(note)}</small>" if note else ""
    return f'<tr class="{kind}"><th scope="row">{_text(name)}{small}</th>{"".join(cells)}</tr>'


def _results_table(content: ReportContent) -> str:
    body = "".join(
        _row(row.name, [f"<td>{figure(getattr(row.metrics, key))}</td>" for key in SUMMARY_KEYS])
        for row in content.rows
    )
    if content.compared is not None:
        one, base = (row_named(content.rows, name).metrics for name in content.compared)
        cells = []
        for key in SUMMARY_KEYS:
            change = difference(key, getattr(one, key), getattr(base, key))
            cells.append(f'<td class="{change.verdict}">{_text(change.text)}</td>')
        body += _row(f"{content.compared[0]} − {content.compared[1]}", cells, content.caveat, "difference")
    return _table("results", ["model", *(heading(key) for key in SUMMARY_KEYS)], body)


def _class_table(rows: Sequence[MetricsRow]) -> str:
    counts = rows[0].metrics.truth_counts
    body = "".join(
        _row(name.replace("_", " "), [_bar(row.metrics.class_ap(name)) for row in rows]) for name in DETECTION_CLASSES
    )
    return (
        _table("classes", ["class", *(row.name for row in rows)], body)
        + "<p>Mean over centre distances of 0.5, 1, 2 and 4 m. "
        f"Ground truth: {counts.given} boxes, {counts.in_range} in range, {counts.with_points} of them with points, "
        f"{counts.outside_racks} outside bicycle racks: these are scored.</p>{_error_tables(rows)}"
    )


def _error_tables(rows: Sequence[MetricsRow]) -> str:
    """Per-class errors of each model, folded away."""
    names = {"trans_err": "ATE (m)", "scale_err": "ASE (1-IoU)", "orient_err": "AOE (rad)", "vel_err": "AVE (m/s)"}
    names["attr_err"] = "AAE (1-acc)"
    out = []
    for number, row in enumerate(rows):
        body = "".join(_row(name.replace("_", " "), _errors(row.metrics, name, names)) for name in DETECTION_CLASSES)
        table = _table(f"errors-{number}", ["class", *names.values()], body)
        out.append(f"<details><summary>{_text(row.name)}: errors by class</summary>{table}</details>")
    return "".join(out)


def _errors(metrics: Metrics, name: str, keys: dict[str, str]) -> list[str]:
    return [f"<td>{figure(metrics.tp_errors[name][key])}</td>" for key in keys]


def _bar(value: float) -> str:
    share = round(100 * min(1.0, max(0.0, value)), 1)
    return f'<td class="bar" style="--share:{share}%">{figure(value)}</td>'


def _gallery(frame: ReportFrame) -> str:
    pictures = []
    if frame.cameras is not None:
        pictures.append(
            _picture(encode_jpeg(frame.cameras), "image/jpeg", f"{frame.title}: six cameras", frame.cameras)
        )
    if frame.bev is not None:
        pictures.append(_picture(encode_png(frame.bev), "image/png", f"{frame.title}: bird's-eye view", frame.bev))
    caption = f"<figcaption><b>{_text(frame.title)}</b> {_text(frame.caption)}</figcaption>"
    return f'<figure class="frame">{"".join(pictures)}{caption}</figure>'


def _picture(data: bytes, mime: str, alt: str, image: np.ndarray) -> str:
    height, width = image.shape[:2]
    encoded = base64.b64encode(data).decode("ascii")
    kind = "bev" if mime == "image/png" else "cameras"
    return (
        f'<img class="{kind}" width="{width}" height="{height}" alt="{_text(alt)}" src="data:{mime};base64,{encoded}">'
    )


def _charts(curves: Sequence[LossCurve]) -> str:
    names = list(dict.fromkeys(curve.name for curve in curves))  # a run has one colour in every panel
    panels: dict[str, list[LossCurve]] = {}
    for curve in curves:
        panels.setdefault(curve.panel, []).append(curve)
    return "".join(chart(panel, lines, [names.index(line.name) for line in lines]) for panel, lines in panels.items())


def _made(content: ReportContent) -> str:
    facts = "".join(
        f'<tr><th scope="row">{_text(what)}</th><td>{_text(value)}</td></tr>' for what, value in content.made
    )
    table = f'<div class="wide"><table id="made" class="facts"><tbody>{facts}</tbody></table></div>' if facts else ""
    return table + (_code(content.commands) if content.commands else "")


def _code(commands: Sequence[str]) -> str:
    return f"<pre><code>{_text(chr(10).join(commands))}</code></pre>"
