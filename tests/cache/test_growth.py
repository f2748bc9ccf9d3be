"""Growing a store: what is committed stays, what does not grow is refused, and readers go on while it grows."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from cache.commit import begin, finish
from cache.errors import FingerprintError
from cache.files import PARTIAL
from cache.plan import Format, Scene, StorePlan
from cache.roots import LocalRoot
from cache.store import Store
from cache.verify import verify
from tests.cache.stores import (
    FORMATS,
    SCENES,
    SHARDS,
    TOKENS,
    WEBDATASET,
    ZARR,
    assert_equal,
    plan_of,
    record_path,
    shard_files,
    teacher_plan,
    todo,
    tree,
    values_of,
    write_shard,
    write_store,
)

LAYOUTS = pytest.mark.parametrize("layout", FORMATS, ids=[layout.name for layout in FORMATS])


def small(layout: Format, **changes: Any) -> StorePlan:
    """The first scene's shards only."""
    return teacher_plan(format=layout, scenes=SCENES[:1], shards=SHARDS[:2], **changes)


def assert_reads(store: Store, tokens: list[str], plan: StorePlan) -> None:
    assert store.tokens == tokens
    for row, token in enumerate(tokens):
        for name, value in values_of(plan, token).items():
            assert_equal(store.read(row, name), value)


@LAYOUTS
def test_added_scenes_and_shards_keep_the_committed_ones(tmp_path: Path, layout: Format) -> None:
    first, grown = small(layout), teacher_plan(format=layout)
    write_store(tmp_path, first)
    kept = {path: path.read_bytes() for number in (0, 1) for path in shard_files(tmp_path, number)}
    times = {path: path.stat().st_mtime_ns for path in (*kept, record_path(tmp_path, 0), record_path(tmp_path, 1))}
    assert todo(tmp_path, grown, grow=True) == [2]
    write_store(tmp_path, grown, grow=True)
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert_reads(Store(tmp_path), TOKENS, grown)


def test_a_grown_store_is_the_store_written_at_once(tmp_path: Path, plan: StorePlan, whole: Path) -> None:
    first = dataclasses.replace(plan, scenes=plan.scenes[:1], shards=plan.shards[:2])
    write_store(tmp_path, first)
    write_store(tmp_path, plan, grow=True)
    assert tree(tmp_path) == tree(whole)


@LAYOUTS
def test_the_old_manifest_is_read_while_the_growth_is_under_way(tmp_path: Path, layout: Format) -> None:
    first, grown = small(layout), teacher_plan(format=layout)
    digest = write_store(tmp_path, first).digest
    opened = Store(tmp_path)
    for step in (lambda: begin(tmp_path, grown, grow=True), lambda: write_shard(tmp_path, grown, 2)):
        step()
        fresh = Store(tmp_path)
        assert fresh.manifest.digest == digest
        assert_reads(fresh, TOKENS[:4], first)
        assert_reads(opened, TOKENS[:4], first)
    finish(tmp_path, grown)
    assert_reads(opened, TOKENS[:4], first)  # a training that began before
    assert_reads(Store(tmp_path), TOKENS, grown)


@LAYOUTS
def test_growth_that_was_killed_goes_on(tmp_path: Path, layout: Format) -> None:
    grown = teacher_plan(format=layout)
    write_store(tmp_path / "once", grown)
    write_store(tmp_path / "killed", small(layout))
    begin(tmp_path / "killed", grown, grow=True)
    write_shard(tmp_path / "killed", grown, 2, commit=False)
    assert todo(tmp_path / "killed", grown) == [2]  # its plan is the store's by now
    write_store(tmp_path / "killed", grown)
    assert tree(tmp_path / "killed") == tree(tmp_path / "once")


@LAYOUTS
def test_quarantined_frames_of_the_old_part_are_tried_again(tmp_path: Path, layout: Format) -> None:
    write_store(tmp_path, small(layout), quarantine={TOKENS[1]})
    grown = teacher_plan(format=layout)
    assert todo(tmp_path, grown, grow=True) == [0, 2]
    write_store(tmp_path, grown, grow=True)
    assert_reads(Store(tmp_path), TOKENS, grown)


@LAYOUTS
def test_without_grow_an_extended_plan_is_refused_and_changes_nothing(tmp_path: Path, layout: Format) -> None:
    write_store(tmp_path, small(layout))
    before = tree(tmp_path)
    with pytest.raises(FingerprintError, match=r"number of scenes = 1, this run asks for 2"):
        begin(tmp_path, teacher_plan(format=layout))
    assert tree(tmp_path) == before


OTHER_SCENE = Scene("c" * 32, "scene-0003", "train")
HEADER = teacher_plan().header


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"header": {**HEADER, "sweeps": 3}}, r"settings\.header\.sweeps = \(absent\), .* 3"),
        ({"fields": teacher_plan().fields[:-1]}, r"number of settings\.fields = 6, .* 5"),
        ({"format": ZARR}, r"format\.capacity\.K = \(absent\), .* 90"),
        ({"identity": {**teacher_plan().identity, "classes": ["car"]}}, r"number of settings\.identity\.classes = 10"),
        ({"scenes": SCENES[::-1]}, r"number of scenes = 1, .* 2"),
        ({"scenes": (OTHER_SCENE, SCENES[0])}, r"number of scenes = 1, .* 2"),
        ({"shards": (SHARDS[1], SHARDS[0], SHARDS[2])}, r"number of (scenes|shards) = "),
        ({"shards": ((*SHARDS[0], *SHARDS[1]), SHARDS[2])}, r"= "),
        ({"shards": (SHARDS[0],), "scenes": SCENES[:1]}, r"number of shards = 2, .* 1"),
        ({"shards": (SHARDS[0], (*SHARDS[1], TOKENS[4])), "scenes": SCENES[:1]}, r"number of shards\[1\] = 2, .* 3"),
    ],
)
def test_what_is_more_than_growth_is_refused_and_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    write_store(tmp_path, small(WEBDATASET))
    before = tree(tmp_path)
    with pytest.raises(FingerprintError, match=f"was begun with .*{named}"):
        begin(tmp_path, teacher_plan(**changes), grow=True)
    assert tree(tmp_path) == before


def test_scenes_alone_may_be_added(tmp_path: Path) -> None:
    """As where a scene's frames could not be planned yet."""
    write_store(tmp_path, small(WEBDATASET))
    plan = small(WEBDATASET)
    manifest = write_store(tmp_path, dataclasses.replace(plan, scenes=(*SCENES, OTHER_SCENE)), grow=True)
    assert len(manifest.scenes) == 3 and len(Store(tmp_path)) == 4


def test_a_new_place_may_be_begun_with_grow(tmp_path: Path) -> None:
    for kind, layout in (("frames", WEBDATASET), ("teacher", ZARR)):
        write_store(tmp_path / kind, plan_of(kind, layout), grow=True)
        assert len(Store(tmp_path / kind)) == 6


class _StoppedError(Exception):
    """As SIGKILL: nothing after it happens."""


@LAYOUTS
def test_a_growing_store_can_be_read_whatever_moment_its_run_is_stopped_at(
    tmp_path: Path, layout: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, grown = small(layout), teacher_plan(format=layout)
    fresh = tree_of(tmp_path / "fresh", grown)
    real_write, real_remove = LocalRoot.write, LocalRoot.remove
    step, reached, read = 0, True, set()
    while reached:
        place = tmp_path / str(step)
        write_store(place, first)
        for number in todo(place, grown, grow=True):
            write_shard(place, grown, number)
        calls, reached = 0, False

        def stopping(real: Any, at: int = step) -> Any:
            def call(root: LocalRoot, name: str) -> Any:
                nonlocal calls, reached
                calls += 1
                if calls > at:
                    reached = True
                    raise _StoppedError
                return real(root, name)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(LocalRoot, "write", stopping(real_write))
            patch.setattr(LocalRoot, "remove", stopping(real_remove))
            with contextlib.suppress(_StoppedError):
                finish(place, grown)
        store = Store(place)
        assert_reads(store, TOKENS if len(store) == len(TOKENS) else TOKENS[:4], grown)
        read.add(len(store))
        finish(place, grown)
        assert tree(place) == fresh and not verify(place)
        step += 1
    assert read == {4, 6} and step > 2 * 12 + 2


def tree_of(place: Path, plan: StorePlan) -> dict[str, bytes]:
    write_store(place, plan)
    return tree(place)


def test_a_store_that_grows_is_opened_by_others_all_the_time(tmp_path: Path) -> None:
    first, grown = small(WEBDATASET), teacher_plan()
    stop, failures, sizes = threading.Event(), [], set()

    def reopen() -> None:
        while not stop.is_set():
            try:
                store = Store(tmp_path)
                sizes.add(len(store))
                store.read(len(store) - 1, "boxes")
            except Exception as error:
                failures.append(error)

    write_store(tmp_path, first)
    write_store(tmp_path, grown, grow=True)
    readers = [threading.Thread(target=reopen) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(25):
            finish(tmp_path, first)
            finish(tmp_path, grown)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not failures and sizes == {4, 6}


def test_what_a_worker_that_died_left_is_gone_when_the_run_ends(tmp_path: Path) -> None:
    """Its task ran again on another worker, while the run went on."""
    plan = teacher_plan()
    for number in todo(tmp_path, plan):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / f"{number:05d}.tar.1a2b{PARTIAL}").write_bytes(b"half")
        write_shard(tmp_path, plan, number)
    finish(tmp_path, plan)
    assert not [name for name in tree(tmp_path) if name.endswith(PARTIAL)]
    assert not verify(tmp_path)


class Killed(Exception):
    """Stands for a kill."""


def kill_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets so many files be written, and none after them."""
    left, write, put_new = [writes], LocalRoot.write, LocalRoot.put_new

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def counted_write(root: LocalRoot, name: str) -> Any:
        count()
        return write(root, name)

    def counted_put(root: LocalRoot, name: str, data: bytes) -> None:
        count()
        put_new(root, name, data)

    monkeypatch.setattr(LocalRoot, "write", counted_write)
    monkeypatch.setattr(LocalRoot, "put_new", counted_put)


@LAYOUTS
def test_verify_says_of_a_growth_killed_anywhere_that_it_is_unfinished_and_asks_for_no_file_to_go(
    tmp_path: Path, layout: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown, seen = teacher_plan(format=layout), set()
    for writes in range(1, 200):
        place = tmp_path / str(writes)
        write_store(place, small(layout))
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            kill_after(writes, patch)
            write_store(place, grown, grow=True)
            break
        findings = verify(place)
        assert [finding.file for finding in findings] in (["plan.json"], ["manifest.json"]), findings
        assert findings[0].delete == () and "grow" in findings[0].found
        seen.add(findings[0].file)
        assert_reads(
            Store(place),
            TOKENS if findings[0].file == "manifest.json" else [t for shard in SHARDS[:2] for t in shard],
            grown,
        )
        write_store(place, grown)
        assert verify(place) == []
    assert verify(place) == [] and seen == {"plan.json", "manifest.json"}


@LAYOUTS
def test_a_store_that_lost_its_plan_is_not_written_over_by_other_settings(tmp_path: Path, layout: Format) -> None:
    write_store(tmp_path, small(layout))
    (tmp_path / "plan.json").unlink()
    (tmp_path / "manifest.json").unlink()
    before = tree(tmp_path)
    other = small(layout, header={**small(layout).header, "batch": 7})
    with pytest.raises(FingerprintError, match=r"records/00000\.json is of another plan .* or remove that folder"):
        begin(tmp_path, other)
    assert tree(tmp_path) == before
    write_store(tmp_path, small(layout))
    assert verify(tmp_path) == []
