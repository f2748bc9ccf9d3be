"""Several teachers in one run, and one term more than once: what each adds, what is logged, saved, refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cache.errors import BevcaskError, ConfigError, FingerprintError, StoreError
from cache.grid import BevGrid
from cache.store import FrameStore, TeacherStore
from models.detector import Detector, total_of
from tests.trainer.conftest import BOXES
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from tests.trainer.test_loop import AUGMENTATION, killed_at, losses, quiet
from trainer.augment import no_augment
from trainer.batches import BatchBuilder
from trainer.checkpoints import list_checkpoints
from trainer.loop import train
from trainer.plan import make_plan, said_reader, training_needs
from trainer.recipe import Recipe, make_recipe
from trainer.setup import make_training
from trainer.teachers import rows_by_frame

GAUSSIAN = "gaussian(dilate=0)"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames and the teachers `near` and `far`, of other channels, values and coverage."""
    root = tmp_path_factory.mktemp("two") / "cache"
    write_frames(root, boxes=BOXES)
    write_teacher(root, name="near", boxes=BOXES, coverage=GAUSSIAN)
    write_teacher(root, name="far", boxes=BOXES, coverage=f"{GAUSSIAN}+dense", channels=7, seed=5)
    return root


def recipe(*terms: dict[str, Any], teacher: str = "near", **train_values: Any) -> Recipe:
    settings = {"steps": 6, "batch": 2, "lr": 1e-3, "log_every": 1, "checkpoint_every": 2, **train_values}
    data = {**AUGMENTATION, "teacher": teacher}
    return make_recipe({"model": TINY_STUDENT, "data": data, "train": settings, "terms": terms}, "test", "two")


def dense(**more: Any) -> dict[str, Any]:
    return {"name": "bevdistill_dense", **more}


def test_a_term_of_each_teacher_gives_what_it_gives_alone(two: Path) -> None:
    """Whatever else stands in the recipe: its own store's values, and its own weight."""
    both = make_plan(recipe(dense(weight=0.25), dense(key="far", teacher="far", weight=0.75)), two)
    training = make_training(both, torch.device("cpu"))
    training.model.eval()
    builder = BatchBuilder(both.frames, training_needs(cast(Detector, training.model), both.recipe), said_reader(both))
    batch, said = builder.build([3, 5], [no_augment(6)] * 2)
    assert said is not None and set(said.by_name) == {"near", "far"}
    for name, channels in (("near", 5), ("far", 7)):
        stored, cells = TeacherStore(two / "teachers" / name), said[name].cells
        assert cells is not None and cells.values.shape[1] == channels
        assert np.array_equal(cells.values.numpy(), np.concatenate([stored.cells(row).values for row in (3, 5)]))
    output = training.model(batch)
    for key, teacher, weight in (("bevdistill_dense", "near", 0.25), ("bevdistill_dense_far", "far", 0.75)):
        alone_plan = make_plan(recipe(dense(teacher=teacher), teacher=""), two)
        alone = make_training(alone_plan, torch.device("cpu")).terms["bevdistill_dense"]
        alone.load_state_dict(training.terms[key].state_dict())
        reader = said_reader(alone_plan)
        assert reader is not None
        wanted = total_of(alone(output, batch, reader.read([3, 5], [])[teacher]))["bevdistill_dense"]
        found = total_of(training.terms[key](output, batch, said[teacher]))
        assert list(found) == [key]
        torch.testing.assert_close(found[key], weight * wanted)


def test_a_term_that_stands_twice_reads_its_store_once_and_owns_two_adaptors(two: Path) -> None:
    plan = make_plan(recipe(dense(weight=0.5), dense(key="again", weight=0.5)), two)
    training = make_training(plan, torch.device("cpu"))
    one, other = training.terms["bevdistill_dense"], training.terms["bevdistill_dense_again"]
    assert not torch.equal(*(next(iter(term.parameters())) for term in (one, other)))
    other.load_state_dict(one.state_dict())
    builder = BatchBuilder(plan.frames, training_needs(cast(Detector, training.model), plan.recipe), said_reader(plan))
    batch, said = builder.build([0, 3], [no_augment(6)] * 2)
    assert said is not None and list(said.by_name) == ["near"]  # read once
    output = training.model(batch)
    first, second = (
        next(iter(total_of(term(output, batch, said["near"])).values())) for term in training.terms.values()
    )
    assert torch.equal(first, second) and float(first.detach()) > 0


def test_a_run_of_two_teachers_logs_saves_and_resumes_each_under_its_name(two: Path, tmp_path: Path) -> None:
    chosen = recipe(dense(), dense(key="far", teacher="far", weight=0.5), {"name": "sparsekd_label", "teacher": "far"})
    train(chosen, two, tmp_path / "whole", progress=quiet)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, two, tmp_path / "cut", resume=True, progress=killed_at(3))
    train(chosen, two, tmp_path / "cut", resume=True, progress=quiet)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert {"bevdistill_dense", "bevdistill_dense_far", "sparsekd_label/kept"} <= set(losses(tmp_path / "whole")[0])
    with safe_open(list_checkpoints(tmp_path / "whole")[0], framework="pt") as file:
        names = {name.split(".")[1] for name in file.keys() if name.startswith("terms.")}  # noqa: SIM118 - not a dict
    assert names == {"bevdistill_dense", "bevdistill_dense_far"}


def test_the_runs_identity_covers_every_teachers_manifest(two: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(two, cache)
    chosen = recipe(dense(), dense(key="far", teacher="far"))
    with pytest.raises(KeyboardInterrupt):
        train(chosen, cache, tmp_path / "run", progress=killed_at(3))
    was = make_plan(chosen, cache).manifests()
    assert set(was) == {"frames", "teachers/near", "teachers/far"}
    shutil.rmtree(cache / "teachers" / "far")
    write_teacher(cache, name="far", boxes=BOXES, coverage=f"{GAUSSIAN}+dense", channels=7, seed=6)
    now = make_plan(chosen, cache).manifests()["teachers/far"]
    with pytest.raises(FingerprintError, match=rf"teachers/far = .*{was['teachers/far']}.*{now}"):
        train(chosen, cache, tmp_path / "run", resume=True, progress=quiet)


def refusal(cache: Path, run: Path, *terms: dict[str, Any]) -> BevcaskError:
    with pytest.raises(BevcaskError) as caught:
        train(recipe(*terms), cache, run, progress=quiet)
    assert "\n" not in str(caught.value) and not run.exists()
    return caught.value


@pytest.mark.parametrize(
    ("written", "kind", "words"),
    [
        ({"world": 1}, FingerprintError, "dataset_version = v1.0-synthetic-1, but .*frames has v1.0-synthetic-0"),
        ({"frames": 4}, StoreError, "2 of 6 frames are missing, the first 0+4; run cache-teacher again"),
        (
            {"grid": BevGrid(-51.2, 51.2, -51.2, 51.2, 3.2)},
            ConfigError,
            r"term bevdistill_dense_far: .*cell 3\.2 m.*cell 6\.4 m",
        ),
        (
            {"coverage": "dense"},
            StoreError,
            "term bevdistill_dense_far: .*gaussian, the store covers dense; .*--coverage",
        ),
    ],
    ids=["identity", "frames", "grid", "coverage"],
)
def test_a_second_teacher_that_does_not_fit_is_refused_with_both_values(
    written: dict[str, Any], kind: type[BevcaskError], words: str, tmp_path: Path
) -> None:
    write_frames(tmp_path, boxes=BOXES)
    write_teacher(tmp_path, name="near", boxes=BOXES, coverage=GAUSSIAN)
    write_teacher(tmp_path, name="far", boxes=BOXES, **{"coverage": GAUSSIAN, **written})
    error = refusal(tmp_path, tmp_path / "run", dense(), dense(key="far", teacher="far"))
    assert isinstance(error, kind)
    assert re.search(words, str(error)) and "teachers/far" in str(error), str(error)


def test_a_teacher_that_is_not_there_is_named_beside_those_that_are(two: Path, tmp_path: Path) -> None:
    error = refusal(two, tmp_path / "run", dense(), dense(key="far", teacher="farther"))
    assert isinstance(error, StoreError)
    assert "no store of the teacher 'farther' that the recipe names; this cache has teachers far, near; run " in str(
        error
    )
    assert "`cache-teacher --name farther`" in str(error)
    wrong = refusal(two, tmp_path / "run", dense(teacher="../near"))
    assert "teacher store '../near': expected 1 to 64 lower-case letters" in str(wrong)


def test_rows_of_a_teacher_are_found_by_the_frame_whatever_the_order(two: Path) -> None:
    assert rows_by_frame(5, [3, 0], [10, 7]).tolist() == [7, -1, -1, 10, -1]
    plan = make_plan(recipe(dense()), two)
    reader = said_reader(plan)
    assert reader is not None
    cells = reader.read([5, 0], [])["near"].cells
    stored = TeacherStore(two / "teachers" / "near")
    assert cells is not None
    assert np.array_equal(cells.index.numpy(), np.concatenate([stored.cells(row).index for row in (5, 0)]))
    assert len(FrameStore(two / "frames")) == len(reader.rows["near"]) == 6
