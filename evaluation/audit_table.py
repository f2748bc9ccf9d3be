"""The audit of a teacher store as tables for the terminal, each 80 columns wide at most."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from cache.classes import DETECTION_CLASSES
from evaluation.audit import BANDS, MATCH_M, MEASURES, Audit

# heading of a column, its measure, and the measure that it is given as a share of
_COLUMNS: tuple[tuple[str, str, str | None], ...] = (
    ("boxes", "annotated", None),
    ("counts", "counted", None),
    ("supported", "supported", "counted"),
    ("with cells", "with_cells", "counted"),
    ("off\ngrid", "outside_grid", None),
    ("no\nLiDAR", "no_lidar", None),
    ("no\nobject", "unmatched", None),
)
_NAME_WIDTH = max(map(len, DETECTION_CLASSES))


def audit_tables(audit: Audit) -> list[RenderableType]:
    """What a person reads: objects by class and distance (none without annotations), totals, cells."""
    out: list[RenderableType] = []
    if audit.labelled:
        out += [_objects(audit), *_sentences(audit)]
    return [*out, _cells(audit), *_bare(audit)]


def percent(part: int, whole: int) -> str:
    """A share in whole percent; 0% and 100% are said only where they are exact, a dash where there is nothing."""
    if not whole:
        return "–"
    rounded = round(100 * part / whole)
    return f"{rounded if part in (0, whole) else min(max(rounded, 1), 99)}%"


def _objects(audit: Audit) -> Table:
    table = _table("objects by class and distance from the car, m")
    table.add_column("class, distance", min_width=_NAME_WIDTH, no_wrap=True)
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    busy = audit.objects.any(axis=0)  # (10, 6)
    for i, name in enumerate(DETECTION_CLASSES):
        if not busy[i].any():
            continue
        table.add_row(name, *_row(audit.objects[:, i].sum(axis=1)), style="bold")
        for j in np.flatnonzero(busy[i]):
            table.add_row(f"  {BANDS[j]}", *_row(audit.objects[:, i, j]))
        table.add_section()
    table.add_row("all classes", *_row(audit.objects.sum(axis=(1, 2))), style="bold")
    for j in np.flatnonzero(busy.any(axis=0)):
        table.add_row(f"  {BANDS[j]}", *_row(audit.objects[:, :, j].sum(axis=1)))
    silent = [name for name, used in zip(DETECTION_CLASSES, busy.any(axis=1), strict=True) if not used]
    if silent:
        table.caption = f"nothing of: {', '.join(silent)}"
        table.caption_justify = "left"
    return table


def _row(counts: np.ndarray) -> list[str]:
    """(8,) counts of all measures as the texts of a line."""
    of = dict(zip(MEASURES, counts.tolist(), strict=True))
    return [
        str(of[measure]) if whole is None else f"{of[measure]} {percent(of[measure], of[whole]):>4}"
        for _, measure, whole in _COLUMNS
    ]


def _sentences(audit: Audit) -> list[str]:
    totals, score = audit.totals(), audit.setting.score
    return [
        f"counts: {totals['counted']} of {totals['annotated']} boxes, those that the metric counts (in range of the "
        "class, a LiDAR or radar point, no cycle in a rack); the columns behind it are of these",
        f"{totals['without_support']} objects have no support: no detection of score {score:g} or more within "
        f"{MATCH_M:g} m, one to one as the metric matches",
        f"{totals['outside_grid']} lie outside the BEV grid ({audit.setting.grid}): no cell can serve them",
        f"{totals['no_lidar']} have no LiDAR point (the radar saw them)",
        f"{totals['unmatched']} of {totals['detections']} detections of that score match no object",
    ]


def _cells(audit: Audit) -> Table:
    table = _table("stored cells")
    for heading in ("column", "cells a frame", "in a box"):
        table.add_column(heading, justify="left" if heading == "column" else "right")
    for i, (name, per_frame, _) in enumerate(audit.cell_shares()):
        share = percent(int(audit.in_boxes[i]), int(audit.cells[0, i]))
        table.add_row(escape(name), f"{per_frame:.1f}", share, style="bold" if i == 0 else None)
    return table


def _bare(audit: Audit) -> list[str]:
    kinds = zip(("annotated", "unlabelled"), audit.without_cells.tolist(), audit.frames.tolist(), strict=True)
    return [f"{bare} of {frames} {kind} frames have no cell" for kind, bare, frames in kinds if frames]


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box parts columns by a space; any more, and six digits would not fit 80 columns
        show_edge=False,
    )
