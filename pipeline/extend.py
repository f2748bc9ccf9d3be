"""`extend`: scenes that a frame store does not have yet are added behind those it has, whose shards are not touched.

Image scale, clouds, sweeps, unlabelled frames and which scenes are labelled are the store's own, read from its header.
Teacher stores are continued afterwards by `cache-teacher`, which runs the teacher on new shards only; `behind` says
which and how.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.classes import DETECTION_CLASSES
from cache.commit import begin, committed_record, finish, read_plan
from cache.errors import CorruptError, DataError, FingerprintError, StoreError
from cache.files import sha256
from cache.frame_fields import frame_entry
from cache.layout import frames_place, teacher_names, teacher_place
from cache.manifest import PLAN, Manifest
from cache.plan import ShardPlan, StorePlan
from cache.roots import Root
from cache.store import FrameStore, TeacherStore
from pipeline.engine import Cluster, run_shards
from pipeline.frames import FrameOptions, frame_plan, has_lidarseg, plan_shards, write_frame_shard
from pipeline.progress import FrameProgress
from pipeline.tables import DataSet, FrameRecord
from pipeline.teacher import SHIPPED_TEACHERS


@dataclass(frozen=True)
class Extension:
    """What was added, and the store's manifest afterwards."""

    manifest: Manifest
    scenes: int
    frames: int


@dataclass(frozen=True)
class Behind:
    """A teacher store without some of the frame store's frames, and the command that adds them."""

    name: str
    missing: int
    command: str


def extend_frames(
    cache: str | Path,
    data_root: Path,
    version: str,
    *,
    split: str | None = None,
    workers: int | None = None,
    cluster: Cluster | None = None,
) -> Extension:
    """Adds to <cache>/frames the scenes of a nuScenes folder that it does not have.

    Shards that stand are left as they are, but for those with frames that could not be read, which are tried again once
    all their files are there. Raises StoreError where there is no finished store, FingerprintError for another data set
    version and for a scene that is there with other frames or poses, DataError as `cache_frames` does.
    """
    place = frames_place(cache)
    store = FrameStore(place)
    earlier = read_plan(store.root)
    if earlier is None:
        raise StoreError(f"{store.root}: no plan.json, which says what the shards hold; restore it or cache again")
    options = _options(store)
    data = options.open_tables(data_root, version, split)
    if (names := _labelled_scenes(store)) is not None:
        data = data.labelled_in(names)  # those that come later are unlabelled
    if not has_lidarseg(earlier):
        data = data.without_lidarseg()
    _require_same_version(store, version)
    _require_same_frames(store, earlier, data)
    new = _without(data, {scene.token for scene in earlier.scenes})
    longest = max(len(tokens) for tokens in earlier.shards)
    added = _no_longer_than(longest, plan_shards(new, options))
    plan = dataclasses.replace(
        frame_plan(data, options, data.records, lidarseg=has_lidarseg(earlier)),
        scenes=(*earlier.scenes, *new.scenes),
        shards=(*earlier.shards, *(tuple(record.frame.token for record in shard) for shard in added)),
    )
    records = {record.frame.token: record for scene in data.records for record in scene}
    sizes = store.root.sizes()
    _require_files_of_unfinished(store.root, plan, records, sizes)
    todo = [
        shard
        for shard in begin(place, plan, grow=True)
        if committed_record(store.root, shard, sizes) is None or _all_files_there(shard, records, data_root)
    ]
    url = store.root.url
    jobs = [(url, shard, [records[token] for token in shard.tokens], str(data_root), options) for shard in todo]
    with FrameProgress("extend", sum(len(shard.tokens) for shard in todo)) as progress:
        summaries = run_shards(write_frame_shard, jobs, workers=workers, cluster=cluster, progress=progress)
    if added and summaries and not any(summary["frames"] for summary in summaries):
        raise DataError(f"not one of {len(new)} new frames could be read; the first: {summaries[0]['first_problem']}")
    before = store.manifest
    store.close()
    done = not todo and sha256(store.root.read(PLAN)) == before.plan.sha256
    manifest = before if done else finish(place, plan)
    frames = [sum(shard.frames for shard in each.shards) for each in (before, manifest)]
    return Extension(manifest, len(manifest.scenes) - len(before.scenes), frames[1] - frames[0])


def behind(cache: str | Path, data_root: str | Path | None = None) -> list[Behind]:
    """The teacher stores that lack frames of the frame store. data_root: named in their commands where they need it."""
    frames = FrameStore(frames_place(cache))
    out = []
    for name in teacher_names(cache):
        teacher = TeacherStore(teacher_place(cache, name))
        missing = int((teacher.index.rows_of(frames.index.token) < 0).sum())
        if missing:
            out.append(Behind(name, missing, _continue_command(cache, name, frames, teacher, data_root)))
        teacher.close()
    frames.close()
    return out


def _continue_command(
    cache: str | Path, name: str, frames: FrameStore, teacher: TeacherStore, data_root: str | Path | None
) -> str:
    """`cache-teacher` with the store's own settings; of a re-encoded store that its source comes first."""
    header = teacher.manifest.header
    if "source" in header:
        return f"./bevcask re-encode --cache {cache} --name SOURCE --out {name}, once its source is continued"
    said = str(header["teacher"])
    parts = [f"./bevcask cache-teacher --cache {cache} --name {name} --teacher {said}"]
    if said not in SHIPPED_TEACHERS:
        parts.append(f"--checkpoint FILE (sha256 {header['weights_sha256'][:16]})")
    if teacher.further.asked.items:
        parts.append(f"--fields '{teacher.further.asked}'")
    parts.append(f"--coverage '{teacher.coverage}' --encoding {teacher.bev.layout} --dtype {teacher.bev.dtype}")
    parts.append(f"--format {teacher.manifest.format.name}")
    if not frames.manifest.header["points"] and header.get("modality", "lidar") == "lidar":
        parts.append(f"--sweeps {header['sweeps']} --data-root {data_root or 'FOLDER'}")
    return " ".join(parts)


def _options(store: FrameStore) -> FrameOptions:
    header = store.manifest.header
    try:
        return FrameOptions(
            float(header["image_scale"]), bool(header["points"]), int(header["sweeps"]), int(header.get("between", 0))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(
            f"{store.root}: its header does not say how frames are stored ({error}); it is no store of cache-frames"
        ) from None


def _labelled_scenes(store: FrameStore) -> tuple[str, ...] | None:
    """The training scenes that keep their annotations; None where all do."""
    names = store.manifest.header.get("labelled_scenes")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorruptError(f"{store.root}: labelled_scenes in its header is {names!r}, expected a list of names")
    return tuple(names)


def _require_same_version(store: FrameStore, version: str) -> None:
    found = store.manifest.identity["dataset_version"]
    if found != version:
        raise FingerprintError(
            f"{store.root}: holds frames of {found}, this run asks for {version}; give --version {found} or another "
            "cache"
        )


def _require_same_frames(store: FrameStore, plan: StorePlan, data: DataSet) -> None:
    """Scenes that the store has and the tables, too, are the same in both: name, split, frames, times and poses."""
    have = {scene.token: scene for scene in plan.scenes}
    planned = {token for tokens in plan.shards for token in tokens}
    stored: dict[str, set[str]] = {}
    scenes = [scene.token for scene in store.manifest.scenes]
    for token, number in zip(store.tokens, store.index.scene.tolist(), strict=True):
        stored.setdefault(scenes[number], set()).add(token)
    remedy = "cache this data into another folder"
    for scene, records in zip(data.scenes, data.records, strict=True):
        tokens = {record.frame.token for record in records}
        if scene.token not in have:
            if tokens & planned:
                raise FingerprintError(
                    f"{store.root}: frame {min(tokens & planned)} is there, but in another scene than {scene.name}; "
                    f"{remedy}"
                )
            continue
        if scene != have[scene.token]:
            raise FingerprintError(
                f"{store.root}: scene {scene.token} is {have[scene.token].to_dict()}, the tables say "
                f"{scene.to_dict()}; {remedy}"
            )
        odd = (tokens - planned) | (stored.get(scene.token, set()) - tokens)
        if odd:
            raise FingerprintError(
                f"{store.root}: scene {scene.name} has other frames there than in the tables, such as {min(odd)}; "
                f"{remedy}"
            )
        for record in records:
            row = store.index.row_of(record.frame.token)
            digest = frame_entry(record.frame, record.truth, len(DETECTION_CLASSES)).digest
            if row is not None and store.entry(row).digest != digest:
                raise FingerprintError(
                    f"{store.root}: frame {record.frame.token} has pose digest {store.entry(row).digest}, the tables "
                    f"give {digest}; {remedy}"
                )


def _without(data: DataSet, scenes: set[str]) -> DataSet:
    """The data set without the scenes of these tokens."""
    left = [
        (scene, records)
        for scene, records in zip(data.scenes, data.records, strict=True)
        if scene.token not in scenes and records
    ]
    return dataclasses.replace(data, scenes=tuple(s for s, _ in left), records=tuple(r for _, r in left))


def _no_longer_than(frames: int, shards: Sequence[Sequence[FrameRecord]]) -> list[list[FrameRecord]]:
    """Shards cut between scenes so that none has more frames, unless one scene does: a Zarr store of a teacher was made
    with room for the longest shard there was."""
    out: list[list[FrameRecord]] = []
    for shard in shards:
        room = 0
        for scene in _by_scene(shard):
            if len(scene) > room:
                out.append([])
                room = frames
            out[-1].extend(scene)
            room -= len(scene)
    return out


def _by_scene(shard: Sequence[FrameRecord]) -> Iterator[list[FrameRecord]]:
    scenes: dict[str, list[FrameRecord]] = {}
    for record in shard:
        scenes.setdefault(record.frame.scene_token, []).append(record)
    yield from scenes.values()


def _require_files_of_unfinished(
    root: Root, plan: StorePlan, records: dict[str, FrameRecord], sizes: dict[str, int]
) -> None:
    """An extension that was interrupted must be ended with tables that know its frames."""
    for shard in plan.shard_plans():
        missing = [token for token in shard.tokens if token not in records]
        if missing and committed_record(root, shard, sizes) is None:
            raise DataError(
                f"{root}: shard {shard.number} of an interrupted run is not written, and its frame {missing[0]} is not "
                "among these; run extend as that run was, or without --split"
            )


def _all_files_there(shard: ShardPlan, records: dict[str, FrameRecord], data_root: Path) -> bool:
    """Whether a shard with frames that could not be read may be written again: in a folder with fewer files it would
    lose frames that were readable once."""
    if not all(token in records for token in shard.tokens):
        return False
    shown = [records[token] for token in shard.tokens]
    files = (path for record in shown for path in (*record.image_paths, *(sweep.path for sweep in record.sweeps)))
    return all((data_root / path).is_file() for path in files)
