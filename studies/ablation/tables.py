"""Result files to `results.json` and the tables of `results.md`: mean and spread over seeds, paired gains, controls.

The text around the tables is written by hand; between two marks everything is made anew. A gain is the mean difference
of runs of the same seed to the row's `against`, in NDS points, with Student's t interval at 95 %, widened (Bonferroni)
for as many regimes as the row has results in. A row distils where its gain and its lead over every control lie above 0
with their intervals. Results of rows that no suite has any more are listed, so that nothing that was tried is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cache.errors import DataError
from cache.files import read_json, write_bytes, write_json
from evaluation.seeds import PairedGain, paired_gain, spread
from studies.ablation.costs import cost_table
from studies.ablation.pictures import draw_cache
from studies.ablation.plan import TEACHER_ROW, Cell, Sweep, cells_of, job_of, teacher_label
from studies.ablation.prepare import TEACHER
from studies.ablation.suite import BASELINE, CACHE

BEGIN, END = "<!-- tables: made by `./bevcask ablate --table` -->", "<!-- end of tables -->"
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One row of a table. leads: over its controls, by name; flat: change of the detection loss over the last fifth."""

    cell: Cell
    regime: str
    round: int
    results: tuple[Result, ...]
    gain: PairedGain | None
    leads: Mapping[str, PairedGain]

    @property
    def distils(self) -> bool | None:
        """None where it is no method, or too little is known."""
        if self.gain is None or self.cell.row.control or not self.cell.row.controls or math.isnan(self.gain.low):
            return None
        if set(self.leads) != set(self.cell.row.controls) or any(math.isnan(lead.low) for lead in self.leads.values()):
            return None
        return self.gain.low > 0 and all(lead.low > 0 for lead in self.leads.values())

    @property
    def store_bytes(self) -> float | None:
        """Bytes a frame of the store that was learnt from, the median of its results; None where none tells."""
        told = [float(r["store_bytes"]) for r in self.results if r.get("store_bytes")]
        return median(told) if told else None

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it: NDS and mAP in points, 0..100; store_bytes: a frame."""
        nds = spread([100 * r["NDS"] for r in self.results])
        gain = self.gain
        return {
            "suite": self.cell.suite.name,
            "row": self.cell.row.name,
            "student": self.cell.student,
            "regime": self.regime,
            "round": self.round,
            "seeds": nds.n,
            "nds_mean": _rounded(nds.mean),
            "nds_std": _rounded(nds.std),
            "map_mean": _rounded(spread([100 * r["mAP"] for r in self.results]).mean),
            "against": self.cell.row.against if gain is not None else None,
            "gain_nds": _rounded(gain.mean) if gain is not None else None,
            "ci_low": _rounded(gain.low) if gain is not None else None,
            "ci_high": _rounded(gain.high) if gain is not None else None,
            "controls": {
                name: [_rounded(v) for v in (lead.mean, lead.low, lead.high)] for name, lead in self.leads.items()
            },
            "distils": self.distils,
            "control": self.cell.row.control,
            "minutes": _rounded(sum(r["train_minutes"] for r in self.results) / len(self.results)),
            "store_bytes": self.store_bytes,
        }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def read_results(folder: Path) -> dict[str, Result]:
    """Every result file by its key. DataError where one is not readable."""
    return {str(found["key"]): found for path in sorted(folder.glob("*.json")) if (found := _read(path))}


def _read(path: Path) -> Result:
    found: Result = read_json(path, "an ablation's result")
    if not {"key", "NDS", "mAP", "seed", "train_minutes"} <= set(found):
        raise DataError(f"{path}: not a result of the ablation; remove it, the job runs again")
    return found


def lines_of(
    sweep: Sweep, results: Mapping[str, Result], comparisons: Mapping[tuple[str, str, str], int]
) -> list[Line]:
    """The lines of a sweep that have results, in the suites' own order; comparisons: by (suite, row, student), in how
    many regimes it is looked at."""
    out = []
    cells = [Cell(suite, row, student) for suite in sweep.suites for row, student in suite.cells()]
    found = {_name(cell): _of(sweep, cell, results) for cell in cells}
    for cell in cells:
        if not (mine := found[_name(cell)]):
            continue
        many, values = comparisons.get(_name(cell), 1), _points(mine)
        gain = None
        if cell.row.name != cell.row.against and (base := found.get(_name(cell, cell.row.against))):
            gain = paired_gain(values, _points(base), comparisons=many)
        leads = {
            name: paired_gain(values, _points(other), comparisons=many)
            for name in cell.row.controls
            if (other := found.get(_name(cell, name)))
        }
        out.append(Line(cell, sweep.regime.name, sweep.round, tuple(mine), gain, leads))
    return out


def _name(cell: Cell, row: str = "") -> tuple[str, str, str]:
    return cell.suite.name, row or cell.row.name, cell.student


def _of(sweep: Sweep, cell: Cell, results: Mapping[str, Result]) -> list[Result]:
    keys = [job_of(sweep, cell, sweep.place.first_seed + number).key for number in range(sweep.seeds)]
    return [results[key] for key in keys if key in results]


def _points(results: Iterable[Result]) -> dict[int, float]:
    return {int(r["seed"]): 100 * float(r["NDS"]) for r in results}


def all_lines(sweeps: Sequence[Sweep], results: Mapping[str, Result]) -> list[Line]:
    """Of every regime and round that has results; intervals widened for the regimes of a round."""
    looked: dict[tuple[int, tuple[str, str, str]], int] = {}
    for sweep in sweeps:
        for cell in cells_of(sweep):
            if _of(sweep, cell, results):
                key = (sweep.round, _name(cell))
                looked[key] = looked.get(key, 0) + 1
    out = []
    for sweep in sweeps:
        of_round = {name: count for (number, name), count in looked.items() if number == sweep.round}
        out += _with_rows_to_compare(lines_of(sweep, results, of_round))
    return out


def _with_rows_to_compare(lines: Sequence[Line]) -> list[Line]:
    """The lines of a sweep without tables of `none` alone, which stands in the table of another suite; where there is
    no other, the first of them."""
    tables: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        tables.setdefault((line.cell.suite.name, line.cell.student), []).append(line)
    telling = [table for table in tables.values() if any(line.cell.row.name != BASELINE for line in table)]
    return [line for table in telling or list(tables.values())[:1] for line in table]


def orphans(sweeps: Sequence[Sweep], results: Mapping[str, Result]) -> list[Result]:
    """Results of rows, weights or worlds that no suite has any more."""
    known = {
        job_of(sweep, cell, sweep.place.first_seed + number).key
        for sweep in sweeps
        for cell in cells_of(sweep)
        for number in range(sweep.seeds)
    }
    return [result for key, result in results.items() if key not in known and result["row"] != TEACHER_ROW]


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
    tables: dict[tuple[int, str, str, str], list[Line]] = {}
    for line in lines:
        tables.setdefault((line.round, line.regime, line.cell.suite.name, line.cell.student), []).append(line)
    for (number, regime, suite, student), members in sorted(
        tables.items(), key=lambda item: (-item[0][0], item[0][1:])
    ):
        what = "choosing" if number == 0 else f"round {number}"
        command = f"./bevcask ablate --suite {suite} --regime {regime} --round {number} --seeds {_seeds(members)}"
        parts += [f"### {suite}, {student}: {regime}, {what}", "", f"`{command}`", "", _table(members), ""]
        if suite == CACHE:
            parts += _picture(docs, f"images/cache-{regime}-{number}.png", members, teachers)
    parts += _costs(lines, teachers)
    if teachers:
        parts += ["### Teachers, scored on what their students are scored on", "", _single_runs(teachers), ""]
    if earlier:
        parts += ["### Tried, and no row of a suite any more", "", _single_runs(earlier), ""]
    return "\n".join(parts) if parts else "No results yet.\n"


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
        leads = "; ".join(f"{name}: {_gain(lead)}" for name, lead in line.leads.items())
        gain = "" if line.gain is None else _gain(line.gain) + ("" if row.against == "none" else f" to {row.against}")
        said = {None: "", True: "yes", False: "no"}[line.distils]
        name = f"*{row.name}*" if row.control else row.name
        rows.append(
            f"| {name} | {value['seeds']} | {nds} | {value['map_mean']:.2f} | {gain} | {leads} | {said} | "
            + (f"{line.store_bytes / 1000:,.1f} | " if line.store_bytes else " | " if weighed else "")
            + f"{value['minutes']:.1f} |"
        )
    return "\n".join(rows)


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
