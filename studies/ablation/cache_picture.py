"""The picture of the cache suite: bytes of a store against its students, and an averaged teacher against the plain one.

Drawn from rows of `results.json` and the teachers' result files alone, so that anybody who has these can draw it again.
Left, a point a store: kB a frame, and the difference in NDS to the students of `fp16 cells`, paired by seed, with its
interval at 95 %; the line is the student without distillation. Right: teacher and student, plain and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.ablation.suite import BASELINE, Suite

REFERENCE = "fp16 cells"
MARKERS = "osD^vP*Xph"
WITHOUT = "without distillation"
Row = Mapping[str, Any]


def draw_cache(suite: Suite, rows: Sequence[Row], teachers: Mapping[str, float], path: Path) -> bool:
    """Writes the PNG `path`; False, and nothing written, where neither half has what it compares.

    rows: those of `results.json` of this suite, of one regime, round and student; teachers: NDS in points of the
    teacher by its views, "" for the plain one.
    """
    by_name = {row["row"]: row for row in rows}
    views = {row.name: suite.stores[row.store].tta for row in suite.rows if row.store}
    sizes = [row for row in rows if _has_place(row) and not views.get(row["row"])]
    averaged = [row for row in rows if views.get(row["row"])]
    halves = [
        len(sizes) > 1 and any(row["row"] == REFERENCE for row in sizes),
        bool(averaged) and REFERENCE in by_name,
    ]
    if not any(halves):
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, sum(halves), figsize=(4.8 * sum(halves), 4.8), dpi=110, squeeze=False)
    places = iter(axes[0])
    if halves[0]:
        _draw_sizes(next(places), sizes, by_name[REFERENCE])
    if halves[1]:
        named = {"none": by_name.get(BASELINE), "plain": by_name[REFERENCE]}
        named |= {views[row["row"]]: row for row in averaged}
        _draw_teachers(next(places), named, teachers)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return True


def _has_place(row: Row) -> bool:
    """Whether it is known how many bytes its store has and how its students do beside the reference's."""
    return bool(row["store_bytes"]) and (row["row"] == REFERENCE or _compared(row))


def _compared(row: Row) -> bool:
    return row["against"] == REFERENCE and row["gain_nds"] is not None


def _draw_sizes(axes: Any, rows: Sequence[Row], reference: Row) -> None:
    for number, row in enumerate(rows):
        kb = row["store_bytes"] / 1000
        look: dict[str, Any] = {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)], "linestyle": "none"}
        label = f"{row['row']}: {kb:,.1f} kB"
        if row is reference:
            axes.plot(kb, 0.0, label=label, **look)
            continue
        gain, low, high = row["gain_nds"], row["ci_low"], row["ci_high"]
        ends = None if low is None else [[max(0.0, gain - low)], [max(0.0, high - gain)]]
        axes.errorbar(kb, gain, ends, label=label, capsize=3, **look)
    if reference["against"] == BASELINE and reference["gain_nds"] is not None:
        axes.axhline(-reference["gain_nds"], color="0.4", linewidth=1, linestyle="--", label=WITHOUT)
        if reference["ci_low"] is not None:
            axes.axhspan(-reference["ci_high"], -reference["ci_low"], color="0.92", zorder=0)
    axes.axhline(0.0, color="0.8", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="store, kB a frame", ylabel=f"NDS, points beside {REFERENCE}")
    axes.set_title("size against accuracy (bars: 95 %, paired by seed)", fontsize=10)
    kilobytes = [row["store_bytes"] / 1000 for row in rows]
    axes.set_xlim(min(kilobytes) / 1.5, max(kilobytes) * 1.5)
    _plain_ticks(axes, min(kilobytes) / 1.5, max(kilobytes) * 1.5)
    shown = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: pair[1] == WITHOUT)
    handles, labels = zip(*shown, strict=True)
    axes.legend(handles, labels, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _plain_ticks(axes: Any, low: float, high: float) -> None:
    """1, 2 and 5 times powers of ten, as plain numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5) if low <= step * 10.0**decade <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _draw_teachers(axes: Any, students: Mapping[str, Row | None], teachers: Mapping[str, float]) -> None:
    bars = [("teacher,\n" + (views or "plain"), score, None, "C0") for views, score in teachers.items()]
    bars += [
        (f"student,\n{name}", row["nds_mean"], row["nds_std"], "C1")
        for name, row in students.items()
        if row is not None
    ]
    for place, (_, score, deviation, color) in enumerate(bars):
        axes.bar(place, score, 0.7, yerr=deviation, capsize=3, color=color)
        axes.annotate(
            f"{score:.1f}",
            (place, score + (deviation or 0.0)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_xticks(range(len(bars)), [name for name, *_ in bars], fontsize=9)
    axes.set_ylabel("NDS, points")
    axes.set_title("averaged teacher (bars: deviation over seeds)", fontsize=10)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
