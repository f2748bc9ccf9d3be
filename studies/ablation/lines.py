"""Result files to the lines of the tables: mean and spread over seeds, paired gains, leads over controls.

A gain is the mean difference of runs of the same seed to the row's `against`, in NDS points, with Student's t interval
at 95 %, widened (Bonferroni) for as many regimes as the row has results in. A row distils where its gain and its lead
over every control lie above 0 with their intervals; that is said from `JUDGED_FROM` common seeds on, not before, so
that nobody stops where it looks well. Results of rows that no suite has any more are told apart, so that none is lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache.errors import DataError
from cache.files import read_json
from evaluation.seeds import PairedGain, paired_gain, spread
from studies.ablation.plan import Cell, Sweep, TeacherOf, cells_of, job_of, teacher_keys
from studies.ablation.regimes import CHOOSING, ROUNDS, SEEDS_OF_A_ROUND, first_seed_of
from studies.ablation.suite import BASELINE

JUDGED_FROM = 5
Name = tuple[str, str, str]  # suite, row, student


class Result(BaseModel):
    """What the tables read of a result file, see `studies.ablation.job`; NDS, mAP: 0..1; store_bytes: a frame;
    loss_curve: (step, detection loss)."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    key: str
    suite: str
    row: str
    student: str
    regime: str
    round: int = Field(ge=0, lt=ROUNDS)
    seed: int
    NDS: float = Field(ge=0, le=1)
    mAP: float = Field(ge=0, le=1)
    steps: int = Field(ge=1)
    train_minutes: float = Field(ge=0)
    store_bytes: float | None = Field(default=None, ge=0)
    loss_curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Line:
    """One row of a table. gain: over the row's `against`; leads: over its controls, by name, where there are any."""

    cell: Cell
    regime: str
    round: int
    results: tuple[Result, ...]
    gain: PairedGain | None
    leads: Mapping[str, PairedGain]

    @property
    def is_claim(self) -> bool:
        """Whether its gain is what its suite claims."""
        return self.cell.suite.primary == (self.cell.row.name, self.cell.student)

    @property
    def distils(self) -> bool | None:
        """None where it is no method, where weights are still chosen, and where fewer than `JUDGED_FROM` seeds are
        common to it and any that it is held to."""
        if self.gain is None or self.cell.row.control or not self.cell.row.controls or self.round == CHOOSING:
            return None
        held = [self.gain, *self.leads.values()]
        if set(self.leads) != set(self.cell.row.controls) or any(one.n < JUDGED_FROM for one in held):
            return None
        return all(one.low > 0 for one in held)

    @property
    def store_bytes(self) -> float | None:
        """Bytes a frame of the store that was learnt from, the median of its results; None where none tells."""
        told = [r.store_bytes for r in self.results if r.store_bytes]
        return median(told) if told else None

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it: NDS and mAP in points, 0..100; store_bytes: a frame."""
        nds = spread([100 * r.NDS for r in self.results])
        gain = self.gain
        return {
            "suite": self.cell.suite.name,
            "row": self.cell.row.name,
            "student": self.cell.student,
            "regime": self.regime,
            "round": self.round,
            "seeds": nds.n,
            "pairs": gain.n if gain is not None else None,
            "nds_mean": _rounded(nds.mean),
            "nds_std": _rounded(nds.std),
            "map_mean": _rounded(spread([100 * r.mAP for r in self.results]).mean),
            "against": self.cell.row.against if gain is not None else None,
            "gain_nds": _rounded(gain.mean) if gain is not None else None,
            "ci_low": _rounded(gain.low) if gain is not None else None,
            "ci_high": _rounded(gain.high) if gain is not None else None,
            "controls": {
                name: [_rounded(v) for v in (lead.mean, lead.low, lead.high)] for name, lead in self.leads.items()
            },
            "distils": self.distils,
            "control": self.cell.row.control,
            "minutes": _rounded(sum(r.train_minutes for r in self.results) / len(self.results)),
            "store_bytes": self.store_bytes,
        }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def read_results(folder: Path) -> dict[str, Result]:
    """Every result file by its key, which is the file's name. DataError where one is none, with its path."""
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def _read(path: Path) -> Result:
    mend = "remove it: its training runs again"
    try:
        result = Result.model_validate(read_json(path, "an ablation's result"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(f"{path}: not a result of the ablation ({where}: {first['msg']}); {mend}") from None
    if result.key != path.stem:
        raise DataError(f"{path}: its key is {result.key}, expected the file's name; {mend}")
    first_seed = first_seed_of(result.round)
    if not 0 <= result.seed - first_seed < SEEDS_OF_A_ROUND and result.suite:
        last = first_seed + SEEDS_OF_A_ROUND - 1
        raise DataError(f"{path}: seed {result.seed} in round {result.round}, expected {first_seed} to {last}; {mend}")
    return result


def lines_of(sweep: Sweep, found: Mapping[Name, list[Result]], comparisons: Mapping[Name, int]) -> list[Line]:
    """The lines of a sweep that have results, in the suites' own order; comparisons: in how many regimes each is looked
    at."""
    out = []
    for cell in _all_cells(sweep):
        if not (mine := found[_name(cell)]):
            continue
        many, values = comparisons[_name(cell)], _points(mine)
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


def _all_cells(sweep: Sweep) -> list[Cell]:
    return [Cell(suite, row, student) for suite in sweep.suites for row, student in suite.cells()]


def _name(cell: Cell, row: str = "") -> Name:
    return cell.suite.name, row or cell.row.name, cell.student


def _of(sweep: Sweep, cell: Cell, results: Mapping[str, Result]) -> list[Result]:
    seeds = sorted({result.seed for result in results.values() if result.round == sweep.round and result.suite})
    keys = [job_of(sweep, cell, seed).key for seed in seeds]
    return [results[key] for key in keys if key in results]


def _points(results: Iterable[Result]) -> dict[int, float]:
    return {result.seed: 100 * result.NDS for result in results}


def all_lines(sweeps: Sequence[Sweep], results: Mapping[str, Result]) -> list[Line]:
    """Of every regime and round that has results; intervals widened for the regimes of a round."""
    found = [{_name(cell): _of(sweep, cell, results) for cell in _all_cells(sweep)} for sweep in sweeps]
    looked = Counter(
        (sweep.round, name)
        for sweep, of_sweep in zip(sweeps, found, strict=True)
        for name, mine in of_sweep.items()
        if mine
    )
    out = []
    for sweep, of_sweep in zip(sweeps, found, strict=True):
        of_round = {name: count for (number, name), count in looked.items() if number == sweep.round}
        out += _with_rows_to_compare(lines_of(sweep, of_sweep, of_round))
    return out


def _with_rows_to_compare(lines: Sequence[Line]) -> list[Line]:
    """The lines of a sweep without tables of `none` alone, which stands in the table of another suite; where there is
    no other, the first of them."""
    tables: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        tables.setdefault((line.cell.suite.name, line.cell.student), []).append(line)
    telling = [table for table in tables.values() if any(line.cell.row.name != BASELINE for line in table)]
    return [line for table in telling or list(tables.values())[:1] for line in table]


def teachers_of(sweep: Sweep, results: Mapping[str, Result]) -> dict[TeacherOf, Result]:
    """The scores of the teachers that the rows of a sweep learn from, where there are any."""
    return {teacher: results[key] for teacher, key in teacher_keys(sweep).items() if key in results}


def orphans(sweeps: Sequence[Sweep], results: Mapping[str, Result]) -> list[Result]:
    """Results of rows, weights, worlds or teachers that no suite has any more."""
    known = {key for sweep in sweeps for key in teacher_keys(sweep).values()}
    for sweep in sweeps:
        known |= {result.key for cell in cells_of(sweep) for result in _of(sweep, cell, results)}
    return [result for key, result in results.items() if key not in known]
