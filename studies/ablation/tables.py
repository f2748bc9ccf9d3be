"""The lines of the tables to `results.json`, the tables of `results.md`, and the pictures that stand in them.

The text around the tables is written by hand; between two marks everything is made anew, from result files alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.files import write_bytes, write_json
from evaluation.seeds import PairedGain
from studies.ablation.cache_picture import draw_cache
from studies.ablation.costs import cost_table
from studies.ablation.gain_picture import draw_gains
from studies.ablation.lines import JUDGED_FROM, Line, Result
from studies.ablation.loss_picture import draw_losses
from studies.ablation.plan import TeacherOf
from studies.ablation.suite import BASELINE, CACHE

BEGIN, END = "<!-- tables: made by `./bevcask ablate --table` -->", "<!-- end of tables -->"
SAID = {None: "", True: "yes", False: "no"}


@dataclass(frozen=True)
class Page:
    """All that is shown. teachers: by (round, regime), whose answers its rows learn from; earlier: results of what no
    suite has any more."""

    lines: Sequence[Line]
    teachers: Mapping[tuple[int, str], Mapping[TeacherOf, Result]]
    earlier: Sequence[Result]


def write_tables(docs: Path, page: Page) -> None:
    """<docs>/results.json, the part of <docs>/results.md between the marks (at its end where there are none), and the
    pictures that stand in it."""
    write_json(docs / "results.json", [line.to_dict() for line in page.lines])
    path = docs / "results.md"
    text = path.read_text() if path.is_file() else "# Results\n"
    made = f"{BEGIN}\n\n{_markdown(docs, page)}\n{END}"
    if BEGIN in text and END in text:
        text = text[: text.index(BEGIN)] + made + text[text.index(END) + len(END) :]
    else:
        text = f"{text.rstrip()}\n\n{made}\n"
    write_bytes(path, text.encode())


def _markdown(docs: Path, page: Page) -> str:
    parts = []
    for number, regime in dict.fromkeys((line.round, line.regime) for line in page.lines):
        here = [line for line in page.lines if (line.round, line.regime) == (number, regime)]
        teachers = page.teachers.get((number, regime), {})
        what = f"{regime}, {f'round {number}' if number else 'choosing'}"
        if claims := [line for line in here if line.is_claim and number]:
            parts += [f"### Claims: {what}", "", *_claims(claims), ""]
        parts += _gains(docs, f"images/gains-{regime}-{number}.png", here)
        tables: dict[tuple[str, str], list[Line]] = {}
        for line in here:
            tables.setdefault((line.cell.suite.name, line.cell.student), []).append(line)
        for (suite, student), members in sorted(tables.items()):
            command = f"./bevcask ablate --suite {suite} --regime {regime} --round {number} --seeds {_seeds(members)}"
            parts += [f"### {suite}, {student}: {what}", "", f"`{command}`", "", _table(members), ""]
            if suite == CACHE:
                parts += _picture(docs, f"images/cache-{regime}-{number}.png", members, teachers)
        parts += _costs(here, teachers, what)
        if number:
            parts += _losses(docs, f"images/losses-{regime}-{number}.png", here, what)
    if scores := {result.key: result for of_place in page.teachers.values() for result in of_place.values()}:
        parts += ["### Teachers, scored on what their students are scored on", "", _runs(list(scores.values())), ""]
    if page.earlier:
        parts += ["### Tried, and no row of a suite any more", "", _runs(page.earlier), ""]
    return "\n".join(parts) if parts else "No results yet.\n"


def _claims(lines: Sequence[Line]) -> list[str]:
    """What each suite claims, and what came of it."""
    rows = ["| suite | row | gain in NDS points | lead over controls | distils |", "| --- " * 5 + "|"]
    for line in lines:
        common = min(one.n for one in (line.gain, *line.leads.values()) if one is not None)
        waits = f"not yet judged: {common} of {JUDGED_FROM} seeds"
        if missing := [name for name in line.cell.row.controls if name not in line.leads]:
            waits = f"not yet judged: nothing of *{missing[0]}* yet"
        said = waits if line.distils is None else SAID[line.distils]
        rows.append(f"| {line.cell.suite.name} | {line.cell.row.name} | {_gain_of(line)} | {_leads(line)} | {said} |")
    return rows


def _gains(docs: Path, name: str, lines: Sequence[Line]) -> list[str]:
    """The picture of all gains of one regime and round, drawn at docs/name; empty where no gain has an interval."""
    about = "Gains in NDS points with their intervals, a line a row; dots are seeds, controls are hollow"
    return [f"![{about}]({name})", ""] if draw_gains(lines, docs / name) else []


def _picture(docs: Path, name: str, members: Sequence[Line], teachers: Mapping[TeacherOf, Result]) -> list[str]:
    """The cache suite's picture of one regime and round, drawn at docs/name; empty where there is too little for it."""
    scores = {teacher.tta: 100 * result.NDS for teacher, result in teachers.items() if teacher.says == "trained"}
    about = "Bytes a frame of a store against the NDS of its students; an averaged teacher and its students"
    drawn = draw_cache(members[0].cell.suite, [line.to_dict() for line in members], scores, docs / name)
    return [f"![{about}]({name})", ""] if drawn else []


def _costs(lines: Sequence[Line], teachers: Mapping[TeacherOf, Result], what: str) -> list[str]:
    """SparseKD's students beside their teacher, where that has a score."""
    of_suite = [line for line in lines if line.cell.suite.name == "sparsekd"]
    teacher = teachers.get(TeacherOf("trained"))
    if not of_suite or teacher is None:
        return []
    made = cost_table(of_suite[0].cell.suite, [line.to_dict() for line in of_suite], 100 * teacher.NDS)
    return [f"### sparsekd, cost and performance: {what}", "", *made, ""] if made else []


def _losses(docs: Path, name: str, lines: Sequence[Line], what: str) -> list[str]:
    """How far the claims' trainings came, drawn at docs/name; empty where nothing tells."""
    about = "Detection loss on the training frames over steps: of the claim's row and of all that it is held to"
    drawn = draw_losses(lines, docs / name)
    return [f"### Detection loss: {what}", "", f"![{about}]({name})", ""] if drawn else []


def _seeds(lines: Sequence[Line]) -> int:
    return max(len(line.results) for line in lines)


def _table(lines: Sequence[Line]) -> str:
    weighed = any(line.store_bytes for line in lines)
    size = "kB a frame | " if weighed else ""
    rows = [
        f"| row | seeds | NDS | mAP | gain in NDS points | lead over controls | distils | {size}min a run |",
        "| --- " * (9 if weighed else 8) + "|",
    ]
    for line in lines:
        value, row = line.to_dict(), line.cell.row
        nds = f"{value['nds_mean']:.2f}" + (f" ± {value['nds_std']:.2f}" if value["nds_std"] is not None else "")
        name = f"*{_cell(row.name)}*" if row.control else _cell(row.name)
        figures = f"{value['seeds']} | {nds} | {value['map_mean']:.2f} | {_gain_of(line)} | {_leads(line)}"
        kilobytes = f"{line.store_bytes / 1000:,.1f} | " if line.store_bytes else " | " if weighed else ""
        rows.append(f"| {name} | {figures} | {SAID[line.distils]} | {kilobytes}{value['minutes']:.1f} |")
    return "\n".join(rows)


def _gain_of(line: Line) -> str:
    if line.gain is None:
        return ""
    return _gain(line.gain) + ("" if line.cell.row.against == BASELINE else f" to {_cell(line.cell.row.against)}")


def _leads(line: Line) -> str:
    return "; ".join(f"{_cell(name)}: {_gain(lead)}" for name, lead in line.leads.items())


def _gain(gain: PairedGain) -> str:
    """The mean; from two seeds on its interval, and of how many where that is no more than a first look."""
    if gain.n == 0:
        return "no common seed"
    said = [f"{gain.low:+.2f} to {gain.high:+.2f}"] if not math.isnan(gain.low) else []
    if said and gain.n < JUDGED_FROM:
        said.append(f"{gain.n} common seeds")
    return f"{gain.mean:+.2f}" + (f" ({', '.join(said)})" if said else "")


def _runs(results: Sequence[Result]) -> str:
    """A line a training."""
    rows = [
        "| suite | row | student | regime | round | seed | NDS | mAP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(results, key=lambda r: (r.suite, r.row, r.student, r.regime, r.round, r.seed)):
        named = f"{_cell(one.suite)} | {_cell(one.row)} | {_cell(one.student)} | {_cell(one.regime)}"
        rows.append(f"| {named} | {one.round} | {one.seed} | {100 * one.NDS:.2f} | {100 * one.mAP:.2f} |")
    return "\n".join(rows)


def _cell(name: str) -> str:
    """A name that may stand in a table."""
    return " ".join(name.split()).replace("|", "\\|")
