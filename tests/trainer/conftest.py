"""Stores shared by the trainer's tests, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.synthetic import write_frames, write_teacher

BOXES = (5, 0, 3)  # every third frame has no object


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames with points, and the teacher `demo` on them with the selectors gaussian and dense."""
    root = tmp_path_factory.mktemp("trainer") / "cache"
    write_frames(root, boxes=BOXES)
    write_teacher(root, boxes=BOXES, coverage="gaussian(dilate=0)+dense")
    return root
