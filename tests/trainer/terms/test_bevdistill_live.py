"""BEVDistill's terms of cells and boxes on a real student, from a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.store import FrameStore, TeacherStore
from models.build import build_detector
from models.detector import Batch, total_of
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from trainer.augment import BevAugment
from trainer.said_reader import SaidReader, Wanted
from trainer.terms import TERMS, require_served


def test_terms_of_cells_and_boxes_train_a_real_student_from_a_real_store(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, coverage="gaussian(dilate=1)+dense")
    store = TeacherStore(tmp_path / "teachers" / "demo")
    torch.manual_seed(0)
    student = build_detector(TINY_STUDENT)
    rng = np.random.default_rng(0)
    size = student.config["image_size"]
    rows = [0, 1]
    reader = SaidReader(store, FrameStore(tmp_path / "frames"), Wanted(cells=True, detections=True))
    said = reader.read(rows, rows, [np.zeros(0, bool)] * 2)
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
        kind = TERMS[name]
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
