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
from cache.columns import Column, Product
from cache.coverage import Coverage
from cache.errors import StoreError
from cache.plan import ShardPlan
from cache.quantise import dequantise_u8
from cache.selectors import Selector
from cache.shard_writer import open_shard
from cache.store import FrameStore, TeacherStore
from pipeline.coverage import Evidence, coverage_weights, join_columns, product_of
from pipeline.evidence import evidence_of


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


def recomputed(job: Reencoding) -> list[Selector]:
    """The wanted selectors, alone or in a product, whose weights are not among those stored."""
    columns = [column for column in job.wanted.selectors if not _is_stored(job, column)]
    return [factor for column in columns for factor in column.factors if not _is_stored(job, factor)]


def _is_stored(job: Reencoding, column: Column) -> bool:
    if column.name not in job.have:
        return False
    had = job.have[column.name]
    if isinstance(had, Selector) and had.kind == "confident" and isinstance(column, Selector):
        # the stored weight is the heat itself, so that a higher threshold can be told from it
        return had == column or bool(had["soft"] and column["threshold"] >= had["threshold"])
    if column.name == "random":  # drawn from the cells that the others leave
        return _picking(job.have) == _picking(job.wanted) and had == column
    return had == column


def _picking(coverage: Coverage) -> set[Any]:
    return {column for column in coverage.selectors if column.name not in ("random", "dense")}


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

    def kept(column: Column) -> np.ndarray:
        flat = np.zeros(shape[0] * shape[1], np.float32)
        flat[stored.index] = stored.weights[:, job.have.names.index(column.name)]
        if isinstance(column, Selector) and column.kind == "confident" and job.have[column.name] != column:
            above = flat >= np.float32(column["threshold"])
            flat = np.where(above, flat if column["soft"] else np.float32(1), np.float32(0))
        return flat.reshape(shape)

    def map_of(column: Column) -> np.ndarray:
        if _is_stored(job, column):
            return kept(column)
        if isinstance(column, Product):
            return product_of(map(map_of, column.factors))
        alone = Coverage((column,))
        return coverage_weights(alone, _evidence(source, frames, row, alone), source.grid)[0]

    if "random" in job.wanted and _is_stored(job, job.wanted["random"]):
        drawn = kept(job.wanted["random"])
        others = [column for column in job.wanted.selectors if column.name != "random"]
        maps = {column.name: map_of(column) for column in others} | {"random": drawn}
        return cell_weights(np.empty((0, *shape)), np.stack([maps[name] for name in job.wanted.names]))
    return cell_weights(np.empty((0, *shape)), join_columns(job.wanted, shape, source.token(row), map_of))


def _evidence(source: TeacherStore, frames: FrameStore | None, row: int, coverage: Coverage) -> Evidence:
    token = source.token(row)
    return Evidence(token) if frames is None else evidence_of(frames, frames.row_of(token), coverage)


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
