"""Suites, regimes and rounds as data: what would be trained, in which order, and what a training's key tells apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cache.errors import ConfigError
from models.build import load_preset
from studies.ablation import job as job_module
from studies.ablation.job import key_of, minutes_of, recipe_source
from studies.ablation.plan import Sweep, jobs_of
from studies.ablation.prepare import Settings, store_name, teacher_file
from studies.ablation.regimes import REGIMES, Scale, place_of
from studies.ablation.suite import PAPERS, chosen_suites, load_suite


def test_every_suite_reads_and_the_claims_and_all_that_they_are_held_to_come_first() -> None:
    suites = chosen_suites("all")
    assert {suite.name for suite in suites if suite.primary is not None} == set(PAPERS)
    settings = Settings(Path("runs/x"), Console(quiet=True), {}, {})
    sweep = Sweep(suites, REGIMES["unlabelled"], 1, 5, settings, Path("docs/results"))
    jobs = list(jobs_of(sweep))
    order = list(dict.fromkeys(cell.row.name for cell, _ in jobs))
    wanted = {"none"}
    for suite in suites:
        if suite.primary is not None:
            row = suite.row(suite.primary[0])
            wanted |= {row.name, row.against, *row.controls}
    assert len(wanted) == 9 and set(order[:9]) == wanted and order[0] == "none" and order[9] == "none, longer"
    assert len({job.key for _, job in jobs}) == len(jobs)
    nones = [job for cell, job in jobs if cell.row.name == "none" and job.recipe == "ablation-student"]
    assert len(nones) == 5  # one for all three suites


def test_lidar_students_are_trained_where_all_frames_are_labelled() -> None:
    """Nothing of theirs learns from other frames without a teacher, and the trainer refuses such a run."""
    settings = Settings(Path("runs/x"), Console(quiet=True), {}, {})
    students = {}
    for regime in ("scarce", "unlabelled"):
        sweep = Sweep(chosen_suites("sparsekd"), REGIMES[regime], 1, 1, settings, Path("docs/results"))
        students[regime] = {cell.student for cell, _ in jobs_of(sweep)}
    assert students["unlabelled"] == {"camera"}
    assert students["scarce"] == {"camera", "S", "XS", "XXS", "v1.07", "v1.28", "v1.6"}


def test_a_key_is_of_what_is_written_so_that_defaults_may_come_and_a_weight_may_not_change() -> None:
    base = key_of("ablation-student", {"train": {"seed": 1}}, {})
    assert base == key_of("ablation-student", {"train": {"seed": 1}}, {})
    assert base != key_of("ablation-student", {"train": {"seed": 2}}, {})
    assert base != key_of("ablation-student", {"train": {"seed": 1}}, {"world": 1})
    assert "min_lr_factor" not in recipe_source("ablation-student")["train"]


def test_minutes_are_of_all_steps_an_interrupted_run_took() -> None:
    lines = [
        {"step": 50, "frames_per_s": 20.0},
        {"step": 100, "frames_per_s": 10.0},
        {"step": 110, "frames_per_s": 40.0},
    ]
    assert minutes_of(lines, 4) == round((200 / 20 + 200 / 10 + 40 / 40) / 60, 3)
    assert minutes_of([], 4) == 0


def test_a_changed_preset_is_another_training_and_another_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a teacher of the preset as it had been was taken for the present one's."""
    settings = Settings(Path("runs/x"), Console(quiet=True), {}, {})

    def told() -> tuple[Any, ...]:
        sweep = Sweep([load_suite("bevdistill")], REGIMES["scarce"], 0, 1, settings, Path("x"), rows=["dense"])
        ((cell, job),) = jobs_of(sweep)
        assert cell.store is not None
        file = teacher_file(settings, sweep.regime, sweep.place.train, "trained")
        return job.key, file, store_name(settings, sweep.regime, cell.store)

    before = told()
    assert before == told()
    preset = load_preset("ablation-teacher")
    changed = {**preset, "head": {**preset["head"], "box_weight": 0.125}}
    monkeypatch.setattr(
        job_module, "_preset", lambda name: changed if name == "ablation-teacher" else load_preset(name)
    )
    after = told()
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_rounds_share_neither_worlds_nor_seeds() -> None:
    places = [place_of(REGIMES["scarce"], number) for number in range(4)]
    seeds = [{place.train.seed, place.score.seed} for place in places]
    assert all(not a & b for i, a in enumerate(seeds) for b in seeds[:i])
    assert len({place.first_seed for place in places}) == 4
    assert places[0].score == places[0].train and places[0].split == "val"
    for place in places[1:]:
        assert place.score.train_scenes * place.score.frames >= 400 and place.train.val_scenes == 0
    with pytest.raises(ConfigError, match="round"):
        place_of(REGIMES["scarce"], -1)


def test_regimes_are_as_long_and_as_scarce_as_the_protocol_says() -> None:
    for regime in REGIMES.values():
        frames = regime.scenes * Scale().frames * (1 + dict(regime.recipe).get("unlabelled_per_labelled", 0))
        assert regime.steps * 4 / frames >= 15, regime.name
    assert 200 <= REGIMES["scarce"].scenes * Scale().frames <= 400


def test_scenes_beside_the_labelled_ones_are_unlabelled_and_the_reporting_world_is_whole() -> None:
    place = place_of(REGIMES["unlabelled"], 1)
    assert (place.train.train_scenes, place.train.labelled_scenes) == (450, 150)
    assert place.score.labelled_scenes == 0 and place.score.train_scenes == 220
    plain = place_of(REGIMES["scarce"], 1).train
    assert plain.labelled_scenes == 0 and "labelled_scenes" not in plain.written()
    assert place.train.written()["labelled_scenes"] == 150 and "labelled150" in place.train.name


def test_a_suite_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for wrong, said in (
        ('[[rows]]\nname = "none"\n[[rows]]\nname = "x"\nstore = "gone"\n', "no store 'gone'"),
        ('[[rows]]\nname = "none"\n[[rows]]\nname = "x"\ncontrols = ["y"]\n', "controls names 'y'"),
        ('[[rows]]\nname = "x"\n', "one of them 'none'"),
        ('[[rows]]\nname = "none"\nwieght = 1\n', "unknown key"),
    ):
        path = tmp_path / "mine.toml"
        path.write_text(f'about = "a"\n[students.s]\nbase = "ablation-student"\n{wrong}')
        with pytest.raises(ConfigError, match=said):
            load_suite(str(path))
    with pytest.raises(ConfigError, match="not one of bev-lgkd"):
        load_suite("nothing")
