"""A teacher's answer, checked before anything of it is stored: own code (package.module:callable) may give anything.

One whole answer a batch, then the boxes of each frame; costs microseconds. What is wrong would else stand in a store
until a student's loss meets it: a box that is NaN, a class that there is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from cache.classes import DETECTION_CLASSES
from cache.errors import BevcaskError, ConfigError, DataError
from cache.frame import Detections
from models.detector import Detector, DetectorOutput
from models.import_path import is_import_path

BOX_NUMBERS = 9


@contextlib.contextmanager
def own_code(teacher: str) -> Iterator[None]:
    """Where a callable's detector runs: what it raises becomes a DataError of one line with the cause behind it.

    Lack of memory stays what it is, it tells the probe of the batch how many frames fit.
    """
    try:
        yield
    except (BevcaskError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not is_import_path(teacher):
            raise  # a fault of ours: its traceback tells where
        said = " ".join(str(error).split())[:300]
        raise DataError(f"--teacher {teacher}: its detector raised {type(error).__name__}: {said}") from error


def require_whole(model: Detector, output: DetectorOutput, found: Sequence[Detections], frames: int) -> None:
    """ConfigError where an answer to so many frames is not one map and one list of boxes for each."""
    expected = (frames, model.bev_channels, *model.grid.shape)
    if tuple(output.bev.shape) != expected:
        raise ConfigError(
            f"the teacher's bev is {tuple(output.bev.shape)}, expected {expected}: frames, bev_channels, rows and "
            "columns of its grid; correct the detector, see docs/teachers.md"
        )
    short = [maps["heatmap"] for maps in output.heads if "heatmap" in maps and len(maps["heatmap"]) != frames]
    if short or len(found) != frames:
        raise ConfigError(
            f"the teacher answered {frames} frames with {len(short[0]) if short else frames} heatmaps and {len(found)} "
            "lists of boxes, expected one a frame; correct the detector, see docs/teachers.md"
        )


def require_boxes(found: Detections, token: str) -> None:
    """DataError naming the frame where its boxes are not as `cache.frame.Detections` has them, best scores first."""
    boxes, scores, labels = found.boxes_lidar, found.scores, found.labels
    for name, array, dtype, rank in (
        ("boxes", boxes, "f4", 2),
        ("scores", scores, "f4", 1),
        ("labels", labels, "i4", 1),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != rank:
            what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise _wrong(token, f"its {name} are {what}, expected a numpy array of {np.dtype(dtype)}, rank {rank}")
    if boxes.shape != (len(scores), BOX_NUMBERS) or len(labels) != len(scores):
        raise _wrong(
            token, f"{boxes.shape} boxes, {len(scores)} scores and {len(labels)} labels, expected (N, 9), N and N"
        )
    if not np.isfinite(boxes).all():
        raise _wrong(token, f"box {int(np.argmin(np.isfinite(boxes).all(axis=1)))} holds NaN or infinity")
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN is neither
        raise _wrong(token, f"scores reach {scores.min():g}..{scores.max():g}, expected 0..1")
    if (np.diff(scores) > 0).any():
        raise _wrong(token, "scores rise, expected the best first")
    if not ((labels >= 0) & (labels < len(DETECTION_CLASSES))).all():
        reach = f"{labels.min()}..{labels.max()}"
        raise _wrong(token, f"labels reach {reach}, expected ids of {len(DETECTION_CLASSES)} classes from 0")


def _wrong(token: str, what: str) -> DataError:
    return DataError(
        f"frame {token}: the teacher's answer is wrong: {what}; correct the detector, or check its weights"
    )
