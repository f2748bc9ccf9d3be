"""What a coverage's selectors see of a stored frame: read from the frame store, and only what they ask for."""

from __future__ import annotations

import numpy as np

from cache.coverage import Coverage
from cache.errors import ConfigError, DataError
from cache.index import KIND_UNLABELLED
from cache.store import FrameStore
from pipeline.coverage import Evidence


def evidence_of(
    frames: FrameStore, row: int, coverage: Coverage, heat: np.ndarray | None = None, cloud: np.ndarray | None = None
) -> Evidence:
    """The evidence of a frame for `coverage`.

    heat: (C, H, W) the teacher's probabilities; cloud: (P, 5) the points it saw, read from the store where it is None
    and a selector counts points. Raises DataError where the stored lidarseg classes are not of the cloud's key sweep.
    """
    factors = coverage.factors
    labelled = any(factor.annotated for factor in factors) and frames.is_labelled(row)
    by_class = labelled and any(factor.annotated and factor["classes"] for factor in factors)
    of_points = [factor for factor in factors if factor.kind == "lidar"]
    if cloud is None and of_points:
        cloud = frames.points(row)
    return Evidence(
        frames.token(row),
        boxes_lidar=frames.boxes_lidar(row) if labelled else None,
        heat=heat,
        cloud=cloud,
        labels=frames.truth(row).class_ids if by_class else None,
        classes=tuple(frames.classes),
        lidarseg=_lidarseg(frames, row, cloud) if any(factor["ground"] > 0 for factor in of_points) else None,
        cameras=frames.frame(row).cameras if any(factor.kind == "view" for factor in factors) else (),
    )


def require_names(coverage: Coverage, frames: FrameStore, where: str = "--coverage") -> None:
    """Raises ConfigError where a selector names a class or a camera that the frame store does not have."""
    cameras = tuple(frames.manifest.header["cameras"])
    for factor in coverage.factors:
        for option, there_are in (("classes", tuple(frames.classes)), ("camera", cameras)):
            named = str(dict(factor.options).get(option) or "")
            unknown = sorted(set(named.split("|")) - set(there_are)) if named else []
            if unknown:
                raise ConfigError(
                    f"{where}: selector {factor.kind}: {option} {unknown[0]!r} is not among those of {frames.root}: "
                    f"{', '.join(there_are)}"
                )


def default_coverage(frames: FrameStore) -> str:
    """The coverage of a pass that names none: gaussian, which has nothing on unlabelled frames, so where the store has
    such by choice confident as well."""
    header = frames.manifest.header
    return "gaussian+confident" if header.get("between") or "labelled_scenes" in header else "gaussian"


def nothing_on_unlabelled(coverage: Coverage, frames: FrameStore) -> str:
    """A line for a person where a coverage keeps no cell of the store's unlabelled frames, else ""."""
    count = int((np.asarray(frames.index.kind) == KIND_UNLABELLED).sum())
    if not count or coverage.applying("unlabelled"):
        return ""
    return (
        f"coverage {coverage} keeps no cell of the {count} unlabelled frames, only boxes; for features there add a "
        f"selector that needs no annotations, such as --coverage '{coverage}+confident'"
    )


def _lidarseg(frames: FrameStore, row: int, cloud: np.ndarray | None) -> np.ndarray | None:
    """The key sweep's classes, where the store has them."""
    if cloud is None or not frames.has(row, "lidarseg"):
        return None
    classes = np.asarray(frames.read(row, "lidarseg"))
    key_sweep = cloud[:, 4] == 0
    if not key_sweep[: len(classes)].all() or key_sweep[len(classes) :].any():
        raise DataError(
            f"{frames.root}: frame {frames.token(row)} has lidarseg classes of {len(classes)} points, its key sweep "
            f"has {int(key_sweep.sum())}; cache the frames again from the data root that the points come from"
        )
    return classes
