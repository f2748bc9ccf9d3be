"""`./bevcask evaluate --report FILE.html`: what was just scored, explained and drawn, as one HTML file.

Takes the frames, truth and predictions that the score was made of, so that nothing is read or predicted a second time
but the frames that are drawn. At the size of nuScenes val some ten seconds, and a second or two a frame drawn.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.files import read_json
from cache.layout import teacher_names, teacher_place
from cache.store import TeacherStore
from evaluation.curves import LossCurve
from evaluation.evaluation_report import ReportAround, write_evaluation_report
from evaluation.explained import Model, explain
from evaluation.resampling import DRAWS
from evaluation.subsets import EVERYTHING
from studies.frame_pictures import Gallery, report_frames
from studies.outputs import require_outputs
from studies.scored import Scored

PICTURES = 4


@dataclass(frozen=True)
class ReportRequest:
    """Where the report goes, and how much of it: pictures: worst frames that are drawn; draws: of the bootstrap."""

    path: Path
    pictures: int = PICTURES
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        require_outputs({"--report": self.path})


def reporter(path: Path | None, pictures: int | None, draws: int | None) -> Callable[[Scored], None] | None:
    """A listener of `evaluate_source` that writes the report, None where none is asked for. Raises ConfigError for a
    path that is a folder, before anything is scored."""
    if path is None:
        return None
    request = ReportRequest(path, PICTURES if pictures is None else pictures, DRAWS if draws is None else draws)
    return lambda scored: write_report_of(scored, request)


def write_report_of(scored: Scored, request: ReportRequest) -> None:
    """Explains, draws and writes. Raises OutOfSpaceError; what of a frame can't be drawn is told in the report."""
    model = Model(scored.name, scored.metrics, scored.boxes_of)
    explained = explain(
        [model],
        scored.frames,
        scored.truth,
        scored.store.manifest.scenes,
        subset=scored.subset,
        draws=request.draws,
        seed=request.seed,
    )[0]
    teacher = _teacher_beside(scored)
    gallery = Gallery(scored.store, scored.rows, scored.frames, scored.truth, teacher)
    layer = {"run": f"student {scored.name}", "teacher": "teacher", "submission": "submission"}[scored.kind]
    part = "" if scored.subset == EVERYTHING else f", {scored.subset}"
    what = {"run": "trained run", "teacher": "teacher store", "submission": "submission"}[scored.kind]
    around = ReportAround(
        title=f"{scored.kind.capitalize()} {scored.name} on {scored.split}{part}",
        about=(
            f"The {what} {scored.name} scored with the nuScenes detection metric on {len(scored.frames):,} frames of "
            f"{scored.store.manifest.identity['dataset_version']}, split {scored.split}{part}."
        ),
        notes=_notes(scored),
        frames=report_frames(gallery, explained, scored.boxes_of, layer, request.pictures),
        curves=_curves(scored),
        made=_made(scored, teacher),
        commands=[_command(scored, request)],
        next_command=shlex.join(
            ["./bevcask", "inspect", "--cache", str(scored.cache), "--token", scored.frames[0].token]
        ),
    )
    write_evaluation_report(request.path, explained, around)


def _teacher_beside(scored: Scored) -> TeacherStore | None:
    """The teacher that is drawn: the scored one, the run's own where the cache has it, else the only one there is."""
    names = teacher_names(scored.cache)
    own = [scored.source] if scored.kind == "teacher" else []
    if scored.kind == "run":
        recipe = run_recipe(Path(scored.source))
        own = [str(part.get("teacher", "")) for part in (recipe.get("data", {}), *recipe.get("terms", ()))]
    for name in own:
        if name in names:
            return TeacherStore(teacher_place(scored.cache, name))
    return TeacherStore(teacher_place(scored.cache, names[0])) if len(names) == 1 else None


def run_recipe(run: Path) -> dict[str, Any]:
    """The recipe that a run wrote down; empty where it has none."""
    path = run / "recipe.json"
    return read_json(path, "a run's recipe") if path.is_file() else {}


def _notes(scored: Scored) -> list[str]:
    out, store = [], scored.store
    lost = len(store.manifest.quarantined)
    if lost:
        out.append(f"{lost} frames could not be read when they were cached: they are not scored.")
    unlabelled = len(store.split_rows(scored.split)) - len(store.key_rows(scored.split))
    if unlabelled > 0:
        out.append(f"{unlabelled:,} unlabelled frames of the split, between its key frames, are not scored.")
    return out


def _curves(scored: Scored) -> list[LossCurve]:
    if scored.kind != "run" or not (Path(scored.source) / "metrics.jsonl").is_file():
        return []
    from studies.training import loss_curves  # torch

    return loss_curves(scored.name, Path(scored.source))


def _made(scored: Scored, teacher: TeacherStore | None) -> list[tuple[str, str]]:
    store = scored.store
    weights = ", its best weights" if scored.weights == "best" else ""
    out = [("model", f"{scored.kind} {scored.source}{weights}"), ("stores", f"{scored.cache}")]
    out.append(("frame store", f"digest {store.manifest.digest}"))
    if teacher is not None:
        said = f"{teacher.manifest.header['teacher']}, digest {teacher.manifest.digest}"
        out.append(("teacher drawn" if scored.kind != "teacher" else "teacher", said))
    if scored.kind == "run":
        out += run_facts(Path(scored.source))
    out.append(("numpy", np.__version__))
    out.append(("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())))
    return out


def run_facts(run: Path) -> list[tuple[str, str]]:
    """What a run wrote down of itself, in words."""
    recipe = run_recipe(run)
    out = []
    if recipe:
        terms = ", ".join(f"{term['name']} x {term['weight']:g}" for term in recipe.get("terms", ())) or "none"
        out += [("recipe", str(recipe.get("name", "?"))), ("distillation terms", terms)]
        out.append(("seed", str(recipe.get("train", {}).get("seed", "?"))))
        out.append(("trained on", f"split {recipe.get('data', {}).get('split', '?')}"))
    record = run / "run.json"
    if record.is_file():
        values = read_json(record, "the record of a run")
        shown = [(key, values.get(key)) for key in ("steps", "seconds", "frames_per_s", "torch", "device")]
        known = [(key, value) for key, value in shown if value is not None]
        out += [
            (f"training: {key}", f"{value:,.6g}" if isinstance(value, float) else str(value)) for key, value in known
        ]
    return out


def _command(scored: Scored, request: ReportRequest) -> str:
    parts = ["--cache", str(scored.cache), f"--{scored.kind}", scored.source, "--split", scored.split]
    parts += ["--weights", scored.weights] if scored.weights != "last" else []
    parts += [word for one in scored.subset.options for word in ("--subset", one)]
    parts += ["--report", str(request.path)]
    parts += ["--pictures", str(request.pictures)] if request.pictures != PICTURES else []
    parts += ["--draws", str(request.draws)] if request.draws != DRAWS else []
    return shlex.join(["./bevcask", "evaluate", *parts])
