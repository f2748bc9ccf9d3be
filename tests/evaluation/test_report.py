"""The report: whole in one file, nothing fetched, all text escaped, and a browser shows every picture and table."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, OutOfSpaceError
from evaluation.curves import LossCurve, chart, thinned
from evaluation.official import SUMMARY_KEYS, FilterCounts, Metrics
from evaluation.report import ReportContent, ReportFrame, report_html, write_report
from evaluation.table import MetricsRow, difference, metrics_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "<script>alert('x')</script> & \"quotes\""


def metrics(value: float) -> Metrics:
    counts = FilterCounts(100, 80, 70, 69)
    errors = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
    return Metrics(
        **dict.fromkeys(SUMMARY_KEYS, value),
        ap={name: dict.fromkeys((0.5, 1.0, 2.0, 4.0), value) for name in DETECTION_CLASSES},
        tp_errors={name: dict.fromkeys(errors, np.nan if name == "barrier" else value) for name in DETECTION_CLASSES},
        truth_counts=counts,
        detection_counts=counts,
    )


@pytest.fixture
def content() -> ReportContent:
    picture = np.random.default_rng(70).integers(0, 255, (90, 160, 3)).astype(np.uint8)
    steps = np.arange(500)
    return ReportContent(
        title=f"Demo {NASTY}",
        about=f"What this is. {NASTY}",
        rows=[
            MetricsRow("teacher", metrics(0.6)),
            MetricsRow("student", metrics(0.2)),
            MetricsRow("distilled", metrics(0.3)),
        ],
        compared=("distilled", "student"),
        notes=[f"Shuffled: 0.01. {NASTY}"],
        frames=[ReportFrame(f"scene {n} {NASTY}", NASTY, picture, picture) for n in range(3)],
        curves=[
            LossCurve(f"student {NASTY}", f"loss {NASTY}", steps, 5 / (1 + steps)),
            LossCurve("b", "other", [1], [np.nan]),
        ],
        made=[(f"seed {NASTY}", NASTY)],
        commands=[f"./bevcask demo {NASTY}"],
        next_command=f"./bevcask train {NASTY}",
    )


class Page(HTMLParser):
    """The tags of a page, balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_balanced_and_every_text_is_escaped(content: ReportContent) -> None:
    page = Page(report_html(content))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_fetched(content: ReportContent) -> None:
    page = Page(report_html(content))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "video")
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    style = report_html(content).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")


def test_differences_say_which_way_and_that_they_prove_nothing(content: ReportContent) -> None:
    text = report_html(content)
    row = text[text.index('<tr class="difference">') :].split("</tr>")[0]
    assert "distilled − student" in row
    assert "one seed, no claim" in row
    assert row.count('class="better">+0.100') == 2  # mAP and NDS went up
    assert row.count('class="worse">+0.100') == 5  # and so did the five errors


def test_difference_knows_which_way_is_better() -> None:
    assert (difference("mAP", 0.2, 0.3).verdict, difference("mATE", 0.2, 0.3).verdict) == ("worse", "better")
    assert difference("NDS", 0.3, 0.3001).verdict == "same"
    assert difference("mAVE", float("nan"), 0.3).text == "–"


def test_comparing_a_row_that_is_not_there_names_those_that_are(content: ReportContent) -> None:
    with pytest.raises(ConfigError, match=r"no row 'pupil' .* teacher, student, distilled"):
        report_html(replace(content, compared=("distilled", "pupil")))


def test_a_report_of_the_least_content_is_whole() -> None:
    page = Page(report_html(ReportContent("t", "a", [MetricsRow("teacher", metrics(0.5))])))
    assert sum(tag == "img" for tag, _ in page.tags) == 0


def test_writing_is_atomic(content: ReportContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs" / "report.html"
    write_report(path, content)
    before = path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfSpaceError, match=re.escape(str(path))):
        write_report(path, replace(content, title="new"))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; apt-get install chromium runs this test")
def test_a_browser_shows_all_pictures_and_tables(content: ReportContent, tmp_path: Path) -> None:
    """The page's own policy stands, opened only for the one script that the probe adds at its end."""
    text = report_html(content)
    probe = """<script>addEventListener('load', () => { const i = [...document.images]; document.title = 'PROBE ' +
      [i.length, i.filter(x => x.complete && x.naturalWidth > 0).length, document.querySelectorAll('table').length,
       document.querySelectorAll('svg polyline').length,
       document.documentElement.scrollWidth <= innerWidth,
       getComputedStyle(document.querySelector('td.bar')).getPropertyValue('--share'),
       document.querySelectorAll('#results tr').length]
      .join(' '); });
      </script></body>"""
    opened = text.replace("style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'")
    assert opened != text
    text = opened.replace("</body>", probe)
    path = tmp_path / "probe.html"
    path.write_text(text, encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=500,900",
    ]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    found = re.search(r"<title>PROBE (.*?)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    images, loaded, tables, lines, fits, share, rows = found[1].split()
    assert (images, loaded) == ("6", "6")
    assert tables == str(2 + 3 + 1)  # results, classes; errors of three models; how it was made
    assert lines == "1"
    assert fits == "true"  # no sideways scrolling of the page on a narrow screen
    assert share == "60.0%"  # inline style is allowed by the page's policy
    assert rows == "5"


def test_terminal_table_has_every_figure_and_the_caveat() -> None:
    console = Console(width=110, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    rows = [MetricsRow("student", metrics(0.25)), MetricsRow("distilled [x]", metrics(0.5))]
    console.print(metrics_table(rows, title="Results", compared=("distilled [x]", "student")))
    text = console.export_text()
    assert all(key in text for key in SUMMARY_KEYS)
    assert text.count("0.500") == 7
    assert text.count("+0.250") == 7
    assert "distilled [x] − student" in text
    assert "one seed, no claim" in text


def test_a_curve_without_finite_values_is_named_and_not_drawn() -> None:
    figure = chart("loss", [LossCurve("broken", "loss", [1, 2], [np.nan, np.inf])])
    assert "broken (no finite value)" in figure
    assert "<polyline" not in figure


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 3.0], [1e-6, 1e3], [1e9, 2e9]])
def test_a_chart_stays_inside_its_frame_whatever_the_values(values: list[float]) -> None:
    figure = chart("loss", [LossCurve("run", "loss", list(range(len(values))), values)])
    points = re.findall(r"([-\d.]+),([-\d.]+)", re.search(r'points="([^"]*)"', figure)[1])  # type: ignore[index]
    assert len(points) == len(values)
    assert all(0 <= float(x) <= 560 and 0 <= float(y) <= 260 for x, y in points)
    assert len(re.findall('class="grid"', figure)) <= 12


def test_thinning_keeps_the_mean_and_short_runs_as_they_are() -> None:
    random = np.random.default_rng(71)
    values = random.normal(size=2400)
    steps, means = thinned(np.arange(2400.0), values, 240)
    assert len(means) == 240
    assert means.mean() == pytest.approx(values.mean())
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(thinned(np.arange(5.0), values[:5])[1], values[:5])
