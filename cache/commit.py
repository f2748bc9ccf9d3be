"""Writing a store: a plan fixes the shards, each shard is committed by its record, the manifest by all records.

Order: plan.json, then per shard `shards/N.tar` and `records/N.json`, then `index/*.npy`, then manifest.json; each file
atomic. A rerun with the same plan skips committed shards and converges to the same bytes; with another plan it is
refused. A shard that holds quarantined frames is written again on every run, until its frames can be read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import FingerprintError, StoreError
from cache.fields import FieldSpec
from cache.files import PARTIAL, canonical_json, digest_of, is_sealed, read_json, seal, write_json
from cache.index import FrameIndex
from cache.manifest import Manifest, Scene, Shard


def shard_path(root: Path, shard: int) -> Path:
    """The shard's tar."""
    return root / "shards" / f"{shard:05d}.tar"


def record_path(root: Path, shard: int) -> Path:
    """The shard's commit record."""
    return root / "records" / f"{shard:05d}.json"


@dataclass(frozen=True)
class StorePlan:
    """All that fixes a store's content before it is written: kind, identity, header, fields, scenes, and for each shard
    its frame tokens in order. Two runs with equal plans write equal bytes.
    """

    kind: str
    identity: dict[str, Any]
    header: dict[str, Any]
    fields: tuple[FieldSpec, ...]
    scenes: tuple[Scene, ...]
    shards: tuple[tuple[str, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "identity": self.identity,
            "header": self.header,
            "fields": [spec.to_dict() for spec in self.fields],
            "scenes": [scene.to_dict() for scene in self.scenes],
            "shards": [list(tokens) for tokens in self.shards],
        }

    @property
    def digest(self) -> str:
        return digest_of(self.to_dict())


def begin(root: Path, plan: StorePlan) -> list[int]:
    """Opens `root` for writing under `plan` and returns the numbers of the shards still to be written.

    Raises FingerprintError, naming the first value that differs, where `root` was begun under another plan. Partial
    files of a killed run are removed: one client writes a store at a time.
    """
    planned = Counter(token for tokens in plan.shards for token in tokens)
    twice, times = planned.most_common(1)[0] if planned else ("", 0)
    if times > 1:
        raise StoreError(
            f"{root}: frame {twice} is planned twice; a store holds a frame once, check the tables for doubles"
        )
    plan_path = root / "plan.json"
    if plan_path.is_file():
        existing = read_json(plan_path, "a store plan")
        wanted = json.loads(canonical_json(plan.to_dict()))  # as it reads back: lists for tuples
        if existing != wanted:
            name, found, expected = first_difference(existing, wanted)
            raise FingerprintError(
                f"{root}: was begun with {name} = {found}, this run asks for {expected}; "
                "use the same settings, another store name, or remove that folder"
            )
    elif (root / "manifest.json").exists():
        raise StoreError(
            f"{root}: holds a manifest but no plan.json; it can be read but not continued, choose another folder"
        )
    else:
        write_json(plan_path, plan.to_dict())
    for leftover in root.glob(f"**/*{PARTIAL}"):
        leftover.unlink()
    records = [_committed_record(root, shard, plan.digest) for shard in range(len(plan.shards))]
    return [shard for shard, record in enumerate(records) if record is None or record["quarantined"]]


def _committed_record(root: Path, shard: int, plan_digest: str) -> dict[str, Any] | None:
    """The shard's record, None where the shard must be written again: no record or a damaged one, one of another plan,
    or a tar that is missing or has another size.
    """
    try:
        record = read_json(record_path(root, shard), "a shard record")
        size = shard_path(root, shard).stat().st_size
    except (StoreError, FileNotFoundError):
        return None
    valid = is_sealed(record) and (record["shard"], record["plan"], record["size"]) == (shard, plan_digest, size)
    return record if valid else None


def write_record(
    root: Path,
    shard: int,
    plan_digest: str,
    *,
    size: int,
    sha256: str,
    frames: Sequence[dict[str, Any]],
    quarantined: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Commits a shard whose tar is already in place.

    frames: per frame token, scene, timestamp_us, kind, class_counts and members {field: [offset, length, crc32c]}.
    Returns the shard's summary for progress and closing lines: frames, bytes, quarantined, first_problem.
    """
    record = {
        "shard": shard,
        "plan": plan_digest,
        "size": size,
        "sha256": sha256,
        "frames": list(frames),
        "quarantined": list(quarantined),
    }
    write_json(record_path(root, shard), seal(record))
    return {
        "frames": len(frames),
        "bytes": size,
        "quarantined": len(quarantined),
        "first_problem": quarantined[0]["reason"] if quarantined else "",
    }


def finish(root: Path, plan: StorePlan) -> Manifest:
    """Assembles index and manifest from the records.

    Raises StoreError naming the shards that are not committed, or one whose frames are not the planned ones.
    """
    records = []
    missing = []
    for shard, tokens in enumerate(plan.shards):
        record = _committed_record(root, shard, plan.digest)
        if record is None:
            missing.append(shard)
            continue
        quarantined = {row["token"] for row in record["quarantined"]}
        if [frame["token"] for frame in record["frames"]] != [token for token in tokens if token not in quarantined]:
            raise StoreError(
                f"{record_path(root, shard)}: its frames are not the planned ones; "
                "delete it and run the same command again"
            )
        records.append(record)
    if missing:
        raise StoreError(
            f"{root}: shards {missing[:5]} of {len(plan.shards)} are not committed; run the same command again"
        )
    index = FrameIndex.from_records(records, [spec.name for spec in plan.fields])
    digests = index.write(root / "index")
    return Manifest(
        kind=plan.kind,
        identity=plan.identity,
        header=plan.header,
        fields=plan.fields,
        scenes=plan.scenes,
        shards=tuple(
            Shard(f"shards/{shard_path(root, r['shard']).name}", r["size"], r["sha256"], len(r["frames"]))
            for r in records
        ),
        index=digests,
        quarantined=tuple(q for r in records for q in r["quarantined"]),
    ).write(root)


def first_difference(found: Any, expected: Any, name: str = "") -> tuple[str, Any, Any]:
    """The first place (dotted name, value found, value expected) at which two JSON-like values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(set(found) | set(expected)):
            inner = f"{name}.{key}" if name else key
            if key not in found or key not in expected:
                return inner, found.get(key, "(absent)"), expected.get(key, "(absent)")
            if found[key] != expected[key]:
                return first_difference(found[key], expected[key], inner)
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f"number of {name}", len(found), len(expected)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a != b:
                return first_difference(a, b, f"{name}[{i}]")
    return name, found, expected
