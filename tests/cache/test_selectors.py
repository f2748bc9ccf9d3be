"""Selectors: options are checked, text and value are two forms of one thing, and errors name what there is."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.columns import read_columns
from cache.errors import ConfigError
from cache.grid import BevGrid
from cache.selectors import SELECTORS, Selector, write_selector

_APART = {"z_min": (-5, 0), "z_max": (0.5, 9), "near": (0.1, 3), "far": (4, 90)}  # in any pair the first is lower
FINE, COARSE = BevGrid(-8, 8, -8, 8, 0.8), BevGrid(-16, 16, -16, 16, 1.6)


def read_selectors(text: str) -> list[tuple[str, dict]]:
    """The selectors of a text without products."""
    columns = list(read_columns(text))
    assert all(len(column) == 1 for column in columns)
    return [column[0] for column in columns]


@st.composite
def any_selector(draw: st.DrawFn, name: str | None = None) -> Selector:
    """Any selector with any options it may have."""
    name = name or draw(st.sampled_from(list(SELECTORS)))
    options = {}
    for key, option in SELECTORS[name].options.items():
        if option.type is str:
            options[key] = "|".join(draw(st.lists(st.sampled_from(["CAM_FRONT", "car", "a1"]), max_size=4)))
            continue
        low, high = _APART.get(key, (option.low, option.high))
        number = st.integers(int(low), int(high)) if option.type is int else st.floats(low, high)
        options[key] = draw(st.none() | number if option.default is None else number)
    return Selector.of(name, **options)


def test_missing_options_take_their_defaults_and_order_does_not_matter() -> None:
    assert Selector("lidar") == Selector.of("lidar", z_max=3, points=1, z_min=-5)
    assert dict(Selector("random").options) == {"cells": 200, "seed": 0}
    assert isinstance(Selector.of("footprint", margin=2)["margin"], float)


def test_a_selector_is_a_value() -> None:
    selector = Selector.of("footprint", margin=1)
    assert hash(selector) == hash(Selector.of("footprint", margin=1.0)) and selector != Selector("footprint")
    with pytest.raises(dataclasses.FrozenInstanceError):
        selector.name = "dense"  # type: ignore[misc]


def test_the_gaussian_is_dilated_by_default_on_coarse_cells_only() -> None:
    assert Selector("gaussian")["dilate"] is None
    assert Selector("gaussian").resolved(FINE)["dilate"] == 0
    assert Selector("gaussian").resolved(COARSE)["dilate"] == 1
    assert Selector("gaussian").resolved(BevGrid(0, 12, 0, 12, 0.4 * 3))["dilate"] == 1  # 1.2000000000000002
    assert Selector("gaussian").resolved(BevGrid(0, 12, 0, 12, 1.2))["dilate"] == 1
    assert Selector.of("gaussian", dilate=0).resolved(COARSE)["dilate"] == 0
    assert Selector.of("gaussian", dilate=3).resolved(FINE)["dilate"] == 3


@given(any_selector())
def test_text_reads_back(selector: Selector) -> None:
    ((name, options),) = read_selectors(str(selector))
    assert Selector(name, tuple(options.items())) == selector


def test_text_gives_only_what_is_written() -> None:
    found = list(read_selectors(" lidar( z_max = 2.5 ) , gaussian(dilate=None)+dense()+ random(seed=1,cells=2)"))
    assert found == [
        ("lidar", {"z_max": 2.5}),
        ("gaussian", {"dilate": None}),
        ("dense", {}),
        ("random", {"seed": 1, "cells": 2}),
    ]
    assert write_selector(*found[0]) == "lidar(z_max=2.5)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found ''.*NAME is one of gaussian, footprint, confident, topk, lidar, view, random, dense"),
        (
            "gauss",
            "'gauss' is unknown, expected one of gaussian, footprint, confident, topk, lidar, view, random, dense",
        ),
        ("Gaussian", "'Gaussian' is unknown"),
        ("gaussian+", "found ''"),
        ("gaussian++dense", r"found '\+dense'"),
        ("gaussian dense", "found 'gaussian dense'"),
        ("gaussian(dilate=1", "expected NAME"),
        ("gaussian(dilate=1))", "expected NAME"),
        ("lidar(margin=1)", "lidar has no option 'margin'; its options are points, z_min, z_max"),
        ("dense(cells=3)", "dense has no option 'cells'; it has no options"),
        ("lidar(points)", "found 'points', expected option=value"),
        ("lidar(points=1,points=2)", "each once"),
        ("lidar(points=,)", "points is '', expected a number"),
        ("lidar(points=many)", "points is 'many', expected a number"),
        ("random(cells=1.5)", r"cells is 1\.5, expected a whole number in 1\.\.100000000"),
        ("random(cells=0)", "cells is 0"),
        ("random(seed=-1)", "seed is -1"),
        ("random(seed=" + "9" * 29 + ")", "seed is 9{29}, expected a whole number"),
        ("random(seed=" + "9" * 5000 + ")", "seed is inf, expected a whole number"),
        ("random(seed=١)", "seed is '١', expected a number"),
        ("gaussian(dilate=65)", r"dilate is 65, expected a whole number in 0\.\.64"),
        ("gaussian(dilate=-1)", "dilate is -1"),
        ("footprint(margin=nan)", "margin is 'nan', expected a number"),
        ("footprint(margin=1e999)", "margin is inf, expected"),
        ("footprint(margin=-0.1)", r"margin is -0\.1, expected a number in 0\.\.50"),
        ("footprint(margin=None)", "margin is None"),
        ("confident(threshold=-0.1)", r"threshold is -0\.1"),
        ("confident(soft=2)", r"soft is 2, expected a whole number in 0\.\.1"),
        ("topk(k=0)", "k is 0"),
        ("gaussian(overlap=1)", r"overlap is 1, expected a number in 0\.01\.\.0\.99"),
        ("gaussian(min_radius=1.5)", r"min_radius is 1\.5, expected a whole number"),
        ("gaussian(classes=car||truck)", r"classes is 'car\|\|truck', expected up to 64 names"),
        ("gaussian(classes=" + "|".join(f"c{i}" for i in range(65)) + ")", "expected up to 64 names"),
        ("view(camera=CAM*FRONT)", r"camera is 'CAM\*FRONT', expected up to 64 names"),
        ("view(near=9,far=9)", r"near 9\.0 is not below far 9\.0"),
        ("view(z_min=4)", r"z_min 4\.0 is not below z_max 3\.0"),
        ("confident(threshold=1.01)", r"threshold is 1\.01"),
        ("lidar(z_min=3)", r"z_min 3\.0 is not below z_max 3\.0"),
    ],
)
def test_what_is_wrong_is_named_with_what_there_is(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        [Selector(name, tuple(options.items())) for name, options in read_selectors(text)]
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), 10**400, [1], None])
def test_values_that_are_no_numbers_in_range_are_refused(value: object) -> None:
    for name, key in (("lidar", "points"), ("footprint", "margin")):
        with pytest.raises(ConfigError, match=f"selector {name}: {key} is"):
            Selector(name, ((key, value),))  # type: ignore[arg-type]


def test_options_of_names_are_sets_and_part_of_the_name() -> None:
    selector = Selector.of("gaussian", classes="truck|car|truck")
    assert selector["classes"] == "car|truck" and selector.name == "gaussian(classes=car|truck)"
    assert selector == Selector.of("gaussian", classes="car|truck") and Selector("gaussian").name == "gaussian"
    assert Selector.of("view", camera="CAM_BACK", far=30).name == "view(camera=CAM_BACK)"
    for value in (None, 3, ["car"], "", " ", "|"):
        if value == "":
            assert Selector.of("gaussian", classes=value).name == "gaussian"
            continue
        with pytest.raises(ConfigError, match="selector gaussian: classes is"):
            Selector("gaussian", (("classes", value),))  # type: ignore[arg-type]


def test_options_that_came_later_are_written_only_where_they_are_not_the_default() -> None:
    assert Selector.of("gaussian", dilate=0, overlap=0.1, min_radius=1).written() == {"dilate": 0}
    assert str(Selector.of("gaussian", dilate=0, overlap=0.7)) == "gaussian(dilate=0,overlap=0.7)"
    assert str(Selector("footprint")) == "footprint(margin=0.5)"
    assert str(Selector.of("lidar", ground=0.2)) == "lidar(points=1,z_min=-5,z_max=3,ground=0.2)"


@given(st.text(alphabet="gausindelt(),+*|=0.1e- \nÄ", max_size=40))
def test_any_text_reads_or_is_refused(text: str) -> None:
    try:
        found = [Selector(name, tuple(given.items())) for column in read_columns(text) for name, given in column]
    except ConfigError:
        return
    assert found
