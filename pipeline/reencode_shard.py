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
from cache.plan import ShardPlan
from cache.selectors import Selector
from cache.shard_writer import open_shard
from cache.store import FrameStore, TeacherStore
from pipeline.coverage import Evidence, coverage_weights, join_columns, product_of
from pipeline.evidence import evidence_of
from pipeline.reencode_maps import CellChange, cells_on_level, reencoded_further, reencoded_map


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


def count_cells(job: Reencoding, tokens: Sequence[str]) -> dict[str, int]:
    """The most cells that any of these frames has in the result, by letter."""
    source = TeacherStore(job.source)
    frames = FrameStore(job.frames) if job.frames else None
    rows = [row for token in tokens if (row := source.index.row_of(token)) is not None]
    levels = [level for level in source.further.with_bev(job.encoding).levels if level.own_cells]
    most = dict.fromkeys(["K", *(level.letter for level in levels)], 0)
    for row in rows:
        index, weights = _wanted_cells(source, frames, row, job)
        most["K"] = max(most["K"], len(index))
        for level in levels:
            cells = cells_on_level(level, index, weights, source.grid.shape)[0]
            most[level.letter] = max(most[level.letter], len(cells))
    source.close()
    if frames is not None:
        frames.close()
    return most


def reencoded(source: TeacherStore, frames: FrameStore | None, row: int, job: Reencoding) -> dict[str, np.ndarray]:
    """Every field of the result for one frame. StoreError where the source lacks a cell that is asked for."""
    bev = {spec.name for spec in (*source.bev.fields(), *source.further.fields())}
    others = {spec.name: source.read(row, spec.name) for spec in source.manifest.fields if spec.name not in bev}
    stored = source.cells(row)
    index, weights = _wanted_cells(source, frames, row, job, stored)
    change = CellChange(
        stored.index,
        index,
        source.grid.shape,
        (source.bev.layout == "dense", job.encoding.layout == "dense"),
        f"{source.root}: frame {source.token(row)}",
        str(source.coverage),
    )
    names = [spec.name for spec in source.bev.fields()]
    fields = dict(zip(names, source.read_many(row, names), strict=True))
    return {
        **reencoded_map(fields, source.bev, job.encoding, change, weights),
        **others,
        **reencoded_further(source, row, source.further.with_bev(job.encoding), change, weights),
    }


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
