"""The ablation end to end in a tiny world: killed in the middle, called again, tables made; what its parts promise."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import LocalCluster
from rich.console import Console
from scipy.stats import t

from cache.errors import BevcaskError, ConfigError
from cache.files import digest_of
from cache.layout import teacher_place
from cache.store import FrameStore, TeacherStore
from models.build import build_detector, save_weights
from pipeline.engine import Cluster
from pipeline.teacher import cache_teacher
from studies.ablation import making
from studies.ablation import slots as slots_module
from studies.ablation.controls import partners
from studies.ablation.job import Job
from studies.ablation.lines import read_results
from studies.ablation.plan import TEACHER_ROW, Cell, Sweep, job_of, jobs_of, overrides_of
from studies.ablation.prepare import (
    CAMERA_TEACHERS,
    TAUGHT_FROM,
    Settings,
    make_store,
    make_teacher,
    store_name,
    teacher_file,
    world_cache,
)
from studies.ablation.regimes import REGIMES, Scale
from studies.ablation.report import make_tables
from studies.ablation.running import FAILURES_IN_A_ROW, Budget, _begin_next, run_on_cluster, run_sweep
from studies.ablation.suite import RowSpec, StoreSpec, chosen_suites, load_suite, suite_names
from studies.ablation.tables import BEGIN, END
from studies.lock import alone_in
from tests.studies.ablation_world import SMALL_MODEL, SMALL_TEACHER, SUITE, SWEEP_SCRIPT, tiny_sweep
from trainer.plan import make_plan, said_reader
from trainer.recipe import load_recipe
from trainer.run_files import RECORD
from trainer.setup import make_training

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, dict[str, Any], str]:
    """The tiny sweep, killed with -9 once while a training was under way, then called again."""
    folder = tmp_path_factory.mktemp("ablation")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", SWEEP_SCRIPT, str(folder)]
    with open(folder / "said", "w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, process_group=0)
        deadline = time.monotonic() + 900
        while not list(folder.glob("run/runs/*/checkpoints/*")) and process.poll() is None:
            assert time.monotonic() < deadline, (folder / "said").read_text()
            time.sleep(0.1)
        assert process.poll() is None, (folder / "said").read_text()
        process.send_signal(signal.SIGKILL)  # the parent alone: its trainings must end by themselves
        process.wait()
    before = sorted((folder / "docs" / "results").glob("*.json"))
    assert all(json.loads(path.read_text())["key"] for path in before)
    sweep = tiny_sweep(folder, Console(quiet=True))
    outcome = run_sweep(sweep, budget_min=None, at_once=2, console=sweep.settings.console)
    assert outcome.there == len(before) and outcome.left == 0
    assert outcome.there + len(outcome.done) == len(list(jobs_of(sweep)))
    return sweep, read_results(sweep.results), (folder / "said").read_text()


def test_a_killed_sweep_goes_on_and_every_job_has_its_result(finished: tuple[Sweep, dict[str, Any], str]) -> None:
    sweep, results, _ = finished
    keys = {job.key for _, job in jobs_of(sweep)}
    trained = {key for key, result in results.items() if result.row != TEACHER_ROW}
    assert trained == keys and len(keys) == 6 and len(results) == 7  # the teacher's own score is the seventh
    for result in results.values():
        assert 0 <= result.NDS <= 1 and result.steps == 3
    again = run_sweep(sweep, budget_min=None, at_once=1, console=Console(quiet=True))
    assert again.done == [] and again.there == len(keys)


def test_rows_of_a_seed_differ_in_nothing_but_their_terms_and_first_weights(
    finished: tuple[Sweep, dict[str, Any], str],
) -> None:
    sweep, _, _ = finished
    recipes = {}
    for cell, job in jobs_of(sweep):
        recipe = json.loads((Path(job.run) / "recipe.json").read_text())
        recipes[cell.row.name, job.label.seed] = recipe
    for (row, seed), recipe in recipes.items():
        assert recipe["train"]["seed"] == seed and bool(recipe["terms"]) == (row != "none")
        assert recipe["train"]["steps"] == 3
        for part in ("name", "terms"):
            recipe.pop(part)
        recipe["data"].pop("teacher")
        recipe["train"].pop("init_from"), recipe["train"].pop("init_scheme")
    assert all(recipe == recipes["none", seed] for (_, seed), recipe in recipes.items())


def test_the_table_is_made_of_the_files_alone_and_the_text_around_it_stays(
    finished: tuple[Sweep, dict[str, Any], str],
) -> None:
    sweep, results, _ = finished
    docs = sweep.results.parent
    (docs / "results.md").write_text(f"# Results\n\nThe protocol.\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    lines = make_tables(docs, [sweep])
    text = (docs / "results.md").read_text()
    assert text.startswith("# Results\n\nThe protocol.\n") and text.endswith("The end.\n") and "old" not in text
    told = json.loads((docs / "results.json").read_text())
    assert [row["row"] for row in told] == [row.name for row in SUITE.rows] == [line.cell.row.name for line in lines]
    assert "| teacher | ablation-teacher | scarce | 0 | 0 |" in text
    assert all(row["seeds"] == 2 for row in told)
    dense = next(row for row in told if row["row"] == "dense")
    by_row = {
        row: [100 * r.NDS for r in sorted(results.values(), key=lambda r: r.seed) if r.row == row]
        for row in ("none", "dense")
    }
    gains = np.subtract(by_row["dense"], by_row["none"])
    assert dense["gain_nds"] == pytest.approx(gains.mean(), abs=1e-3)
    half = t.ppf(0.975, 1) * gains.std(ddof=1) / np.sqrt(2)
    assert (dense["ci_low"], dense["ci_high"]) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=2e-3)
    assert dense["distils"] is None  # two seeds judge nothing
    assert next(r for r in told if r["row"] == "none")["gain_nds"] is None
    first = (docs / "results.md").read_bytes()
    make_tables(docs, [sweep])
    assert (docs / "results.md").read_bytes() == first


def test_results_of_a_row_that_is_gone_stay_in_the_list(finished: tuple[Sweep, dict[str, Any], str]) -> None:
    sweep, results, _ = finished
    fewer = replace(sweep, suites=[SUITE.model_copy(update={"rows": SUITE.rows[:1]})])
    make_tables(sweep.results.parent, [fewer])
    text = (sweep.results.parent / "results.md").read_text()
    kept = text[text.index("no row of a suite any more") :]
    assert kept.count("| tiny | dense |") == 2 and len(results) == 7


def test_a_budget_begins_nothing_that_it_cannot_end(finished: tuple[Sweep, dict[str, Any], str]) -> None:
    sweep, _, _ = finished
    more = replace(sweep, seeds=3)
    outcome = run_sweep(more, budget_min=0.0, at_once=2, console=Console(quiet=True))
    assert outcome.done == [] and outcome.left == 3 and outcome.there == 6


def test_a_job_that_fails_keeps_nobody_else_from_running(finished: tuple[Sweep, dict[str, Any], str]) -> None:
    """In the folder of one of three new jobs lies another training."""
    sweep = finished[0]
    more = replace(sweep, seeds=3)
    jobs = [job for _, job in jobs_of(more) if job.label.seed == 2]
    broken = next(job for job in jobs if job.label.row == "none")
    other = next(job for _, job in jobs_of(sweep) if job.label.row == "dense")
    shutil.copytree(other.run, broken.run)
    said = Console(record=True, width=400, file=io.StringIO())
    with pytest.raises(BevcaskError, match=r"1 of 3 trainings failed; .*\n.*none .*seed 2: ended with status 1"):
        run_sweep(more, budget_min=None, at_once=1, console=said)
    there = {job.label.row for job in jobs if Path(job.result).is_file()}
    assert there == {"dense", "dense, untrained teacher"} and "whole log" in said.export_text()
    shutil.rmtree(broken.run)
    assert len(run_sweep(more, budget_min=None, at_once=1, console=Console(quiet=True)).done) == 1


def test_what_cannot_be_made_fails_the_rows_that_stand_on_it(finished: tuple[Sweep, dict[str, Any], str]) -> None:
    sweep = finished[0]
    suite = SUITE.model_copy(
        update={
            "stores": {**SUITE.stores, "camera": StoreSpec(says="camera")},
            "rows": (*SUITE.rows, RowSpec(name="of a camera teacher", store="camera", rank=11)),
        }
    )
    broken = replace(sweep.settings, camera={"train": {"batch": 0}})
    more = replace(sweep, suites=[suite], settings=broken)
    with pytest.raises(
        BevcaskError, match=r"2 of 2 trainings failed; (.*\n.*of a camera teacher .*batch.*making\.log){2}"
    ):
        run_sweep(more, budget_min=None, at_once=2, console=Console(quiet=True))


class FakeSlots:
    """What was begun, in order. ready: rows whose ground is there."""

    def __init__(self, ready: set[str]) -> None:
        self.ready, self.making, self.begun = ready, False, list[str]()

    def origin(self, cell: Cell) -> dict[str, str] | None:
        return {} if cell.row.name in self.ready else None

    def make(self, cell: Cell) -> None:
        self.making = True
        self.begun.append(f"make {cell.row.name}")

    def begin(self, job: Job) -> None:
        self.begun.append(f"{job.label.row} {job.label.seed}")


def test_what_the_next_jobs_wait_for_is_made_beside_those_before_them(
    finished: tuple[Sweep, dict[str, Any], str],
) -> None:
    todo = list(jobs_of(finished[0]))
    order = [f"{job.label.row} {job.label.seed}" for _, job in todo]
    assert order[:3] == ["none 0", "none 1", "dense, untrained teacher 0"]
    slots, ahead, no_limit = FakeSlots({"none", "dense"}), 2, Budget(None, [])
    begin: Any = functools.partial(_begin_next, slots, todo, ahead, no_limit)
    assert begin() and slots.begun == ["none 0"]  # both of the next two are ready
    assert begin() and slots.begun[1:] == ["make dense, untrained teacher"]  # one of them is not, any more
    assert begin() and begin() and begin()
    assert slots.begun[2:] == ["none 1", "dense 0", "dense 1"]  # what waits for nothing goes first
    assert not begin() and len(todo) == 2
    slots.ready.add("dense, untrained teacher")
    assert begin() and slots.begun[-1] == "dense, untrained teacher 0"
    assert not _begin_next(slots, todo, ahead, Budget(0.0, []))  # type: ignore[arg-type]


@pytest.mark.parametrize("regime", REGIMES)
def test_the_process_that_makes_things_is_told_all_that_they_depend_on(regime: str, tmp_path: Path) -> None:
    settings = Settings(tmp_path, Console(quiet=True), {"train": {"steps": 3}}, {"model": SMALL_MODEL}, workers=1)
    sweep = Sweep(chosen_suites("bev-lgkd"), REGIMES[regime], 2, 1, settings, tmp_path / "results", scale=Scale(5))
    for cell, job in jobs_of(sweep):
        told, again = making.read(json.loads(json.dumps(making.written(sweep, cell))), settings.console)
        assert again == cell and told.settings == settings and told.results == sweep.results
        assert told.place == sweep.place and told.regime == sweep.regime
        assert job_of(told, again, job.label.seed) == job


def test_a_sweep_stops_where_one_after_the_other_fails(
    finished: tuple[Sweep, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = finished[0]
    more = replace(sweep, seeds=9)
    monkeypatch.setattr(slots_module, "JOB", "studies.ablation.no_such_module")
    with pytest.raises(
        BevcaskError, match=rf"{FAILURES_IN_A_ROW} of {FAILURES_IN_A_ROW} trainings failed, 15 were not"
    ):
        run_sweep(more, budget_min=None, at_once=1, console=Console(quiet=True))


def test_a_dask_cluster_does_the_same_and_results_are_written_by_who_asked(
    finished: tuple[Sweep, dict[str, Any], str], tmp_path: Path
) -> None:
    """Workers see the run's folder; the folder of results is ours. One of the jobs fails there."""
    sweep = replace(finished[0], results=tmp_path / "docs" / "results", rows=["none"])
    sweep.results.mkdir(parents=True)
    broken, fine = (job for _, job in jobs_of(sweep))
    shutil.rmtree(broken.run)
    other = next(job for _, job in jobs_of(finished[0]) if job.label.row == "dense")
    shutil.copytree(other.run, broken.run)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as dask:
        address = Cluster(scheduler=dask.scheduler_address)
        with pytest.raises(BevcaskError, match=r"1 of 2 trainings failed"):
            run_on_cluster(sweep, address, Console(quiet=True))
        assert [path.stem for path in sweep.results.glob("*.json")] == [fine.key]
        before = read_results(finished[0].results)[fine.key]
        assert read_results(sweep.results)[fine.key].NDS == before.NDS
        shutil.rmtree(broken.run)
        outcome = run_on_cluster(sweep, address, Console(quiet=True))
    assert [job.key for job in outcome.done] == [broken.key] and outcome.there == 1
    assert set(read_results(sweep.results)) == {broken.key, fine.key}


def test_a_budget_counts_steps_at_the_rate_of_those_that_ended(finished: tuple[Sweep, dict[str, Any], str]) -> None:
    job = next(job for _, job in jobs_of(finished[0]))
    assert job.overrides["train"]["steps"] == 3
    result = next(iter(finished[1].values()))
    slow = result.model_copy(update={"steps": 100, "train_minutes": 200.0})
    other = slow.model_copy(update={"student": "another", "train_minutes": 1000.0})
    assert Budget(1.0, []).expected_min(job) == 0  # nothing is known: it is begun
    assert Budget(1.0, [other]).expected_min(job) == 30
    assert Budget(1.0, [other, slow]).expected_min(job) == 6
    assert Budget(6.5, [slow]).allows(job) and not Budget(5.5, [slow]).allows(job)
    budget = Budget(1.0, [slow])
    budget.add(slow.model_copy(update={"train_minutes": 20.0}))
    assert budget.expected_min(job) == pytest.approx(0.6) and budget.allows(job)
    budget.started -= 60.0
    assert not budget.allows(job) and Budget(None, [slow]).allows(job)


@pytest.mark.parametrize(("budget", "at_once"), [(-1.0, 1), (math.nan, 1), (math.inf, 1), (None, 0), (None, -3)])
def test_a_budget_or_a_number_that_makes_no_sense_is_refused(
    budget: float | None, at_once: int, finished: tuple[Sweep, dict[str, Any], str]
) -> None:
    with pytest.raises(ConfigError, match="--at-once" if budget is None else "--budget"):
        run_sweep(finished[0], budget_min=budget, at_once=at_once, console=Console(quiet=True))


def test_two_commands_do_not_work_in_one_folder(finished: tuple[Sweep, dict[str, Any], str]) -> None:
    sweep, _, _ = finished
    with alone_in(sweep.settings.folder), pytest.raises(ConfigError, match="another command works in it"):
        run_sweep(sweep, budget_min=None, at_once=1, console=Console(quiet=True))


def test_a_taught_camera_teacher_learns_from_the_lidar_teachers_store_and_is_kept_beside_the_results(
    finished: tuple[Sweep, dict[str, Any], str], tmp_path: Path
) -> None:
    """Trained once, and taken from where it is kept by a run that starts from nothing."""
    sweep = finished[0]
    # its trunk is the student's, which the LiDAR teacher's weights fit
    over = {"model": {**SMALL_MODEL, "backbone": {"base_width": 16}}, "train": dict(sweep.over["train"])}
    settings = replace(sweep.settings, camera=over, kept=tmp_path / "kept")
    regime, world = sweep.regime, sweep.place.train
    weights = make_teacher(settings, regime, world, "taught_camera")
    recipe = json.loads((weights.parent / "recipe.json").read_text())
    assert [term["name"] for term in recipe["terms"]] == ["sparsekd_logits", "sparsekd_label"]
    assert recipe["data"]["teacher"] == store_name(settings, regime, TAUGHT_FROM)
    assert recipe["train"]["init_from"] == str(teacher_file(settings, regime, world, "trained"))
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == sorted(
        teacher_file(settings, regime, world, says).parent.name for says in ("trained", "taught_camera")
    )
    elsewhere = replace(settings, folder=tmp_path / "fresh")  # no world, so nothing could be trained
    again = make_teacher(elsewhere, regime, world, "taught_camera")
    assert again.is_relative_to(tmp_path / "fresh") and again.read_bytes() == weights.read_bytes()
    assert (again.parent / RECORD).read_bytes() == (weights.parent / RECORD).read_bytes()
    other = replace(settings, teacher={**settings.teacher, "train": {**settings.teacher["train"], "lr": 0.001}})
    assert teacher_file(other, regime, world, "taught_camera") != weights


def stores_of(sweep: Sweep) -> tuple[FrameStore, dict[str, TeacherStore]]:
    """The train world's frames, and by who speaks the store of `SUITE`, made where no row has asked for it."""
    place = sweep.place
    cache = world_cache(sweep.settings, place.train)
    for spec in SUITE.stores.values():
        make_store(sweep.settings, sweep.regime, place.train, spec)
    names: dict[str, str] = {
        spec.says: store_name(sweep.settings, sweep.regime, spec) for spec in SUITE.stores.values()
    }
    stores = {says: TeacherStore(teacher_place(cache, name)) for says, name in names.items()}
    return FrameStore(cache / "frames"), stores


def test_the_untrained_teacher_says_something_else_of_the_same_frames(
    finished: tuple[Sweep, dict[str, Any], str],
) -> None:
    _, stores = stores_of(finished[0])
    trained, untrained = stores["trained"].cells(0), stores["untrained"].cells(0)
    where = np.intersect1d(trained.index, untrained.index)
    assert len(where)
    said = [cells.values[np.isin(cells.index, where)] for cells in (trained, untrained)]
    assert said[0].shape == said[1].shape and not np.allclose(said[0], said[1], atol=1e-2)
    assert said[1].std() > 1e-3


def test_another_frame_is_the_trained_teacher_on_a_frame_of_another_scene(
    finished: tuple[Sweep, dict[str, Any], str],
) -> None:
    frames, stores = stores_of(finished[0])
    for row, partner in partners(frames).items():
        assert frames.scene_of(row) != frames.scene_of(partner)
        mine = stores["another_frame"].index.row_of(frames.tokens[row])
        theirs = stores["trained"].index.row_of(frames.tokens[partner])
        assert mine is not None and theirs is not None
        for name in ("boxes_lidar", "scores", "labels"):
            said = getattr(stores["another_frame"].detections(mine), name)
            np.testing.assert_array_equal(said, getattr(stores["trained"].detections(theirs), name))
        own = stores["trained"].detections(mine).boxes_lidar
        assert not np.array_equal(own, stores["another_frame"].detections(mine).boxes_lidar)


def test_features_that_know_nothing_stand_at_the_trained_teachers_cells_and_objects(
    finished: tuple[Sweep, dict[str, Any], str],
) -> None:
    frames, stores = stores_of(finished[0])
    trained, compared = stores["trained"], 0
    for row in partners(frames):
        mine = trained.index.row_of(frames.tokens[row])
        assert mine is not None
        cells = trained.cells(mine)
        for says, features_of in (("another_frames_features", "another_frame"), ("untrained_features", "untrained")):
            found, features = stores[says].cells(mine), stores[features_of].cells(mine)
            np.testing.assert_array_equal(found.index, cells.index)
            np.testing.assert_array_equal(found.weights, cells.weights)
            assert not np.allclose(found.values, cells.values, atol=1e-2)
            _, here, there = np.intersect1d(found.index, features.index, return_indices=True)
            np.testing.assert_allclose(found.values[here], features.values[there], atol=2e-3)
            compared += len(here)
            for name in ("boxes_lidar", "scores", "labels"):
                said, own = (getattr(store.detections(mine), name) for store in (stores[says], trained))
                np.testing.assert_array_equal(said, own)
    assert compared > 100


def test_the_annotations_in_the_teachers_place_are_the_losss_own_targets(
    finished: tuple[Sweep, dict[str, Any], str],
) -> None:
    sweep = finished[0]
    frames, stores = stores_of(sweep)
    store = stores["annotations"]
    model: Any = build_detector(load_recipe("ablation-teacher", {"model": SMALL_TEACHER}).model)
    for row in range(2):
        ids = frames.read(row, "gt_ids")
        seen = ids[:, 2] + ids[:, 3] > 0
        boxes = torch.from_numpy(np.array(frames.boxes_lidar(row)[seen], np.float32))
        target = model.head.targets([boxes], [torch.from_numpy(ids[seen, 0].astype(np.int64))])[0].heatmap[0]
        told = store.index.row_of(frames.tokens[row])
        assert told is not None
        cells = store.cells(told)
        height, width = store.grid.shape
        flat = target.reshape(len(target), height * width).numpy()
        np.testing.assert_allclose(cells.values[:, : len(target)], flat[:, cells.index].T, atol=1e-3)
        found = store.detections(told)
        assert len(found.scores) == int(seen.sum()) and (found.scores == 1).all()
        np.testing.assert_allclose(found.boxes_lidar[:, :7], boxes.numpy()[:, :7], atol=1e-5)


@pytest.mark.parametrize("name", suite_names())
def test_every_row_of_a_suite_is_served_by_the_store_that_it_names(
    name: str, finished: tuple[Sweep, dict[str, Any], str], tmp_path: Path
) -> None:
    """Each row's recipe is built against a store cached as its suite says, from one small teacher."""
    sweep = finished[0]
    cache, suite = world_cache(sweep.settings, sweep.place.train), load_suite(name)
    done = set()
    for row, student in suite.cells():
        if not row.store or (row.store, json.dumps(row.recipe), student) in done:
            continue
        done.add((row.store, json.dumps(row.recipe), student))
        spec = suite.stores[row.store]
        weights = next(sweep.settings.folder.glob("teachers/trained-*/model.safetensors"))
        camera = spec.says in CAMERA_TEACHERS
        if camera:
            weights = camera_weights(tmp_path)
        kept = f"{'camera' if camera else 'lidar'}-{digest_of(spec.written())[:8]}"
        cache_teacher(
            cache,
            kept,
            teacher="own",
            checkpoint=weights,
            options=spec.options(),
            workers=1,
        )
        cells = Sweep([suite], REGIMES["scarce"], 0, 1, sweep.settings, sweep.results)
        over = overrides_of(cells, Cell(suite, row, student), 0)
        over["data"]["teacher"] = kept
        plan = make_plan(load_recipe(suite.students[student].base, over), cache)
        make_training(plan, torch.device("cpu"))
        said_reader(plan)


def camera_weights(folder: Path) -> Path:
    path = folder / "camera.safetensors"
    if not path.is_file():
        save_weights(build_detector(load_recipe("ablation-camera-teacher").model), path)
    return path
