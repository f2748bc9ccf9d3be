"""What cannot be distilled is refused before the first step: one line with what is missing and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import BevcaskError, ConfigError, StoreError
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, write_frames, write_teacher
from tests.trainer.test_cached_equals_live import QUERY_STUDENT
from tests.trainer.test_loop import quiet
from trainer.checkpoints import list_checkpoints
from trainer.loop import train
from trainer.recipe import make_recipe

STUDENTS = {"heat": TINY_STUDENT, "lidar": TINY_TEACHER, "queries": QUERY_STUDENT}


def refusal(cache: Path, run: Path, student: str, terms: list[dict[str, Any]], **data: Any) -> BevcaskError:
    values = {
        "model": STUDENTS[student],
        "data": {"teacher": "demo", "depth": False, **data},
        "train": {"steps": 1, "batch": 2, "lr": 1e-3},
        "terms": terms,
    }
    with pytest.raises(BevcaskError) as caught:
        train(make_recipe(values, "test", "test"), cache, run, progress=quiet)
    assert "\n" not in str(caught.value)
    assert not list_checkpoints(run) and not (run / "metrics.jsonl").exists()
    return caught.value


@pytest.mark.parametrize(
    ("term", "student", "missing", "remedy"),
    [
        ({"name": "sparsekd_logits"}, "heat", "'logits'", "--fields 'logits'"),
        ({"name": "lgkd_response"}, "heat", "'logits'|'regression'", "--fields 'logits,regression'"),
        ({"name": "tigbev_inner"}, "heat", r"'samples\(points=8x8,enlarge=1\.6\)'", r"--fields 'samples\(points=8x8"),
        ({"name": "lgkd_depth"}, "heat", "'depth'", "--fields 'depth'"),
        ({"name": "set2set"}, "queries", r"'queries\S*'", "--fields 'queries"),
    ],
)
def test_a_store_without_the_field_is_refused_with_the_flag_that_makes_it(
    term: dict[str, Any], student: str, missing: str, remedy: str, cache: Path, tmp_path: Path
) -> None:
    error = refusal(cache, tmp_path / "run", student, [term])
    assert isinstance(error, StoreError)
    assert re.search(rf"term {term['name']}: .*reads the field ({missing}), the store holds .*{remedy}", str(error))


def test_a_term_that_would_start_after_the_runs_end_is_refused(cache: Path, tmp_path: Path) -> None:
    error = refusal(cache, tmp_path / "run", "heat", [{"name": "fitnet", "schedule": {"start": 1}}])
    assert "term fitnet starts at step 1, the run has 1: it would never add to the loss" in str(error)


def test_a_store_of_other_cells_is_refused_with_the_coverage(cache: Path, tmp_path: Path) -> None:
    error = refusal(cache, tmp_path / "run", "heat", [{"name": "distillbev"}])
    assert "term distillbev" in str(error) and "--coverage 'gaussian" in str(error) and "footprint" in str(error)


@pytest.mark.parametrize(
    ("term", "student", "words"),
    [
        ("bevdistill_sparse", "heat", r"term bevdistill_sparse: reads the student's queries, .*bev.*; "),
        ("lgkd_depth", "lidar", r"term lgkd_depth: reads the student's depth_logits, .*; "),
        ("bevdistill_instance", "queries", r"term bevdistill_instance: reads the student's .*; "),
    ],
)
def test_a_student_without_the_output_is_refused_with_what_to_do(
    term: str, student: str, words: str, cache: Path, tmp_path: Path
) -> None:
    error = refusal(cache, tmp_path / "run", student, [{"name": term}])
    assert isinstance(error, ConfigError)
    assert re.search(words, str(error)), str(error)


def test_a_store_whose_zeros_are_lost_is_refused_to_a_term_that_tells_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As u8 was written before 0 had a code of its own in channels that are negative, too."""

    def without_zero(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        moved = np.moveaxis(np.asarray(values, np.float32), axis, -1)
        flat = moved.reshape(-1, moved.shape[-1])
        low = flat.min(axis=0, initial=0)
        step = ((flat.max(axis=0, initial=0) - low) / 255).astype(np.float32)
        codes = np.rint((moved - low) / np.where(step > 0, step, 1)).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(codes, -1, axis)), np.stack([low, step])

    write_frames(tmp_path, boxes=(5, 3))
    term: dict[str, Any] = {"name": "lgkd_feature", "options": {"selector": "gaussian", "views": "none"}}
    with monkeypatch.context() as old:
        old.setattr("cache.bev.quantise_u8", without_zero)
        write_teacher(tmp_path, boxes=(5, 3), dtype="u8")
    error = refusal(tmp_path, tmp_path / "run", "heat", [term])
    assert isinstance(error, StoreError)
    assert re.search(
        r"term lgkd_feature: .*bev_scale of frame 0+ has no code for 0 in channel \d, .*--dtype float16` under another "
        r'--name, .* or set counted = "all"',
        str(error),
    )
    write_teacher(tmp_path, name="again", boxes=(5, 3), dtype="u8")
    everything = {**term, "options": {**term["options"], "counted": "all"}}
    for teacher, chosen in (("again", term), ("demo", everything)):
        values = {
            "model": TINY_STUDENT,
            "data": {"teacher": teacher},
            "train": {"steps": 1, "batch": 2, "lr": 1e-3},
            "terms": [chosen],
        }
        train(make_recipe(values, "test", "test"), tmp_path, tmp_path / teacher, progress=quiet)


def test_what_a_recipe_contradicts_is_refused_when_it_is_read(cache: Path, tmp_path: Path) -> None:
    heavy = refusal(cache, tmp_path / "run", "heat", [{"name": "sparsekd_label", "weight": 2.0}])
    assert "sparsekd_label changes labels and adds no loss: leave out its weight and schedule" in str(heavy)
    released = [{"name": "sparsekd_regression", "options": {"form": "released"}}]
    moved = refusal(cache, tmp_path / "run", "heat", released, bev_augmentation={"rotation_deg": 5.0})
    assert "sparsekd_regression compares cell-relative values as they are: switch off" in str(moved)
