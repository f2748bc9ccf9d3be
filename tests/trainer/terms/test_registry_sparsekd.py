"""Claims about how SparseKD's terms meet a store: what is served, what is refused and with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import ConfigError, StoreError
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.build import build_detector
from models.center_head import BRANCHES
from models.config import parse_config
from models.detector import Batch, total_of
from tests.models.synthetic import synthetic_batch
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, write_frames, write_teacher
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.registry import RELABELS
from trainer.terms.registry import TERMS as ALL_TERMS
from trainer.terms.term import require_served

NAMES = (
    "sparsekd_logits",
    "sparsekd_regression",
    "kd_logits",
    "gid_logits",
    "kd_fitnet",
    "fg",
    "mimic",
    "gid_features",
)
TERMS = {name: ALL_TERMS[name] for name in NAMES}

MISSING = {
    "sparsekd_logits": "logits",
    "sparsekd_regression": "regression",
    "kd_logits": "logits",
    "mimic": r"samples\(points=7x7\)",
    "gid_features": r"samples\(points=7x7\)",
}


@pytest.fixture(scope="module")
def student() -> Any:
    return build_detector(TINY_STUDENT)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_served_or_refused_with_the_missing_field(name: str, cache: Path, student: Any) -> None:
    teacher = TeacherStore(cache / "teachers" / "demo")  # gaussian and dense, without further fields
    kind = TERMS[name]
    options = kind.options()
    if name in MISSING:
        with pytest.raises(StoreError, match=rf"term {name}: .*reads the field '{MISSING[name]}'"):
            require_served(name, kind.needs(options), teacher, student)
    else:
        require_served(name, kind.needs(options), teacher, student)
    term = kind.build(name, 0.5, options, student, teacher, [0, 1])
    assert (term.name, term.weight) == (name, 0.5) and term.needs == kind.needs(options)


def test_a_store_without_the_selector_is_refused_with_the_coverage(cache: Path, student: Any) -> None:
    kind = TERMS["mimic"]
    options = parse_config(kind.options, {"source": "cells"}, "recipe")
    with pytest.raises(StoreError, match=r"footprint, the store covers .*--coverage"):
        require_served("mimic", kind.needs(options), TeacherStore(cache / "teachers" / "demo"), student)


def test_a_student_on_another_grid_is_served(tmp_path: Path, student: Any) -> None:
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, grid=BevGrid(-51.2, 51.2, -51.2, 51.2, 3.2))
    teacher = TeacherStore(tmp_path / "teachers" / "demo")
    for name in ("fg", "gid_logits"):
        require_served(name, TERMS[name].needs(TERMS[name].options()), teacher, student)


def test_options_are_checked_by_name() -> None:
    for name, kind in TERMS.items():
        with pytest.raises(ConfigError, match=r"unknown key 'mask'; allowed there"):
            parse_config(kind.options, {"mask": 1}, f"term {name}")
    with pytest.raises(ConfigError, match="selector 'peaks' is unknown"):
        parse_config(TERMS["sparsekd_logits"].options, {"selectors": ["peaks"]}, "recipe")
    assert set(RELABELS) == {"sparsekd_label"}


def live_said(teacher: Any, batch: Batch) -> TeacherSaid:
    """What a teacher in the loop says: every cell of its maps, with made-up weights."""
    with torch.no_grad():
        output = teacher.eval()(batch)
    frames, size = len(batch.boxes), teacher.grid.height * teacher.grid.width

    def rows(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).transpose(1, 2).reshape(frames * size, -1)

    weights = torch.rand(frames * size, 3)
    cells = TeacherCells(
        torch.arange(size).repeat(frames),
        rows(output.bev),
        weights,
        torch.arange(frames + 1) * size,
        ("gaussian*confident", "gaussian", "dense"),
    )
    columns, first = {}, 0
    for name, channels in BRANCHES.items():
        columns[name] = slice(first, first + channels)
        first += channels
    found = teacher.decode(output)
    item = "samples(points=7x7)"
    return TeacherSaid(
        teacher.grid,
        cells,
        logits=rows(output.heads[0]["heatmap"]),
        regression=rows(torch.cat([output.heads[0][name] for name in BRANCHES], dim=1)),
        regression_columns=(columns,),
        groups=(teacher.heat_classes,),
        boxes=[torch.from_numpy(f.boxes_lidar) for f in found],
        scores=[torch.from_numpy(f.scores) for f in found],
        labels=[torch.from_numpy(f.labels).long() for f in found],
        samples={item: [torch.randn(len(boxes), 49, output.bev.shape[1]) for boxes in batch.boxes]},
        sample_inside={item: [torch.ones(len(boxes), 49, dtype=torch.bool) for boxes in batch.boxes]},
    )


def test_all_of_them_together_train_a_real_student_under_autocast() -> None:
    torch.manual_seed(0)
    student: Any = build_detector({**TINY_TEACHER, "pillars": {"cell_m": 3.2}}).train()
    teacher: Any = build_detector(TINY_TEACHER)
    batch = dataclasses.replace(
        synthetic_batch(frames=2, objects=4, points=500), bev_augmentation=torch.eye(4).expand(2, 4, 4)
    )
    said = live_said(teacher, batch)
    assert said.grid != student.grid
    store_like: Any = type("Store", (), {"grid": said.grid, "bev": type("Bev", (), {"channels": teacher.bev_channels})})
    terms = [kind.build(name, 1.0, kind.options(), student, store_like, []) for name, kind in TERMS.items()]
    with torch.autocast("cpu", torch.bfloat16):
        output = student(batch)
    options, build = RELABELS["sparsekd_label"].options, RELABELS["sparsekd_label"].build
    relabelled = build("label", options(threshold=0.05))(batch, said)
    parts = student.loss_parts(output, relabelled.batch)
    for term in terms:
        parts.update(term(output, batch, said))
    values = total_of(parts)
    assert {name for name in TERMS if name != "gid_logits"} <= {n for n, v in values.items() if v.item() > 0}
    torch.stack(list(values.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for term in terms for p in term.parameters())
    assert relabelled.counts["label/kept"] > 0
