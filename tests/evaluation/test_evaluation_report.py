"""The report of an evaluation: whole, honest about what is missing, and shown by a browser as it was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.classes import DETECTION_CLASSES
from cache.frame import Detections
from cache.plan import Scene
from evaluation.array_metric import evaluate
from evaluation.charts import Difference, interval_chart
from evaluation.curves import LossCurve
from evaluation.error_kinds import CLASS, KINDS, confusions
from evaluation.evaluation_report import ReportAround, evaluation_html, signed, write_evaluation_report
from evaluation.explained import Explained, Model, explain
from evaluation.match_table import detections_of
from evaluation.over_recall import class_curves
from evaluation.report import ReportFrame
from evaluation.subsets import Subset
from tests.browser import Browser, Look, browser, needs_browser
from tests.evaluation.test_report import NASTY, Page
from tests.evaluation.test_resampling import World, table_of, world


def explained_of(one: World, name: str = "model", subset: Subset | None = None) -> Explained:
    subset = subset or Subset()
    scenes = [Scene(f.scene_token, f.scene_name, "val", "Night, rain") for f in one[0]]
    model = Model(name, evaluate(*one, subset=subset), detections_of(one[2]))
    return explain([model], one[0], one[1], scenes, subset=subset, draws=20)[0]


def around() -> ReportAround:
    picture = np.random.default_rng(70).integers(0, 255, (90, 160, 3)).astype(np.uint8)
    return ReportAround(
        title=f"Model {NASTY}",
        about=NASTY,
        notes=[NASTY],
        frames=[ReportFrame(f"scene {n} {NASTY}", NASTY, picture, picture if n else None) for n in range(3)],
        curves=[LossCurve(f"run {NASTY}", f"loss {NASTY}", np.arange(50), 1 / (1 + np.arange(50)))],
        made=[(NASTY, NASTY)],
        commands=[NASTY],
        next_command=NASTY,
    )


def renamed(one: World) -> World:
    """The same world, scenes named as no data set would."""
    return [replace(f, scene_name=f"{f.scene_name} {NASTY}") for f in one[0]], one[1], one[2]


def test_every_name_from_data_is_escaped_and_every_tag_is_closed() -> None:
    page = Page(evaluation_html(explained_of(renamed(world(400)), f"model {NASTY}"), around()))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert links == {f"#{a['id']}" for tag, a in page.tags if tag == "h2"}  # every link leads somewhere in the page


def test_figures_in_the_page_are_the_metrics_and_stand_in_their_intervals() -> None:
    one = explained_of(world(401))
    text = evaluation_html(one, ReportAround("t", "a"))
    assert one.drawn is not None
    found = one.drawn.of("mAP")
    assert f"<dt>mAP</dt><dd>{one.metrics.mAP:.3f}<small>[{found.low:.3f}, {found.high:.3f}]" in text
    row = text[text.index('<table id="class-ap">') :].split("</tr>")[2]
    assert re.findall(r">(\d\.\d{3})<", row) == [
        f"{v:.3f}" for v in (one.metrics.class_ap("truck"), *one.metrics.ap["truck"].values())
    ]
    assert "over 5 scenes (20 draws, seed 0)" in text and "So few scenes make rough intervals" in text


def test_one_scene_has_no_intervals_and_says_so() -> None:
    text = evaluation_html(explained_of(world(402, scenes=1)), ReportAround("t", "a"))
    assert "The split has one scene, so there is no interval over scenes" in text
    assert "95 % interval</th><td" not in text and "[0." not in text


def test_a_class_without_objects_and_a_silent_model_are_told() -> None:
    frames, truth, said = world(403)
    bus = DETECTION_CLASSES.index("bus")
    truth = [replace(t, class_ids=np.where(t.class_ids == bus, 0, t.class_ids).astype(np.int32)) for t in truth]
    text = evaluation_html(explained_of((frames, truth, said)), ReportAround("t", "a"))
    assert "No objects to find of bus: the metric counts it with an AP of 0" in text
    silent = explained_of((frames, truth, {token: Detections.empty() for token in said}))
    text = evaluation_html(silent, ReportAround("t", "a"))
    assert "The model says nothing of these frames" in text and silent.errors.counts["missed"] > 0
    assert silent.counts.right.sum() == 0


def test_a_part_of_the_split_is_named_as_one() -> None:
    one = explained_of(world(404), subset=Subset(classes=("car", "bus")))
    text = evaluation_html(one, ReportAround("t", "a"))
    assert "Only a part of the split counts: classes=car+bus." in text
    assert text[text.index('<table id="class-ap">') :].split("</table>")[0].count("<tr") == 1 + 2


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_confusions_is_counted_prediction_by_prediction(seed: int) -> None:
    table = table_of(world(410 + seed))
    working = np.random.default_rng(seed).uniform(0.2, 0.6, 10)
    expected = np.zeros((11, 11), np.int64)
    accounted = set()
    for n in range(len(table.scores)):
        if table.scores[n] < working[table.class_ids[n]]:
            continue
        kind, said = KINDS[table.kind[n]], table.class_ids[n]
        about = table.taken[n] if kind == "right" else table.target[n]
        accounted.add(int(about))
        if kind in ("right", "class"):
            expected[table.objects.class_ids[about], said] += 1
        elif kind == "background":
            expected[10, said] += 1
    for o in set(range(len(table.objects))) - accounted:
        expected[table.objects.class_ids[o], 10] += 1
    np.testing.assert_array_equal(confusions(table, working), expected)
    assert (table.kind == CLASS).any() and expected[10].any()


def test_curves_over_recall_are_what_the_figures_are_means_of() -> None:
    one = world(405)
    metrics = evaluate(*one)
    for curves in class_curves(table_of(one)):
        for row, ap in zip(curves.precision, metrics.ap[curves.name].values(), strict=True):
            above = np.maximum(np.nan_to_num(row)[11:] - 0.1, 0)
            assert above.mean() / 0.9 == pytest.approx(ap, abs=1e-12)
        for row, error in zip(curves.errors, metrics.tp_errors[curves.name].values(), strict=True):
            if np.isfinite(row[11:]).any():
                assert np.nanmean(row[11:]) == pytest.approx(error, abs=1e-12)


def test_differences_have_a_sign_and_never_a_negative_nothing() -> None:
    assert [signed(v) for v in (0.1, -0.25, -0.0001, 0.0, float("nan"))] == [
        "+0.100",
        "−0.250",
        "±0.000",
        "±0.000",
        "–",
    ]


def test_an_interval_beside_zero_is_told_from_one_across_it_by_more_than_colour() -> None:
    rows = [
        Difference("a", 0.1, 0.05, 0.2),
        Difference("b", -0.1, -0.2, 0.1),
        Difference("c", 0.1, *[float("nan")] * 2),
    ]
    text = interval_chart(rows, "differences")
    circles = re.findall(r'<circle class="(\w+)"', text)
    assert circles == ["better", "unclear", "unclear"]
    assert text.count("<line class=") == 3 + 2


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as running:
        yield running


def assert_sound(look: Look, width: int) -> None:
    """What every report of ours must be, whatever is in it."""
    assert look.problems == [] and look.requests == []
    assert look.seen["images"] == look.seen["loaded"] and look.seen["flat"] == 0
    assert look.seen["width"] == width and look.seen["scroll"] <= width, "the page scrolls sideways"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, False), (390, True)])
def test_a_browser_shows_every_picture_table_and_chart(
    chromium: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    path = tmp_path / "report.html"
    one = explained_of(renamed(world(406)))
    write_evaluation_report(path, one, around())
    look = chromium.look(path, width=width, dark=dark)
    assert_sound(look, width)
    assert look.seen["images"] == 5
    groups = len({part.group for part in one.parts})
    assert look.seen["tables"] == {
        "results": 2,
        "class-ap": 10,
        "errors": 10,
        "kinds": 5,
        "kind-gains": 10,
        "confusions": 11,
        "made": 1,
        "parts": len(one.parts) + groups,
    }
    assert len(one.parts) >= 9 and groups == 4
    charts = list(look.seen["lines"].values())
    assert len(charts) == 10 + 10 + 1 and min(charts) >= 1 and charts[-1] == 1
    assert look.seen["ground"] == ("rgb(16, 21, 28)" if dark else "rgb(255, 255, 255)")
    assert "Classes mistaken for each other" in look.seen["sections"] and "<script>" in look.seen["text"]


@needs_browser
def test_the_browser_would_tell_what_is_wrong_with_a_page(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        '<!doctype html><body><img src="missing.png"><div style="width:3000px">wide</div>'
        "<script>console.error('oh')</script>"
    )
    look = chromium.look(path, width=1400)
    assert [Path(address).name for address in look.requests] == ["missing.png"]
    assert any("oh" in problem for problem in look.problems) and any("loading" in p for p in look.problems)
    assert look.seen["loaded"] == 0 and look.seen["scroll"] > 1400
