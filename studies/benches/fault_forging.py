"""Making digests agree again after a change, as an attacker would: of one JSON file, or of a whole store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c

from cache.commit import read_plan
from cache.files import canonical_json, seal, sha256
from cache.index import FrameIndex
from cache.manifest import MANIFEST, PLAN
from cache.roots import LocalRoot


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a sealed JSON file and seals it again."""
    values = json.loads(path.read_bytes())
    values.pop("digest", None)
    change(values)
    path.write_bytes(canonical_json(seal(values)))


def forge_all(folder: Path) -> None:
    """Records, index and manifest anew over whatever the shards' files hold: each member's crc32c where it lies, each
    file's size and sha256, every digest over those. Only a digest kept elsewhere tells this store from a true one."""
    plan = read_plan(LocalRoot(folder))
    assert plan is not None
    records = []
    for path in sorted((folder / "records").glob("*.json")):
        record = json.loads(path.read_bytes())
        record.pop("digest")
        for frame in record["frames"]:
            for name, location in frame["members"].items():
                position = [spec.name for spec in plan.fields].index(name) if len(record["files"]) > 1 else 0
                data = (folder / record["files"][position][0]).read_bytes()
                location[2] = google_crc32c.value(data[location[0] : location[0] + location[1]])
        record["files"] = [[name, *_size_and_digest(folder / name)] for name, _, _ in record["files"]]
        path.write_bytes(canonical_json(seal(record)))
        records.append(record)
    fields = [spec.name for spec in plan.fields]
    scenes = [scene.token for scene in plan.scenes]
    index = FrameIndex.from_records(records, fields, plan.letters, scenes, len(plan.identity["classes"]))
    for name, data in index.to_files().items():
        (folder / "index" / name).write_bytes(data)
    forge_manifest(folder)


def forge_manifest(folder: Path) -> None:
    """The manifest anew over all files that it names, as they are."""

    def change(values: dict[str, Any]) -> None:
        values["plan"] = [PLAN, *_size_and_digest(folder / PLAN)]
        values["extra"] = [[name, *_size_and_digest(folder / name)] for name, _, _ in values["extra"]]
        for name, row in values["index"].items():
            row["size"], row["sha256"] = _size_and_digest(folder / "index" / name)
        for shard in values["shards"]:
            shard["files"] = [[name, *_size_and_digest(folder / name)] for name, _, _ in shard["files"]]

    reseal(folder / MANIFEST, change)


def _size_and_digest(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    return len(data), sha256(data)


def manifest_digest(folder: Path) -> str:
    """What a caching run prints, and `verify --digest` takes."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
