"""Comparisons: differences are the metric's, intervals are paired, tables and CSV carry them, a browser shows them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cache.errors import ConfigError
from cache.frame import Detections
from evaluation.array_metric import evaluate
from evaluation.comparison import Compared, comparison_csv, difference_table, interval_lines, seed_table_view
from evaluation.comparison_report import ComparisonAround, comparison_html, write_comparison
from evaluation.explained import Model, explain
from evaluation.match_table import detections_of
from evaluation.metrics import SUMMARY_KEYS
from evaluation.seeds import SeedResult, seed_table
from tests.browser import Browser, browser, needs_browser
from tests.evaluation.test_evaluation_report import assert_sound
from tests.evaluation.test_report import NASTY, Page
from tests.evaluation.test_resampling import World, world

AROUND = ComparisonAround("Comparison", "about", made=[("a", "b")], commands=["./bevcask compare"])


def compared_of(one: World, *, names: tuple[str, ...] = ("a", "b", "c"), seeds: bool = True) -> Compared:
    """The world's predictions; the same without every second; the same again."""
    half = {t: Detections(d.boxes_lidar[::2], d.scores[::2], d.labels[::2]) for t, d in one[2].items()}
    said = dict(zip(names, (one[2], half, one[2]), strict=True))
    models = [Model(name, evaluate(one[0], one[1], it), detections_of(it)) for name, it in said.items()]
    explained = explain(models, one[0], one[1], [], draws=20)
    results = [
        SeedResult(group, seed, {"mAP": value + seed / 50, "NDS": value + seed / 40})
        for group, value in (("base", 0.2), (f"taught {NASTY}", 0.3))
        for seed in range(3)
    ]
    rows = seed_table(results, "base", ["mAP", "NDS"]) if seeds else []
    return Compared(explained, names[0], {names[0]: "base"}, {names[0]: 3}, rows)


def printed(table: object) -> str:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_terminal_tells_differences_intervals_and_which_leave_out_zero() -> None:
    compared = compared_of(world(500))
    text = printed(difference_table(compared))
    a, b, _ = compared.models
    drawn = compared.drawn(b)
    assert drawn is not None and drawn.of("mAP").high < 0  # half of the predictions find less
    shown = f"{b.metrics.mAP - a.metrics.mAP:+.3f}".replace("-", "−")
    assert f"{shown}*" in text
    low, high = (f"{v:+.3f}".replace("-", "−") for v in (drawn.of("mAP").low, drawn.of("mAP").high))
    assert f"b − a: mAP [{low}, {high}], NDS [" in interval_lines(compared)[0]
    assert "±0.000" in text and "±0.000*" not in text


def test_the_csv_has_a_line_a_model_with_every_figure_unrounded() -> None:
    compared = compared_of(world(501))
    rows = list(csv.DictReader(io.StringIO(comparison_csv(compared))))
    assert [row["model"] for row in rows] == ["a", "b", "c"] and (rows[0]["group"], rows[0]["seed"]) == ("base", "3")
    base = compared.models[0]
    assert rows[0]["d_mAP"] == "" and rows[2]["d_NDS"] == "0.0"
    for row, model in zip(rows, compared.models, strict=True):
        for key in SUMMARY_KEYS:
            assert float(row[key]) == getattr(model.metrics, key)
        assert float(row["AP_traffic_cone"]) == model.metrics.class_ap("traffic_cone")
    drawn = compared.drawn(compared.models[1])
    assert drawn is not None
    assert float(rows[1]["d_NDS"]) == compared.models[1].metrics.NDS - base.metrics.NDS
    assert (float(rows[1]["d_NDS_low"]), float(rows[1]["d_NDS_high"])) == (drawn.of("NDS").low, drawn.of("NDS").high)


def test_the_page_colours_only_differences_that_leave_out_zero() -> None:
    compared = compared_of(world(502, scenes=3, frames=2))
    text = comparison_html(compared, AROUND)
    Page(text)
    rows = text[text.index('<table id="results">') :].split("</table>")[0].split('<tr class="difference">')[1:]
    for row, model in zip(rows, compared.others, strict=True):
        drawn = compared.drawn(model)
        assert drawn is not None
        coloured = [('class="better"' in cell) or ('class="worse"' in cell) for cell in row.split("<td")[1:]]
        beside = [drawn.of(key).beside_zero for key in SUMMARY_KEYS]
        assert all(clear for clear, colour in zip(beside, coloured, strict=True) if colour)
    assert 'class="worse"' not in rows[1] and 'class="better"' not in rows[1]  # the same predictions


def test_the_terminal_colours_only_differences_that_leave_out_zero() -> None:
    compared = compared_of(world(500))
    console = Console(width=200, record=True, file=io.StringIO(), force_terminal=True)
    console.print(difference_table(compared))
    (line,) = [line for line in console.export_text(styles=True).splitlines() if line.strip().startswith("b")]
    cells = re.findall(r"\x1b\[([\d;]+)m(?:[+−±][\d.]+|–)(\*?)", line)
    assert len(cells) == len(SUMMARY_KEYS)
    stars = [bool(star) for _, star in cells]
    assert [code != "2" for code, _ in cells] == stars and True in stars and False in stars


def test_a_name_in_the_csv_is_no_formula() -> None:
    for name in ("=1+1", "+1", "-1", "@x", "\t=1"):
        rows = list(csv.reader(io.StringIO(comparison_csv(compared_of(world(500), names=(name, "b", "c"))))))
        assert rows[1][0] == f"'{name}" and rows[2][0] == "b"


def test_one_scene_has_differences_without_intervals() -> None:
    compared = compared_of(world(503, scenes=1), seeds=False)
    text = comparison_html(compared, AROUND)
    assert "One scene, no intervals" in text and "Over seeds" not in text
    assert compared.drawn(compared.models[1]) is None
    row = comparison_csv(compared).splitlines()[2].split(",")
    assert row[-1] == "" and row[-2] == ""
    assert interval_lines(compared) == [] and "*" not in printed(difference_table(compared))


def test_names_from_folders_are_escaped_and_the_seed_table_has_its_rows() -> None:
    compared = compared_of(world(504), names=(f"a {NASTY}", "b", "c [red]"))
    page = Page(comparison_html(compared, AROUND))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "c [red]" in printed(difference_table(compared))
    text = printed(seed_table_view(compared))
    assert "0.220 ± 0.020" in text and "+0.100 [+0.100, +0.100]" in text
    assert math.isnan(seed_table([SeedResult("x", 0, {"NDS": 1.0})], "x", ["NDS"])[0].spread["NDS"].std)


def test_names_that_make_no_comparison_are_refused() -> None:
    compared = compared_of(world(505, scenes=1))
    with pytest.raises(ConfigError, match="no 'z' to compare with; there are a, b, c"):
        replace(compared, base="z")
    with pytest.raises(ConfigError, match="two models or more, of different names"):
        replace(compared, models=compared.models[:1])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as running:
        yield running


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_a_browser_shows_every_table_and_chart_of_a_comparison(
    chromium: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    compared = compared_of(world(506), names=(f"a {NASTY}", "b" * 60, "c"))
    path = tmp_path / "comparison.html"
    write_comparison(path, compared, AROUND)
    look = chromium.look(path, width=width, dark=dark)
    assert_sound(look, width)
    parts = len(compared.models[0].parts) + len({part.group for part in compared.models[0].parts})
    expected = {"results": 3 + 2, "seeds": 2, "class-ap": 10, "kinds": 3 * (1 + 5), "parts": parts, "made": 1}
    assert look.seen["tables"] == expected
    assert len(look.seen["lines"]) == 2  # a chart of differences for each model but the base
    assert np.count_nonzero(["Over seeds" in name for name in look.seen["sections"]]) == 1
