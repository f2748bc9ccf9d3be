"""Submissions changed at random, and what the devkit and we make of each: nothing is accepted here that it refuses.

A change hits the text (bytes, ends, encodings), the shape (keys, types, lists) or one value. What is refused here
although the devkit takes it stands in `ON_PURPOSE`, with the reason.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import BevcaskError
from cache.frame import Frame, GroundTruth
from evaluation.array_metric import evaluate_submission
from evaluation.metrics import Metrics
from evaluation.submission_file import load_submission
from studies.benches.odd_worlds import largest_difference

ON_PURPOSE = {  # what our message says -> why it is refused where the devkit goes on
    r"expected a list of boxes": "the devkit takes an empty text or object for no boxes",
    r"stands twice": "readers take the last and lose the rest",
    r"sample_token .* differs from the key": "the devkit looks objects up under the inner one",
    r": no .*detection_score": "the devkit takes -1, below every score that it can count",
    r"is not finite": "an infinite value matches nothing and spoils a mean",
    r"expected \d numbers": 'true and false are no numbers, text is none, and a string of three letters is no "size"',
    r"expected a finite number": "a score as text, true or false",
    r"expected w, l, h > 0": "the devkit stops in the middle, but only if that box matches",
    r"expected a quaternion": "a length that is far from 1 is no rotation",
    r"the zero quaternion": "it says no heading",
    r"num_pts .* expected a whole number": "true, false, text or a number of more than 31 bits",
    r"the metric needs finite scores of 0 or more": "the devkit stops only if such a score is read off a curve",
    r'no "meta" object': "the devkit stops when it writes its summary",
    r"not readable as .*(digits|recursion)": "more digits or brackets than Python's parser takes",
    r"attribute_name .* expected": "text is compared with lists and numbers by the devkit",
}
_WRONG: tuple[Any, ...] = (
    *(None, True, "", "x", "1.5", [], {}, [1], -1, 0, 0.0, 1, 7, 0.25, 10**400, 1e300, 1e-300, -1e300),
    *(float("nan"), float("inf"), -float("inf"), [0, 0], [0.0, 0.0, 0.0], [1, 0, 0, 0], [1, True, 2], "car", "cone"),
    *("vehicle.parked", ["car"], [[1.0], [2.0], [3.0]], [None] * 3, "abc", {"a": 1, "b": 2, "c": 3}, [1e200] * 4),
)
_KEYS = ("translation", "size", "rotation", "velocity", "detection_name", "detection_score", "attribute_name")
_FURTHER = ("num_pts", "ego_translation", "sample_token", "tracking_id")


def broken(random: np.random.Generator, good: dict[str, Any]) -> bytes:
    """A submission file's bytes: `good` with one to three changes, which may do no harm."""
    content = copy.deepcopy(good)
    for _ in range(int(random.integers(1, 3))):
        if isinstance(content, dict):
            content = _changed(random, content)
    text = json.dumps(content)
    if random.random() < 0.25:
        return _changed_text(random, text)
    return text.encode()


def _changed(random: np.random.Generator, content: dict[str, Any]) -> Any:
    kind = random.random()
    wrong = _WRONG[int(random.integers(len(_WRONG)))]
    results = content.get("results")
    if kind < 0.08 or not isinstance(results, dict) or not results:
        key = str(random.choice(["meta", "results", "more"]))
        return wrong if random.random() < 0.1 else {**content, key: wrong}
    if kind < 0.1:
        content.pop(str(random.choice(["meta", "results"])), None)
        return content
    token = str(random.choice(list(results)))
    boxes = results[token]
    if kind < 0.2:
        changes: list[Any] = [wrong, [], [wrong], boxes * 3 if isinstance(boxes, list) else [], {token: boxes}]
        results[token] = changes[int(random.integers(len(changes)))]
    elif kind < 0.25:
        results[str(random.choice(["f" * 32, "", "0" * 32]))] = results.pop(token)
    elif isinstance(boxes, list) and boxes and isinstance(box := boxes[int(random.integers(len(boxes)))], dict):
        _change_box(random, box, wrong)
    return content


def _change_box(random: np.random.Generator, box: dict[str, Any], wrong: Any) -> None:
    key = str(random.choice(_KEYS if random.random() < 0.75 else _FURTHER))
    value, kind = box.get(key), random.random()
    if random.random() < 0.5 and isinstance(box.get("size"), list):
        _change_rightly(random, box)
    elif kind < 0.1:
        box.pop(key, None)
    elif kind < 0.45 or not isinstance(value, list) or not value:
        box[key] = wrong
    elif kind < 0.9:
        value[int(random.integers(len(value)))] = wrong
    else:
        box[key] = value[:-1] if random.random() < 0.5 else [*value, wrong]


def _change_rightly(random: np.random.Generator, box: dict[str, Any]) -> None:
    """Another value that a submission may well hold."""
    number = float(random.choice([0.0, 0.1, 1.0, 3.0, 49.5, -0.0, 1e-9, 1e4]))
    vector = str(random.choice(["translation", "size", "rotation", "velocity"]))
    changes: list[dict[str, Any]] = [
        {"detection_score": int(number)},
        {"detection_score": number},
        {"num_pts": int(random.integers(-1, 3))},
        {"num_pts": number},
        {"ego_translation": [number, 0, 1]},
        {"tracking_id": [number]},
        {"velocity": [float("nan")] * 2},
        {"attribute_name": str(random.choice(["", "cycle.with_rider", "vehicle.parked"]))},
        {"detection_name": str(random.choice(["car", "barrier", "traffic_cone"]))},
        {vector: [value * (1 + number * (random.random() < 0.5)) for value in box[vector]]},
        {vector: [round(value) for value in box[vector]]},
    ]
    box |= changes[int(random.integers(len(changes)))]


def _changed_text(random: np.random.Generator, text: str) -> bytes:
    kind, at = int(random.integers(8)), int(random.integers(len(text)))
    data = text.encode()
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data + bytes(random.choice(list(b" \n}]x0,"), 1).tolist())
    if kind == 2:
        return b"\xef\xbb\xbf" + data
    if kind == 3:
        return text.encode("utf-16" if random.random() < 0.5 else "latin-1")
    if kind == 4:  # a key twice
        return re.sub(rb'"results": \{"(\w+)": \[', rb'"results": {"\1": [], "\1": [', data, count=1)
    if kind == 5:
        return data[:at] + bytes([int(random.integers(256))]) + data[at + 1 :]
    if kind == 6:
        return data[:at] + data[at + int(random.integers(1, 30)) :]
    return data[:at] + random.choice([b"NaN", b"-Infinity", b"1e999", b"//", b"\x00", b"'", b"0"]) + data[at:]


def devkit_figures(path: Path, frames: list[Frame], truth: list[GroundTruth]) -> Metrics | str:
    """What the devkit's own loader, filters and metric make of the file; its complaint where it stops."""
    from evaluation import official

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return official.evaluate_file(path, frames, truth)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def our_figures(path: Path, frames: list[Frame], truth: list[GroundTruth]) -> Metrics | str:
    """The same of ours; only errors in words count as a refusal."""
    try:
        read = load_submission(path, [frame.token for frame in frames])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return evaluate_submission(frames, truth, read.results)
    except BevcaskError as error:
        return str(error)


def verdict(path: Path, frames: list[Frame], truth: list[GroundTruth]) -> str:
    """ "same" figures, "both" refuse, "purpose": refused here for a reason that is written down; else what is wrong."""
    ours, theirs = our_figures(path, frames, truth), devkit_figures(path, frames, truth)
    if isinstance(ours, str):
        if "\n" in ours or (str(path) not in ours and "the metric" not in ours):
            return f"a message without the file, or of several lines: {ours}"
        if isinstance(theirs, str):
            return "both"
        return "purpose" if any(re.search(said, ours) for said in ON_PURPOSE) else f"refused: {ours}"
    if isinstance(theirs, str):
        return f"accepted, but the devkit says {theirs}"
    apart = largest_difference(ours, theirs)
    return "same" if apart <= 1e-12 else f"figures differ by {apart}"
