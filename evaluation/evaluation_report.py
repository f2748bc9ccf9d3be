"""The report of one evaluation: a run, a teacher or a submission, its figures with intervals, and what is behind them.

Takes what `evaluation.explained` computed and pictures that the caller drew; gives one HTML file, whole in itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.files import write_bytes
from evaluation import page
from evaluation.charts import Line, legend, small_chart
from evaluation.curves import LossCurve
from evaluation.error_kinds import ERROR_KINDS, confusions
from evaluation.explained import Explained
from evaluation.metrics import SUMMARY_KEYS, TP_ERRORS
from evaluation.over_recall import class_curves
from evaluation.report import ERROR_COLUMNS, ReportFrame, loss_charts
from evaluation.resampling import Bootstrap, Interval
from evaluation.subsets import EVERYTHING
from evaluation.table import figure, heading

FEW_SCENES = 20
_ERROR_LINES = dict(zip(TP_ERRORS, ("c2", "c0 d1", "c3 d2", "c4 d3", "c1 d4"), strict=True))
_THRESHOLD_LINES = ("c2", "c3 d1", "c0 d2", "c4 d3")
KINDS_IN_WORDS = {
    "duplicate": "a better prediction already took the object of this class that is nearer than {near:g}\u00a0m",
    "localisation": "right class, but {near:g} to {reach:g}\u00a0m away from the nearest object of it",
    "class": "an object of another class is nearer than {near:g}\u00a0m",
    "background": "nothing that would explain it is near",
    "missed": "an object that no prediction found or erred about",
}


@dataclass(frozen=True)
class ReportAround:
    """What stands around the figures. notes: under the headline; frames: the worst ones, drawn; curves: of a training;
    made: (what, value); commands: how it was made; next_command: what to try."""

    title: str
    about: str
    notes: Sequence[str] = ()
    frames: Sequence[ReportFrame] = ()
    curves: Sequence[LossCurve] = ()
    made: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()
    next_command: str = ""


def write_evaluation_report(path: Path, explained: Explained, around: ReportAround) -> None:
    """Writes the report at `path`, atomically. Raises OutOfSpaceError."""
    write_bytes(path, evaluation_html(explained, around).encode())


def evaluation_html(explained: Explained, around: ReportAround) -> str:
    """The report as one HTML string."""
    sections = [
        page.section("Result", _headline(explained) + page.paragraphs([*around.notes, *caveats(explained)])),
        page.section("Average precision by class", _class_table(explained)),
        page.section("Errors by class", _error_table(explained)),
        page.section("Precision over recall", _precision_charts(explained)),
        page.section("Errors over recall", _error_charts(explained)),
        page.section("Kinds of errors", kinds_table([explained]) + _class_gains(explained)),
        page.section("Classes mistaken for each other", _confusion_table(explained)),
        page.section("Near and far, small and large", _parts_table(explained)),
        page.section("Worst frames", _frames(around.frames)) if around.frames else "",
        page.section("Training", f'<div class="charts">{loss_charts(around.curves)}</div>') if around.curves else "",
        page.section("How this was made", page.facts(around.made, around.commands)) if around.made else "",
        page.section("Next", page.code([around.next_command])) if around.next_command else "",
    ]
    return page.document(around.title, around.about, sections, contents=True)


def caveats(explained: Explained) -> list[str]:
    """What a reader must know of the figures: how sure they are, what is left out, which classes are empty."""
    table, out = explained.table, []
    if explained.drawn is None:
        out.append("The split has one scene, so there is no interval over scenes: these figures stand for it alone.")
    else:
        out.append(
            f"In brackets: 95 % intervals by bootstrap over {explained.drawn.scenes} scenes ({explained.drawn.draws} "
            f"draws, seed {explained.drawn.seed}). They say how far a figure hangs on which scenes were recorded, and "
            "nothing of how it would move with another training seed."
            + (" So few scenes make rough intervals." if explained.drawn.scenes < FEW_SCENES else "")
        )
    if table.subset != EVERYTHING:
        out.append(f"Only a part of the split counts: {table.subset}.")
    empty = [name for name, count in _object_counts(explained).items() if not count]
    if empty:
        out.append(
            f"No objects to find of {_listed(empty)}: the metric counts {'it' if len(empty) == 1 else 'them'} with an "
            "AP of 0 and errors of 1, in mAP and NDS too."
        )
    if not len(table.scores):
        out.append("The model says nothing of these frames: every object is missed.")
    return out


def bracket(found: Interval | None) -> str:
    """An interval as text, nothing where there is none."""
    if found is None or math.isnan(found.low):
        return ""
    return f"[{found.low:.3f}, {found.high:.3f}]"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _object_counts(explained: Explained) -> dict[str, int]:
    counts = np.bincount(explained.table.objects.class_ids, minlength=len(DETECTION_CLASSES))
    return {name: int(counts[DETECTION_CLASSES.index(name)]) for name in explained.table.classes}


def _interval(drawn: Bootstrap | None, key: str) -> Interval | None:
    return drawn.of(key) if drawn else None


def _headline(explained: Explained) -> str:
    metrics, tiles = explained.metrics, []
    for key in ("mAP", "NDS"):
        shown = bracket(_interval(explained.drawn, key))
        small = f"<small>{page.text(shown)}</small>" if shown else ""
        tiles.append(f"<div><dt>{key}</dt><dd>{figure(getattr(metrics, key))}{small}</dd></div>")
    for title, value in (
        ("frames", len(explained.table.tokens)),
        ("scenes", len(explained.table.scene_names)),
        ("objects that count", metrics.truth_counts.outside_racks),
        ("predictions that count", metrics.detection_counts.outside_racks),
    ):
        tiles.append(f"<div><dt>{title}</dt><dd>{value:,}</dd></div>")
    cells = [page.cell(figure(getattr(metrics, key))) for key in SUMMARY_KEYS]
    body = page.row(explained.name, cells)
    if explained.drawn is not None:
        brackets = [page.cell(bracket(explained.drawn.of(key))) for key in SUMMARY_KEYS]
        body += page.row("95 % interval", brackets, kind="interval")
    head = ["model", *(heading(key) for key in SUMMARY_KEYS)]
    return f'<dl class="tiles">{"".join(tiles)}</dl>{page.table("results", head, body)}'


def _class_table(explained: Explained) -> str:
    thresholds, counts = explained.table.config.dist_ths, _object_counts(explained)
    body = ""
    for name in explained.table.classes:
        ap = explained.metrics.class_ap(name)
        shown = bracket(explained.drawn.of_class(name)) if explained.drawn else ""
        cells = [page.cell(f"{counts[name]:,}"), page.bar_cell(ap, figure(ap)), page.cell(shown, "interval")]
        row = explained.metrics.ap[name]
        cells += [page.heat_cell(row[threshold], figure(row[threshold])) for threshold in thresholds]
        body += page.row(name.replace("_", " "), cells)
    head = ["class", "objects", "AP ↑", "95 % interval", *(f"AP within {threshold:g} m" for threshold in thresholds)]
    given = explained.metrics.truth_counts
    return page.table("class-ap", head, body) + page.paragraphs(
        [
            f"AP is the mean over the centre distances. Ground truth: {given.given:,} boxes, {given.in_range:,} in "
            f"range, {given.with_points:,} of them with points, {given.outside_racks:,} outside bicycle racks: these "
            "are scored."
        ]
    )


def _error_table(explained: Explained) -> str:
    body = "".join(
        page.row(
            name.replace("_", " "), [page.cell(figure(explained.metrics.tp_errors[name][key])) for key in TP_ERRORS]
        )
        for name in explained.table.classes
    )
    at = explained.table.config.dist_th_tp
    return page.table("errors", ["class", *ERROR_COLUMNS.values()], body) + page.paragraphs(
        [
            f"Of predictions matched within {at:g} m, means over recalls above {explained.table.config.min_recall:g}; "
            "1.000 where that recall is not reached, a dash where the metric defines no such error."
        ]
    )


def _precision_charts(explained: Explained) -> str:
    recalls = np.linspace(0, 1, 101)
    thresholds = explained.table.config.dist_ths
    kinds = [_THRESHOLD_LINES[number % 4] for number in range(len(thresholds))]
    charts = []
    for curves in class_curves(explained.table):
        lines = [Line(kind, recalls, row) for kind, row in zip(kinds, curves.precision, strict=True)]
        name = curves.name.replace("_", " ")
        ap = explained.metrics.class_ap(curves.name)
        note = f"AP {figure(ap)}" if curves.objects else "no objects"
        about = f"Precision over recall of {name} at distances of {', '.join(f'{t:g} m' for t in thresholds)}"
        charts.append(small_chart(name, note, lines, about))
    key = legend([(kind, f"within {t:g} m") for kind, t in zip(kinds, thresholds, strict=True)])
    return f'{key}<div class="smalls" id="precision">{"".join(charts)}</div>' + page.paragraphs(
        ["Up: precision; to the right: recall. A line ends at the last recall that is reached."]
    )


def _error_charts(explained: Explained) -> str:
    recalls, charts = np.linspace(0, 1, 101), []
    all_curves = class_curves(explained.table)
    for curves in all_curves:
        kinds = zip(_ERROR_LINES.values(), curves.errors, strict=True)
        lines = [Line(kind, recalls, row) for kind, row in kinds if np.isfinite(row).any()]
        name = curves.name.replace("_", " ")
        charts.append(
            small_chart(name, "" if lines else "none found", lines, f"TP errors of {name} over recall", y_max=2)
        )
    key = legend([(_ERROR_LINES[key], ERROR_COLUMNS[key]) for key in TP_ERRORS])
    return f'{key}<div class="smalls" id="error-curves">{"".join(charts)}</div>' + page.paragraphs(
        ["Up: mean error of what is found down to the score of that recall, cut at 2; to the right: recall."]
    )


def kinds_table(models: Sequence[Explained]) -> str:
    """Counts of every kind of error and the mAP that mending it would give, model by model."""
    body = ""
    for explained in models:
        errors = explained.errors
        if len(models) > 1:
            body += f'<tr class="group"><th scope="rowgroup" colspan="4">{page.text(explained.name)}</th></tr>'
        most = max(*errors.gain.values(), 1e-9)
        for kind in ERROR_KINDS:
            gain = errors.gain[kind]
            words = KINDS_IN_WORDS[kind].format(near=errors.near_m, reach=errors.reach_m)
            cells = [page.cell(words, "text")] if len(models) == 1 else []
            cells.append(page.cell(f"{errors.counts[kind]:,}"))
            cells += [page.cell(f"{errors.confident[kind]:,}"), page.bar_cell(gain, signed(gain), most)]
            body += page.row(kind, cells)
    first = models[0].errors
    bases = ", ".join(f"{one.name + ' ' if len(models) > 1 else ''}{figure(one.errors.mean_ap)}" for one in models)
    head = [
        "kind",
        *(["what it is"] if len(models) == 1 else []),
        "all",
        "at the working score",
        f"mAP within {first.near_m:g} m without it",
    ]
    return page.table("kinds", head, body, words=1 if len(models) == 1 else None) + page.paragraphs(
        [
            f"Matched within {first.near_m:g} m, where mAP is {bases}. The last column is what that mAP would gain if "
            "errors of this kind, and no others, were mended, as TIDE asks it of 2-D boxes; gains don't add up. "
            "Low-scored predictions are most of all errors and cost little: the column beside counts only those that "
            "reach their class's working score, the score with the best F1."
        ]
    )


def signed(value: float) -> str:
    """A difference with its sign, never -0."""
    if math.isnan(value):
        return "–"
    shown = f"{value:+.3f}".replace("-", "−")
    return "±0.000" if shown[1:] == "0.000" else shown


def _class_gains(explained: Explained) -> str:
    errors = explained.errors
    most = max(float(errors.class_gain.max(initial=0.0)), 1e-9)
    body = ""
    for name, gains in zip(errors.classes, errors.class_gain, strict=True):
        score = explained.working[DETECTION_CLASSES.index(name)]
        shown = figure(float(score)) if math.isfinite(score) else "–"
        cells = [page.heat_cell(float(gain), signed(float(gain)), most) for gain in gains]
        body += page.row(name.replace("_", " "), [page.cell(shown), *cells])
    table = page.table("kind-gains", ["class", "working score", *ERROR_KINDS], body)
    return f"<details><summary>What each class would gain, and its working score</summary>{table}</details>"


def _confusion_table(explained: Explained) -> str:
    classes, counts = explained.table.classes, confusions(explained.table, explained.working)
    names = [name.replace("_", " ") for name in classes]
    body = ""
    for number, name in enumerate([*names, "background"]):
        total = max(int(counts[number].sum()), 1)
        cells = []
        for column in range(len(names) + 1):
            value = int(counts[number, column])
            corner = number == column == len(names)
            shown = "" if corner else f"{value:,}" if value else "·"
            cells.append(page.heat_cell(0 if corner else value, shown, total))
        body += page.row(name, cells)
    return page.table("confusions", ["object, said to be", *names, "missed"], body) + page.paragraphs(
        [
            "Rows: what is there; columns: what is said of it at the working scores. On the diagonal what is right; "
            "off it class errors; in the last row predictions of what is not there, in the last column missed objects."
        ]
    )


def _parts_table(explained: Explained) -> str:
    body, group = "", ""
    for part in explained.parts:
        if part.group != group:
            group = part.group
            body += f'<tr class="group"><th scope="rowgroup" colspan="8">{page.text(group)}</th></tr>'
        ap = page.cell("–") if math.isnan(part.mean_ap) else page.bar_cell(part.mean_ap, figure(part.mean_ap))
        found = [page.cell(_share(value)) for value in (part.found, part.found_working)]
        errors = [page.cell(figure(float(part.errors[column]))) for column in (0, 2, 3)]
        body += page.row(part.name, [page.cell(f"{part.objects:,}"), ap, *found, *errors])
    at = explained.table.config.dist_th_tp
    head = ["part", "objects", "mAP ↑", "found ↑", "found at the working score ↑"]
    head += [f"{ERROR_COLUMNS[key]} ↓" for key in ("trans_err", "orient_err", "vel_err")]
    return page.table("parts", head, body) + page.paragraphs(
        [
            "By distance and scenes, mAP is the metric as if nothing else had been there, a mean over the classes that "
            "have objects in the part; an object near an edge can lose its prediction to the next part. Predictions "
            "have no visibility and may have a wrong size, so by those only objects are counted: which share of them "
            f"is found within {at:g} m, and the plain mean errors of those found."
        ]
    )


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _frames(frames: Sequence[ReportFrame]) -> str:
    shown = "".join(page.gallery(frame.title, frame.caption, frame.bev, frame.cameras) for frame in frames)
    return shown + page.paragraphs(
        [
            "Chosen by F1 at the working scores, within 2 m: 2 right / (2 right + wrong + missed), lowest first, one "
            "frame a scene, of frames with five boxes or more."
        ]
    )
