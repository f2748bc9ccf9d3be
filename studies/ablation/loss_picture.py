"""The picture of how far trainings came: the detection loss of each claim's row, and of what it is held against.

A panel a suite, a line a row: the mean over its seeds, each point averaged over the tenth of the run before it. Of
heatmap and box branches, without depth and distillation terms: whether lines are flat at the end, and whether what
gains in the metric gains on the training frames, too. A row with label distillation has it over the teacher's boxes and
unlabelled frames as well, so that its course may be compared, not its level.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from studies.ablation.lines import Line, Result

PANEL_INCHES, HEIGHT_INCHES = 4.6, 3.8
CLAIM, AGAINST, CONTROLS = "C3", "C0", ("0.35", "0.55", "0.7")
DASHES = ("--", ":", "-.")


def draw_losses(lines: Sequence[Line], path: Path) -> bool:
    """Writes the PNG `path`, of the lines of one regime and round; False, and nothing written, where no claim has
    curves beside its baseline's."""
    panels = [panel for claim in lines if claim.is_claim and len(panel := panel_of(claim, lines)) > 1]
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (PANEL_INCHES * len(panels), HEIGHT_INCHES)
    figure, axes = plt.subplots(1, len(panels), figsize=size, dpi=110, squeeze=False, sharey=True)
    for place, panel in zip(axes[0], panels, strict=True):
        for line, color, style in panel:
            steps, losses = mean_curve(line.results)
            place.plot(
                steps, losses, style, color=color, marker=".", label=f"{line.cell.row.name} ({len(line.results)})"
            )
        place.set_title(", ".join(_table_of(panel[0][0])), fontsize=9, fontweight="bold", loc="left")
        place.set_xlabel("step", fontsize=9)
        place.legend(fontsize=7, frameon=False)
        place.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("detection loss (mean over the seeds in brackets)", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return True


def panel_of(claim: Line, lines: Sequence[Line]) -> list[tuple[Line, str, str]]:
    """(line, colour, style) of the claim, of the row it is held against and of its controls, as far as they have
    curves."""
    row, table = claim.cell.row, _table_of(claim)
    beside = {line.cell.row.name: line for line in lines if _table_of(line) == table}
    looks = {row.name: (CLAIM, "-"), row.against: (AGAINST, "-")}
    left = [name for name in row.controls if name not in looks]
    looks |= {name: (CONTROLS[i % 3], DASHES[i % 3]) for i, name in enumerate(left)}
    shown = [(beside[name], *look) for name, look in looks.items() if name in beside]
    return [(line, color, style) for line, color, style in shown if mean_curve(line.results)[0].size]


def _table_of(line: Line) -> tuple[str, str]:
    return line.cell.suite.name, line.cell.student


def mean_curve(results: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and losses (n,): the mean of the curves of those results that have one, at the steps that all have."""
    curves = [dict(result.loss_curve) for result in results if result.loss_curve]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    losses = [np.mean([curve[step] for curve in curves]) for step in steps]
    return np.asarray(steps, np.int64), np.asarray(losses, np.float64)
