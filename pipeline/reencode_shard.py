"""One task of `re-encode`: a shard's frames are read from the source store, encoded anew, and written.

Selectors that the source stores with the same options keep its weights; others are computed from the frame store's
annotations and clouds, by the very code of the teacher pass, so that the bytes are those of caching directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.bev import BevEncoding
from cache.cells import Cells, cell_weights
from cache.coverage import Coverage
from cache.errors import StoreError
from cache.plan import ShardPlan
from cache.quantise import dequantise_u8
from cache.shard_writer import open_shard
from cache.store import FrameStore, TeacherStore
from pipeline.coverage import Evidence, coverage_weights
from pipeline.selectors.background import background_mask


@dataclass(frozen=True)
class Reencoding:
    """What all tasks share. source and frames: URLs of the stores (frames: None where no annotation is needed); have
    and wanted: coverage of source and result; encoding: of the result.
    """

    source: str
    frames: str | None
    have: Coverage
    wanted: Coverage
    encoding: BevEncoding


def recomputed(job: Reencoding) -> list[str]:
    """Names of the wanted selectors whose weights are not among those stored."""
    return [selector.name for selector in job.wanted.selectors if not _is_stored(job, selector.name)]


def _is_stored(job: Reencoding, name: str) -> bool:
    if name not in job.have:
        return False
    if name == "confident":  # the stored weight is the heat itself, so that a higher threshold can be told from it
        return bool(job.wanted[name]["threshold"] >= job.have[name]["threshold"])
    if name == "random":  # drawn from the cells that the others leave
        return _picking(job.have) == _picking(job.wanted) and job.have[name] == job.wanted[name]
    return job.have[name] == job.wanted[name]


def _picking(coverage: Coverage) -> set[Any]:
    return {selector for selector in coverage.selectors if selector.name not in ("random", "dense")}


def write_reencoded_shard(
    url: str, shard: ShardPlan, job: Reencoding, quarantined: Mapping[str, str]
) -> dict[str, Any]:
    """The task. quarantined: frames of the shard that the source lacks, with the reason. Returns counts only."""
    source = TeacherStore(job.source)
    frames = FrameStore(job.frames) if job.frames else None
    try:
        with open_shard(url, shard) as writer:
            for token in shard.tokens:
                row = source.index.row_of(token)
                if row is None:
                    writer.quarantine(token, quarantined.get(token, "not in the store it is made from"))
                    continue
                writer.write(source.entry(row), reencoded(source, frames, row, job))
    finally:
        source.close()
        if frames is not None:
            frames.close()
    return writer.summary


def count_cells(job: Reencoding, tokens: Sequence[str]) -> dict[str, Any]:
    """The most cells that any of these frames has in the result."""
    source = TeacherStore(job.source)
    frames = FrameStore(job.frames) if job.frames else None
    rows = [row for token in tokens if (row := source.index.row_of(token)) is not None]
    most = max((len(_wanted_cells(source, frames, row, job)[0]) for row in rows), default=0)
    source.close()
    if frames is not None:
        frames.close()
    return {"most": most}


def reencoded(source: TeacherStore, frames: FrameStore | None, row: int, job: Reencoding) -> dict[str, np.ndarray]:
    """Every field of the result for one frame. StoreError where the source lacks a cell that is asked for."""
    bev = {spec.name for spec in source.bev.fields()}
    others = {spec.name: source.read(row, spec.name) for spec in source.manifest.fields if spec.name not in bev}
    stored = source.cells(row)
    index, weights = _wanted_cells(source, frames, row, job, stored)
    values, scale = _values_at(source, row, stored.index, index, job)
    encoding, dtype = job.encoding, source.bev.dtype
    if encoding.dtype == dtype:
        name = "bev_values" if encoding.layout == "cells" else "bev_map"
        out = {"bev_index": index, "bev_weights": weights, name: values}
        return {**out, **({"bev_scale": scale} if scale is not None else {}), **others}
    channel_axis = 1 if encoding.layout == "cells" else 0
    real = values.astype(np.float32) if scale is None else dequantise_u8(values, scale, channel_axis)
    return {**encoding.encode_values(real, index, weights), **others}


def _wanted_cells(
    source: TeacherStore, frames: FrameStore | None, row: int, job: Reencoding, stored: Cells | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """index (K,) and weights (K, S) of the result's cells."""
    stored = stored or source.cells(row)
    if job.wanted == job.have:
        return stored.index, stored.weights
    shape = job.encoding.height, job.encoding.width
    maps: dict[str, np.ndarray] = {}
    for selector in job.wanted.selectors:
        if _is_stored(job, selector.name):
            column = stored.weights[:, job.have.names.index(selector.name)]
            if selector.name == "confident":
                column = np.where(column >= np.float32(selector["threshold"]), column, np.float32(0))
            flat = np.zeros(shape[0] * shape[1], np.float32)
            flat[stored.index] = column
            maps[selector.name] = flat.reshape(shape)
        elif selector.name != "random":
            evidence = _evidence(source, frames, row, clouds=selector.name == "lidar")
            maps[selector.name] = coverage_weights(Coverage((selector,)), evidence, source.grid)[0]
    if "random" in job.wanted and "random" not in maps:
        drawn = job.wanted["random"]
        picked = sum((weights for name, weights in maps.items() if name != "dense"), np.zeros(shape, np.float32))
        maps["random"] = background_mask(picked, source.token(row), drawn["cells"], drawn["seed"])
    return cell_weights(np.empty((0, *shape)), np.stack([maps[name] for name in job.wanted.names]))


def _evidence(source: TeacherStore, frames: FrameStore | None, row: int, *, clouds: bool) -> Evidence:
    token = source.token(row)
    if frames is None:
        return Evidence(token)
    there = frames.row_of(token)
    boxes = frames.boxes_lidar(there) if frames.is_labelled(there) else None
    return Evidence(token, boxes, cloud=frames.points(there) if clouds else None)


def _values_at(
    source: TeacherStore, row: int, have: np.ndarray, want: np.ndarray, job: Reencoding
) -> tuple[np.ndarray, np.ndarray | None]:
    """What is stored of the result's values, in its layout: (K, C) or (C, H, W); and the scale of u8 codes."""
    scale = source.read(row, "bev_scale") if source.bev.dtype == "u8" else None
    bev = source.bev
    if bev.layout == "dense":
        whole = source.read(row, "bev_map")
        if job.encoding.layout == "dense":
            return whole, scale
        return np.ascontiguousarray(whole.reshape(bev.channels, -1)[:, want].T), scale
    values = source.read(row, "bev_values")
    if job.encoding.layout == "dense":
        _require_cells(source, row, have, np.arange(bev.height * bev.width))
        return np.ascontiguousarray(values.T).reshape(bev.channels, bev.height, bev.width), scale
    if have is want or np.array_equal(have, want):
        return values, scale
    _require_cells(source, row, have, want)
    return np.ascontiguousarray(values[np.searchsorted(have, want)]), scale


def _require_cells(source: TeacherStore, row: int, have: np.ndarray, want: np.ndarray) -> None:
    missing = np.setdiff1d(want, have, assume_unique=True)
    if len(missing):
        width = source.bev.width
        shown = ", ".join(f"({cell // width}, {cell % width})" for cell in missing[:3].tolist())
        raise StoreError(
            f"{source.root}: frame {source.token(row)} is stored at {len(have)} cells ({source.coverage}); "
            f"{len(missing)} of the {len(want)} asked for are missing, such as (row, column) {shown}; cache the "
            "teacher again for those"
        )
