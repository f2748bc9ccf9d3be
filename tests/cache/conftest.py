"""Finished stores, written once for the session; tests that damage one take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cache.stores import frame_plan, teacher_plan, write_store


@pytest.fixture(scope="session")
def frames_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames") / "store"
    write_store(root, frame_plan())
    return root


@pytest.fixture(scope="session")
def teacher_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teacher") / "store"
    write_store(root, teacher_plan())
    return root


@pytest.fixture
def damaged(frames_root: Path, tmp_path: Path) -> Path:
    """A copy of the frame store to do harm to."""
    return Path(shutil.copytree(frames_root, tmp_path / "damaged"))
