"""Every term of the registry is built from a store by its options, or refused by name with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.coverage import Coverage
from cache.errors import StoreError
from cache.grid import BevGrid
from cache.index import KIND_LABELLED
from cache.store import TeacherStore
from models.build import build_detector
from models.detector import Batch, total_of
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from trainer.augment import BevAugment
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms import require_served
from trainer.terms.registry import TERMS as ALL_TERMS
from trainer.terms.term import TermNeeds

NAMES = (
    "bevdistill_sparse",
    "bevdistill_contrast",
    "bevdistill_instance",
    "bevdistill_heat",
    "fitnet",
    "set2set",
    "monodistill",
    "uvtr",
)
BEVDISTILL_TERMS = {name: ALL_TERMS[name] for name in NAMES}

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 6.4)


def a_store(coverage: str, *fields: str) -> Any:
    """As much of a teacher store as the check looks at."""

    class Store:
        root = "cache/teachers/t"
        grid = GRID

    store: Any = Store()
    store.coverage = Coverage.parse(coverage, GRID)
    store.manifest = type("M", (), {"fields": [type("F", (), {"name": name})() for name in fields]})
    store.index = type("I", (), {"kind": np.array([KIND_LABELLED], np.uint8)})
    return store


def model() -> Any:
    return type("Model", (), {"grid": GRID})()


def needs(name: str, **options: Any) -> TermNeeds:
    kind = BEVDISTILL_TERMS[name]
    return kind.needs(kind.options(**options))


@pytest.mark.parametrize("name", BEVDISTILL_TERMS)
def test_a_store_that_lacks_a_field_is_refused_by_the_fields_name(name: str) -> None:
    wanted = needs(name)
    store = a_store("gaussian+footprint+dense", *wanted.teacher_fields)
    require_served(name, wanted, store, model())
    for missing in wanted.teacher_fields:
        store = a_store("gaussian+footprint+dense", *(f for f in wanted.teacher_fields if f != missing))
        with pytest.raises(StoreError, match=rf"term {name}: .*reads the field '{missing}'"):
            require_served(name, wanted, store, model())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bevdistill_heat", {}),
        ("bevdistill_contrast", {"places": "queries"}),
        ("bevdistill_contrast", {"teacher": "cells"}),
        ("fitnet", {"mask": "none"}),
        ("monodistill", {"over": "every_cell"}),
        ("uvtr", {"places": "queries"}),
    ],
)
def test_terms_that_read_every_cell_are_refused_a_store_of_some_with_the_flag(name: str, options: Any) -> None:
    wanted = needs(name, **options)
    with pytest.raises(StoreError, match=rf"term {name}: .*reads every cell.*--coverage '[^']*dense"):
        require_served(name, wanted, a_store("gaussian+footprint", *wanted.teacher_fields), model())


def test_terms_of_cells_and_boxes_train_a_real_student_from_a_real_store(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, coverage="gaussian(dilate=1)+dense")
    store = TeacherStore(tmp_path / "teachers" / "demo")
    torch.manual_seed(0)
    student = build_detector(TINY_STUDENT)
    rng = np.random.default_rng(0)
    size = student.config["image_size"]
    rows = [0, 1]
    cells, offsets = store.cells_of(rows)
    found = [store.detections(row) for row in rows]
    said = TeacherSaid(
        store.grid,
        TeacherCells(
            torch.from_numpy(cells.index.astype(np.int64)),
            torch.from_numpy(cells.values),
            torch.from_numpy(cells.weights),
            torch.from_numpy(offsets),
            tuple(store.selectors),
        ),
        boxes=[torch.from_numpy(np.array(d.boxes_lidar)) for d in found],
        scores=[torch.from_numpy(np.array(d.scores)) for d in found],
        labels=[torch.from_numpy(np.array(d.labels)).long() for d in found],
    )
    matrices = np.stack([BevAugment().matrix(), BevAugment(0.3, 1.05, True).matrix()])
    batch = Batch(
        images=torch.from_numpy(rng.normal(0, 1, (2, 6, 3, size[1], size[0])).astype(np.float32)),
        intrinsics=torch.tensor([[30.0, 0, 32], [0, 30, 16], [0, 0, 1]]).expand(2, 6, 3, 3),
        camera_to_lidar=torch.eye(4).expand(2, 6, 4, 4),
        boxes=[boxes.clone() for boxes in said.boxes],
        labels=list(said.labels),
        tokens=["a", "b"],
        bev_augmentation=torch.from_numpy(matrices),
    )
    output = student(batch)
    options: dict[str, dict[str, Any]] = {
        "bevdistill_instance": {"quality": "score"},
        "bevdistill_contrast": {"places": "cells", "width": 8},
        "fitnet": {},
        "uvtr": {},
    }
    for name, given in options.items():
        kind = BEVDISTILL_TERMS[name]
        parsed = kind.options(**given)
        require_served(name, kind.needs(parsed), store, student, rows)
        term = kind.build(name, 1.0, parsed, student, store, rows)
        values = total_of(term(output, batch, said))
        assert all(key == name or key.startswith(f"{name}.") for key in values)
        loss = torch.stack(list(values.values())).sum()
        assert loss.item() > 0
        reached = torch.autograd.grad(
            loss, [p for p in student.parameters() if p.requires_grad], retain_graph=True, allow_unused=True
        )
        assert sum(float(g.abs().sum()) for g in reached if g is not None) > 0, name
