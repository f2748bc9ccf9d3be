"""The lines of the tables to `results.json`, the tables of `results.md`, and the pictures that stand in them.

The text around the tables is written by hand; between two marks everything is made anew, from result files alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cache.files import write_bytes, write_json
from evaluation.seeds import PairedGain
from studies.ablation.cache_picture import draw_cache
from studies.ablation.costs import cost_table
from studies.ablation.gain_picture import draw_gains
from studies.ablation.lines import JUDGED_FROM, Line, Result
from studies.ablation.plan import TEACHER_ROW, teacher_label
from studies.ablation.prepare import TEACHER
from studies.ablation.suite import BASELINE, CACHE

BEGIN, END = "<!-- tables: made by `./bevcask ablate --table` -->", "<!-- end of tables -->"
SAID = {None: "", True: "yes", False: "no"}


def write_tables(docs: Path, lines: Sequence[Line], results: Mapping[str, Result], earlier: Sequence[Result]) -> None:
    """<docs>/results.json, the part of <docs>/results.md between the marks (at its end where there are none), and the
    pictures that stand in it."""
    write_json(docs / "results.json", [line.to_dict() for line in lines])
    path = docs / "results.md"
    text = path.read_text() if path.is_file() else "# Results\n"
    teachers = [result for result in results.values() if result["row"] == TEACHER_ROW]
    made = f"{BEGIN}\n\n{_markdown(docs, lines, teachers, earlier)}\n{END}"
    if BEGIN in text and END in text:
        text = text[: text.index(BEGIN)] + made + text[text.index(END) + len(END) :]
    else:
        text = f"{text.rstrip()}\n\n{made}\n"
    write_bytes(path, text.encode())


def _markdown(docs: Path, lines: Sequence[Line], teachers: Sequence[Result], earlier: Sequence[Result]) -> str:
    parts = []
    for number, regime in dict.fromkeys((line.round, line.regime) for line in lines):
        here = [line for line in lines if (line.round, line.regime) == (number, regime)]
        what = f"{regime}, {_named(number)}"
        if claims := [line for line in here if line.is_claim and number]:
            parts += [f"### Claims: {what}", "", *_claims(claims), ""]
        parts += _gains(docs, f"images/gains-{regime}-{number}.png", here)
        tables: dict[tuple[str, str], list[Line]] = {}
        for line in here:
            tables.setdefault((line.cell.suite.name, line.cell.student), []).append(line)
        for (suite, student), members in sorted(tables.items(), key=lambda item: item[0]):
            command = f"./bevcask ablate --suite {suite} --regime {regime} --round {number} --seeds {_seeds(members)}"
            parts += [f"### {suite}, {student}: {what}", "", f"`{command}`", "", _table(members), ""]
            if suite == CACHE:
                parts += _picture(docs, f"images/cache-{regime}-{number}.png", members, teachers)
    parts += _costs(lines, teachers)
    if teachers:
        parts += ["### Teachers, scored on what their students are scored on", "", _single_runs(teachers), ""]
    if earlier:
        parts += ["### Tried, and no row of a suite any more", "", _single_runs(earlier), ""]
    return "\n".join(parts) if parts else "No results yet.\n"


def _named(number: int) -> str:
    return f"round {number}" if number else "choosing"


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


def _picture(docs: Path, name: str, members: Sequence[Line], teachers: Sequence[Result]) -> list[str]:
    """The cache suite's picture of one regime and round, drawn at docs/name; empty where there is too little for it."""
    first = members[0]
    place, suite = (first.regime, first.round), first.cell.suite
    views = dict.fromkeys(["", *(spec.tta for spec in suite.stores.values())])
    labels = {teacher_label(TEACHER, tta): tta for tta in views}
    scores = {
        labels[t["student"]]: 100 * float(t["NDS"])
        for t in sorted(teachers, key=lambda t: str(t["student"]))
        if (t["regime"], t["round"]) == place and t["student"] in labels
    }
    about = "Bytes a frame of a store against the NDS of its students; an averaged teacher and its students"
    drawn = draw_cache(suite, [line.to_dict() for line in members], scores, docs / name)
    return [f"![{about}]({name})", ""] if drawn else []


def _costs(lines: Sequence[Line], teachers: Sequence[Result]) -> list[str]:
    """SparseKD's students beside their teacher, where that has a score in the regime and round."""
    parts: list[str] = []
    for regime, number in dict.fromkeys((line.regime, line.round) for line in lines):
        members = [line for line in lines if (line.regime, line.round) == (regime, number)]
        of_suite = [line for line in members if line.cell.suite.name == "sparsekd"]
        scores = [t for t in teachers if (t["regime"], t["round"], t["student"]) == (regime, number, TEACHER)]
        if of_suite and scores:
            rows = [line.to_dict() for line in of_suite]
            made = cost_table(of_suite[0].cell.suite, rows, 100 * scores[0]["NDS"])
            parts += [f"### sparsekd, cost and performance: {regime}, round {number}", "", *made, ""] if made else []
    return parts


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
        name = f"*{row.name}*" if row.control else row.name
        figures = f"{value['seeds']} | {nds} | {value['map_mean']:.2f} | {_gain_of(line)} | {_leads(line)}"
        kilobytes = f"{line.store_bytes / 1000:,.1f} | " if line.store_bytes else " | " if weighed else ""
        rows.append(f"| {name} | {figures} | {SAID[line.distils]} | {kilobytes}{value['minutes']:.1f} |")
    return "\n".join(rows)


def _gain_of(line: Line) -> str:
    if line.gain is None:
        return ""
    return _gain(line.gain) + ("" if line.cell.row.against == BASELINE else f" to {line.cell.row.against}")


def _leads(line: Line) -> str:
    return "; ".join(f"{name}: {_gain(lead)}" for name, lead in line.leads.items())


def _gain(gain: PairedGain) -> str:
    interval = "" if math.isnan(gain.low) else f" ({gain.low:+.2f} to {gain.high:+.2f})"
    return "no common seed" if gain.n == 0 else f"{gain.mean:+.2f}{interval}"


def _single_runs(results: Sequence[Result]) -> str:
    rows = [
        "| suite | row | student | regime | round | seed | NDS | mAP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = ("suite", "row", "student", "regime", "round", "seed")
    for result in sorted(results, key=lambda r: tuple(str(r.get(key, "")) for key in keys)):
        cells = [str(result.get(key, "")) for key in keys]
        rows.append("| " + " | ".join([*cells, f"{100 * result['NDS']:.2f}", f"{100 * result['mAP']:.2f}"]) + " |")
    return "\n".join(rows)
