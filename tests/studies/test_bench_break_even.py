"""From how many students on the cache is faster: the arithmetic against counting, what is read, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cache.errors import BevcaskError, ConfigError, DataError, StoreError
from studies.benches import registry
from studies.benches.break_even import Measured, Training, figures_of, first_faster, run, said_of
from studies.benches.cache_teacher import FULL_SIZE

MACHINE = {"cpu": "a processor", "cores": 2}
STEP: dict[str, Any] = {
    "bench": "step",
    "machine": MACHINE,
    "date": "2026-11-30",
    "online_step_s": 0.6,
    "cached_step_s": 0.4,
    "batch": 4,
    "teacher": "demo",
    "student": "a student",
    "device": "cpu",
    "torch_threads": 1,
    "rounds_speedup": [1.4, 1.5, 1.6],
}
PASS: dict[str, Any] = {
    "bench": "cache-teacher",
    "machine": MACHINE,
    "date": "2026-11-30",
    "demo": {"pipeline_frames_per_s": 8.0, "device": "cpu", "rounds": {"pipeline": [7.0, 8.0, 9.0]}},
    "pipeline_frames_per_s": 0.5,
    "device": "cpu",
}


def asked(folder: Path, step: Mapping[str, Any] = STEP, of_pass: Mapping[str, Any] = PASS) -> dict[str, Any]:
    """Both as files, and the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("a.json", step), ("b.json", of_pass)):
        (folder / name).write_text(json.dumps(values))
    return {"step": str(folder / "a.json"), "teacher_pass": str(folder / "b.json")}


def counted(measured: Measured, training: Training, n: int) -> tuple[float, float]:
    """Seconds of n students with the teacher in the loop, and of the pass and n students from its store: step by step
    in whole numbers."""
    steps = n * int(training.epochs) * math.ceil(training.frames / training.batch)
    passes = training.passed * training.views
    return steps * measured.online_step_s, passes / measured.pass_frames_per_s + steps * measured.cached_step_s


def test_the_crossing_is_where_counting_finds_it() -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(50):
        cached = float(rng.uniform(0.05, 2.0))
        measured = Measured(cached * float(rng.uniform(1.05, 3.0)), cached, float(rng.uniform(0.2, 50.0)))
        sizes = [int(rng.integers(low, high)) for low, high in ((5, 300), (5, 3000), (1, 5))]
        training = Training(int(rng.integers(1, 4)), *sizes, students=3, batch=int(rng.integers(1, 9)))
        crossing = measured.break_even(training)
        assert crossing is not None
        totals = (counted(measured, training, n) for n in itertools.count(1))
        first = next(n for n, (online, stored) in enumerate(totals, 1) if stored < online)
        assert first_faster(crossing) == first
        rows = figures_of(measured, training)["students"]
        assert [row["students"] for row in rows] == [1, 2, 3]
        for row in rows:
            hours = [seconds / 3600 for seconds in counted(measured, training, row["students"])]
            assert [row["online_h"], row["cached_h"]] == pytest.approx(hours)


def test_a_longer_training_is_worth_as_many_students() -> None:
    measured = Measured(0.6, 0.4, 8.0)
    short, long = (figures_of(measured, Training(epochs, 1000, 1000, 1, 1, 4)) for epochs in (2, 20))
    assert short["break_even_students"] == pytest.approx(10 * long["break_even_students"])
    assert short["break_even_epochs"] == pytest.approx(long["break_even_epochs"])
    four = figures_of(measured, Training(2, 1000, 1000, 4, 1, 4))  # views of a cloud
    assert four["break_even_epochs"] == pytest.approx(4 * short["break_even_epochs"])


def test_a_step_that_gains_nothing_has_no_break_even(tmp_path: Path) -> None:
    found = run(tmp_path / "work", Console(quiet=True), **asked(tmp_path, {**STEP, "online_step_s": 0.4}))
    assert found["break_even_students"] is None and found["break_even_epochs"] is None
    assert "no break-even" in said_of(found)[-1] and (tmp_path / "work" / "break-even.png").is_file()


def test_figures_and_the_picture_come_from_the_files(tmp_path: Path) -> None:
    options = {**asked(tmp_path), "plot": str(tmp_path / "there" / "p.png"), "epochs": 2, "frames": 400, "passed": 500}
    found = registry.run_bench("break-even", tmp_path / "bench", Console(quiet=True), options)
    assert found["break_even_students"] == pytest.approx(500 / 8.0 / (2 * 100 * 0.2))
    assert found["limit"] == pytest.approx(1.5) and len(found["students"]) == 6
    best, worst = found["break_even_range"]
    assert best == pytest.approx(500 / 9.0 / (200 * 0.4 * 0.6)) and worst == pytest.approx(
        500 / 7.0 / (200 * 0.4 * 0.4)
    )
    assert (tmp_path / "there" / "p.png").stat().st_size > 0
    assert json.loads((tmp_path / "bench" / "break-even.json").read_text()) == found
    full = asked(tmp_path / "full", {**STEP, "teacher": FULL_SIZE})
    found = run(tmp_path / "work", Console(quiet=True), **full, epochs=2, frames=400, passed=500)
    assert found["measured"]["pass_frames_per_s"] == 0.5 and found["break_even_range"] is None


def test_what_was_not_measured_is_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, Mapping[str, Any]]] = []

    def bench(name: str, work: Path, console: Console, options: Mapping[str, Any]) -> dict[str, Any]:
        ran.append((name, options))
        (work / f"{name}.json").write_text(json.dumps(STEP if name == "step" else PASS))
        return {}

    monkeypatch.setattr(registry, "run_bench", bench)
    work = tmp_path / "break-even"
    work.mkdir()
    first = run(work, Console(quiet=True))
    assert ran == [("step", {"torch_threads": 1}), ("cache-teacher", {"full": False, "two_workers": False})]
    assert run(work, Console(quiet=True)) == first and len(ran) == 2


@pytest.mark.parametrize(
    ("step", "of_pass", "error", "said"),
    [
        ({"machine": {"cpu": "another", "cores": 2}}, {}, ConfigError, "measure both on one machine"),
        ({"machine": {"cpu": "a processor", "cores": 4}}, {}, ConfigError, "measure both on one machine"),
        ({"teacher": "mine"}, {}, ConfigError, "teacher 'mine', bench cache-teacher measures centerpoint"),
        ({"torch_threads": 2}, {}, ConfigError, "--option torch_threads=1"),
        ({"device": "a GPU"}, {}, ConfigError, "measure both on one device"),
        ({}, {"demo": {}}, ConfigError, "run it again with --option full=true"),
        ({"bench": "stream"}, {}, DataError, "figures of bench 'stream', expected those that"),
        ({"online_step_s": None}, {}, DataError, "online_step_s is None, expected a number above 0"),
        ({"cached_step_s": -1.0}, {}, DataError, "cached_step_s is -1.0, expected a number above 0"),
    ],
)
def test_figures_that_do_not_go_together_are_refused(
    step: dict[str, Any], of_pass: dict[str, Any], error: type[BevcaskError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        run(tmp_path / "work", Console(quiet=True), **asked(tmp_path, {**STEP, **step}, {**PASS, **of_pass}))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": math.nan},
        {"epochs": "many"},
        {"frames": 0},
        {"views": -1},
        {"students": 1.5},
        {"students": 10**9},
    ],
)
def test_impossible_trainings_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected epochs above 0, and whole numbers of 1 or more"):
        run(tmp_path / "work", Console(quiet=True), **asked(tmp_path), **wrong)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.json: not found, expected figures of `bench step`"):
        run(tmp_path / "work", Console(quiet=True), **{**asked(tmp_path), "step": str(tmp_path / "none.json")})
