"""Teachers named by import path, `package.module:callable`: any detector, from any stack that runs beside torch.

The callable gets the checkpoint's path and returns a `models.detector.Detector`. What the teacher pass uses of one is
checked here, on a cloud of a few points, before the pass starts. docs/teachers.md is the protocol in full.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import torch

from cache.classes import DETECTION_CLASSES
from cache.errors import BevcaskError, ConfigError, DataError
from cache.frame import Detections
from cache.grid import BevGrid
from models.detector import Batch, Detector, DetectorOutput
from models.import_path import import_callable, one_line

ATTRIBUTES: dict[str, tuple[type, str]] = {
    "grid": (BevGrid, "the cache.grid.BevGrid of its feature map"),
    "modality": (str, "'lidar' or 'camera'"),
    "bev_channels": (int, "the channels of its feature map"),
}
METHODS = {
    "__call__": "Batch -> DetectorOutput",
    "decode": "DetectorOutput -> list of Detections",
    "eval": "evaluation mode; returns itself",
    "to": "to a device; returns itself",
}


def load_imported(teacher: str, path: Path) -> Detector:
    """The detector that the callable named by `teacher` makes of the checkpoint at `path`, in evaluation mode.

    Raises ConfigError where the callable cannot be had or its detector lacks a part, naming it; DataError where it
    fails.
    """
    build = _callable_of(teacher)
    try:
        model = build(path)
    except BevcaskError:
        raise
    except Exception as error:
        raise DataError(
            f"--teacher {teacher}: it raised {type(error).__name__} for {path}: {one_line(error)}"
        ) from error
    lacking = [f"{name} ({what})" for name, what in METHODS.items() if not callable(getattr(model, name, None))]
    lacking += [
        f"{name} ({what})"
        for name, (kind, what) in ATTRIBUTES.items()
        if not isinstance(getattr(model, name, None), kind)
    ]
    if lacking:
        raise ConfigError(
            f"--teacher {teacher}: it returned a {type(model).__name__} without {', '.join(lacking)}; a teacher is a "
            "models.detector.Detector, see docs/teachers.md"
        )
    detector = cast(Detector, model)
    detector.eval()
    if detector.modality == "lidar":  # what cameras show cannot be made up as easily: their first frame tells
        _try_out(teacher, detector)
    return detector


def _callable_of(teacher: str) -> Any:
    build = import_callable(teacher, f"--teacher {teacher}")
    try:
        inspect.signature(build).bind(Path())
    except TypeError as error:
        raise ConfigError(f"--teacher {teacher}: it must take one argument, the checkpoint's path ({error})") from None
    except ValueError:  # a builtin without a signature
        pass
    return build


def _try_out(teacher: str, model: Detector) -> None:
    """One forward pass over a cloud of 64 points and an empty one, as the pass will run it. ConfigError naming what is
    not as the protocol says."""
    grid = model.grid
    g = torch.Generator().manual_seed(0)
    span = torch.tensor([grid.x_max - grid.x_min, grid.y_max - grid.y_min, 2.0, 255.0, 0.5])
    cloud = torch.rand(64, 5, generator=g) * span + torch.tensor([grid.x_min, grid.y_min, -1.0, 0.0, 0.0])
    batch = Batch(points=[cloud, cloud[:0]], tokens=["0" * 32, "1" * 32])
    try:
        with torch.inference_mode():
            output = model(batch)
            problem = _problem_of(output, model)
            decoded = [] if problem else model.decode(output)
    except BevcaskError:
        raise
    except Exception as error:
        raise ConfigError(
            f"--teacher {teacher}: its detector raised {type(error).__name__} on a batch of two clouds, of 64 points "
            f"and of none: {one_line(error)}"
        ) from error
    if not problem and not (
        isinstance(decoded, list) and len(decoded) == 2 and all(isinstance(found, Detections) for found in decoded)
    ):
        problem = "decode gave no list of one cache.frame.Detections per frame"
    if problem:
        raise ConfigError(f"--teacher {teacher}: {problem}; see docs/teachers.md")


def _problem_of(output: Any, model: Detector) -> str:
    """What of an output for two frames is not as the protocol says, empty if all is."""
    if not isinstance(output, DetectorOutput):
        return f"its detector gave a {type(output).__name__}, expected models.detector.DetectorOutput"
    expected = (2, model.bev_channels, *model.grid.shape)
    if tuple(output.bev.shape) != expected:
        return (
            f"bev is {tuple(output.bev.shape)}, expected {expected}: frames, bev_channels, rows and columns of its grid"
        )
    if not output.bev.isfinite().all():
        return "bev holds NaN or infinity"
    if output.queries is not None:
        for name, last in (("logits", len(DETECTION_CLASSES)), ("boxes", 10)):
            shape = tuple(getattr(output.queries, name).shape)
            if len(shape) != 4 or (shape[1], shape[3]) != (2, last):
                return f"queries.{name} is {shape}, expected (layers, 2, queries, {last})"
        if not output.heads:
            return ""  # a detector of queries need not have heat
    heats = [maps.get("heatmap") for maps in output.heads]
    if not heats or any(heat is None or tuple(heat.shape[2:]) != model.grid.shape for heat in heats):
        return f"heads must each have a 'heatmap' (frames, classes, {model.grid.height}, {model.grid.width})"
    if sum(heat.shape[1] for heat in heats if heat is not None) < 1:
        return "heads have no class"
    return ""
