"""Thirty-four ways to damage a store, by name.

A corruption changes a folder and says what it did, or gives None where it does not apply to this store or changed
nothing. Of those that forge digests too, in FORGED, a reader may get what the forger wrote; no check may miss them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from studies.benches import fault_accidents as accidents
from studies.benches import fault_documents as documents
from studies.benches import fault_shards as shards
from studies.benches.fault_accidents import Rng

Corruption = Callable[[Rng, Path], str | None]

CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        accidents.flip_bit,
        accidents.random_bytes,
        accidents.zero_page,
        accidents.truncate,
        accidents.append,
        accidents.shift,
        accidents.delete,
        accidents.swap,
        accidents.copy_over,
        accidents.extra_file,
        accidents.grow_sparse,
        accidents.link,
        accidents.link_folder,
        accidents.pipe,
        accidents.folder_for_file,
        documents.json_value,
        documents.json_layout,
        documents.json_bomb,
        documents.forged_json_value,
        documents.forged_plan,
        documents.traversal,
        documents.oversized_claims,
        documents.oversized_shape,
        shards.index_value,
        shards.forged_index_value,
        shards.forged_index_header,
        shards.tar_name,
        shards.tar_type,
        shards.tar_size,
        shards.tar_twice,
        shards.member_header,
        shards.zarr_index,
        shards.zarr_side,
        shards.zarr_json,
    )
}
FORGED = frozenset({"forged_json_value", "forged_plan", "forged_index_value"})


def corrupt(rng: Rng, folder: Path, kind: str) -> str | None:
    """Damages the store in a way of that kind; None where the kind does not apply to it."""
    for _ in range(20):
        what = CORRUPTIONS[kind](rng, folder)
        if what is not None:
            return what
    return None
