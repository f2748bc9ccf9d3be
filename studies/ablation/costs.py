"""What SparseKD's students cost beside their teacher, and the ratio of cost and performance (CPR) of their rows.

Parameters, and activations of what comes behind the canvas, from the configs alone (seconds, nothing is computed); NDS
from the results. The paper's powers are not known: both are 1 here, so a figure compares with those of this page only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.cost import compression_performance, count_dense
from studies.ablation.suite import Suite, laid_over
from trainer.recipe import load_recipe

POWERS = (1.0, 1.0)
LIDAR_BASE = "ablation-lidar-student"


def cost_table(suite: Suite, rows: Sequence[Mapping[str, Any]], teacher_nds: float) -> list[str]:
    """Lines of markdown. rows: those of `results.json` of one suite, regime and round; teacher_nds: points. Empty where
    none is of a LiDAR student."""
    lidar = {name: spec for name, spec in suite.students.items() if spec.base == LIDAR_BASE}
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["student"] in lidar:
            found.setdefault(row["student"], {})[row["row"]] = row["nds_mean"]
    if not found:
        return []
    teacher = count_dense(load_recipe("ablation-teacher").model).total
    names = list(dict.fromkeys(name for of_student in found.values() for name in of_student))
    lines = [
        "CPR = (1 - activations / teacher's + NDS / teacher's) / 2:",
        "",
        f"| student | parameters | activations | {' | '.join(names)} |",
        "| --- " * (3 + len(names)) + "|",
    ]
    for student, scores in found.items():
        overlay: Mapping[str, Any] = laid_over({}, lidar[student].recipe)
        cost = count_dense(load_recipe(LIDAR_BASE, overlay).model).total
        pair = float(cost.work.activations), float(teacher.work.activations)
        ratios = [
            f"{compression_performance(pair, (scores[name], teacher_nds), *POWERS):.3f}" if name in scores else ""
            for name in names
        ]
        lines.append(f"| {student} | {cost.parameters:,} | {pair[0] / pair[1]:.2f} | {' | '.join(ratios)} |")
    return lines
