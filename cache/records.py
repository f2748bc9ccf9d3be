"""Whether a shard's commit record is one that a writer makes, for this shard of this store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from cache.fields import TOKEN_PATTERN
from cache.files import has_valid_seal
from cache.manifest import Manifest, StoredFile
from cache.plan import ShardPlan
from cache.shard_files import shard_files

SENSELESS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
_DIGEST_PATTERN = re.compile(r"[0-9a-f]{16}")
_SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
_RECORD_KEYS = {"shard", "plan", "files", "frames", "quarantined", "digest"}
_FRAME_KEYS = {"token", "scene", "timestamp_us", "kind", "class_counts", "digest", "sizes", "members"}


def record_problem(
    record: Any, data: bytes, shard: ShardPlan, letters: Sequence[str], manifest: Manifest | None = None
) -> str:
    """What is wrong with a record, "" for nothing. data: the file's bytes; letters: of the store's shapes; a shard plan
    without settings stands for one that is lost.

    Raises one of SENSELESS or StoreError where it makes no sense at all.
    """
    if not has_valid_seal(data):
        return "content that does not match its own digest"
    if set(record) != _RECORD_KEYS or record["shard"] != shard.number:
        return f"a record of shard {record.get('shard')!r:.20} with {sorted(record)}"
    stored = [StoredFile.from_list(row) for row in record["files"]]
    if not all(_SHA256_PATTERN.fullmatch(row[2]) and _are_whole(row[1:2], 63) for row in record["files"]):
        return f"sizes or digests of files {record['files']!r:.200} that no writer makes"
    longest = max(file.size for file in stored)
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
        places = list(frame["members"].values())
        if (
            set(frame) != _FRAME_KEYS
            or not TOKEN_PATTERN.fullmatch(frame["token"])
            or not _DIGEST_PATTERN.fullmatch(frame["digest"])
            or not isinstance(frame["scene"], str)
            or not isinstance(frame["class_counts"], list)
            or not set(frame["members"]) <= names
            or not set(frame["sizes"]) <= set(letters)
            or type(frame["timestamp_us"]) is not int
            or abs(frame["timestamp_us"]) >= 1 << 63
            or not _are_whole([frame["kind"]], 8)
            or not _are_whole(frame["class_counts"], 16)
            or not _are_whole(frame["sizes"].values(), 32)
            or not all(len(place) == 3 and _are_whole(place[:1], 64) and _are_whole(place[1:], 32) for place in places)
            or any(place[0] + place[1] > longest for place in places)
        ):
            return f"a frame {frame['token']!r:.40} that no writer makes"
    return ""


def _are_whole(numbers: Iterable[Any], bits: int) -> bool:
    """Whether all are whole numbers from 0 that fit so many bits, as the index's columns hold them."""
    return all(type(number) is int and 0 <= number < 1 << bits for number in numbers)
