"""The list of further fields: one text for one set, every refusal says what there is."""

from __future__ import annotations

import pytest

from cache.errors import ConfigError, CorruptError
from cache.field_list import KINDS, Asked, FieldList, asked_by_field

EVERY = (
    "logits,regression,level(name=canvas),queries(top=50),samples(boxes=teacher,points=7x7,enlarge=1.6,limit=20),"
    "samples,depth,adaptor"
)


def test_a_list_is_a_set_and_its_text_is_canonical() -> None:
    asked = FieldList.parse(EVERY)
    assert str(asked) == EVERY and FieldList.parse(str(asked)) == asked
    assert {item.kind for item in asked.items} == set(KINDS)
    shuffled = " adaptor + depth,samples( points = 9 ),samples(limit=20,enlarge=1.60,points=7x7,boxes=teacher)"
    assert FieldList.parse(f"{shuffled},queries(top=50),level(name=canvas),regression,logits") == asked
    assert str(FieldList.parse("")) == "" and FieldList.parse("  ").items == ()
    assert "logits" in asked and "logits" not in FieldList.parse("depth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logit", "field 'logit' is unknown, expected one of logits, regression, level"),
        ("logits(a=1)", "field logits has no option 'a'; it has no options"),
        ("queries(best=3)", "field queries has no option 'best'; its options are top"),
        ("level", "field level: name is missing, expected a further BEV map"),
        ("level(name=Up/x)", "field level: name is 'Up/x'"),
        ("queries(top=-1)", "field queries: top is '-1', expected a number in 0..100000"),
        ("queries(top=2.5)", "field queries: top is '2.5'"),
        ("samples(points=8)", "points is '8', expected 9 .* or a grid such as 7x7"),
        ("samples(points=0x7)", "points is '0x7'"),
        ("samples(enlarge=nan)", "enlarge is 'nan'"),
        ("samples(boxes=both)", "boxes is 'both', expected truth or teacher"),
        ("samples(limit=5)", "limit goes with boxes=teacher"),
        ("samples(points=9,points=9)", "expected option=value, each once"),
        ("logits,logits", "logits stands twice"),
        ("samples,samples(enlarge=2)", "samples_truth_9 stands twice"),
        ("logits,", r"found '', expected NAME"),
        ("logits;depth", "found 'logits;depth', expected NAME"),
    ],
)
def test_what_does_not_read_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FieldList.parse(text)
    assert str(caught.value).startswith(f"--fields '{text}': ") and "\n" not in str(caught.value)


def one(text: str) -> Asked:
    return FieldList.parse(text).items[0]


@pytest.mark.parametrize(
    ("have", "want", "held"),
    [
        ("queries", "queries(top=50)", True),
        ("queries(top=50)", "queries(top=50)", True),
        ("queries(top=50)", "queries(top=51)", False),
        ("queries(top=50)", "queries", False),
        ("samples", "samples(enlarge=2)", False),
        ("samples(points=7x7)", "samples", False),
        ("samples(boxes=teacher)", "samples(boxes=teacher,limit=9)", True),
        ("samples(boxes=teacher,limit=8)", "samples(boxes=teacher,limit=9)", False),
        ("samples(level=canvas)", "samples", False),
        ("level(name=a)", "level(name=b)", False),
        ("logits", "logits", True),
    ],
)
def test_more_rows_hold_fewer_and_nothing_else_holds_another(have: str, want: str, held: bool) -> None:
    assert one(have).holds(one(want)) is held
    both = FieldList.parse(have).with_item(one(want))
    assert both.holds(one(want)) and len(both.items) == (1 if one(have).name == one(want).name else 2)


@pytest.mark.parametrize("text", [None, 3, "depth,logits", "logits(", " logits", "samples(points=9)"])
def test_a_header_is_only_what_would_have_been_written(text: object) -> None:
    with pytest.raises(CorruptError, match=r"h\.asked: .*; the store is damaged"):
        FieldList.from_header(text, "h.asked")
    assert FieldList.from_header(EVERY, "h") == FieldList.parse(EVERY)


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("logits", "logits"),
        ("regression_map", "regression"),
        ("level_canvas_values", "level(name=canvas)"),
        ("query_boxes", "queries"),
        ("samples_truth_9", "samples"),
        ("samples_teacher_canvas_7x7_inside", "samples(boxes=teacher,points=7x7,level=canvas)"),
        ("depth_probs", "depth"),
        ("bev_values", "None"),
        ("boxes", "None"),
    ],
)
def test_an_array_tells_what_to_ask_for(field: str, asked: str) -> None:
    assert str(asked_by_field(field)) == asked
