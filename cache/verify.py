"""Every byte of a store against its manifest: what is damaged, missing, forged or nobody's, and how it is mended.

    for finding in verify("cache/teachers/demo", digest="4be1..."): print(finding)

Reads each file once, in pieces, `threads` at a time; a finding never ends the check. What it compares:

- the manifest with its seal and its own layout, and with a digest that was kept elsewhere: what was forged throughout,
  digests and all, only such a digest tells;
- each file's presence, size and sha256; in shards each frame's crc32c, place, name and content, the tar's headers, and
  the Zarr shard's own index, checksums and the arrays beside it (`cache.verify_tar`, `cache.verify_zarr`);
- the plan with the manifest, and the shards' records with both: they must give the very index that is there;
- the list of files: partial files, unknown names, links and whatever else no manifest vouches for.

**To mend a damaged shard**, delete its record (records/NNNNN.json) and run the same caching command again: it writes
that shard anew, with the same bytes, and nothing else. Every finding says what to delete before that command.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cache.commit import read_plan
from cache.differences import first_difference
from cache.errors import BevcaskError, StoreError
from cache.file_stream import FileStream
from cache.files import PARTIAL, canonical_json, parse_json, seal, sha256
from cache.findings import Finding, Report
from cache.growth import files_of_growth, is_half_renamed, is_unfinished
from cache.index import COLUMN_FILES, FrameIndex, column_of
from cache.manifest import MANIFEST, PLAN, Manifest, StoredFile, read_document
from cache.plan import ShardPlan, StorePlan
from cache.records import SENSELESS, record_problem
from cache.roots import LocalRoot, Root, open_root
from cache.shard_files import shard_files
from cache.store import FrameStore, Store, TeacherStore
from cache.verify_tar import check_tar
from cache.verify_zarr import check_side_array, check_zarr_json, check_zarr_shard

NEW_PLAN = (PLAN, MANIFEST)  # without both, a run writes its plan anew and keeps the shards that fit it
Progress = Callable[[int, int], None]


def verify(
    place: Any, *, digest: str | None = None, progress: Progress | None = None, threads: int = 4
) -> list[Finding]:
    """All that is wrong with the store at a path, URL or Root; none: every byte is as it was committed.

    digest: hex sha256 of the manifest file, as a caching run prints it and every training run keeps it. progress:
    called with bytes checked and bytes in all. Raises StoreError where nothing lies there.
    """
    root = open_root(place)
    sizes = root.sizes()
    if not sizes:
        raise StoreError(f"{root}: nothing lies there, expected a store; check --cache and the store's name")
    report = Report()
    manifest = _check_manifest(root, digest, report)
    plan = _check_plan(root, manifest, report)
    if manifest is None and plan is None:
        return report.findings()
    checker = _Checker(root, manifest, plan, sizes, report)
    checker.check_records()
    checker.check_files(progress or (lambda done, total: None), threads)
    checker.check_strangers()
    if manifest is not None and not len(report):
        _check_opening(root, manifest, report)
    return report.findings()


def _check_manifest(root: Root, digest: str | None, report: Report) -> Manifest | None:
    try:
        manifest = Manifest.read(root)
        data = read_document(root, MANIFEST)
    except (BevcaskError, FileNotFoundError) as error:
        report.tell(MANIFEST, str(error), "the manifest of a finished store")
        return None
    if canonical_json(seal(manifest.to_dict())) != data:
        report.tell(MANIFEST, "another layout or other keys", "the bytes that a writer makes")
    if digest is not None and sha256(data) != digest.lower():
        report.tell(
            MANIFEST,
            f"sha256 {sha256(data)}",
            f"{digest.lower()}, which was kept elsewhere",
            remedy="this is another store, or a forgery: restore it from a copy, or remove it and cache again",
        )
    return manifest


def _check_plan(root: Root, manifest: Manifest | None, report: Report) -> StorePlan | None:
    try:
        plan = read_plan(root)
        wrong = "no such file" if plan is None else ""
        if plan is not None and canonical_json(plan.to_dict()) != read_document(root, PLAN):
            wrong = "another layout or other keys"
    except (BevcaskError, FileNotFoundError) as error:
        plan, wrong = None, str(error)
    if wrong:
        report.tell(PLAN, wrong, "the plan of this store", delete=NEW_PLAN)
    if plan is None:
        return None
    if manifest is None:
        return plan
    if is_unfinished(manifest, plan):
        shards = f"{len(plan.shards)} shards, {len(manifest.shards)} of them in {MANIFEST}: a store that still grows"
        report.tell(PLAN, shards, "a growth that has ended")
        return plan
    ours = {"settings": plan.settings(), "scenes": [scene.to_dict() for scene in plan.scenes]}
    theirs = {"settings": manifest.settings(), "scenes": [scene.to_dict() for scene in manifest.scenes]}
    if canonical_json(ours) != canonical_json(theirs):
        name, found, expected = first_difference(ours, theirs)
        report.tell(PLAN, f"{name} = {found!r:.200}", f"{expected!r:.200}, as in {MANIFEST}", delete=NEW_PLAN)
        return None
    if len(plan.shards) != len(manifest.shards):
        report.tell(PLAN, f"{len(plan.shards)} shards", f"{len(manifest.shards)}, as in {MANIFEST}")
    if manifest.plan.name != PLAN:
        report.tell(MANIFEST, f"a plan named {manifest.plan.name}", PLAN)
    return plan


def _check_opening(root: Root, manifest: Manifest, report: Report) -> None:
    """What a reader checks first; after all else it finds only what a forger made up."""
    try:
        if manifest.kind == "teacher":
            store: Store = TeacherStore(root)
            assert isinstance(store, TeacherStore)
            _ = store.grid, store.coverage, store.bev
            if "adaptor" in store.further.asked:
                store.adaptor()
        else:
            store = FrameStore(root)
    except BevcaskError as error:
        report.tell(MANIFEST, str(error), "a store that opens", delete=(MANIFEST,))


class _Checker:
    """The parts of a check that go by the shards. Where the manifest is damaged, the plan and the records stand in."""

    def __init__(
        self, root: Root, manifest: Manifest | None, plan: StorePlan | None, sizes: dict[str, int], report: Report
    ) -> None:
        known = manifest or plan
        assert known is not None
        self.root, self.manifest, self.plan, self.sizes, self.report = root, manifest, plan, sizes, report
        self.fields, self.layout, self.letters = known.fields, known.format, known.letters
        self.names = {spec.name: spec for spec in known.fields}
        self.classes = known.identity.get("classes", ())
        self.scenes = [scene.token for scene in known.scenes]
        count = len(manifest.shards) if manifest is not None else len(plan.shards if plan else ())
        planned = plan.shard_plans() if plan is not None else []
        self.shards = planned[:count] + [
            ShardPlan(number, self.layout, self.fields, (), "") for number in range(len(planned), count)
        ]
        self.files = [list(shard.files) for shard in manifest.shards] if manifest else [[] for _ in self.shards]
        self.index: FrameIndex | None = None
        self.growing = manifest is not None and plan is not None and is_unfinished(manifest, plan)

    def check_records(self) -> None:
        """Each record by itself, then the index that they give together."""
        whole: list[int] = []
        quarantined: list[Any] = []
        try:
            index = FrameIndex.from_records(
                self._records(whole, quarantined), list(self.names), self.letters, self.scenes, len(self.classes)
            )
        except (StoreError, *SENSELESS) as error:
            if whole:  # the one that was handed over last
                record = self.shards[whole[-1]].record
                self.report.tell(record, f"frames that no index can hold ({error})", "the shard's", delete=(record,))
            return
        if len(whole) != len(self.shards):
            return
        self.index = index
        if self.manifest is None:
            return
        files = {column_of(name): name for name in self.manifest.index}
        for name, data in index.to_files().items():
            name = files.get(column_of(name), name)
            vouched = self.manifest.index.get(name, {})
            if vouched != {"size": len(data), "sha256": sha256(data)}:
                self.report.tell(
                    f"index/{name}",
                    f"sha256 {vouched.get('sha256')} in the manifest",
                    f"{sha256(data)}, of the records",
                )
        for name in self.manifest.index.keys() - {files.get(column_of(name)) for name in index.to_files()}:
            self.report.tell(f"index/{name}", "a column that no reader knows", "none", delete=(f"index/{name}",))
        if quarantined != list(self.manifest.quarantined):
            self.report.tell(
                MANIFEST, f"{len(self.manifest.quarantined)} quarantined frames", "those of the shards' records"
            )

    def _records(self, whole: list[int], quarantined: list[Any]) -> Iterator[dict[str, Any]]:
        """Every record that is whole, one at a time; what is wrong with the others is told."""
        for shard in self.shards:
            try:
                data = read_document(self.root, shard.record)
                record = parse_json(data, shard.record, "a shard record")
                problem = record_problem(record, data, shard, self.letters, self.manifest)
            except FileNotFoundError:
                problem = "no such file"
            except BevcaskError as error:
                problem = str(error)
            except SENSELESS as error:
                problem = f"a record that makes no sense ({type(error).__name__}: {error})"
            if problem:
                self.report.tell(shard.record, problem, "the shard's record", delete=self._record_of(shard))
                continue
            if shard.settings and record["plan"] != shard.digest:
                digests = f"plan {str(record['plan'])[:16]}", f"{shard.digest[:16]}, of {PLAN}"
                self.report.tell(shard.record, *digests, delete=(shard.record, *NEW_PLAN))
                continue
            stored = [StoredFile.from_list(row) for row in record["files"]]
            if self.manifest is None:
                self.files[shard.number] = stored
            whole.append(shard.number)
            quarantined.extend(record["quarantined"])
            yield record

    def _record_of(self, shard: ShardPlan) -> tuple[str, ...]:
        return (shard.record,) if shard.record in self.sizes else ()

    def check_files(self, progress: Progress, threads: int) -> None:
        """Every vouched file: presence, size, sha256, and what is in it."""
        others: list[tuple[StoredFile, tuple[str, ...]]] = []
        if self.manifest is not None:
            index = [
                StoredFile(f"index/{name}", row["size"], row["sha256"]) for name, row in self.manifest.index.items()
            ]
            grows = [] if self.growing else [self.manifest.plan, *self.manifest.extra]  # written anew as it grows
            others = [(file, NEW_PLAN if file.name == PLAN else ()) for file in (*grows, *index)]
        total = sum(file.size for file, _ in others) + sum(file.size for files in self.files for file in files)
        done, lock = 0, threading.Lock()

        def advance(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                progress(done, total)

        def check(job: tuple[StoredFile, Sequence[str], int, int]) -> None:
            file, delete, number, position = job
            try:
                self._check_file(file, delete, number, position, advance)
            except (BevcaskError, FileNotFoundError) as error:
                self.report.tell(file.name, f"unreadable: {error}", f"{file.size} bytes", delete=delete)

        if self.manifest is not None and self.index is None:
            self._open_index()
        jobs: list[tuple[StoredFile, tuple[str, ...], int, int]] = [(file, delete, -1, 0) for file, delete in others]
        for shard, files in zip(self.shards, self.files, strict=True):
            if [file.name for file in files] != shard_files(shard) and self.manifest is not None:
                names = f"{[file.name for file in files]!r:.200}"
                self.report.tell(MANIFEST, f"shard {shard.number} in files {names}", f"{shard_files(shard)!r:.200}")
                jobs += [(file, (), -1, 0) for file in files]
                continue
            jobs += [(file, self._record_of(shard), shard.number, i) for i, file in enumerate(files)]
        with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
            for _ in pool.map(check, jobs):
                pass
        if self.manifest is not None and not self.growing:
            self._check_metadata(self.manifest)

    def _open_index(self) -> None:
        """The index on disk, where records are damaged; None where it is as well, and then only digests are checked."""
        assert self.manifest is not None
        try:
            self.index = FrameIndex.open(
                self.root,
                self.manifest.index,
                num_fields=len(self.fields),
                num_letters=len(self.letters),
                num_classes=len(self.classes),
            )
        except (BevcaskError, FileNotFoundError, *SENSELESS):
            self.index = None

    def _check_file(
        self, file: StoredFile, delete: Sequence[str], number: int, position: int, advance: Callable[[int], None]
    ) -> None:
        size = self.root.size(file.name)
        if size is None:
            there = _is_there(self.root, file.name)
            delete = (file.name, *delete) if there else delete
            self.report.tell(file.name, "no plain file" if there else "no such file", f"{file.size} bytes", delete)
            return
        stream = FileStream(self.root, file.name, min(size, file.size), advance)
        if size != file.size:  # what is beyond is not read: it may be any amount
            self.report.tell(file.name, f"{size} bytes", f"{file.size}", delete=delete)
            if size < file.size or number < 0:
                return
        if number >= 0 and self.index is not None:
            self._check_shard(stream, file.name, number, position, delete)
        found = stream.hexdigest()
        if found != file.sha256:
            self.report.tell(file.name, f"sha256 {found}", file.sha256, delete=delete)

    def _check_shard(self, stream: FileStream, name: str, number: int, position: int, delete: Sequence[str]) -> None:
        def tell(found: str, expected: str) -> None:
            self.report.tell(name, found, expected, delete=delete)

        frames = self._frames(number)
        if self.layout.name != "zarr":
            check_tar(stream, frames, self.names, tell)
            return
        if len(frames) > self.layout.rows:
            tell(f"{len(frames)} frames", f"at most {self.layout.rows} rows")
        elif position < len(self.fields):
            check_zarr_shard(stream, self.fields[position], frames, self.layout, tell)
        else:
            check_side_array(stream, position - len(self.fields), frames, self.layout, tell)

    def _frames(self, number: int) -> list[dict[str, Any]]:
        """The index's rows of a shard, as a record has them."""
        assert self.index is not None
        index, out = self.index, []
        for row in np.flatnonzero(index.shard == number):
            located = zip(
                index.offset[row].tolist(), index.length[row].tolist(), index.crc32c[row].tolist(), strict=True
            )
            out.append(
                {
                    "token": index.token[row].tobytes().hex(),
                    "timestamp_us": int(index.timestamp_us[row]),
                    "sizes": dict(zip(self.letters, index.sizes[row].tolist(), strict=True)),
                    "members": {name: place for name, place in zip(self.names, located, strict=True) if place[1]},
                }
            )
        return out

    def _check_metadata(self, manifest: Manifest) -> None:
        """Zarr's own files: that they say what is stored. Their digests are checked with all others'."""
        documents = {}
        for file in manifest.extra:
            try:
                if self.root.size(file.name) == file.size:
                    documents[file.name] = read_document(self.root, file.name)
            except (BevcaskError, FileNotFoundError):
                continue  # told already
            if self.layout.name != "zarr":
                self.report.tell(file.name, "vouched for by the manifest", "no such file in this format")
        if self.layout.name == "zarr":
            for name, found, expected in check_zarr_json(documents, self.fields, self.layout, len(self.shards)):
                self.report.tell(name, found, expected)

    def check_strangers(self) -> None:
        """Files that nobody vouches for, and entries of a folder that are no plain files."""
        owned = {MANIFEST, PLAN, *(shard.record for shard in self.shards)}
        owned |= {name for shard in self.shards for name in shard_files(shard)}
        if self.manifest is not None:
            owned |= {file.name for file in self.manifest.files}
            if is_half_renamed(self.manifest):
                columns = "index columns under passing names, of a growth that was killed at its end"
                self.report.tell(MANIFEST, columns, "columns under their own names")
                owned |= {f"index/{name}" for name in COLUMN_FILES}
        if self.growing:
            assert self.plan is not None
            owned |= files_of_growth(self.plan, len(self.shards))
        odd = dict(_odd_entries(self.root))
        for name, what in odd.items():
            self.report.tell(name, what, "a plain file or folder", delete=NEW_PLAN if name == PLAN else (name,))
        for name in self.sizes.keys() - odd.keys() - owned:
            if self.manifest is None and not name.endswith(PARTIAL):
                continue  # without a manifest nobody can say
            what = (
                "a partial file, of a killed run or of one that is still writing"
                if name.endswith(PARTIAL)
                else ("a file that no manifest vouches for")
            )
            self.report.tell(name, what, "no such file", delete=(name,), remedy="")


def _is_there(root: Root, name: str) -> bool:
    path = root.local_path(name)
    return path is not None and (path.exists() or path.is_symlink())


def _odd_entries(root: Root) -> Iterator[tuple[str, str]]:
    """(name, what it is) of links and special files below a local root, and of folders where a file belongs."""
    if not isinstance(root, LocalRoot):
        return
    stack = [root.folder]
    while stack:
        for path in sorted(stack.pop().iterdir()):
            name = path.relative_to(root.folder).as_posix()
            if path.is_symlink():
                yield name, f"a symbolic link to {path.readlink()}"
            elif path.is_dir():
                stack.append(path)
                if name.endswith(".json"):
                    yield name, "a folder"
            elif not path.is_file():
                yield name, "a special file"
