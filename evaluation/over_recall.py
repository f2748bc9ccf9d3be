"""Precision and TP errors over recall, by class: what the metric's figures are means of, to be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.classes import DETECTION_CLASSES
from evaluation.match_table import MatchTable
from evaluation.metrics import TP_ERRORS, UNDEFINED_ERRORS
from evaluation.recall_curves import RECALLS, cumulative_mean, recall_curve


@dataclass(frozen=True)
class ClassCurves:
    """At recalls 0, 0.01, .. 1: precision (T, 101) by threshold and errors (5, 101), the running means of `TP_ERRORS`;
    NaN past the last recall that is reached, and for errors that the class does not have."""

    name: str
    objects: int
    precision: np.ndarray
    errors: np.ndarray


def class_curves(table: MatchTable) -> list[ClassCurves]:
    """Of every class of the table."""
    out = []
    for name in table.classes:
        label = DETECTION_CLASSES.index(name)
        rows = np.nonzero(table.class_ids == label)[0]
        rows = rows[np.argsort(table.scores[rows], kind="stable")[::-1]]
        objects = int((table.objects.class_ids == label).sum())
        precision = np.full((len(table.config.dist_ths), RECALLS), np.nan)
        errors = np.full((len(TP_ERRORS), RECALLS), np.nan)
        for column in range(len(precision)):
            hits, scores = table.hits[rows, column], table.scores[rows]
            curve = recall_curve(hits, scores, objects, name)
            if curve is None:
                continue
            precision[column, : curve.last + 1] = curve.precision[: curve.last + 1]
            if column != table.tp_column:
                continue
            mine = table.errors[rows[hits]]
            for number, key in enumerate(TP_ERRORS):
                if key not in UNDEFINED_ERRORS.get(name, ()):
                    means = cumulative_mean(mine[:, number])
                    read = np.interp(curve.score[::-1], scores[hits][::-1], means[::-1])[::-1]
                    errors[number, : curve.last + 1] = read[: curve.last + 1]
        out.append(ClassCurves(name, objects, precision, errors))
    return out
