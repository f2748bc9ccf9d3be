"""Writing a store: a plan fixes the shards, each shard is committed by its record, the manifest by all records.

Order: plan.json, then per shard its files and `records/N.json`, then `index/*.npy`, then manifest.json; each object
atomic. Where a manifest names columns that would change, as in a store that grows, the new ones first go beside them
under other names, with a manifest of their own: whatever moment a run is killed at, there is a manifest that reads.
A rerun with the same plan skips committed shards and converges to the same bytes; with another plan it is refused. A
shard that holds quarantined frames is written again on every run, until its frames can be read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cache.differences import differences
from cache.errors import FingerprintError, StoreError
from cache.fields import letters_of
from cache.files import PARTIAL, canonical_json, has_valid_seal, parse_json, seal, sha256
from cache.growth import NEXT, is_grown
from cache.index import FrameIndex
from cache.manifest import MANIFEST, PLAN, Manifest, Shard, StoredFile, read_document, read_parsed
from cache.plan import ShardPlan, StorePlan
from cache.records import SENSELESS, record_problem
from cache.roots import Root, open_root


def begin(place: Any, plan: StorePlan, *, grow: bool = False) -> list[ShardPlan]:
    """Opens a place for writing under `plan` and returns the shards still to be written.

    grow: whether the plan may add scenes and shards behind those of an earlier one. Raises FingerprintError, naming the
    first values that differ, where the place was begun under another plan, even if none of its shards was committed: a
    worker that still runs may commit one. Partial files of a killed run are removed: one client writes a store at a
    time.
    """
    root = open_root(place)
    earlier = read_plan(root)
    if earlier is None and root.size(MANIFEST) is not None:
        raise StoreError(
            f"{root}: holds a manifest but no {PLAN}; it can be read but not continued, choose another folder"
        )
    same = earlier is not None and _as_json(earlier) == _as_json(plan)
    sizes = root.sizes()
    if (
        earlier is not None
        and not same
        and not (grow and is_grown(earlier.settings(), earlier.scenes, earlier.shards, plan))
    ):
        empty = "" if any(name.startswith("records/") for name in sizes) else " (no shard of it was committed)"
        raise FingerprintError(
            f"{root}: was begun with {_differences(_as_json(earlier), _as_json(plan))}; "
            f"use the same settings, another store name, or remove that folder{empty}"
        )
    if earlier is None:
        _refuse_others_shards(root, plan, sizes)
    if not same:
        with root.write(PLAN) as file:
            file.write(canonical_json(plan.to_dict()))
    for leftover in (name for name in sizes if name.endswith(PARTIAL)):
        root.remove(leftover)
    todo = []
    for shard in plan.shard_plans():
        record = committed_record(root, shard, sizes)
        if record is None or record["quarantined"]:
            todo.append(shard)
    return todo


def _refuse_others_shards(root: Root, plan: StorePlan, sizes: Mapping[str, int]) -> None:
    """FingerprintError where the plan of a store is lost and its shards are not this plan's: a run would write over
    them. A record that is no writer's says nothing."""
    ours = {shard.record: shard.digest for shard in plan.shard_plans()}
    for name in (name for name in sizes if name.startswith("records/")):
        try:
            data = read_document(root, name)
            bound = parse_json(data, name, "a shard record")["plan"]
        except (StoreError, FileNotFoundError, *SENSELESS):
            continue
        if has_valid_seal(data) and bound != ours.get(name, bound):
            raise FingerprintError(
                f"{root}: has no {PLAN}, and {name} is of another plan than this run's; use the settings of the run "
                "that wrote it, another store name, or remove that folder"
            )


def read_plan(root: Root) -> StorePlan | None:
    """The plan that a store was begun with, None where there is none; StoreError where it does not parse."""
    try:
        data = read_document(root, PLAN)
    except FileNotFoundError:
        return None
    values = parse_json(data, f"{root}/{PLAN}", "a store plan")
    try:
        return StorePlan.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, StoreError) as error:
        raise StoreError(
            f"{root}/{PLAN}: not a store plan ({type(error).__name__}: {error}); remove that store"
        ) from None


def _differences(earlier: dict[str, Any], plan: dict[str, Any], shown: int = 4) -> str:
    """The first few in words, settings before scenes: other scenes may be no more than growth."""
    part = next(part for part in ("settings", "scenes", "shards") if earlier[part] != plan[part])
    all_of_them = list(differences(earlier[part], plan[part], part))
    said = [f"{name} = {found}, this run asks for {expected}" for name, found, expected in all_of_them[:shown]]
    more = len(all_of_them) - shown
    return "; ".join([*said, f"and {more} more differences"] if more > 0 else said)


def _as_json(plan: StorePlan) -> Any:
    """The plan as it reads back: lists for tuples."""
    return parse_json(canonical_json(plan.to_dict()), "plan", "a plan")


def committed_record(root: Root, shard: ShardPlan, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """The shard's record, None where the shard must be written: no record or one that no writer makes, one of another
    plan, or a file that is missing or has another size. sizes: what lies at the root.
    """
    if shard.record not in sizes:
        return None

    def parse(data: bytes) -> dict[str, Any]:
        record = parse_json(data, shard.record, "a shard record")
        if record_problem(record, data, shard, letters_of(shard.fields)) or record["plan"] != shard.digest:
            raise StoreError(f"{shard.record}: not the record of this shard")
        return record

    try:
        record = read_parsed(root, shard.record, parse)
    except (StoreError, FileNotFoundError, *SENSELESS):
        return None
    return record if all(sizes.get(name) == size for name, size, _ in record["files"]) else None


def commit_shard(
    root: Root,
    shard: ShardPlan,
    *,
    files: Sequence[StoredFile],
    frames: Sequence[Mapping[str, Any]],
    quarantined: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Writes the record of a shard whose files are in place, and returns the shard's summary for progress and closing
    lines: frames, bytes, quarantined, first_problem.

    frames: per frame the entry's values, sizes {letter: size}, members {field: [offset, length, crc32c]}. Raises
    StoreError where another run has committed this shard with other bytes: the plan was not all that fixed them.
    """
    data = _record_bytes(shard, files, frames, quarantined)
    try:
        root.put_new(shard.record, data)
    except FileExistsError:
        if root.read(shard.record) != data:
            _refuse_committed(root, shard)
            with root.write(shard.record) as file:
                file.write(data)
    return {
        "frames": len(frames),
        "bytes": sum(file.size for file in files),
        "quarantined": len(quarantined),
        "first_problem": quarantined[0]["reason"] if quarantined else "",
    }


def make_way(
    root: Root,
    shard: ShardPlan,
    *,
    files: Sequence[StoredFile],
    frames: Sequence[Mapping[str, Any]],
    quarantined: Sequence[Mapping[str, str]],
) -> None:
    """Called before a shard's files take their names: removes a record that they would make untrue.

    Raises StoreError where another run has committed the shard with other bytes, whose files then stay.
    """
    try:
        existing = root.read(shard.record)
    except FileNotFoundError:
        return
    if existing != _record_bytes(shard, files, frames, quarantined):
        _refuse_committed(root, shard)
        root.remove(shard.record)


def _refuse_committed(root: Root, shard: ShardPlan) -> None:
    there = committed_record(root, shard, root.sizes())
    if there is not None and not there["quarantined"]:
        raise StoreError(
            f"{root}/{shard.record}: another run has committed this shard with other bytes; let one run at a time "
            "write a store, on one kind of device"
        )


def _record_bytes(
    shard: ShardPlan,
    files: Sequence[StoredFile],
    frames: Sequence[Mapping[str, Any]],
    quarantined: Sequence[Mapping[str, str]],
) -> bytes:
    record = {
        "shard": shard.number,
        "plan": shard.digest,
        "files": [file.to_list() for file in files],
        "frames": list(frames),
        "quarantined": list(quarantined),
    }
    return canonical_json(seal(record))


def finish(place: Any, plan: StorePlan) -> Manifest:
    """Assembles index and manifest from the records.

    Raises StoreError naming the shards that are not committed, those whose record no writer makes among them.
    """
    root = open_root(place)
    shards: list[Shard] = []
    quarantined: list[dict[str, str]] = []
    missing: list[int] = []
    records = _records(root, plan, root.sizes(), shards, quarantined, missing)
    fields, scenes = [spec.name for spec in plan.fields], [scene.token for scene in plan.scenes]
    try:
        index = FrameIndex.from_records(records, fields, plan.letters, scenes, len(plan.identity["classes"]))
    except (StoreError, *SENSELESS) as error:
        if not missing:
            last = plan.shard_plans()[max(len(shards) - 1, 0)].record
            raise StoreError(
                f"{root}/{last}: frames that no index can hold ({error}); delete it and run the same command again"
            ) from None
    if missing:
        raise StoreError(
            f"{root}: shards {missing[:5]} of {len(plan.shards)} are not committed; run the same command again"
        )
    extra = _write_extra(root, plan)
    plan_bytes = canonical_json(plan.to_dict())
    manifest = Manifest(
        kind=plan.kind,
        format=plan.format,
        identity=dict(plan.identity),
        header=dict(plan.header),
        fields=plan.fields,
        scenes=plan.scenes,
        shards=tuple(shards),
        index={},
        plan=StoredFile(PLAN, len(plan_bytes), sha256(plan_bytes)),
        extra=extra,
        quarantined=tuple(quarantined),
    )
    if _is_read(root, index):  # the columns there belong to a manifest: never overwritten while one names them
        dataclasses.replace(manifest, index=index.write(root, NEXT)).write(root)
    manifest = dataclasses.replace(manifest, index=index.write(root)).write(root)
    for name in root.sizes():
        if name.endswith((PARTIAL, f"{NEXT}.npy")):
            root.remove(name)  # of a worker that died, of a run that was killed between the two manifests
    return manifest


def _is_read(root: Root, index: FrameIndex) -> bool:
    """Whether a manifest names columns that writing this index would change."""
    try:
        standing = Manifest.read(root).index
    except (StoreError, FileNotFoundError):
        return False
    return any(
        name in standing and standing[name] != {"size": len(data), "sha256": sha256(data)}
        for name, data in index.to_files().items()
    )


def _records(
    root: Root,
    plan: StorePlan,
    sizes: Mapping[str, int],
    shards: list[Shard],
    quarantined: list[dict[str, str]],
    missing: list[int],
) -> Iterator[dict[str, Any]]:
    """Every shard's record in order; what the manifest needs of each goes to `shards` and `quarantined`, the numbers of
    shards without one to `missing`."""
    for shard in plan.shard_plans():
        record = committed_record(root, shard, sizes)
        if record is None:
            missing.append(shard.number)
            continue
        shards.append(Shard(len(record["frames"]), tuple(StoredFile.from_list(file) for file in record["files"])))
        quarantined.extend(record["quarantined"])
        yield record


def _write_extra(root: Root, plan: StorePlan) -> tuple[StoredFile, ...]:
    """Zarr's own metadata, which grows with the store and is written with each manifest."""
    if plan.format.name != "zarr":
        return ()
    from cache.zarr_metadata import zarr_metadata  # here: it imports zarr, which readers and tar writers do without

    files = []
    for name, data in zarr_metadata(plan).items():
        with root.write(name) as file:
            file.write(data)
        files.append(StoredFile(name, len(data), sha256(data)))
    return tuple(files)
