"""The boxes of a submission as its JSON has them: whether each is sound, and all of them as arrays.

Twice, for speed: `checked_arrays` looks at some thousand boxes at once and only says whether all are right;
`box_problem` looks at one and says what is wrong. A test holds them to the same verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from cache.classes import ATTRIBUTES, DETECTION_CLASSES
from evaluation.box_arrays import ATTRIBUTE_IDS, CLASS_IDS, BoxArrays

LENGTHS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
_KEYS = ("sample_token", *LENGTHS, "detection_name", "detection_score", "attribute_name")
_MANY = 2**31  # points: the devkit fails on whole numbers beyond 64 bits
_LEAST, _MOST = 1e-3, 1e3  # length of a quaternion, expected 1: beyond these its square may be 0 or infinite


def box_problem(box: Any, token: str) -> str:
    """What is wrong with one box of sample `token`, "" for nothing."""
    if not isinstance(box, dict):
        return f"found {type(box).__name__}, expected an object"
    missing = [key for key in _KEYS if key not in box]
    if missing:
        return f"no {', '.join(missing)}"
    if box["sample_token"] != token:
        return f"sample_token {_short(box['sample_token'])} differs from the key it stands under"
    for key, length in (*LENGTHS.items(), ("ego_translation", 3)):
        if key not in box:  # the last one, which others leave there and the metric computes anew
            continue
        values = box[key]
        if not isinstance(values, list) or len(values) != length or not all(map(_is_number, values)):
            return f"{key} {_short(values)}, expected {length} numbers"
        if not all(_is_finite(value) or (key == "velocity" and value != value) for value in values):  # NaN: unknown
            return f"{key} {_short(values)} is not finite"
    if min(box["size"]) <= 0:
        return f"size {_short(box['size'])}, expected w, l, h > 0"
    norm = math.hypot(*box["rotation"])
    if not norm:
        return "rotation is the zero quaternion, expected w, x, y, z of length 1"
    if not _LEAST <= norm <= _MOST:
        return f"rotation {_short(box['rotation'])}, expected a quaternion w, x, y, z of length 1"
    if not isinstance(box["detection_name"], str) or box["detection_name"] not in DETECTION_CLASSES:
        return f"detection_name {_short(box['detection_name'])}, expected one of {', '.join(DETECTION_CLASSES)}"
    if not _is_number(box["detection_score"]) or not _is_finite(box["detection_score"]):
        return f"detection_score {_short(box['detection_score'])}, expected a finite number"
    if not isinstance(box["attribute_name"], str) or box["attribute_name"] not in ("", *ATTRIBUTES):
        return f"attribute_name {_short(box['attribute_name'])}, expected '' or one of {', '.join(ATTRIBUTES)}"
    if "num_pts" in box and not (_is_number(box["num_pts"]) and abs(box["num_pts"]) < _MANY):  # nor NaN
        return f"num_pts {_short(box['num_pts'])}, expected a whole number, or no such key"
    return ""


def checked_arrays(samples: Sequence[tuple[str, Sequence[Any]]]) -> BoxArrays | None:
    """The boxes of samples (token, boxes) in order, `frame` counting the samples; None where a box is not sound."""
    boxes = list(chain.from_iterable(of_sample for _, of_sample in samples))
    counts = [len(of_sample) for _, of_sample in samples]
    frame = np.repeat(np.arange(len(samples)), counts)
    try:
        if set(map(type, boxes)) - {dict}:
            return None
        tokens = chain.from_iterable([token] * len(of_sample) for token, of_sample in samples)
        if [box["sample_token"] for box in boxes] != list(tokens):
            return None
        parts = [_vectors([box[key] for box in boxes], length) for key, length in LENGTHS.items()]
        others = _vectors([box["ego_translation"] for box in boxes if "ego_translation" in box], 3)
        scores = _numbers([box["detection_score"] for box in boxes])
        told = _numbers([box.get("num_pts", -1) for box in boxes])
        if not (np.abs(told) < _MANY).all():  # NaN too
            return None
        points = told.astype(np.int64)
        class_ids = np.array([CLASS_IDS[box["detection_name"]] for box in boxes], np.int64)
        attribute_ids = np.array([ATTRIBUTE_IDS[box["attribute_name"]] for box in boxes], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    with np.errstate(over="ignore"):
        length = np.sqrt(np.square(parts[2]).sum(axis=1))
    sound = (
        all(np.isfinite(values).all() for values in (*parts[:3], others, scores))
        and not np.isinf(parts[3]).any()
        and (parts[1] > 0).all()
        and ((length >= _LEAST) & (length <= _MOST)).all()
    )
    if not sound:
        return None
    none = np.zeros(len(boxes), np.int64)
    return BoxArrays(frame, np.concatenate(parts, axis=1), scores, class_ids, attribute_ids, points, none)


def _vectors(values: list[Any], length: int) -> np.ndarray:
    """(N, length) float64; ValueError where one is not a list of so many numbers."""
    if set(map(type, values)) - {list} or set(map(len, values)) - {length}:
        raise ValueError
    return _numbers(list(chain.from_iterable(values))).reshape(-1, length)


def _numbers(values: list[Any]) -> np.ndarray:
    """(N,) float64; ValueError where one is no number (true and false are none), OverflowError for a huge one."""
    if set(map(type, values)) - {float, int}:
        raise ValueError
    return np.array(values, np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
