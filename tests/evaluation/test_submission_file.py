"""A submission file made elsewhere: read in pieces, to the same boxes and figures; what is wrong is told in words."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cache.classes import ATTRIBUTES
from cache.errors import BevcaskError, StoreError
from evaluation import json_stream
from evaluation.box_arrays import join_boxes, submission_arrays
from evaluation.json_stream import JsonStream
from evaluation.match_table import file_boxes_of
from evaluation.submission import submission_meta, submission_results
from evaluation.submission_boxes import box_problem, checked_arrays
from evaluation.submission_file import load_submission, read_submission
from studies.benches.broken_submissions import ON_PURPOSE, broken, verdict
from studies.benches.evaluate_data import Split, made_up_split

Box = dict[str, Any]


@pytest.fixture(scope="module")
def split() -> Split:
    return made_up_split(4, 30, seed=3)


@pytest.fixture
def good(split: Split) -> dict[str, Any]:
    results = submission_results(split.frames, split.detections)
    return json.loads(json.dumps({"meta": submission_meta(lidar=True), "results": results}))


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_a_stream_gives_what_json_gives_however_it_is_cut(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    document = {"a": [1, -2.5e-3, True, None], "": {}, 'é\\"\n': "ü\U0001f600", "n": 12345678901234567, "l": [[]] * 9}
    for indent in (None, 3):
        data = json.dumps(document, ensure_ascii=indent is None, indent=indent).encode()
        stream = JsonStream(io.BytesIO(data + b" \n"), Path("x"), "JSON")
        assert stream.kind() == "an object"
        assert {key: stream.value() for key in stream.members()} == document
        stream.end()
        assert stream.kind() == "nothing"
        whole = JsonStream(io.BytesIO(data), Path("x"), "JSON")
        assert whole.value() == document
    assert JsonStream(io.BytesIO(b" 17"), Path("x"), "JSON").value() == 17


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_stream_refuses_what_json_refuses_and_says_where(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    data = json.dumps({"a": [1.5, "xy", {"b": None}], "c": -0.25e10}).encode()
    random, refused = np.random.default_rng(0), 0
    for _ in range(400):
        at, change = int(random.integers(len(data))), int(random.integers(4))
        before, after = data[:at], data[at:]
        changed = [before, before + after[1:], before + b"]" + after, before + b"\xff" + after]
        try:
            expected = json.loads(changed[change].decode())
        except ValueError:
            expected = None
            refused += 1
        try:
            stream = JsonStream(io.BytesIO(changed[change]), Path("x"), "JSON")
            found: Any = {key: stream.value() for key in stream.members()}
            stream.end()
        except StoreError as error:
            found = None if re.fullmatch(r"x: not readable as JSON \(.*, at character \d+\)", str(error)) else error
        assert found == expected, changed[change]
    assert refused > 200


def change(key: str, value: Any) -> Callable[[Box], None]:
    return lambda box: box.__setitem__(key, value)


def drop(key: str) -> Callable[[Box], None]:
    return lambda box: box.pop(key)


WRONG_BOXES: list[tuple[Callable[[Box], None], str]] = [
    (change("detection_name", "van"), "detection_name 'van', expected one of car, truck, bus"),
    (change("detection_name", None), "detection_name None, expected one of"),
    (change("detection_name", ["car"]), "detection_name ['car'], expected one of"),
    (change("attribute_name", "foo"), "attribute_name 'foo', expected '' or one of pedestrian.moving"),
    (change("attribute_name", None), "attribute_name None, expected ''"),
    (change("attribute_name", {}), "attribute_name {}, expected ''"),
    (change("translation", [1.0, float("nan"), 0.0]), "translation [1.0, nan, 0.0] is not finite"),
    (change("translation", [float("inf"), 0.0, 0.0]), "translation [inf, 0.0, 0.0] is not finite"),
    (change("translation", [1.0, 2.0]), "translation [1.0, 2.0], expected 3 numbers"),
    (change("translation", "abc"), "translation 'abc', expected 3 numbers"),
    (change("translation", None), "translation None, expected 3 numbers"),
    (change("translation", [1, 2, 10**400]), "is not finite"),
    (change("size", [1.0, float("nan"), 1.0]), "size [1.0, nan, 1.0] is not finite"),
    (change("size", [1.0, 2.0, 3.0, 4.0]), "expected 3 numbers"),
    (change("size", [1.0, 0.0, 1.0]), "size [1.0, 0.0, 1.0], expected w, l, h > 0"),
    (change("size", [1.0, -2, 1.0]), "expected w, l, h > 0"),
    (change("size", [True, 2, 1.0]), "size [True, 2, 1.0], expected 3 numbers"),
    (change("rotation", [float("nan"), 0, 0, 0]), "rotation [nan, 0, 0, 0] is not finite"),
    (change("rotation", [1.0, 0.0, 0.0]), "expected 4 numbers"),
    (change("rotation", [0.0, 0, 0, 0]), "rotation is the zero quaternion, expected w, x, y, z of length 1"),
    (change("rotation", [1e200, 0, 0, 0]), "expected a quaternion w, x, y, z of length 1"),
    (change("velocity", [0.0]), "velocity [0.0], expected 2 numbers"),
    (change("velocity", [0.0, "1"]), "velocity [0.0, '1'], expected 2 numbers"),
    (change("velocity", [float("-inf"), 0.0]), "velocity [-inf, 0.0] is not finite"),
    (change("velocity", None), "velocity None, expected 2 numbers"),
    (drop("velocity"), "no velocity"),
    (drop("attribute_name"), "no attribute_name"),
    (drop("detection_score"), "no detection_score"),
    (drop("sample_token"), "no sample_token"),
    (change("detection_score", float("nan")), "detection_score nan, expected a finite number"),
    (change("detection_score", float("inf")), "detection_score inf, expected a finite number"),
    (change("detection_score", "0.5"), "detection_score '0.5', expected a finite number"),
    (change("detection_score", True), "detection_score True, expected a finite number"),
    (change("detection_score", None), "detection_score None, expected a finite number"),
    (change("sample_token", "f" * 32), "sample_token 'ffffffffffffffffffffffffffffffff' differs from the key"),
    (change("sample_token", 5), "sample_token 5 differs from the key it stands under"),
    (change("num_pts", "3"), "num_pts '3', expected a whole number, or no such key"),
    (change("num_pts", float("nan")), "num_pts nan, expected a whole number"),
    (change("num_pts", 10**30), "expected a whole number"),
    (change("num_pts", None), "num_pts None, expected a whole number"),
    (change("ego_translation", [1.0]), "ego_translation [1.0], expected 3 numbers"),
    (change("ego_translation", [float("nan")] * 3), "is not finite"),
    (change("size", list(range(1, 400))), "..., expected 3 numbers"),
]


@pytest.mark.parametrize(("spoil", "says"), WRONG_BOXES, ids=[says[:40] for _, says in WRONG_BOXES])
@pytest.mark.parametrize("read", [load_submission, read_submission])
def test_a_wrong_box_is_named_with_what_was_found_and_expected(
    good: dict[str, Any], split: Split, tmp_path: Path, spoil: Callable[[Box], None], says: str, read: Callable
) -> None:
    token = split.frames[2].token
    spoil(good["results"][token][7])
    assert checked_arrays([(token, good["results"][token])]) is None
    path = tmp_path / "s.json"
    path.write_text(json.dumps(good))
    with pytest.raises(BevcaskError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: box 7 of sample {token}: ") and says in message
    assert "\n" not in message and len(message) < 700
    assert verdict(path, split.frames, split.truth) in ("both", "purpose")


def with_results(value: Any) -> str:
    return json.dumps({"meta": {}, "results": value})


FULL: dict[str, Any] = {f"{number:032x}": [] for number in range(4)}
WRONG_FILES: list[tuple[str | bytes, str]] = [
    ("", "the file is empty"),
    (" \n", "the file is empty"),
    ("hello", "holds 'h', which begins nothing in JSON"),
    ("-3", "holds a number"),
    ("[]", 'holds a list, so no "results" object'),
    ('"text"', "holds a string"),
    ("null", "holds null"),
    ("{}", 'no "results" object'),
    ('{"meta": {}}', 'no "results" object'),
    ('{"results": {}}', 'no "meta" object'),
    ('{"meta": [], "results": {}}', 'no "meta" object but list'),
    ('{"meta": null, "results": {}}', 'no "meta" object but NoneType'),
    (with_results([]), 'no "results" object but a list'),
    (with_results(None), 'no "results" object but null'),
    (with_results({**FULL, "a": {}}), "sample a holds dict, expected a list of boxes"),
    (with_results({**FULL, "a": None}), "sample a holds NoneType"),
    (with_results({**FULL, "a": ["box"]}), "box 0 of sample a: found str, expected an object"),
    (with_results({**FULL, "a": [[1, 2]]}), "box 0 of sample a: found list"),
    (with_results({**FULL, "a": [{}] * 501}), "sample a has 501 boxes, the metric allows 500"),
    (with_results(FULL)[:-1], "it ends before ','"),
    (with_results(FULL)[:-20], "the file ends within a value"),
    (with_results(FULL) + "x", "more follows the end of the document"),
    (with_results(FULL) + "{}", "more follows"),
    (with_results(FULL).replace(":", "=", 1), "expected ':'"),
    (with_results(FULL).replace('"', "'"), "a key is missing"),
    (with_results(FULL).replace("}}", ",}}"), "a key is missing"),
    (b"\xef\xbb\xbf" + with_results(FULL).encode(), "begins with a byte-order mark"),
    (with_results(FULL).encode("utf-16"), "not UTF-8"),
    (with_results({"é": []}).encode().replace(b"\\u00e9", b"\xe9"), "not UTF-8"),
    (b"\x1f\x8b\x08\x00" + b"\x00" * 20, "not UTF-8"),
    ('{"meta": {}, "results": {"a": [], "a": []}}', "sample a stands twice"),
    ('{"meta": {}, "results": {}, "results": {}}', "'results' stands twice"),
    ('{"meta": {}, "meta": {}, "results": {}}', "'meta' stands twice"),
    ('{"meta": {}, "results": {"a": [' + "[" * 100_000, "recursion"),
    ('{"meta": {"a": ' + "1" * 5000 + '}, "results": {}}', "digits"),
    (with_results(dict(list(FULL.items())[1:])), "1 missing (0000"),
    (with_results({**FULL, "b" * 32: []}), f"1 extra ({'b' * 32})"),
    (with_results({}), "4 missing"),
]


@pytest.mark.parametrize(("content", "says"), WRONG_FILES, ids=[str(number) for number in range(len(WRONG_FILES))])
@pytest.mark.parametrize("read", [load_submission, read_submission])
def test_a_wrong_file_is_named_with_what_was_found_and_expected(
    tmp_path: Path, content: str | bytes, says: str, read: Callable
) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BevcaskError) as caught:
        read(path, list(FULL))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and says in message, message
    assert "\n" not in message and len(message) < 500


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    for path, says in [
        (tmp_path, "Is a directory"),
        (tmp_path / "none.json", "not found, expected a nuScenes submission"),
        (Path("https://example.org/results.json"), "a submission is read from a local file; download it first"),
        (Path("s3://bucket/results.json"), "download it first"),
    ]:
        with pytest.raises(StoreError, match=says):
            read_submission(path)


def test_both_ways_to_read_give_the_same_boxes(good: dict[str, Any], tmp_path: Path) -> None:
    for number, boxes in enumerate(good["results"].values()):
        boxes[0] |= {"num_pts": number, "ego_translation": [1, 2, 3.0], "velocity": [float("nan")] * 2, "more": {}}
        boxes[1] |= {"detection_score": 1, "translation": [600, 700, 1], "num_pts": 2.7, "attribute_name": ""}
    good["results"]["f" * 32] = []
    path = tmp_path / "s.json"
    path.write_text(json.dumps(good))
    records, arrays = load_submission(path), read_submission(path)
    assert records.results.keys() == good["results"].keys() and arrays.tokens == [*good["results"]]
    assert records.meta == arrays.meta == good["meta"]
    place = {token: number for number, token in enumerate(records.results)}
    expected = submission_arrays(place, records.results)
    for found in (join_boxes([boxes for _, boxes in arrays.portions]), arrays.of([*place])):
        for key, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(found, key), value)
    some = [*place][2:0:-1]
    numbers = {token: number for number, token in enumerate(some)}
    of_some = submission_arrays(numbers, {token: records.results[token] for token in some})
    of_file = file_boxes_of(arrays)([SimpleNamespace(token=token) for token in some])  # type: ignore[list-item]
    for key, value in vars(of_some).items():
        np.testing.assert_array_equal(getattr(of_file, key), value)
    found = arrays.of(some)
    pairs = [sorted(zip(one.frame, one.scores, strict=True)) for one in (found, of_some)]
    assert pairs[0] == pairs[1]


def test_files_as_others_write_them_are_read(good: dict[str, Any], split: Split, tmp_path: Path) -> None:
    """Keys in another order, indented, whole numbers, further keys as the devkit's own boxes have, any meta."""
    path = tmp_path / "s.json"
    results = {
        token: [
            {
                **{key: box[key] for key in reversed(box)},
                "ego_translation": [0.0, 0.0, 0.0],
                "num_pts": -1,
                "translation": [round(v) for v in box["translation"]],
                "detection_score": 1 if box["detection_score"] > 0.9 else box["detection_score"],
            }
            for box in boxes
        ]
        for token, boxes in reversed(good["results"].items())
    }
    for meta in ({}, {**submission_meta(), "author": "x", "extra": None}, {"use_camera": 1}):
        for content in ({"meta": meta, "results": results}, {"results": results, "meta": meta, "version": [1]}):
            path.write_text(json.dumps(content, indent=2))
            assert verdict(path, split.frames, split.truth) == "same"
            assert [*read_submission(path).tokens] == [*results]


@pytest.mark.parametrize("start", [0, 30])
def test_what_is_accepted_scores_as_the_devkit_and_what_is_refused_it_refuses_too(
    good: dict[str, Any], split: Split, tmp_path: Path, start: int
) -> None:
    seen = []
    for seed in range(start, start + 30):  # of the 300 that `./bevcask prove` runs
        path = tmp_path / "s.json"
        path.write_bytes(broken(np.random.default_rng(seed), good))
        seen.append(verdict(path, split.frames, split.truth))
        assert seen[-1] in ("same", "both", "purpose"), f"seed {seed}: {seen[-1]}"
    assert seen.count("same") >= 3 and seen.count("both") >= 3


def test_quick_and_thorough_checks_agree(good: dict[str, Any]) -> None:
    random, verdicts = np.random.default_rng(5), []
    for _ in range(300):
        content = json.loads(broken_json(random, good))
        results = content.get("results") if isinstance(content, dict) else None
        for token, boxes in results.items() if isinstance(results, dict) else ():
            if isinstance(boxes, list):
                thorough = all(not box_problem(box, token) for box in boxes)
                assert (checked_arrays([(token, boxes)]) is not None) == thorough, boxes
                verdicts.append(thorough)
    assert verdicts.count(False) > 50


def broken_json(random: np.random.Generator, good: dict[str, Any]) -> bytes:
    while True:
        data = broken(random, good)
        try:
            json.loads(data)
        except ValueError:
            continue
        return data


def test_every_attribute_and_every_purpose_is_known() -> None:
    assert len(ATTRIBUTES) == 8 and all(re.compile(said) and why for said, why in ON_PURPOSE.items())
