"""What the cache makes possible: the suite whose rows differ in how a store is kept, its bytes, its picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cache.errors import ConfigError
from cache.layout import teacher_place
from cache.store import TeacherStore
from models.config import parse_config
from studies.ablation.cache_picture import draw_cache
from studies.ablation.job import Job, run_job
from studies.ablation.plan import Sweep, jobs_of, make_ready
from studies.ablation.prepare import Settings, store_name
from studies.ablation.regimes import REGIMES
from studies.ablation.report import make_tables
from studies.ablation.suite import CACHE, PAPERS, QUERIES, StoreSpec, chosen_suites, load_suite
from tests.studies.ablation_world import tiny_sweep
from trainer.run_files import WEIGHTS

SUITE = load_suite(CACHE)
SAME = ("fp16 cells", "confident only", "fp16 whole map")
ROWS = ("none", *SAME, "u8 cells", "teacher averaged over flips")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, dict[str, Job], dict[str, dict[str, Any]]]:
    """The sweep, and jobs and results by row: one seed, three steps each."""
    threads = torch.get_num_threads()
    sweep = tiny_sweep(tmp_path_factory.mktemp("cache-suite"), Console(quiet=True))
    sweep = replace(sweep, suites=[SUITE], seeds=1, rows=ROWS)
    sweep.results.mkdir(parents=True)
    jobs, results = {}, {}
    for cell, job in jobs_of(sweep):
        jobs[cell.row.name] = job
        results[cell.row.name] = run_job(replace(job, origin=make_ready(sweep, cell)).to_dict())
    torch.set_num_threads(threads)
    return sweep, jobs, results


def test_stores_that_hold_the_same_values_end_in_the_same_student(
    finished: tuple[Sweep, dict[str, Job], dict[str, dict[str, Any]]],
) -> None:
    _, jobs, results = finished
    weights = {row: load_file(Path(job.run) / WEIGHTS) for row, job in jobs.items()}
    for row in SAME[1:]:
        assert results[row]["loss"] == results[SAME[0]]["loss"]
        for name, values in weights[SAME[0]].items():
            assert torch.equal(weights[row][name], values), (row, name)
    for row in set(ROWS) - set(SAME):
        different = [name for name, v in weights[SAME[0]].items() if not torch.equal(weights[row][name], v)]
        assert different, row


def test_a_result_says_the_bytes_of_its_store_as_they_lie_on_disk(
    finished: tuple[Sweep, dict[str, Job], dict[str, dict[str, Any]]],
) -> None:
    _, jobs, results = finished
    told = {row: result["store_bytes"] for row, result in results.items()}
    assert told.pop("none") is None
    for row, size in told.items():
        place = Path(teacher_place(jobs[row].train_cache, jobs[row].overrides["data"]["teacher"]))
        store = TeacherStore(place)
        own = [place / "manifest.json", *place.glob("records/*")]  # what the manifest does not name
        on_disk = sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and path not in own)
        assert size == pytest.approx(on_disk / len(store), abs=0.1)
    # three steps leave the teacher's heat at a tenth everywhere, above the threshold: here `cells` are all cells
    for row in ("confident only", "u8 cells"):
        assert told[row] < min(told["fp16 cells"], told["fp16 whole map"])


def test_stores_are_kept_as_their_specs_say(finished: tuple[Sweep, dict[str, Job], dict[str, dict[str, Any]]]) -> None:
    sweep, jobs, _ = finished
    for row in SUITE.rows:
        if row.store and row.name in jobs:
            spec = SUITE.stores[row.store]
            name = store_name(sweep.settings, sweep.regime, spec)
            header = TeacherStore(teacher_place(jobs[row.name].train_cache, name)).manifest.header
            found = (header["bev"]["layout"], header["bev"]["dtype"], header.get("tta", ""))
            assert found == (spec.encoding, spec.dtype, spec.tta)


def test_the_table_has_the_bytes_and_the_picture_stands_under_it(
    finished: tuple[Sweep, dict[str, Job], dict[str, dict[str, Any]]],
) -> None:
    sweep, _, results = finished
    docs = sweep.results.parent
    make_tables(docs, [replace(sweep, rows=())])
    text = (docs / "results.md").read_text()
    assert "| kB a frame | min a run |" in text
    size = results["u8 cells"]["store_bytes"]
    row = next(line for line in text.splitlines() if line.startswith("| u8 cells |"))
    assert f"| {size / 1000:,.1f} |" in row and "to fp16 cells" in row
    assert "(images/cache-scarce-0.png)" in text and (docs / "images" / "cache-scarce-0.png").is_file()
    told = {row["row"]: row for row in json.loads((docs / "results.json").read_text())}
    assert told["u8 cells"]["store_bytes"] == size and told["none"]["store_bytes"] is None
    assert "| ablation-teacher, flips | scarce |" in text and "| ablation-teacher | scarce |" in text


def test_nothing_is_drawn_of_results_that_compare_nothing(tmp_path: Path) -> None:
    row = {"row": "fp16 cells", "store_bytes": 2e4, "against": "none", "gain_nds": 1.0, "ci_low": 0.5, "ci_high": 1.5}
    alone = {**row, "nds_mean": 21.0, "nds_std": 0.3}
    assert not draw_cache(SUITE, [alone], {}, tmp_path / "a.png") and not list(tmp_path.iterdir())
    other = {**alone, "row": "u8 cells", "against": "fp16 cells", "gain_nds": -0.1, "ci_low": None, "ci_high": None}
    assert draw_cache(SUITE, [alone, other], {}, tmp_path / "a.png") and (tmp_path / "a.png").stat().st_size > 0
    unweighed = {**other, "store_bytes": None}
    assert not draw_cache(SUITE, [alone, unweighed], {}, tmp_path / "b.png")


def test_its_reference_is_trained_once_for_both_suites_and_all_takes_it_last() -> None:
    suites = chosen_suites("all")
    assert [suite.name for suite in suites] == [*PAPERS, QUERIES, CACHE]
    settings = Settings(Path("runs/x"), Console(quiet=True), {}, {})
    sweep = Sweep(suites, REGIMES["scarce"], 1, 2, settings, Path("docs/results"))
    assert QUERIES not in {cell.suite.name for cell, _ in jobs_of(sweep)}
    order = [cell.suite.name for cell, _ in jobs_of(sweep)]
    own = order.index(CACHE)
    assert set(order[own:]) == {CACHE} and CACHE not in order[:own]
    keys = {
        (cell.suite.name, cell.row.name): job.key
        for suite in suites
        for cell, job in jobs_of(replace(sweep, suites=[suite], seeds=1))
    }
    assert keys["cache", "fp16 cells"] == keys["bevdistill", "dense + sparse"]
    assert keys["cache", "none"] == keys["bevdistill", "none"]
    of_suite = [key for (suite, _), key in keys.items() if suite == CACHE]
    assert len(set(of_suite)) == len(SUITE.rows)


def test_another_way_to_keep_a_store_or_another_teacher_is_another_store() -> None:
    plain = StoreSpec(coverage="gaussian", fields="logits")
    assert plain.written() == {"says": "trained", "coverage": "gaussian", "fields": "logits"}
    others = [plain.model_copy(update=change) for change in ({"dtype": "u8"}, {"encoding": "dense"}, {"tta": "flips"})]
    settings, scarce = Settings(Path("runs/x"), Console(quiet=True), {}, {}), REGIMES["scarce"]
    names = {store_name(settings, scarce, spec) for spec in [plain, *others]}
    names |= {store_name(settings, replace(scarce, teacher_steps=1), plain)}
    names |= {store_name(replace(settings, teacher={"model": {"z_range": [-4.0, 3.0]}}), scarce, plain)}
    assert len(names) == 6


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dtype": "u4"}, "--dtype 'u4' is unknown, expected one of float16, float32, u8"),
        ({"encoding": "zip"}, "--encoding 'zip' is unknown"),
        ({"tta": "spins"}, "--tta 'spins' is unknown, expected one of flips, turns"),
        ({"coverage": "gausian"}, "selector 'gausian' is unknown"),
        ({"says": "annotations", "tta": "flips"}, "leave tta out"),
        ({"says": "camera", "tta": "flips"}, "leave tta out"),
        ({"compression": "zstd"}, "unknown key 'compression'; allowed there: coverage, dtype, encoding, fields"),
    ],
)
def test_a_store_that_cannot_be_cached_is_refused_when_the_suite_is_read(values: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(StoreSpec, values, "mine.toml")
    assert said in str(error.value) and str(error.value).startswith("mine.toml")
