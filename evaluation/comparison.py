"""Several models side by side on the same frames: differences to one of them, for a terminal, a CSV file and a page.

Differences over scenes are paired: every draw of the bootstrap scores all models on the same scenes, so what makes a
scene hard for all of them cancels. Where runs share a recipe, `evaluation.seeds` tells the spread over their seeds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from cache.errors import ConfigError
from evaluation.explained import Explained
from evaluation.metrics import SUMMARY_KEYS
from evaluation.resampling import Bootstrap, Interval
from evaluation.seeds import PairedGain, SeedRow
from evaluation.table import difference, figure, heading

SEED_KEYS = ("mAP", "NDS")
_COLOURS = {"better": "blue", "worse": "dark_orange", "same": "dim"}


@dataclass(frozen=True)
class Compared:
    """models: in the order of the table; base: the name of the one that the others are compared with; groups, seeds: of
    models that are runs, by name; seed_rows: the ablation table, empty where no group has two seeds."""

    models: Sequence[Explained]
    base: str
    groups: Mapping[str, str]
    seeds: Mapping[str, int]
    seed_rows: Sequence[SeedRow] = ()

    def __post_init__(self) -> None:
        names = [one.name for one in self.models]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"compare: {', '.join(names) or 'nothing'}; give two models or more, of different names")
        if self.base not in names:
            raise ConfigError(f"compare: no {self.base!r} to compare with; there are {', '.join(names)}")

    @property
    def base_model(self) -> Explained:
        return next(one for one in self.models if one.name == self.base)

    @property
    def others(self) -> list[Explained]:
        """All but the base."""
        return [one for one in self.models if one.name != self.base]

    def drawn(self, model: Explained) -> Bootstrap | None:
        """Draws of the difference model - base, None where there are no draws."""
        if model.drawn is None or self.base_model.drawn is None:
            return None
        return model.drawn.minus(self.base_model.drawn)


def difference_table(compared: Compared) -> Table:
    """model - base for a terminal of 80 columns, with a star where the paired interval leaves out 0."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"minus {escape(compared.base)}", overflow="fold")
    for key in SUMMARY_KEYS:
        table.add_column(heading(key).replace(" (", "\n("), justify="right", no_wrap=True)
    for model in compared.others:
        drawn = compared.drawn(model)
        cells = []
        for key in SUMMARY_KEYS:
            change = difference(key, getattr(model.metrics, key), getattr(compared.base_model.metrics, key))
            found = drawn.of(key) if drawn is not None else None
            clear = found is not None and found.beside_zero
            verdict = change.verdict if found is None or clear else "same"
            cells.append(f"[{_COLOURS[verdict]}]{change.text}{'*' if clear else ''}[/]")
        table.add_row(escape(model.name), *cells)
    return table


def interval_lines(compared: Compared) -> list[str]:
    """The paired intervals of mAP and NDS, a line a model; none without draws."""
    out = []
    for model in compared.others:
        drawn = compared.drawn(model)
        if drawn is not None:
            shown = ", ".join(f"{key} {bracketed(drawn.of(key))}" for key in ("mAP", "NDS"))
            out.append(f"{model.name} − {compared.base}: {shown}")
    return out


def seed_table_view(compared: Compared) -> Table:
    """The ablation table for a terminal."""
    table = Table(title="over seeds", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("group", "seeds", *(f"{key} mean ± std" for key in SEED_KEYS), "NDS gain [95 %]", "p"):
        table.add_column(title, justify="left" if title == "group" else "right")
    for row in compared.seed_rows:
        gain = row.gain["NDS"] if row.gain is not None else None
        spreads = [spread_text(row, key) for key in SEED_KEYS]
        table.add_row(escape(row.group), str(len(row.seeds)), *spreads, gain_text(gain), p_text(gain))
    return table


def spread_text(row: SeedRow, key: str) -> str:
    """Mean and standard deviation."""
    found = row.spread[key]
    return f"{figure(found.mean)} ± {figure(found.std)}"


def gain_text(gain: PairedGain | None) -> str:
    """Mean and interval of a paired difference; a dash for the baseline."""
    if gain is None or math.isnan(gain.mean):
        return "–"
    shown = f"{gain.mean:+.3f}".replace("-", "−")
    return shown if math.isnan(gain.low) else f"{shown} {bracketed(Interval(gain.low, gain.high))}"


def p_text(gain: PairedGain | None) -> str:
    """p of a paired difference."""
    return "–" if gain is None or math.isnan(gain.p) else f"{gain.p:.2g}"


def bracketed(found: Interval) -> str:
    """An interval of a difference, signs shown."""
    if math.isnan(found.low):
        return "–"
    return f"[{found.low:+.3f}, {found.high:+.3f}]".replace("-", "−")


def comparison_csv(compared: Compared) -> str:
    """A line a model: figures, AP by class, and for all but the base the differences with their intervals (empty where
    there are none). Numbers are not rounded."""
    classes = compared.base_model.table.classes
    deltas = [f"d_{key}{end}" for key in SUMMARY_KEYS for end in ("", "_low", "_high")]
    head = ["model", "group", "seed", *SUMMARY_KEYS, *(f"AP_{name}" for name in classes), *deltas]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for model in compared.models:
        known = [_number(getattr(model.metrics, key)) for key in SUMMARY_KEYS]
        row = [
            _text(model.name),
            _text(compared.groups.get(model.name, "")),
            str(compared.seeds.get(model.name, "")),
            *known,
        ]
        row += [_number(model.metrics.class_ap(name)) for name in classes]
        drawn = compared.drawn(model)
        for key in SUMMARY_KEYS:
            if model.name == compared.base:
                row += ["", "", ""]
                continue
            found = drawn.of(key) if drawn is not None else Interval(math.nan, math.nan)
            change = getattr(model.metrics, key) - getattr(compared.base_model.metrics, key)
            row += [_number(value) for value in (change, found.low, found.high)]
        writer.writerow(row)
    return text.getvalue()


def _text(name: str) -> str:
    """A name as a cell: one that a spreadsheet would run as a formula gets the apostrophe that makes it text there."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
