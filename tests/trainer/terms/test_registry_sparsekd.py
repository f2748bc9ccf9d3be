"""Claims about how SparseKD's terms meet a store: what is served, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cache.errors import ConfigError, StoreError
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.build import build_detector
from models.config import parse_config
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from trainer.terms.registry_sparsekd import RELABELS, TERMS
from trainer.terms.term import require_served

MISSING = {
    "sparsekd_logits": "logits",
    "sparsekd_regression": "regression",
    "kd_logits": "logits",
    "mimic": "samples_truth_7x7",
    "gid_features": "samples_truth_7x7",
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
