"""What the tables say of given results: gains, leads, when a row is judged, intervals over regimes, pictures."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import ttest_rel

from cache.errors import BevcaskError, ConfigError, DataError
from cache.files import write_json
from studies.ablation.gain_picture import draw_gains, shown_lines
from studies.ablation.lines import JUDGED_FROM, Line, Result, all_lines
from studies.ablation.loss_picture import draw_losses, mean_curve, panel_of
from studies.ablation.plan import Cell, Sweep, TeacherOf, job_of, teacher_keys
from studies.ablation.prepare import Settings
from studies.ablation.regimes import REGIMES
from studies.ablation.report import make_tables, sweep_of
from studies.ablation.suite import SUITES, chosen_suites, load_suite

ROOT = Path(__file__).resolve().parents[2]
SUITE = load_suite("bev-lgkd")
NONE, UNMASKED, MASK = [16.0, 17.0, 16.5, 16.2, 16.9], [17.1, 17.9, 17.2, 17.3, 18.1], [18.2, 19.3, 18.4, 18.1, 19.4]
UNTRAINED_ROW = "LiDAR mask, untrained teacher"
UNTRAINED = [16.1, 16.8, 16.7, 16.0, 17.0]
ALL = {"none": NONE, "unmasked": UNMASKED, "LiDAR mask": MASK, UNTRAINED_ROW: UNTRAINED}


def sweep_in(folder: Path, regime: str = "unlabelled") -> Sweep:
    settings = Settings(folder / "run", Console(quiet=True), {}, {})
    return Sweep([SUITE], REGIMES[regime], 1, JUDGED_FROM, settings, folder / "docs" / "results")


def results_of(sweep: Sweep, scores: Mapping[str, Sequence[float]]) -> dict[str, Result]:
    """As `studies.ablation.job` writes them; scores: NDS in points by row, seed by seed."""
    out: dict[str, Result] = {}
    suite = sweep.suites[0]
    for row, points in scores.items():
        for number, nds in enumerate(points):
            job = job_of(sweep, Cell(suite, suite.row(row), "single"), sweep.place.first_seed + number)
            label = {"suite": suite.name, "row": row, "student": "single", "regime": sweep.regime.name}
            figures: dict[str, Any] = {"NDS": nds / 100, "mAP": nds / 200, "train_minutes": 2.0, "steps": 3}
            figures["loss_curve"] = [(step, (20 - nds) / step) for step in (1, 2, 3)]
            places = {"round": sweep.round, "seed": job.label.seed}
            out[job.key] = Result.model_validate({"key": job.key, **label, **places, **figures})
    return out


def mask_line(sweeps: Sequence[Sweep], results: Mapping[str, Result]) -> Line:
    return next(line for line in all_lines(sweeps, results) if line.cell.row.name == "LiDAR mask")


def test_a_row_distils_where_its_gain_and_every_lead_lie_above_zero(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    line = mask_line([sweep], results_of(sweep, ALL))
    assert line.distils is True and line.is_claim and line.gain is not None
    assert list(line.leads) == ["none", "LiDAR mask, untrained teacher"]
    for gain, base in ((line.gain, UNMASKED), *zip(line.leads.values(), (NONE, UNTRAINED), strict=True)):
        tested = ttest_rel(MASK, base)
        assert (gain.low, gain.high) == pytest.approx(tuple(tested.confidence_interval(0.95)))
        assert gain.p == pytest.approx(tested.pvalue)
        assert gain.differences == pytest.approx([mine - other for mine, other in zip(MASK, base, strict=True)])
    level = {**ALL, "LiDAR mask, untrained teacher": MASK}
    assert mask_line([sweep], results_of(sweep, level)).distils is False
    worse = {**ALL, "unmasked": [18.0, 19.5, 18.3, 18.2, 19.2]}
    assert mask_line([sweep], results_of(sweep, worse)).distils is False


def test_nothing_is_judged_before_five_seeds_of_all_that_it_is_held_to(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    for row in ("LiDAR mask", "unmasked", "none", "LiDAR mask, untrained teacher"):
        line = mask_line([sweep], results_of(sweep, {**ALL, row: ALL[row][:4]}))
        assert line.distils is None and line.to_dict()["distils"] is None, row
    without = {row: points for row, points in ALL.items() if row != "LiDAR mask, untrained teacher"}
    assert mask_line([sweep], results_of(sweep, without)).distils is None


def test_intervals_are_wider_where_two_regimes_of_a_round_are_looked_at(tmp_path: Path) -> None:
    first, second = sweep_in(tmp_path), sweep_in(tmp_path, "scarce")
    results = results_of(first, ALL)
    alone = mask_line([first], results).gain
    both = mask_line([first, second], results | results_of(second, ALL)).gain
    expected = ttest_rel(MASK, UNMASKED).confidence_interval(0.975)
    assert alone is not None and both is not None and both.low < alone.low
    assert (both.low, both.high) == pytest.approx(tuple(expected))


def test_the_page_opens_with_claims_and_the_picture_of_gains(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    docs = sweep.results.parent
    sweep.results.mkdir(parents=True)

    def page(scores: Mapping[str, Sequence[float]]) -> str:
        for key, result in results_of(sweep, scores).items():
            write_json(sweep.results / f"{key}.json", result.model_dump())
        make_tables(docs)
        return (docs / "results.md").read_text()

    few = page({row: points[:3] for row, points in ALL.items() if row != "LiDAR mask, untrained teacher"})
    assert "not yet judged: nothing of *LiDAR mask, untrained teacher* yet |" in few
    assert "not yet judged: 3 of 5 seeds |" in page({row: points[:3] for row, points in ALL.items()})
    text = page(ALL)
    claims = text[text.index("### Claims: unlabelled, round 1") : text.index("### bev-lgkd, single")]
    told = next(row for row in json.loads((docs / "results.json").read_text()) if row["row"] == "LiDAR mask")
    assert f"| LiDAR mask | +{told['gain_nds']:.2f} (" in claims and claims.count("\n| bev-lgkd |") == 1
    assert next(line for line in claims.splitlines() if line.startswith("| bev-lgkd")).endswith("| yes |")
    assert "(images/gains-unlabelled-1.png)" in claims
    with Image.open(docs / "images" / "gains-unlabelled-1.png") as picture:
        assert picture.width > 600 and picture.height > 150
    assert text.index("(images/losses-unlabelled-1.png)") > text.index("### bev-lgkd, single")
    with Image.open(docs / "images" / "losses-unlabelled-1.png") as picture:
        assert picture.width > 400 and picture.height > 300


def test_the_picture_of_losses_has_the_mean_curve_of_a_claim_and_of_all_that_it_is_held_to(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    results = results_of(sweep, ALL)
    drawn = panel_of(mask_line([sweep], results), all_lines([sweep], results))
    assert [line.cell.row.name for line, _, _ in drawn] == ["LiDAR mask", "unmasked", "none", UNTRAINED_ROW]
    assert len({(color, style) for _, color, style in drawn}) == 4
    steps, losses = mean_curve(mask_line([sweep], results).results)
    assert steps.tolist() == [1, 2, 3]
    assert losses == pytest.approx([sum(20 - nds for nds in MASK) / 5 / step for step in (1, 2, 3)])


def test_curves_of_other_steps_are_averaged_where_all_have_a_point_and_none_is_drawn_without(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    results = list(results_of(sweep, {"none": NONE}).values())[:2]
    first = results[0].model_copy(update={"loss_curve": ((2, 1.0), (4, 3.0))})
    steps, losses = mean_curve([first, results[1].model_copy(update={"loss_curve": ((4, 5.0), (6, 1.0))})])
    assert steps.tolist() == [4] and losses.tolist() == [4.0]
    bare = {k: one.model_copy(update={"loss_curve": ()}) for k, one in results_of(sweep, ALL).items()}
    assert not draw_losses(all_lines([sweep], bare), tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()


def test_the_choosing_round_judges_nothing(tmp_path: Path) -> None:
    sweep = replace(sweep_in(tmp_path), round=0)
    assert mask_line([sweep], results_of(sweep, ALL)).distils is None


def test_rows_of_unequal_seeds_are_compared_where_both_have_one_and_say_so(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    line = mask_line([sweep], results_of(sweep, {"none": NONE, "unmasked": UNMASKED[:2], "LiDAR mask": MASK}))
    told = line.to_dict()
    assert told["seeds"] == 5 and told["pairs"] == 2 and told["gain_nds"] == pytest.approx(1.25)


def test_the_results_of_a_suite_of_ones_own_stand_in_the_tables(tmp_path: Path) -> None:
    own = SUITE.model_copy(update={"name": "mine", "rows": SUITE.rows[:3]})
    changed = own.rows[2].model_copy(update={"name": "a|b"})
    own = own.model_copy(update={"rows": (*own.rows[:2], changed), "primary": None})
    sweep = replace(sweep_in(tmp_path), suites=[own])
    docs = sweep.results.parent
    sweep.results.mkdir(parents=True)
    for key, result in results_of(sweep, {"none": NONE, "a|b": UNMASKED}).items():
        write_json(sweep.results / f"{key}.json", result.model_dump())
    make_tables(docs, [sweep])
    text = (docs / "results.md").read_text()
    assert "### mine, single: unlabelled, round 1" in text and "| a\\|b | 5 |" in text
    assert "no row of a suite any more" not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"NDS": math.nan}, "NDS"),
        ({"NDS": None}, "NDS"),
        ({"NDS": 7.0}, "NDS"),
        ({"mAP": -0.1}, "mAP"),
        ({"seed": "x"}, "seed"),
        ({"seed": 10**9}, "expected 1000 to 1999"),
        ({"round": 100}, "round"),
        ({"round": 2}, "expected 2000 to 2999"),
        ({"train_minutes": math.inf}, "train_minutes"),
        ({"key": "another"}, "expected the file's name"),
        *(({name: ...}, name) for name in ("suite", "row", "student", "regime", "round", "seed", "NDS", "steps")),
    ],
)
def test_a_bad_result_file_is_named_and_nothing_is_written(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    sweep.results.mkdir(parents=True)
    key, result = next(iter(results_of(sweep, {"none": NONE}).items()))
    values = {name: value for name, value in (result.model_dump() | change).items() if value is not ...}
    (sweep.results / f"{key}.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"{key}\.json: .*{said}.*remove it: its training runs again"):
        make_tables(sweep.results.parent)
    assert [path.name for path in sweep.results.parent.iterdir()] == ["results"]


@pytest.mark.parametrize("text", ["5", "[1]", "null", "", "{"])
def test_a_file_that_is_no_result_at_all_is_named(text: str, tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    sweep.results.mkdir(parents=True)
    (sweep.results / "0123456789abcdef.json").write_text(text)
    with pytest.raises(BevcaskError, match="0123456789abcdef"):
        make_tables(sweep.results.parent)


def test_a_given_up_teacher_stands_among_what_was_tried(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    sweep.results.mkdir(parents=True)
    label = {
        "suite": "",
        "row": "teacher",
        "student": "ablation-teacher",
        "regime": "unlabelled",
        "round": 1,
        "seed": 0,
    }
    figures = {"NDS": 0.4, "mAP": 0.3, "train_minutes": 1.0, "steps": 5}
    present = teacher_keys(sweep)[TeacherOf("trained")]
    for key, nds in ((present, 0.47), ("0" * 16, 0.36)):
        write_json(sweep.results / f"{key}.json", {"key": key, **label, **figures, "NDS": nds})
    make_tables(sweep.results.parent)
    text = (sweep.results.parent / "results.md").read_text()
    tried = text.index("### Tried")
    assert text.index("| 47.00 |") < tried < text.index("| 36.00 |")


def test_the_committed_tables_are_those_of_the_committed_results(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    shutil.copy(ROOT / "docs" / "results.md", tmp_path)
    make_tables(tmp_path)
    for name in ("results.md", "results.json"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), "run ./bevcask ablate --table"
    drawn = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("images/*.png")}
    assert all((ROOT / "docs" / name).is_file() for name in drawn)


def test_the_readme_tells_the_gains_of_the_claims_that_hold() -> None:
    told = json.loads((ROOT / "docs" / "results.json").read_text())
    primary = {(suite.name, *suite.primary) for suite in chosen_suites("all") if suite.primary is not None}
    claims = [row for row in told if (row["suite"], row["row"], row["student"]) in primary and row["round"]]
    gains = [f"{row['gain_nds']:+.2f} (95 %: {row['ci_low']:+.2f} to {row['ci_high']:+.2f})" for row in claims]
    readme = (ROOT / "README.md").read_text()
    assert [gain for row, gain in zip(claims, gains, strict=True) if row["distils"]]
    for row, gain in zip(claims, gains, strict=True):
        assert (gain in readme) == bool(row["distils"]), (row["row"], gain)


def test_weights_are_not_chosen_on_a_reporting_world(tmp_path: Path) -> None:
    told = sweep_of("choosing", "unlabelled", None, None, tmp_path, tmp_path, (), Console(quiet=True))
    assert told.round == 0
    with pytest.raises(ConfigError, match=r"--round 1: rows of choosing are tried on round 0 alone"):
        sweep_of("choosing", "unlabelled", 1, None, tmp_path, tmp_path, (), Console(quiet=True))
    told = sweep_of("bev-lgkd", "unlabelled", None, None, tmp_path, tmp_path, (), Console(quiet=True))
    assert told.round == 1


def test_a_suite_may_not_bear_a_shipped_ones_name_nor_go_round_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "cache.toml").write_text((SUITES / "cache.toml").read_text())
    with pytest.raises(ConfigError, match="a suite named cache ships"):
        load_suite(str(tmp_path / "cache.toml"))
    rows = '[[rows]]\nname = "none"\nlike = "x"\n[[rows]]\nname = "x"\nlike = "none"\n'
    (tmp_path / "mine.toml").write_text(f'about = ""\n[students.single]\nbase = "ablation-student"\n{rows}')
    with pytest.raises(ConfigError, match="circle, none > x > none"):
        load_suite(str(tmp_path / "mine.toml"))


def test_no_picture_of_gains_without_an_interval(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    lines = all_lines([sweep], results_of(sweep, {row: points[:1] for row, points in ALL.items()}))
    assert lines and all(line.gain is None or math.isnan(line.gain.low) for line in lines)
    assert not draw_gains(lines, tmp_path / "a.png") and not list(tmp_path.iterdir())


def test_trainings_that_two_suites_share_are_drawn_once(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    lines = all_lines([sweep], results_of(sweep, ALL))
    again = [replace(line, cell=replace(line.cell, suite=SUITE.model_copy(update={"name": "other"}))) for line in lines]
    shown = shown_lines([*lines, *again])
    assert shown == [line for line in lines if line.gain is not None] and len(shown) == 3
