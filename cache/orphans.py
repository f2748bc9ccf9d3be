"""`gc`: files in a cache that no manifest or plan owns. Partials of writers that died, shards beyond the plan.

What a plan still asks for is never an orphan, so unfinished stores are left alone; nor is a file that a live writer may
be at (too young), nor one that is none of ours. Lists the whole cache once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cache.commit import read_plan
from cache.errors import StoreError
from cache.files import PARTIAL
from cache.index import COLUMN_FILES
from cache.manifest import MANIFEST, PLAN, Manifest
from cache.plan import StorePlan
from cache.roots import Root, join, open_root
from cache.shard_files import metadata_files, shard_files

OLDER_THAN_MINUTES = 60.0
_OURS = re.compile(r"shards/[0-9]+\.tar|records/[0-9]+\.json|index/[a-z0-9_]+(\.next)?\.npy|data\.zarr/.+")
_PARTIAL = re.compile(r".+\.[0-9a-f]+-[0-9a-f]{8}" + re.escape(PARTIAL))


@dataclass(frozen=True)
class Orphan:
    """A file that nobody owns. store: "frames" or "teachers/NAME"; name: in that store; kept: why it is not deleted,
    "" where it may be."""

    store: str
    name: str
    size: int
    what: str
    kept: str = ""


def find_orphans(
    cache: str | Path, *, older_than_minutes: float = OLDER_THAN_MINUTES, now_s: float | None = None
) -> list[Orphan]:
    """Every file of the cache's stores that no manifest or plan owns, in order of their names.

    Raises StoreError where there is no cache, or where a manifest or plan does not parse: then nobody can say.
    """
    now_s = time.time() if now_s is None else now_s
    # listed before the plans are read: a growing store writes its plan first, so what is listed here is in what is read
    by_store: dict[str, dict[str, int]] = {}
    for name, size in open_root(cache).sizes().items():
        parts = name.split("/")
        depth = {"frames": 1, "teachers": 2}.get(parts[0], 0)
        if depth and len(parts) > depth:
            by_store.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = size
    if not by_store:
        raise StoreError(f"{cache}: no store lies there; --cache is the folder that holds frames/ and teachers/")
    return [
        orphan
        for store, sizes in sorted(by_store.items())
        for orphan in _orphans_of(store, open_root(join(cache, *store.split("/"))), sizes, older_than_minutes, now_s)
    ]


def remove_orphans(cache: str | Path, orphans: list[Orphan]) -> int:
    """Removes those that are not to be kept; returns their bytes."""
    gone = [orphan for orphan in orphans if not orphan.kept]
    for orphan in gone:
        open_root(join(cache, *orphan.store.split("/"))).remove(orphan.name)
    return sum(orphan.size for orphan in gone)


def _orphans_of(
    store: str, root: Root, sizes: dict[str, int], older_than_minutes: float, now_s: float
) -> Iterator[Orphan]:
    plan = read_plan(root)
    manifest = Manifest.read(root) if MANIFEST in sizes else None
    owned = _owned(plan, manifest)
    for name, size in sizes.items():
        if name in owned:
            continue
        what, kept = _what(name, plan, manifest)
        if not kept:
            try:
                minutes = (now_s - root.modified(name)) / 60
            except FileNotFoundError:
                continue  # renamed or removed by its writer meanwhile
            if minutes < older_than_minutes:
                kept = f"written less than {older_than_minutes:g} minutes ago, its writer may be alive"
        yield Orphan(store, name, size, what, kept)


def _owned(plan: StorePlan | None, manifest: Manifest | None) -> set[str]:
    owned = {PLAN, MANIFEST, *(f"index/{name}" for name in COLUMN_FILES)}
    if plan is not None:
        for shard in plan.shard_plans():
            owned |= {shard.record, *shard_files(shard)}
        if plan.format.name == "zarr":
            owned |= set(metadata_files(plan.fields, tuple(plan.format.capacity)))
    if manifest is not None:
        owned |= {file.name for file in manifest.files}
        owned |= {f"records/{number:05d}.json" for number in range(len(manifest.shards))}
    return owned


def _what(name: str, plan: StorePlan | None, manifest: Manifest | None) -> tuple[str, str]:
    """What an unowned file is, and why it is kept."""
    if _PARTIAL.fullmatch(name):
        return "partial file of a writer that died", ""
    if not _OURS.fullmatch(name):
        return "unknown file", "not a file that this project writes"
    if plan is None and manifest is None:
        return "file of a lost store", f"{PLAN} and {MANIFEST} are both missing: restore them, or remove that folder"
    return "beyond the plan", ""
