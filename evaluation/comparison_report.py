"""The page of a comparison: figures and differences with intervals, classes, kinds of errors, seeds, training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.files import write_bytes
from evaluation import page
from evaluation.charts import Difference, interval_chart
from evaluation.comparison import SEED_KEYS, Compared, bracketed, gain_text, p_text, spread_text
from evaluation.curves import LossCurve
from evaluation.evaluation_report import bracket, caveats, kinds_table
from evaluation.explained import Explained
from evaluation.metrics import SUMMARY_KEYS
from evaluation.report import loss_charts
from evaluation.table import difference, figure, heading


@dataclass(frozen=True)
class ComparisonAround:
    """What stands around the figures: see `evaluation.evaluation_report.ReportAround`."""

    title: str
    about: str
    notes: Sequence[str] = ()
    curves: Sequence[LossCurve] = ()
    made: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()


def write_comparison(path: Path, compared: Compared, around: ComparisonAround) -> None:
    """Writes the page at `path`, atomically. Raises OutOfSpaceError."""
    write_bytes(path, comparison_html(compared, around).encode())


def comparison_html(compared: Compared, around: ComparisonAround) -> str:
    """The page as one HTML string."""
    notes = [*around.notes, *caveats(compared.base_model)]
    sections = [
        page.section("Result", _results(compared) + page.paragraphs(notes)),
        page.section("Over seeds", _seeds(compared)) if compared.seed_rows else "",
        page.section("Differences", _difference_charts(compared)),
        page.section("Average precision by class", _classes(compared)),
        page.section("Kinds of errors", kinds_table(compared.models)),
        page.section("Near and far, small and large", _parts(compared)),
        page.section("Training", f'<div class="charts">{loss_charts(around.curves)}</div>') if around.curves else "",
        page.section("How this was made", page.facts(around.made, around.commands)) if around.made else "",
    ]
    return page.document(around.title, around.about, sections, contents=True)


def _results(compared: Compared) -> str:
    body = ""
    for model in compared.models:
        cells = [
            page.cell(figure(getattr(model.metrics, key)), note=bracket(model.drawn.of(key)) if model.drawn else "")
            for key in SUMMARY_KEYS
        ]
        body += page.row(model.name, cells, _label(compared, model))
    for model in compared.others:
        drawn, cells = compared.drawn(model), []
        for key in SUMMARY_KEYS:
            change = difference(key, getattr(model.metrics, key), getattr(compared.base_model.metrics, key))
            found = drawn.of(key) if drawn is not None else None
            unclear = found is not None and not found.beside_zero
            kind = "same" if unclear else change.verdict
            cells.append(page.cell(change.text, kind, bracketed(found) if found is not None else ""))
        body += page.row(f"{model.name} − {compared.base}", cells, kind="difference")
    words = "Coloured: differences whose paired interval over scenes leaves out 0: blue is better, orange worse. "
    if compared.base_model.drawn is None:
        words = "One scene, no intervals: colours tell the sign of a difference, not whether it is more than chance. "
    words += "A difference between two runs holds for these two trainings; what a method does shows over seeds."
    head = ["model", *(heading(key) for key in SUMMARY_KEYS)]
    return page.table("results", head, body) + page.paragraphs([words])


def _label(compared: Compared, model: Explained) -> str:
    """Group and seed of a run, where they are known."""
    parts = [compared.groups[model.name]] if model.name in compared.groups else []
    if model.name in compared.seeds:
        parts.append(f"seed {compared.seeds[model.name]}")
    return ", ".join(parts)


def _seeds(compared: Compared) -> str:
    body = ""
    for row in compared.seed_rows:
        cells = [page.cell(str(len(row.seeds)), note=", ".join(map(str, row.seeds)))]
        cells += [page.cell(spread_text(row, key)) for key in SEED_KEYS]
        for key in SEED_KEYS:
            gain = row.gain[key] if row.gain is not None else None
            kind = "same" if gain is None or not gain.clear else "better" if gain.mean > 0 else "worse"
            cells += [page.cell(gain_text(gain), kind), page.cell(p_text(gain))]
        body += page.row(row.group, cells)
    head = ["group", "seeds", *(f"{key} mean ± std" for key in SEED_KEYS)]
    head += [title for key in SEED_KEYS for title in (f"{key} gain [95 %]", "p")]
    base = next(row.group for row in compared.seed_rows if row.gain is None)
    return page.table("seeds", head, body) + page.paragraphs(
        [
            f"Gain over {base}: mean of the differences of equal seeds, its 95 % interval by Student's t, and the "
            "two-sided p of no difference, not corrected for the number of groups."
        ]
    )


def _difference_charts(compared: Compared) -> str:
    out = []
    for model in compared.others:
        drawn = compared.drawn(model)
        rows = []
        for key in ("mAP", "NDS"):
            change = getattr(model.metrics, key) - getattr(compared.base_model.metrics, key)
            found = drawn.of(key) if drawn is not None else None
            rows.append(Difference(key, change, found.low if found else math.nan, found.high if found else math.nan))
        for name in model.table.classes:
            change = model.metrics.class_ap(name) - compared.base_model.metrics.class_ap(name)
            found = drawn.of_class(name) if drawn is not None else None
            low, high = (found.low, found.high) if found else (math.nan, math.nan)
            rows.append(Difference(name.replace("_", " "), change, low, high))
        title = f"{model.name} − {compared.base}"
        chart = interval_chart(rows, f"{title}: mAP, NDS and AP by class with intervals")
        out.append(f"<div><p><b>{page.text(title)}</b></p>{chart}</div>")
    return f'<div class="charts">{"".join(out)}</div>' + page.paragraphs(
        ["mAP, NDS and AP by class with paired 95 % intervals over scenes; filled where the interval leaves out 0."]
    )


def _classes(compared: Compared) -> str:
    body = ""
    for name in compared.base_model.table.classes:
        base, cells = compared.base_model.metrics.class_ap(name), []
        for model in compared.models:
            ap = model.metrics.class_ap(name)
            if model.name == compared.base:
                cells.append(page.bar_cell(ap, figure(ap)))
                continue
            drawn = compared.drawn(model)
            change = difference("mAP", ap, base)
            clear = drawn is None or drawn.of_class(name).beside_zero
            cells += [page.bar_cell(ap, figure(ap)), page.cell(change.text, change.verdict if clear else "same")]
        body += page.row(name.replace("_", " "), cells)
    head = ["class"]
    for model in compared.models:
        head += [model.name] if model.name == compared.base else [model.name, f"− {compared.base}"]
    return page.table("class-ap", head, body)


def _parts(compared: Compared) -> str:
    """Shares found at the working scores and mAP of parts, model by model."""
    by_model = [{(part.group, part.name): part for part in model.parts} for model in compared.models]
    body, group = "", ""
    for key, first in by_model[0].items():
        if first.group != group:
            group = first.group
            columns = 2 + 2 * len(by_model)
            body += f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{page.text(group)}</th></tr>'
        cells = [page.cell(f"{first.objects:,}")]
        for parts in by_model:
            part = parts[key]
            cells.append(page.cell(figure(part.mean_ap)))
            cells.append(page.cell(f"{100 * part.found_working:.1f} %"))
        body += page.row(first.name, cells)
    head = ["part", "objects"]
    for model in compared.models:
        head += [f"{model.name}: mAP", f"{model.name}: found"]
    return page.table("parts", head, body) + page.paragraphs(
        ["Found: share of the objects that a prediction at its working score found within 2 m, each model at its own."]
    )
