"""A submission file read sample by sample, every box checked, into records or straight into the metric's arrays.

`load_submission` gives the boxes as the file has them, at some 2 kB each. `read_submission` makes arrays of 64 samples
at a time and holds 160 bytes a box: 6,019 samples x 200 boxes, half a GB of JSON, in some 250 MB. Both tell the first
box that is wrong: its sample, its number, what was found and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import DataError, StoreError
from evaluation.box_arrays import BoxArrays, join_boxes
from evaluation.json_stream import JsonStream
from evaluation.submission import MAX_BOXES_PER_SAMPLE, META_KEYS, require_same_tokens
from evaluation.submission_boxes import box_problem, checked_arrays

_WHAT = "a nuScenes submission (JSON)"
_FORM = '{"meta": {...}, "results": {sample_token: [box, ...]}}'
_META = f"one with the keys {', '.join(META_KEYS)}"
_GROUP = 64  # samples whose boxes stand in memory as records at once

Samples = list[tuple[str, list[dict[str, Any]]]]  # sample tokens with their boxes as records


@dataclass(frozen=True)
class Submission:
    """meta: what the method used; results: sample token -> its boxes as the official JSON has them, in file order."""

    meta: Mapping[str, Any]
    results: Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class SubmissionArrays:
    """meta; portions: tokens of some samples, in file order, and their boxes, whose `frame` counts in them."""

    meta: Mapping[str, Any]
    portions: tuple[tuple[list[str], BoxArrays], ...] = field(default=())

    @property
    def tokens(self) -> list[str]:
        """All samples in file order."""
        return [token for tokens, _ in self.portions for token in tokens]

    def of(self, tokens: Sequence[str]) -> BoxArrays:
        """The boxes of these samples, `frame` counting in `tokens`."""
        place = {token: number for number, token in enumerate(tokens)}
        parts = []
        for of_portion, boxes in self.portions:
            number = np.array([place.get(token, -1) for token in of_portion], np.int64)
            if (number < 0).all():
                continue
            mine = boxes.take(number[boxes.frame] >= 0)
            parts.append(replace(mine, frame=number[mine.frame]))
        return join_boxes(parts)


def load_submission(path: Path, tokens: Iterable[str] | None = None) -> Submission:
    """Reads and checks a submission file, ours or another's. tokens: the sample tokens it must have, no more, no less.

    Raises StoreError where the file is missing or is not JSON, DataError naming sample, box, what was found and what
    was expected.
    """
    meta: dict[str, Any] = {}
    results: dict[str, list[dict[str, Any]]] = {}
    for group in _groups(path, meta):
        _arrays(path, group)
        results.update(group)
    if tokens is not None:
        require_same_tokens(str(path), results, "the split", list(tokens))
    return Submission(meta, results)


def read_submission(
    path: Path, tokens: Iterable[str] | None = None, *, each: Callable[[Samples], None] | None = None
) -> SubmissionArrays:
    """`load_submission` into arrays; raises as it. each: is given every group of samples once its boxes are checked, as
    the file has them, for who makes something else of them."""
    meta: dict[str, Any] = {}
    portions: list[tuple[list[str], BoxArrays]] = []
    for group in _groups(path, meta):
        portions.append(([token for token, _ in group], _arrays(path, group)))
        if each is not None:
            each(group)
    found = SubmissionArrays(meta, tuple(portions))
    if tokens is not None:
        require_same_tokens(str(path), found.tokens, "the split", list(tokens))
    return found


def _arrays(path: Path, group: Samples) -> BoxArrays:
    """The boxes of some samples. DataError for the first one that is wrong."""
    arrays = checked_arrays(group)
    if arrays is not None:
        return arrays
    for token, boxes in group:
        for number, box in enumerate(boxes):
            problem = box_problem(box, token)
            if problem:
                raise DataError(f"{path}: box {number} of sample {token}: {problem}")
    raise AssertionError("the quick check refused boxes in which the thorough one finds nothing wrong")


def _groups(path: Path, meta: dict[str, Any]) -> Iterator[Samples]:
    """The samples of a file with their boxes, some at a time; fills `meta` on the way."""
    with _opened(path) as file:
        stream = JsonStream(file, path, _WHAT)
        if stream.kind() != "an object":
            raise DataError(f'{path}: holds {stream.kind()}, so no "results" object; expected {_FORM}')
        seen: set[str] = set()
        for key in stream.members():
            if key in ("meta", "results") and key in seen:
                raise DataError(f"{path}: {key!r} stands twice, of which readers take the last; write it once")
            if key == "results":
                if stream.kind() != "an object":
                    raise DataError(f'{path}: no "results" object but {stream.kind()}; expected {_FORM}')
                yield from _samples(stream, path)
            else:
                value = stream.value()
                if key == "meta":
                    if not isinstance(value, dict):
                        found = type(value).__name__
                        raise DataError(f'{path}: no "meta" object but {found}, expected {_META}')
                    meta |= value
            seen.add(key)
        if "results" not in seen:
            raise DataError(f'{path}: no "results" object, expected {_FORM}')
        if "meta" not in seen:
            raise DataError(f'{path}: no "meta" object, expected {_META}')
        stream.end()


def _samples(stream: JsonStream, path: Path) -> Iterator[Samples]:
    seen: set[str] = set()
    group: Samples = []
    for token in stream.members():
        boxes = stream.value()
        if not isinstance(boxes, list):
            raise DataError(
                f"{path}: sample {token} holds {type(boxes).__name__}, expected a list of boxes (it may be empty)"
            )
        if len(boxes) > MAX_BOXES_PER_SAMPLE:
            raise DataError(f"{path}: sample {token} has {len(boxes)} boxes, the metric allows {MAX_BOXES_PER_SAMPLE}")
        if token in seen:
            raise DataError(f"{path}: sample {token} stands twice, of which readers take the last; join its boxes")
        seen.add(token)
        group.append((token, boxes))
        if len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except FileNotFoundError:
        if re.match(r"\w+:/", str(path)):
            raise StoreError(f"{path}: a submission is read from a local file; download it first") from None
        raise StoreError(f"{path}: not found, expected {_WHAT}") from None
    except OSError as error:
        raise StoreError(f"{path}: not readable as {_WHAT} ({error.strerror})") from None
