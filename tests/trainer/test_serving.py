"""Terms are refused before training where the store cannot serve them, and skipped where they do not apply."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cache.coverage import Coverage
from cache.errors import ConfigError, StoreError
from cache.field_list import FieldList
from cache.grid import BevGrid
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from trainer.terms import TermNeeds, require_served
from trainer.terms.bevdistill_dense import BevDistillDenseOptions, needs_of
from trainer.terms.store_facts import column_name

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 1.6)
MODEL: Any = SimpleNamespace(grid=GRID)
LABELLED, MIXED, UNLABELLED = [KIND_LABELLED] * 3, [KIND_LABELLED, KIND_UNLABELLED, KIND_UNLABELLED], [KIND_UNLABELLED]


def a_store(
    coverage: str = "gaussian",
    kinds: list[int] = LABELLED,
    fields: tuple[str, ...] = ("bev_index", "bev_weights"),
    asked: str = "",
) -> Any:
    """As much of a teacher store as the check looks at."""
    return SimpleNamespace(
        root="cache/teachers/t",
        grid=GRID,
        coverage=Coverage.parse(coverage, GRID),
        further=SimpleNamespace(asked=FieldList.parse(asked)),
        manifest=SimpleNamespace(fields=[SimpleNamespace(name=name) for name in fields]),
        index=SimpleNamespace(kind=np.array(kinds, np.uint8)),
    )


def dense_term(selector: str = "gaussian") -> TermNeeds:
    return needs_of(BevDistillDenseOptions(selector=selector))


def test_a_served_term_passes_with_an_answer_for_each_kind_of_frame() -> None:
    assert set(require_served("t", dense_term(), a_store(), MODEL)) == {"labelled"}
    answers = require_served("t", dense_term("lidar"), a_store("lidar+gaussian", MIXED), MODEL)
    assert [answer.verdict for answer in answers.values()] == ["served", "served"]


def test_frames_without_annotations_are_skipped_not_refused() -> None:
    answers = require_served("t", dense_term(), a_store("gaussian", MIXED), MODEL)
    assert {kind: answer.verdict for kind, answer in answers.items()} == {"labelled": "served", "unlabelled": "skipped"}


def test_a_term_that_applies_to_none_of_the_frames_is_refused() -> None:
    for store, rows in ((a_store("gaussian", UNLABELLED), None), (a_store("gaussian", MIXED), [1, 2])):
        with pytest.raises(StoreError, match="needs the annotated boxes of gaussian, the frames are unlabelled, all"):
            require_served("t", dense_term(), store, MODEL, rows)
    require_served("t", dense_term(), a_store("gaussian", MIXED), MODEL, [0])


def test_a_missing_selector_is_refused_with_the_flag_to_cache_again() -> None:
    with pytest.raises(
        StoreError,
        match=r"term t: cache/teachers/t: it reads the weights of selector gaussian, the store covers dense; "
        r"run `cache-teacher --coverage 'dense\+gaussian\(dilate=1\)'`",
    ):
        require_served("t", dense_term(), a_store("dense"), MODEL)


def test_an_option_that_the_recipe_fixes_must_be_the_stores() -> None:
    require_served("t", dense_term("gaussian(dilate=1)"), a_store(), MODEL)
    with pytest.raises(StoreError, match=r"selector gaussian\(dilate=0\), the store covers gaussian\(dilate=1\)"):
        require_served("t", dense_term("gaussian(dilate=0)"), a_store(), MODEL)


def test_every_cell_needs_dense() -> None:
    whole = TermNeeds(("bev_index",), (), ("bev",), every_cell=True)
    require_served("t", whole, a_store("dense"), MODEL)
    with pytest.raises(StoreError, match=r"reads every cell \(dense\).*--coverage 'gaussian\(dilate=1\)\+dense'"):
        require_served("t", whole, a_store(), MODEL)


def test_another_grid_is_refused_with_both_only_where_cells_are_read() -> None:
    other: Any = SimpleNamespace(grid=BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8))
    with pytest.raises(ConfigError, match=r"reads the grid .*cell 0\.8 m, the store is on .*cell 1\.6 m"):
        require_served("t", dense_term(), a_store(), other)
    require_served("boxes", TermNeeds(("boxes",), (), ()), a_store(fields=("boxes",)), other)


def test_a_missing_field_and_an_unknown_selector_are_named() -> None:
    with pytest.raises(StoreError, match="reads the field 'bev_index', the store holds boxes"):
        require_served("t", dense_term(), a_store(fields=("boxes",)), MODEL)
    with pytest.raises(ConfigError, match=r"term t: selector 'gauss': .*expected one of gaussian, footprint"):
        require_served("t", dense_term("gauss"), a_store(), MODEL)


def test_a_term_may_ask_for_a_product() -> None:
    term = dense_term("confident*gaussian(min_radius=2)")
    require_served("t", term, a_store("lidar+gaussian(min_radius=2)*confident(threshold=0)"), MODEL)
    assert column_name("confident*gaussian") == "gaussian*confident"
    with pytest.raises(
        StoreError, match=r"run `cache-teacher --coverage 'gaussian\(dilate=1\)\+gaussian\(dilate=1,min_ra"
    ):
        require_served("t", term, a_store(), MODEL)
