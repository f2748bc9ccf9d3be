"""What the tables say of given results: gains, leads, when a row is judged, intervals over regimes, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import ttest_rel

from cache.files import write_json
from studies.ablation.gain_picture import draw_gains
from studies.ablation.lines import JUDGED_FROM, Line, Result, all_lines
from studies.ablation.plan import Cell, Sweep, job_of
from studies.ablation.prepare import Settings
from studies.ablation.regimes import REGIMES
from studies.ablation.report import make_tables
from studies.ablation.suite import load_suite

SUITE = load_suite("bev-lgkd")
NONE, UNMASKED, MASK = [16.0, 17.0, 16.5, 16.2, 16.9], [17.1, 17.9, 17.2, 17.3, 18.1], [18.2, 19.3, 18.4, 18.1, 19.4]
UNTRAINED = [16.1, 16.8, 16.7, 16.0, 17.0]
ALL = {"none": NONE, "unmasked": UNMASKED, "LiDAR mask": MASK, "LiDAR mask, untrained teacher": UNTRAINED}


def sweep_in(folder: Path, regime: str = "unlabelled") -> Sweep:
    settings = Settings(folder / "run", Console(quiet=True), {}, {})
    return Sweep([SUITE], REGIMES[regime], 1, JUDGED_FROM, settings, folder / "docs" / "results")


def results_of(sweep: Sweep, scores: Mapping[str, Sequence[float]]) -> dict[str, Result]:
    """As `studies.ablation.job` writes them; scores: NDS in points by row, seed by seed."""
    out: dict[str, Result] = {}
    for row, points in scores.items():
        for number, nds in enumerate(points):
            job = job_of(sweep, Cell(SUITE, SUITE.row(row), "single"), sweep.place.first_seed + number)
            label = {"suite": SUITE.name, "row": row, "student": "single", "regime": sweep.regime.name, "round": 1}
            figures = {"NDS": nds / 100, "mAP": nds / 200, "train_minutes": 2.0, "seed": job.label.seed}
            out[job.key] = {"key": job.key, **label, **figures}
    return out


def mask_line(sweeps: Sequence[Sweep], results: Mapping[str, Result]) -> Line:
    return next(line for line in all_lines(sweeps, results) if line.cell.row.name == "LiDAR mask")


def test_a_row_distils_where_its_gain_and_every_lead_lie_above_zero(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    line = mask_line([sweep], results_of(sweep, ALL))
    assert (
        line.distils is True
        and line.is_claim
        and line.gain is not None
        and set(line.leads)
        == set(ALL)
        - {
            "unmasked",
            "LiDAR mask",
        }
    )
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
            write_json(sweep.results / f"{key}.json", dict(result))
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


def test_no_picture_of_gains_without_an_interval(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    lines = all_lines([sweep], results_of(sweep, {row: points[:1] for row, points in ALL.items()}))
    assert lines and all(line.gain is None or math.isnan(line.gain.low) for line in lines)
    assert not draw_gains(lines, tmp_path / "a.png") and not list(tmp_path.iterdir())
