"""Coverage: text and header read back, kinds of frames are told apart, and no header is trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.columns import NO_FACTORS, Column, Product
from cache.coverage import MAX_COLUMNS, Coverage
from cache.errors import ConfigError, CorruptError
from cache.grid import BevGrid
from cache.selectors import SELECTORS, Selector
from tests.cache.test_selectors import any_selector

FINE, COARSE = BevGrid(-8, 8, -8, 8, 0.8), BevGrid(-16, 16, -16, 16, 1.6)
ALL = "gaussian(dilate=1)+footprint(margin=0.5)+confident(threshold=0.1)+lidar+random(cells=200,seed=0)+dense"


@st.composite
def any_coverage(draw: st.DrawFn) -> Coverage:
    names = draw(st.lists(st.sampled_from(list(SELECTORS)), min_size=1, unique=True))
    columns: list[Column] = [draw(any_selector(name)) for name in names]
    factors = draw(st.lists(st.sampled_from([n for n in SELECTORS if n not in NO_FACTORS]), max_size=3, unique=True))
    if len(factors) > 1:
        columns.insert(draw(st.integers(0, len(names))), Product(tuple(draw(any_selector(name)) for name in factors)))
    return Coverage(tuple(columns))


def test_the_full_text_reads_as_written_down() -> None:
    coverage = Coverage.parse(ALL)
    assert coverage.names == ("gaussian", "footprint", "confident", "lidar", "random", "dense")
    assert coverage == Coverage.parse(ALL.replace("+", ","))
    assert coverage["footprint"] == Selector.of("footprint", margin=0.5)
    assert str(coverage).startswith("gaussian(dilate=1)+footprint(margin=0.5)+confident(threshold=0.1)+lidar(")


def test_parsing_with_a_grid_leaves_nothing_open() -> None:
    assert str(Coverage.parse("gaussian", COARSE)) == "gaussian(dilate=1)"
    assert str(Coverage.parse("gaussian+dense", FINE)) == "gaussian(dilate=0)+dense"
    assert str(Coverage.parse("gaussian(dilate=none)", COARSE)) == "gaussian(dilate=1)"
    assert str(Coverage.parse("gaussian")) == "gaussian"
    with pytest.raises(ConfigError, match=r"gaussian\.dilate is open"):
        Coverage.parse("gaussian").header()


@given(any_coverage(), st.sampled_from([FINE, COARSE]))
def test_text_and_header_read_back(coverage: Coverage, grid: BevGrid) -> None:
    assert Coverage.parse(str(coverage)) == coverage
    resolved = coverage.resolved(grid)
    assert resolved.names == coverage.names and resolved.resolved(FINE) == resolved
    header = json.loads(json.dumps(resolved.header(), allow_nan=False))
    assert Coverage.from_header(header) == resolved
    assert Coverage.from_header(header).header() == header


def test_selectors_of_annotated_boxes_do_not_apply_without_annotations() -> None:
    coverage = Coverage.parse(ALL)
    assert coverage.applying("labelled") == coverage.names
    assert coverage.applying("unlabelled") == ("confident", "lidar", "random", "dense")
    header = Coverage.parse("gaussian(dilate=2)+dense").header()
    assert header == {
        "selectors": ["gaussian", "dense"],
        "options": {"gaussian": {"dilate": 2}, "dense": {}},
        "labelled": ["gaussian", "dense"],
        "unlabelled": ["dense"],
    }


def test_only_dense_promises_every_cell() -> None:
    assert Coverage.parse("dense").every_cell and Coverage.parse(ALL).every_cell
    assert not Coverage.parse("random(cells=100000000)+lidar").every_cell


def test_one_more_selector_joins_or_replaces_its_namesake() -> None:
    coverage = Coverage.parse("gaussian(dilate=0)+dense")
    assert str(coverage.with_selector(Selector.of("gaussian", dilate=2))) == "gaussian(dilate=2)+dense"
    assert str(coverage.with_selector(Selector("footprint"))) == "gaussian(dilate=0)+dense+footprint(margin=0.5)"


@pytest.mark.parametrize("text", ["gaussian,gaussian", "lidar(points=1)+lidar(points=2)"])
def test_a_selector_given_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--coverage .*each at most once"):
        Coverage.parse(text)


def test_refusals_say_where_the_text_stood() -> None:
    with pytest.raises(ConfigError, match=r"--coverage 'gauss': selector 'gauss' is unknown, expected one of gaussian"):
        Coverage.parse("gauss")
    with pytest.raises(ConfigError, match="recipe x: coverage ''"):
        Coverage.parse("", where="recipe x: coverage")
    with pytest.raises(ConfigError, match="expected one or more"):
        Coverage(())
    with pytest.raises(ConfigError, match="'lidar' is not in the coverage dense"):
        Coverage.parse("dense")["lidar"]


GOOD = Coverage.parse("gaussian(dilate=1)+lidar+dense").header()
PRODUCT = Coverage.parse("gaussian(dilate=1)*confident").header()
PRODUCT_OPTIONS = PRODUCT["options"]["gaussian*confident"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        [],
        "dense",
        {},
        {"selectors": ["dense"]},
        {**GOOD, "more": 1},
        {**GOOD, "selectors": "dense"},
        {**GOOD, "selectors": []},
        {**GOOD, "selectors": ["gaussian", "lidar"]},
        {**GOOD, "selectors": ["gaussian", "lidar", "lidar"]},
        {**GOOD, "selectors": ["gaussian", "lidar", "all"]},
        {**GOOD, "selectors": ["gaussian", "lidar", ["dense"]]},
        {**GOOD, "selectors": ["dense"] * 10**6},
        {**GOOD, "options": None},
        {**GOOD, "options": {**GOOD["options"], "random": {"cells": 3, "seed": 0}}},
        {**GOOD, "options": {**GOOD["options"], "dense": []}},
        {**GOOD, "options": {**GOOD["options"], "gaussian": {}}},
        {**GOOD, "options": {**GOOD["options"], "gaussian": {"dilate": None}}},
        {**GOOD, "options": {**GOOD["options"], "gaussian": {"dilate": True}}},
        {**GOOD, "options": {**GOOD["options"], "gaussian": {"dilate": "1"}}},
        {**GOOD, "options": {**GOOD["options"], "gaussian": {"dilate": 10**400}}},
        {**GOOD, "options": {**GOOD["options"], "lidar": {"points": 1, "z_min": -5.0}}},
        {**GOOD, "options": {**GOOD["options"], "lidar": {"points": 1, "z_min": -5.0, "z_max": float("nan")}}},
        {**GOOD, "labelled": ["dense"]},
        {**GOOD, "unlabelled": ["gaussian", "lidar", "dense"]},
        {**GOOD, "unlabelled": ["dense", "lidar"]},
        {**GOOD, "unlabelled": None},
        {"selectors": ["lidar"], "dilate_cells": 0, "unlabelled": []},
        {
            **GOOD,
            "options": {**GOOD["options"], "gaussian": {"dilate": 1, "overlap": 0.1}},
        },  # a default that came later
        {**GOOD, "options": {**GOOD["options"], "gaussian": {"dilate": 1, "classes": "car"}}},  # another name
        {**PRODUCT, "selectors": ["confident*gaussian"]},
        {**PRODUCT, "selectors": ["gaussian*lidar"]},
        {**PRODUCT, "selectors": ["gaussian*"]},
        {**PRODUCT, "options": {"gaussian*confident": {"gaussian": {"dilate": 1}}}},
        {**PRODUCT, "options": {"gaussian*confident": PRODUCT_OPTIONS | {"lidar": {}}}},
        {**PRODUCT, "options": {"gaussian*confident": PRODUCT_OPTIONS | {"gaussian": 1}}},
        {**PRODUCT, "unlabelled": ["gaussian*confident"]},
    ],
    ids=range(37),
)
def test_headers_that_we_would_not_write_are_corrupt(header: Any) -> None:
    with pytest.raises(CorruptError, match=r"^t/manifest\.json: .*cache the teacher again$") as caught:
        Coverage.from_header(header, "t/manifest.json")
    assert len(str(caught.value)) < 1000


def test_a_product_is_one_column_whichever_way_it_is_written() -> None:
    coverage = Coverage.parse("lidar+confident( threshold=0.2 ) * gaussian(dilate=1) , gaussian(dilate=0)")
    assert coverage.names == ("lidar", "gaussian*confident", "gaussian")
    assert coverage["gaussian*confident"] == Coverage.parse("gaussian(dilate=1)*confident(threshold=0.2)").selectors[0]
    assert coverage["gaussian"]["dilate"] == 0 and coverage["gaussian*confident"]["gaussian"]["dilate"] == 1
    assert coverage.applying("unlabelled") == ("lidar",)
    assert [factor.kind for factor in coverage.factors] == ["lidar", "gaussian", "confident", "gaussian"]
    assert PRODUCT == {
        "selectors": ["gaussian*confident"],
        "options": {"gaussian*confident": {"gaussian": {"dilate": 1}, "confident": {"threshold": 0.1}}},
        "labelled": ["gaussian*confident"],
        "unlabelled": [],
    }


@pytest.mark.parametrize("text", ["gaussian*gaussian(dilate=1)", "dense*lidar", "lidar*random", "lidar*view*lidar"])
def test_what_cannot_be_multiplied_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected two or more different factors of gaussian, footprint"):
        Coverage.parse(text)


def test_a_selector_may_stand_once_for_each_of_its_names() -> None:
    text = "view(camera=CAM_FRONT)+view(camera=CAM_BACK)*view(camera=CAM_FRONT)+view"
    assert Coverage.parse(text).names == (
        "view(camera=CAM_FRONT)",
        "view(camera=CAM_BACK)*view(camera=CAM_FRONT)",
        "view",
    )
    with pytest.raises(ConfigError, match="each at most once"):
        Coverage.parse("gaussian(classes=car|bus)+gaussian(classes=bus|car,dilate=1)")
    many = "+".join(f"gaussian(classes=c{i})" for i in range(MAX_COLUMNS))
    assert len(Coverage.parse(many).names) == MAX_COLUMNS
    with pytest.raises(ConfigError, match=f"up to {MAX_COLUMNS}"):
        Coverage.parse(many + "+dense")


def test_headers_of_stores_written_before_the_later_options_read_and_are_written_the_same() -> None:
    header = {
        "selectors": ["gaussian", "footprint", "confident", "lidar", "random", "dense"],
        "options": {
            "gaussian": {"dilate": 1},
            "footprint": {"margin": 0.5},
            "confident": {"threshold": 0.1},
            "lidar": {"points": 1, "z_min": -5.0, "z_max": 3.0},
            "random": {"cells": 200, "seed": 0},
            "dense": {},
        },
        "labelled": ["gaussian", "footprint", "confident", "lidar", "random", "dense"],
        "unlabelled": ["confident", "lidar", "random", "dense"],
    }
    assert Coverage.from_header(header) == Coverage.parse(ALL) and Coverage.parse(ALL).header() == header
    assert json.dumps(Coverage.parse(ALL).header()) == json.dumps(header)  # in the same order, so plans' bytes stay


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*SELECTORS, "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SELECTORS, *GOOD, "x"]), inner),
    max_leaves=8,
)


@given(st.fixed_dictionaries({key: st.just(value) | JSON for key, value in GOOD.items()}))
def test_any_header_reads_as_itself_or_is_corrupt(header: Any) -> None:
    try:
        coverage = Coverage.from_header(header)
    except CorruptError:
        return
    assert coverage.header() == header
