"""The coverage contract: which store serves which term, on which frames, and what to do where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.coverage import Coverage
from cache.errors import ConfigError
from cache.field_list import FieldList
from cache.grid import BevGrid
from cache.selectors import SELECTORS
from cache.serving import NeededSelector, StoreOffer, TermNeed, same_grid, serves
from tests.cache.test_coverage import any_coverage

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 1.6)
FIELDS = ("bev_index", "bev_values", "bev_weights", "boxes")


def offer(coverage: str, fields: tuple[str, ...] = FIELDS, grid: BevGrid = GRID) -> StoreOffer:
    return StoreOffer(fields, grid, Coverage.parse(coverage, grid))


def need(*selectors: str, every_cell: bool = False, grid: BevGrid | None = GRID) -> TermNeed:
    return TermNeed(("bev_values",), tuple(map(NeededSelector.parse, selectors)), every_cell, grid)


def test_a_store_serves_the_selectors_it_keeps() -> None:
    assert serves(offer("gaussian+lidar"), need("gaussian")).served
    assert serves(offer("gaussian+lidar"), need("lidar", "gaussian(dilate=1)")).served
    assert serves(offer("gaussian"), need()).served


def test_a_missing_selector_is_refused_with_both_values_and_the_flag() -> None:
    answer = serves(offer("lidar"), need("gaussian"))
    assert answer.verdict == "refused" and answer.about == "coverage" and not answer.served
    assert answer.reason == (
        "reads the weights of selector gaussian, the store covers lidar(points=1,z_min=-5,z_max=3)"
    )
    assert answer.coverage == "lidar(points=1,z_min=-5,z_max=3)+gaussian(dilate=1)"
    assert f"`cache-teacher --coverage '{answer.coverage}'`" in answer.remedy


def test_an_option_that_the_term_fixes_must_be_equal() -> None:
    store = offer("gaussian(dilate=1)+confident(threshold=0.1)")
    assert serves(store, need("confident(threshold=0.1)")).served
    answer = serves(store, need("confident(threshold=0.3)", "gaussian(dilate=0)"))
    assert answer.verdict == "refused" and "confident(threshold=0.3)" in answer.reason
    assert "confident(threshold=0.1)" in answer.reason
    assert answer.coverage == "gaussian(dilate=0)+confident(threshold=0.3)"


def test_dense_serves_terms_with_weights_of_their_own_but_no_other_selectors_weights() -> None:
    dense = offer("dense")
    assert serves(dense, need(every_cell=True)).served and serves(dense, need("dense")).served
    answer = serves(dense, need("gaussian"))
    assert answer.verdict == "refused" and answer.coverage == "dense+gaussian(dilate=1)"
    assert serves(offer("gaussian+dense"), need("gaussian", every_cell=True)).served


def test_no_union_of_others_counts_as_every_cell() -> None:
    answer = serves(offer("gaussian+random(cells=100000000)"), need("gaussian", every_cell=True))
    assert answer.verdict == "refused" and "every cell (dense)" in answer.reason
    assert answer.coverage.endswith("+dense")


@pytest.mark.parametrize("store", ["gaussian", "dense", "lidar+random"])
def test_on_unlabelled_frames_a_term_of_annotated_boxes_is_skipped_whatever_the_store_holds(store: str) -> None:
    for selector in ("gaussian", "footprint(margin=2)"):
        answer = serves(offer(store), need("lidar", selector), "unlabelled")
        assert answer.verdict == "skipped" and not answer.served
        assert selector in answer.reason and "unlabelled" in answer.reason and not answer.remedy


def test_on_unlabelled_frames_other_terms_are_served_or_refused() -> None:
    assert serves(offer("gaussian+lidar+dense"), need("lidar", every_cell=True), "unlabelled").served
    assert serves(offer("gaussian"), need("lidar"), "unlabelled").verdict == "refused"
    assert serves(offer("gaussian"), TermNeed(("boxes",)), "unlabelled").served


def test_a_missing_field_is_refused_with_what_there_is() -> None:
    answer = serves(offer("dense", ("boxes", "labels")), need("dense"))
    assert answer.about == "fields" and "'bev_values'" in answer.reason and "boxes, labels" in answer.reason
    assert not answer.coverage and "cache-teacher" in answer.remedy


def test_another_grid_is_refused_with_both() -> None:
    finer = BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8)
    answer = serves(offer("dense"), need("dense", grid=finer))
    assert answer.about == "grid" and "cell 0.8 m" in answer.reason and "cell 1.6 m" in answer.reason
    assert serves(offer("dense"), need("dense", grid=None)).served


def test_grids_are_equal_to_a_millionth_of_a_cell() -> None:
    assert same_grid(GRID, BevGrid(-51.2, 51.2, -51.2, 51.2, 0.4 * 4))
    assert same_grid(BevGrid(0, 12, 0, 12, 1.2), BevGrid(0, 12, 0, 12, 0.4 * 3))
    assert not same_grid(GRID, BevGrid(-51.2 + 1e-5, 51.2 + 1e-5, -51.2, 51.2, 1.6))
    assert not same_grid(BevGrid(0, 12, 0, 24, 1.2), BevGrid(0, 24, 0, 12, 1.2))


def test_what_a_term_may_ask_for_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"selector 'gauss'.*expected one of gaussian"):
        NeededSelector.parse("gauss")
    with pytest.raises(ConfigError, match="found several"):
        NeededSelector.parse("gaussian+dense")
    with pytest.raises(ConfigError, match=r"z_min 4\.0 is not below"):
        NeededSelector.parse("lidar(z_min=4)")
    assert str(NeededSelector.parse("lidar(points=2)")) == "lidar(points=2)"
    with pytest.raises(ConfigError, match="expected two or more different factors"):
        NeededSelector.parse("gaussian*dense")
    assert NeededSelector.parse("gaussian(dilate=none)") == NeededSelector("gaussian")


def test_a_term_of_a_product_is_served_by_that_product_and_not_by_its_factors() -> None:
    store = offer("gaussian*confident(threshold=0)+lidar")
    assert serves(store, need("gaussian*confident")).served and serves(store, need("confident*gaussian")).served
    assert serves(store, need("confident(threshold=0)*gaussian(dilate=1,overlap=0.1)")).served
    for other in ("gaussian", "gaussian*lidar", "confident(threshold=0.1)*gaussian", "gaussian(overlap=0.7)*confident"):
        assert serves(store, need(other)).verdict == "refused", other
    answer = serves(offer("gaussian+confident"), need("confident*gaussian"))
    assert answer.verdict == "refused" and "reads the weights of selector gaussian*confident" in answer.reason
    assert answer.coverage == "gaussian(dilate=1)+confident(threshold=0.1)+gaussian(dilate=1)*confident(threshold=0.1)"
    assert serves(store, need("gaussian*lidar"), "unlabelled").verdict == "skipped"
    assert NeededSelector.parse("lidar*view(camera=B|A)").name == "lidar*view(camera=A|B)"


def test_options_that_stores_were_written_without_have_their_defaults() -> None:
    header = {"selectors": ["gaussian"], "options": {"gaussian": {"dilate": 0}}, "labelled": ["gaussian"]}
    store = StoreOffer(FIELDS, GRID, Coverage.from_header({**header, "unlabelled": []}))
    assert serves(store, need("gaussian(overlap=0.1,min_radius=1)")).served
    answer = serves(store, need("gaussian(min_radius=2)"))
    assert answer.verdict == "refused" and answer.coverage == "gaussian(dilate=1,min_radius=2)"


def test_names_are_part_of_what_a_term_asks_for() -> None:
    store = offer("gaussian(classes=car)+view(camera=CAM_FRONT,far=30)")
    assert serves(store, need("view(camera=CAM_FRONT)", "gaussian(classes=car)")).served
    for other in ("gaussian", "gaussian(classes=bus|car)", "view", "view(camera=CAM_FRONT,far=40)"):
        assert serves(store, need(other)).verdict == "refused", other
    assert serves(offer("gaussian"), need("gaussian(classes=car)")).verdict == "refused"


PRODUCTS = ["gaussian*confident", "lidar(ground=0.25)*view(camera=CAM_BACK)", "topk*lidar*gaussian(classes=car)"]


@given(
    any_coverage(),
    st.lists(
        st.sampled_from([*SELECTORS, *PRODUCTS, "gaussian(dilate=2)", "footprint(margin=1.25)", "lidar(points=3)"])
    ),
    st.booleans(),
    st.sampled_from(["labelled", "unlabelled"]),
)
def test_a_store_cached_as_the_refusal_says_serves_the_term_and_all_that_the_old_one_served(
    coverage: Coverage, selectors: list[str], every_cell: bool, frames: str
) -> None:
    store = StoreOffer(FIELDS, GRID, coverage.resolved(GRID))
    wanted = need(*selectors, every_cell=every_cell)
    answer = serves(store, wanted, frames)  # type: ignore[arg-type]
    asked = [NeededSelector.parse(text) for text in selectors]
    if len({s.name for s in asked}) < len(set(asked)) and not answer.served:
        return  # a term that asks for two widths of one selector cannot be served
    if answer.verdict == "refused":
        again = offer(answer.coverage)
        assert serves(again, wanted, frames).served  # type: ignore[arg-type]
        assert set(coverage.names) <= set(again.coverage.names)
    elif answer.verdict == "skipped":
        assert frames == "unlabelled"


def asked(fields: str, coverage: str = "gaussian") -> StoreOffer:
    return StoreOffer(FIELDS, GRID, Coverage.parse(coverage, GRID), FieldList.parse(fields))


def test_further_fields_are_served_whatever_the_layout_and_with_fewer_rows() -> None:
    store = asked("logits,queries(top=50),level(name=canvas),samples(boxes=teacher,points=7x7)")
    for field in (
        "logits",
        "queries(top=20)",
        "level(name=canvas)",
        "samples(boxes=teacher,points=7x7,limit=9)",
        "boxes",
    ):
        assert serves(store, TermNeed((field,))).served, field


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("regression", "logits,regression,queries(top=50)"),
        ("queries(top=60)", "logits,queries(top=60)"),
        ("query_boxes", "logits,queries"),
        ("level_canvas_values", "logits,level(name=canvas),queries(top=50)"),
        ("samples(level=canvas)", "logits,queries(top=50),samples(level=canvas)"),
        ("depth", "logits,queries(top=50),depth"),
        ("adaptor", "logits,queries(top=50),adaptor"),
    ],
)
def test_a_further_field_that_is_missing_is_refused_with_the_list_and_the_coverage(field: str, fields: str) -> None:
    answer = serves(asked("logits,queries(top=50)"), TermNeed(("boxes", field)))
    assert (answer.verdict, answer.about) == ("refused", "fields") and field in answer.reason
    assert answer.remedy == (
        f"run `cache-teacher --fields '{fields}' --coverage 'gaussian(dilate=1)'` under another --name"
    )


def test_remedies_for_fields_name_all_that_are_missing_and_those_for_coverage_keep_the_fields() -> None:
    answer = serves(asked("logits"), TermNeed(("regression", "depth", "logits")))
    assert "--fields 'logits,regression,depth' " in answer.remedy
    answer = serves(asked("logits"), need("lidar"))
    assert "`cache-teacher --fields 'logits' --coverage 'gaussian(dilate=1)+lidar" in answer.remedy
    assert "with a teacher that gives it" in serves(asked("logits"), TermNeed(("logits", "heat"))).remedy


@pytest.mark.parametrize(
    "wanted",
    [
        TermNeed(("adaptor",), every_cell=True),
        TermNeed(("logits", "regression"), (NeededSelector("confident"), NeededSelector("footprint"))),
    ],
)
def test_a_store_cached_as_a_remedy_says_is_not_refused_again(wanted: TermNeed) -> None:
    """Whatever was missing first: who has run the teacher again for the fields is not told of the coverage then."""
    store = asked("depth")
    remedy = serves(store, wanted).remedy
    fields, coverage = (remedy.partition(f"--{flag} '")[2].partition("'")[0] for flag in ("fields", "coverage"))
    again = asked(fields, coverage)
    assert serves(again, wanted).served and serves(again, TermNeed(("depth",))).served
