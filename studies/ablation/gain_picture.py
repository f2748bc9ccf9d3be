"""The picture of a regime and round: every row's gain with its interval, suite by suite, its controls beneath.

A dot is a seed's difference, the bar the interval of their mean. Hollow marks are controls: whatever helps them is not
the teacher's knowledge. Trainings that two suites share are drawn with the first. Drawn from the lines of the tables
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from studies.ablation.lines import Line
from studies.ablation.suite import BASELINE

LINE_INCHES, FRAME_INCHES, WIDTH_INCHES = 0.26, 0.9, 8.0
METHOD, CONTROL, CLAIM = "C0", "0.55", "C3"


def draw_gains(lines: Sequence[Line], path: Path) -> bool:
    """Writes the PNG `path`, of the lines of one regime and round; False, and nothing written, where none of them has
    the interval of a gain."""
    shown = shown_lines(lines)
    if not shown:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((line.cell.suite.name, line.cell.student) for line in shown))
    height = FRAME_INCHES + LINE_INCHES * (len(shown) + len(groups))
    figure, axes = plt.subplots(figsize=(WIDTH_INCHES, height), dpi=110)
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for suite, student in groups:
        beside = axes.get_yaxis_transform()
        axes.text(0.01, place, f"{suite}, {student}", transform=beside, va="center", fontsize=9, fontweight="bold")
        for line in (one for one in shown if (one.cell.suite.name, one.cell.student) == (suite, student)):
            place += 1
            gain, row = line.gain, line.cell.row
            assert gain is not None
            color = CONTROL if row.control else CLAIM if line.is_claim else METHOD
            ends = [[gain.mean - gain.low], [gain.high - gain.mean]]
            face = "white" if row.control else color
            axes.plot(gain.differences, [place] * gain.n, ".", color=color, alpha=0.45, markersize=5)
            axes.errorbar(gain.mean, place, xerr=ends, fmt="o", color=color, markerfacecolor=face, capsize=3)
            ticks.append((place, row.name + ("" if row.against == BASELINE else f"  (to {row.against})")))
        place += 1
    axes.axvline(0.0, color="0.7", linewidth=1, zorder=0)
    axes.set_ylim(place, -1)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=9)
    axes.set_xlabel("gain in NDS points, paired by seed (bar: 95 %; red: the claim; hollow: a control)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return True


def shown_lines(lines: Sequence[Line]) -> list[Line]:
    """Those that have the interval of a gain, without gains of trainings that an earlier line has shown."""
    out: dict[tuple[str, ...], Line] = {}
    for line in lines:
        if line.gain is not None and not math.isnan(line.gain.low):
            out.setdefault((line.cell.row.against, *(result.key for result in line.results)), line)
    return list(out.values())
