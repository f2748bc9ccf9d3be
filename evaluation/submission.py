"""The official submission file, written atomically from a model's detections; `submission_file` reads it.

The devkit and the test server load it unmodified. A split without annotations has this as its only way to a score.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import DataError
from cache.files import write_bytes
from cache.frame import Detections, Frame, GroundTruth
from evaluation.boxes import detections_to_global, submission_boxes

MAX_BOXES_PER_SAMPLE = 500
META_KEYS = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
_SHOWN = 3


def submission_meta(*, camera: bool = False, lidar: bool = False) -> dict[str, bool]:
    """The header of a submission: which sensors the method used. Radar, maps and outside data are never used here."""
    return {"use_camera": camera, "use_lidar": lidar, "use_radar": False, "use_map": False, "use_external": False}


def submission_results(
    frames: Sequence[Frame], detections: Mapping[str, Detections], *, keep_top: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Every frame's detections as submission boxes, in the order of `frames`.

    keep_top: where a sample has more than 500 boxes keep the 500 of highest score; else that is an error naming it.
    Raises DataError where tokens are missing or foreign, or where a box is not sound.
    """
    require_same_tokens("detections", detections, "the frames to score", [frame.token for frame in frames])
    return {
        frame.token: submission_boxes(
            frame.token, detections_to_global(frame, limited(frame.token, detections[frame.token], keep_top=keep_top))
        )
        for frame in frames
    }


def limited(token: str, detections: Detections, *, keep_top: bool, most: int = MAX_BOXES_PER_SAMPLE) -> Detections:
    """At most 500 boxes (or `most`): those of highest score in their old order (of equal ones the earlier), or
    DataError."""
    if len(detections) <= most:
        return detections
    if not keep_top:
        raise DataError(
            f"detections of sample {token}: {len(detections)} boxes, the metric allows {most}; "
            "keep the best ones or raise the model's score threshold"
        )
    best = np.sort(np.argsort(-detections.scores, kind="stable")[:most])
    return Detections(detections.boxes_lidar[best], detections.scores[best], detections.labels[best])


def export_submission(
    path: Path,
    frames: Sequence[Frame],
    detections: Mapping[str, Detections],
    meta: Mapping[str, Any],
    *,
    keep_top: bool = False,
) -> None:
    """Writes the submission of all `frames` at `path`, atomically. meta: see `submission_meta`. Raises as
    `submission_results`, DataError for a meta without its five keys, and OutOfSpaceError."""
    missing = [key for key in META_KEYS if not isinstance(meta.get(key), bool)]
    if missing:
        raise DataError(
            f"{path}: the submission's meta lacks true or false for {', '.join(missing)}; see submission_meta"
        )
    results = submission_results(frames, detections, keep_top=keep_top)
    write_bytes(path, json.dumps({"meta": dict(meta), "results": results}, allow_nan=False).encode())


def require_same_tokens(what: str, found: Iterable[str], other: str, expected: Sequence[str]) -> None:
    """DataError with counts and the first tokens that are missing or extra; the devkit only says that they differ."""
    found_set, expected_set = set(found), set(expected)
    missing = [token for token in expected if token not in found_set]
    extra = sorted(found_set - expected_set)
    if missing or extra:
        parts = [_listed(missing, "missing"), _listed(extra, "extra")]
        raise DataError(
            f"{what}: {len(found_set)} samples, but {other} has {len(expected_set)}: {'; '.join(filter(None, parts))}; "
            "every sample of the split must be there (its list may be empty), and no other"
        )


def require_annotations(truth: Sequence[GroundTruth | None], what: str) -> list[GroundTruth]:
    """The ground truth of all frames, or DataError where `what` (a split, a version) has none, as v1.0-test."""
    if any(one is None for one in truth):
        raise DataError(
            f"{what} has no annotations, so it can't be scored here; write a submission with --export FILE and send it "
            "to the nuScenes test server"
        )
    return [one for one in truth if one is not None]


def _listed(tokens: Sequence[str], kind: str) -> str:
    if not tokens:
        return ""
    shown = ", ".join(tokens[:_SHOWN])
    return f"{len(tokens)} {kind} ({shown}{', ...' if len(tokens) > _SHOWN else ''})"
