"""Growth of a store: scenes and shards behind those that it has. Whether one plan is another one grown, and which
files a growth that was killed has left beside a store that still reads.
"""

from __future__ import annotations

from collections.abc import Sequence

from cache.files import canonical_json, sha256
from cache.index import COLUMN_FILES
from cache.manifest import Manifest
from cache.plan import Scene, StorePlan
from cache.shard_files import metadata_files, shard_files

NEXT = ".next"  # in the names of index columns that wait for their manifest


def is_grown(settings: object, scenes: Sequence[Scene], shards: Sequence[Sequence[str]], plan: StorePlan) -> bool:
    """Whether `plan` has these settings, scenes and shards, and perhaps more at the end."""
    return (
        canonical_json(settings) == canonical_json(plan.settings())
        and plan.scenes[: len(scenes)] == tuple(scenes)
        and plan.shards[: len(shards)] == tuple(shards)
    )


def is_unfinished(manifest: Manifest, plan: StorePlan) -> bool:
    """Whether `plan` asks for shards beyond those of the manifest, which was written under a smaller plan."""
    return (
        len(plan.shards) > len(manifest.shards)
        and manifest.plan.sha256 != sha256(canonical_json(plan.to_dict()))
        and is_grown(manifest.settings(), manifest.scenes, plan.shards[: len(manifest.shards)], plan)
    )


def is_half_renamed(manifest: Manifest) -> bool:
    """Whether the manifest names columns that wait for theirs: the first of the two that end a growth."""
    return any(name.endswith(f"{NEXT}.npy") for name in manifest.index)


def files_of_growth(plan: StorePlan, first: int) -> set[str]:
    """Names that a growth to `plan` writes beside a store of `first` shards."""
    names = {name.removesuffix(".npy") + f"{NEXT}.npy" for name in COLUMN_FILES}
    out = {f"index/{name}" for name in names | set(COLUMN_FILES)}
    for shard in plan.shard_plans()[first:]:
        out |= {shard.record, *shard_files(shard)}
    return out | set(metadata_files(plan.fields, tuple(plan.format.capacity)) if plan.format.name == "zarr" else ())
