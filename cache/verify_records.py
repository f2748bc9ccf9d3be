"""Whether a shard's commit record is one that a writer makes, for this shard of this store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache.fields import TOKEN_PATTERN
from cache.files import has_valid_seal
from cache.manifest import Manifest, StoredFile
from cache.plan import ShardPlan
from cache.shard_files import shard_files

_RECORD_KEYS = {"shard", "plan", "files", "frames", "quarantined", "digest"}
_FRAME_KEYS = {"token", "scene", "timestamp_us", "kind", "class_counts", "digest", "sizes", "members"}


def record_problem(
    record: Any, data: bytes, shard: ShardPlan, letters: Sequence[str], manifest: Manifest | None
) -> str:
    """What is wrong with a record, "" for nothing. data: the file's bytes; letters: of the store's shapes; a shard plan
    without settings stands for one that is lost.

    Raises KeyError, TypeError, ValueError, AttributeError or StoreError where it makes no sense at all.
    """
    if not has_valid_seal(data):
        return "content that does not match its own digest"
    if set(record) != _RECORD_KEYS or record["shard"] != shard.number:
        return f"a record of shard {record.get('shard')!r:.20} with {sorted(record)}"
    stored = [StoredFile.from_list(row) for row in record["files"]]
    if [file.name for file in stored] != shard_files(shard):
        return f"files {[file.name for file in stored]!r:.200}"
    if manifest is not None:
        vouched = manifest.shards[shard.number]
        if tuple(stored) != vouched.files or len(record["frames"]) != vouched.frames:
            return "files or frames that are not those of the manifest"
    lost = {row["token"] for row in record["quarantined"]}
    tokens = [frame["token"] for frame in record["frames"]]
    if record["plan"] == shard.digest and tokens != [token for token in shard.tokens if token not in lost]:
        return "frames that are not the planned ones"
    names = {spec.name for spec in shard.fields}
    for frame in record["frames"]:
        numbers = [frame["timestamp_us"], frame["kind"], *frame["class_counts"], *frame["sizes"].values()]
        numbers += [number for location in frame["members"].values() for number in location]
        if (
            set(frame) != _FRAME_KEYS
            or not TOKEN_PATTERN.fullmatch(frame["token"])
            or not set(frame["members"]) <= names
            or not set(frame["sizes"]) <= set(letters)
            or any(type(number) is not int for number in numbers)
            or any(len(location) != 3 for location in frame["members"].values())
        ):
            return f"a frame {frame['token']!r:.40} that no writer makes"
    return ""
