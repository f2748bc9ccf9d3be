"""Merging: stores that two clusters wrote become one, shard files unchanged under new numbers.

Shards keep their bytes because a shard depends on the store's settings and its own frames only (`cache.plan`). Between
folders of one disk a shard costs a hard link; elsewhere it is copied and its sha256 checked on the way. A killed merge
goes on where it stopped: no manifest stands before all shards of all stores do, and that of the frames comes last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.commit import begin, commit_shard, committed_record, finish, read_plan
from cache.differences import first_difference
from cache.errors import ConfigError, CorruptError, FingerprintError, StoreError
from cache.files import PARTIAL, file_sha256, fsync_folder, no_space_as_error, sha256
from cache.index import FrameIndex
from cache.layout import frames_place, teacher_names, teacher_place
from cache.manifest import PLAN, Manifest, StoredFile
from cache.plan import Scene, ShardPlan, StorePlan
from cache.roots import Root, open_root
from cache.shard_files import shard_files

CHUNK = 16 << 20
COPIES = 4  # shards copied at a time; a link or a local copy gains nothing from more, a network does


@dataclass(frozen=True)
class Source:
    """A committed store that others are made from, with the plan that its manifest names."""

    root: Root
    plan: StorePlan
    manifest: Manifest

    @classmethod
    def open(cls, place: str | Path | Root) -> Source:
        """Raises StoreError where there is no finished store."""
        root = open_root(place)
        manifest = Manifest.read(root)
        plan = read_plan(root)
        if plan is None or sha256(root.read(PLAN)) != manifest.plan.sha256:
            raise StoreError(
                f"{root}/{PLAN}: {'missing' if plan is None else 'not the one that its manifest names'}; end the run "
                "that was extending this store first, or restore that file"
            )
        if len(plan.shards) != len(manifest.shards) or plan.settings() != _settings_of(manifest):
            raise CorruptError(f"{root}: plan and manifest do not tell the same store; run the caching command again")
        return cls(root, plan, manifest)

    def record(self, shard: ShardPlan, sizes: Mapping[str, int]) -> dict[str, Any]:
        """A shard's record, whose files the manifest vouches for. CorruptError where it is not what was committed."""
        record = committed_record(self.root, shard, sizes)
        files = [file.to_list() for file in self.manifest.shards[shard.number].files]
        if record is None or record["files"] != files or {row[0] for row in files} != set(shard_files(shard)):
            raise CorruptError(
                f"{self.root}/{shard.record}: the record or a file of this shard is not what was committed; run the "
                "caching command there again"
            )
        return record

    def check(self) -> None:
        """Raises CorruptError where the records do not say what the manifest's index says."""
        sizes = self.root.sizes()
        index = FrameIndex.from_records(
            (self.record(shard, sizes) for shard in self.plan.shard_plans()),
            [spec.name for spec in self.plan.fields],
            self.plan.letters,
            [scene.token for scene in self.plan.scenes],
            len(self.plan.identity["classes"]),
        )
        for name, data in index.to_files().items():
            if sha256(data) != self.manifest.index.get(name, {}).get("sha256"):
                raise CorruptError(
                    f"{self.root}/records: they do not say what index/{name} says; run the caching command there again"
                )


def _settings_of(manifest: Manifest) -> dict[str, Any]:
    return StorePlan(
        manifest.kind, manifest.identity, manifest.header, manifest.fields, (), (("",),), manifest.format
    ).settings()


def merge_caches(
    out: str | Path,
    sources: Sequence[str | Path],
    *,
    teachers: Sequence[str] | None = None,
    copy: bool = False,
    advance: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Manifest]:
    """Merges the caches `sources`, in that order, into the cache `out`: the frame stores, and the teacher stores of the
    same name (those in `teachers`, None: all). Returns the manifests by store: "frames", "teachers/NAME".

    copy: whether files are copied where they could be linked. advance: called with each shard's summary. Raises
    FingerprintError for settings that differ, StoreError for a frame that two sources hold, for a source that is not
    finished and for a teacher store that says nothing of frames between those it knows, CorruptError for bytes that are
    not those committed. Nothing is written before the settings, frames and records of all sources are found good.
    """
    if len(sources) < 2:
        raise ConfigError(f"--sources: found {len(sources)}, expected two or more caches with commas between")
    places = {open_root(frames_place(cache)).url for cache in sources}
    if open_root(frames_place(out)).url in places:
        raise ConfigError(f"--cache {out} is one of the sources; merge into a new folder")
    frames = [Source.open(frames_place(cache)) for cache in sources]
    merges = {"frames": (frames_place(out), frames)}
    known = [teacher_names(cache) for cache in sources]
    names = sorted({name for found in known for name in found})
    unknown = sorted(set(teachers or ()) - set(names))
    if unknown:
        raise ConfigError(f"--teachers: no source holds {', '.join(unknown)}; they hold {', '.join(names) or 'none'}")
    for name in names if teachers is None else teachers:
        stores = [
            Source.open(teacher_place(cache, name))
            for cache, found in zip(sources, known, strict=True)
            if name in found
        ]
        merges[f"teachers/{name}"] = (teacher_place(out, name), stores)
    plans = {name: merged_plan(stores) for name, (_, stores) in merges.items()}
    for name, plan in plans.items():
        _require_leading(name, plan, plans["frames"], list(sources))
    for _, stores in merges.values():
        for store in stores:
            store.check()
    for name, (place, stores) in merges.items():
        _copy_shards(open_root(place), plans[name], stores, copy, advance)
    return {name: finish(merges[name][0], plans[name]) for name in sorted(merges, key=lambda name: name == "frames")}


def merged_plan(sources: Sequence[Source]) -> StorePlan:
    """The plan of the merged store: the sources' shards one after the other. Raises as `merge_caches`."""
    first = sources[0]
    for other in sources[1:]:
        _require_equal_settings(first, other)
    holder: dict[str, Source] = {}
    for source in sources:
        for token in (token for tokens in source.plan.shards for token in tokens):
            if holder.setdefault(token, source) is not source:
                raise StoreError(
                    f"frame {token} is in {holder[token].root} and in {source.root}; a store holds a frame once, cache "
                    "one of them again with other scenes"
                )
    scenes: dict[str, Scene] = {}
    for source in sources:
        for scene in source.plan.scenes:
            if scenes.setdefault(scene.token, scene) != scene:
                raise FingerprintError(
                    f"{source.root}: scene {scene.token} is {scene.to_dict()}, elsewhere "
                    f"{scenes[scene.token].to_dict()}; cache it again from the same tables"
                )
    header = dict(first.plan.header)
    if "source" in header:  # re-encoded stores: each names the manifest that it was made from
        manifests = [digest for source in sources for digest in source.plan.header["source"]["manifests"]]
        header["source"] = {**header["source"], "manifests": list(dict.fromkeys(manifests))}
    return dataclasses.replace(
        first.plan,
        header=header,
        scenes=tuple(scenes.values()),
        shards=tuple(tokens for source in sources for tokens in source.plan.shards),
    )


_REMEDIES = {
    "kind": "merge frame stores with frame stores",
    "identity": "only stores of one data set, class list and box convention can be merged",
    "format": "re-encode both to webdataset and merge those, or cache one of them again with the other's",
}


def _require_equal_settings(first: Source, other: Source) -> None:
    expected, found = (_comparable(source.plan) for source in (first, other))
    for part in ("kind", "identity", "format", "header", "fields"):
        if found[part] != expected[part]:
            name, value, wanted = first_difference(found[part], expected[part], part)
            remedy = _REMEDIES.get(part, "re-encode one of them, or cache it again with the other's settings")
            raise FingerprintError(f"{other.root}: {name} = {value}, but {first.root} has {wanted}; {remedy}")


def _comparable(plan: StorePlan) -> dict[str, Any]:
    """The settings without what two halves of one store may differ in: the manifests they were re-encoded from."""
    settings = plan.settings()
    if "source" in plan.header:
        source = {key: value for key, value in plan.header["source"].items() if key != "manifests"}
        settings["header"] = {**plan.header, "source": source}
    return settings


def _require_leading(name: str, plan: StorePlan, frames: StorePlan, sources: list[str | Path]) -> None:
    """A teacher store's shards follow the frame store's from the first on; only then can `cache-teacher` go on."""
    if plan.shards != frames.shards[: len(plan.shards)]:
        raise StoreError(
            f"{name}: in {', '.join(map(str, sources))} it does not follow the frame stores shard by shard; run "
            "cache-teacher in the source that lacks it or is behind, or name the stores to merge: --teachers A,B"
        )


def _copy_shards(
    out: Root,
    plan: StorePlan,
    sources: Sequence[Source],
    copy: bool,
    advance: Callable[[dict[str, Any]], None] | None,
) -> None:
    origin = [(source, shard) for source in sources for shard in source.plan.shard_plans()]
    sizes = {id(source): source.root.sizes() for source in sources}

    def one(shard: ShardPlan) -> dict[str, Any]:
        source, old = origin[shard.number]
        record = source.record(old, sizes[id(source)])
        renamed = dict(zip(shard_files(old), shard_files(shard), strict=True))
        files = [StoredFile.from_list(row) for row in record["files"]]
        for file in files:
            _copy_file(source.root, file, out, renamed[file.name], copy)
        moved = [dataclasses.replace(file, name=renamed[file.name]) for file in files]
        return commit_shard(out, shard, files=moved, frames=record["frames"], quarantined=record["quarantined"])

    with ThreadPoolExecutor(COPIES) as pool:
        for summary in pool.map(one, begin(out, plan)):
            if advance:
                advance(summary)


def _copy_file(source: Root, file: StoredFile, out: Root, name: str, copy: bool) -> None:
    here, there = source.local_path(file.name), out.local_path(name)
    if not copy and here is not None and there is not None:
        if (source.size(file.name), file_sha256(here)) != (file.size, file.sha256):
            raise _changed(source, file)
        if _link(here, there):
            return
    digest, size = hashlib.sha256(), 0
    with out.write(name) as target:
        for chunk in _chunks(source, file):
            digest.update(chunk)
            size += target.write(chunk)
        if (size, digest.hexdigest()) != (file.size, file.sha256):
            raise _changed(source, file)


def _changed(source: Root, file: StoredFile) -> CorruptError:
    return CorruptError(
        f"{source}/{file.name}: its bytes are not those that were committed; run verify there, and do what it says"
    )


def _chunks(source: Root, file: StoredFile) -> Iterator[bytes]:
    start = 0
    while start < file.size and (chunk := source.read_range(file.name, start, min(CHUNK, file.size - start))):
        yield chunk
        start += len(chunk)


def _link(here: Path, there: Path) -> bool:
    """Whether `there` could be made another name of the file `here`, durably."""
    with no_space_as_error(there):
        there.parent.mkdir(parents=True, exist_ok=True)
    partial = there.with_name(f"{there.name}.{os.getpid():x}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        os.link(here.resolve(), partial)  # resolved: another name of a symbolic link would be a link that leads nowhere
    except OSError:
        return False  # another disk, no hard links there, or too many
    try:
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, there)
    finally:
        partial.unlink(missing_ok=True)  # rename leaves both names where they are one file already
    fsync_folder(there.parent)
    return True
