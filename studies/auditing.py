"""`./bevcask evaluate --teacher T --audit`: a teacher store scored, and audited before a student learns from it."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape

from cache.classes import require_detection_classes
from cache.errors import ConfigError
from cache.layout import frames_place, teacher_place
from cache.store import FrameStore, TeacherStore
from evaluation.audit import SCORE, Audit, audit_store
from evaluation.audit_table import audit_tables
from evaluation.draw import draw_audit, write_png
from studies.scoring import Outcome, choose_split, evaluate_source


def audit_source(
    cache: str | Path,
    teacher: str | None,
    *,
    split: str | None = None,
    score: float | None = None,
    export: Path | None = None,
    out: Path | None = None,
) -> Outcome:
    """What `evaluate_source` says of the teacher store, and the audit: tables, its figures under "audit", and the heat
    maps at `out`. Frames without annotations are not scored; the audit then tells of the others, or of cells alone.

    Raises ConfigError where no teacher is named, for a score outside 0..1 and for an `out` that is no PNG, and what
    `evaluate_source` and `audit_store` raise.
    """
    if teacher is None:
        raise ConfigError("--audit looks into a teacher store: name it with --teacher")
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the heat maps are a PNG, expected a name ending in .png")
    store = FrameStore(frames_place(cache))
    require_detection_classes(store.classes, str(store.root))
    split = choose_split(store, split)
    rows = store.key_rows(split)
    # before the scoring, which takes longer: what is wrong with the stores is told at once
    audit = audit_store(store, TeacherStore(teacher_place(cache, teacher)), rows, SCORE if score is None else score)
    unlabelled = int(audit.frames[1])
    scored: Outcome | None = None
    if not unlabelled or export is not None:
        scored = evaluate_source(cache, teacher=teacher, split=split, export=export)
    lines: list[RenderableType] = list(scored.renderables) if scored is not None else []
    if unlabelled:
        lines.append(f"{unlabelled} of {len(rows)} frames of {split} have no annotations: the metric needs them on all")
    lines.append(f"audit of teacher store {teacher} on {split}, {len(rows)} frames")
    if not audit.labelled:
        lines.append("no frame is annotated, so there is nothing to compare the teacher with: cells only")
    lines += audit_tables(audit)
    if out is not None:
        lines.append(_picture(audit, f"teacher store {teacher} on {split}", out))
    summary = {**(scored.summary or {} if scored is not None else {}), "audit": {"split": split, **audit.to_dict()}}
    return Outcome(lines, summary, _next_step(store, cache, teacher, split))


def _picture(audit: Audit, name: str, out: Path) -> str:
    if not audit.labelled:
        return f"{escape(str(out))} is not written: without annotations there is no support to draw"
    write_png(out, draw_audit(audit, name))
    return f"heat maps written to {escape(str(out))}"


def _next_step(store: FrameStore, cache: str | Path, teacher: str, split: str) -> str:
    """On to training, but the frames that a student trains on should be audited first."""
    others = sorted({scene.split for scene in store.manifest.scenes} - {split})
    training = next((name for name in others if name.endswith("train")), None)
    if training is not None:
        return f"./bevcask evaluate --cache {cache} --teacher {teacher} --audit --split {training}"
    return f"./bevcask train --recipe demo-distilled --cache {cache} --run runs/student"
