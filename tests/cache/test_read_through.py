"""A root read through a local folder: equal bytes, one fetch, the limit, its sharing by processes, and their deaths."""

from __future__ import annotations

import collections
import contextlib
import copy
import errno
import functools
import hashlib
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import read_through, shared_folder
from cache.errors import ConfigError, CorruptError, OutOfSpaceError, StoreError
from cache.read_through import ReadThrough, bytes_of
from cache.roots import LocalRoot, open_root
from cache.shared_folder import SharedFolder
from tests.cache.test_roots import FORK, put

SIZE = 10_000


def content(number: int, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


def promised(data: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    return {name: (len(bytes_), hashlib.sha256(bytes_).hexdigest()) for name, bytes_ in data.items()}


class Origin(LocalRoot):
    """A folder that writes down what is read of it, and does `before` each read of a range."""

    before: Callable[[], None] | None = None

    def read_range(self, name: str, start: int, length: int) -> bytes:
        with open(self.folder.with_name("log"), "a") as log:
            log.write(f"{name}\n")
        if self.before is not None:
            self.before()
        return super().read_range(name, start, length)

    def fetches(self) -> list[str]:
        log = self.folder.with_name("log")
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    root = Origin(tmp_path / "origin")
    for number in range(6):
        put(root, f"shards/{number}.tar", content(number))
    return root


def names_in(folder: Path) -> list[str]:
    """What the folder holds complete, by the object's last name."""
    return sorted(path.name.rpartition("+")[2] for path in (folder / "objects").iterdir())


def whole_file(through: ReadThrough, name: str) -> bytes:
    with through.open_file(name) as file:
        return file.read()


def until_true(claim: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not claim():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_reads_equal_the_roots_and_fetch_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = {"local": str(tmp_path / "root"), "memory": f"memory://{uuid.uuid4().hex}/root"}.get(kind)
    root = open_root(place or request.getfixturevalue("s3_root"))
    data = {"shards/0.tar": content(0, 30_000), "index/token.npy": content(1, 10), "empty": b"", "plan.json": b"{}"}
    for name, bytes_ in data.items():
        put(root, name, bytes_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_through, "CHUNK", 7_000)
        through = ReadThrough(root, tmp_path / "local", 50_000)
        through.expect(promised({name: data[name] for name in ("shards/0.tar", "index/token.npy", "empty")}))
        for _ in range(2):
            for name, bytes_ in data.items():
                assert through.read(name) == bytes_
                for start, length in [(0, 5), (6_999, 2), (29_990, 100), (40_000, 5), (3, 0)]:
                    assert through.read_range(name, start, length) == bytes_[start : start + length]
                assert whole_file(through, name) == bytes_
    assert (through.fetches, through.fetched_bytes) == (4, 30_012)
    assert through.sizes() == root.sizes() and through.size("plan.json") == 2 and through.size("none") is None
    for call in (through.read, through.open_file, lambda name: through.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            call("none")
        with pytest.raises(StoreError, match="plain relative path"):
            call("../x")
    again = copy.copy(through)  # as in a spawned worker
    assert again.read("shards/0.tar") == data["shards/0.tar"] and again.fetches == 0


def test_writing_goes_to_the_root_and_is_seen(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE, expected=promised({"shards/0.tar": content(0)}))
    assert through.read("shards/0.tar") == content(0)
    put(through, "shards/0.tar", b"new")
    through.put_new("b", b"b")
    assert through.read("shards/0.tar") == origin.read("shards/0.tar") == b"new"
    assert through.read("b") == b"b"
    with pytest.raises(FileExistsError):
        through.put_new("b", b"c")
    through.remove("b")
    with pytest.raises(FileNotFoundError):
        through.read("b")


def test_objects_without_a_promised_digest_are_looked_up_anew(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE)
    put(origin, "manifest.json", b"one")
    assert through.read("manifest.json") == b"one"
    put(origin, "manifest.json", b"two")
    assert ReadThrough(origin, tmp_path / "local", 10 * SIZE).read("manifest.json") == b"two"
    through.close()
    assert through.read("manifest.json") == b"two"


def test_a_repaired_object_is_another_object(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE, expected=promised({"shards/0.tar": content(0)}))
    assert through.read("shards/0.tar") == content(0)
    put(origin, "shards/0.tar", content(99))
    through.expect(promised({"shards/0.tar": content(99)}))
    assert through.read("shards/0.tar") == content(99)


def test_what_does_not_match_its_digest_is_refused_and_not_kept(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE, expected=promised({"shards/0.tar": content(0)}))
    good = origin.read("shards/0.tar")
    for bad in (bytes([good[0] ^ 1]) + good[1:], good[:-1], b""):
        put(origin, "shards/0.tar", bad)
        with pytest.raises(CorruptError, match=r"shards/0.tar: .*(expected 10000|sha256)"):
            through.read_range("shards/0.tar", 5_000, 10)
        assert through.files.used() == 0
    put(origin, "shards/0.tar", good)
    assert through.read("shards/0.tar") == good


def test_a_damaged_local_file_is_fetched_again(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE, expected=promised({"shards/0.tar": content(0)}))
    through.read("shards/0.tar")
    [path] = (tmp_path / "local" / "objects").iterdir()
    path.write_bytes(b"cut short")  # told by its size
    assert through.read("shards/0.tar") == content(0)
    path.write_bytes(b"\0" * SIZE)  # told by the store's checksum
    assert through.discard("shards/0.tar") and not through.discard("shards/5.tar")
    assert through.read("shards/0.tar") == content(0)
    assert through.fetches == 3


def test_an_object_over_the_limit_is_an_error_at_once(origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"10000 bytes do not fit .* 9999 bytes.*--local-cache-limit"):
        ReadThrough(origin, tmp_path / "local", SIZE - 1, expected=promised({"shards/0.tar": content(0)}))
    through = ReadThrough(origin, tmp_path / "local", SIZE - 1)
    with pytest.raises(ConfigError, match=r"10000 bytes do not fit .* 9999 bytes.*--local-cache-limit"):
        through.read_range("shards/0.tar", 0, 1)
    with pytest.raises(ConfigError, match="--local-cache-limit"):
        ReadThrough(origin, tmp_path / "local", 0)
    assert origin.fetches() == []
    assert ReadThrough(origin, tmp_path / "local", SIZE).read("shards/0.tar") == content(0)


@pytest.mark.parametrize("digest", ["", "../../x", "a" * 63, "A" * 64])
def test_a_forged_digest_reaches_no_path(origin: Origin, tmp_path: Path, digest: str) -> None:
    with pytest.raises(StoreError, match="no sha256"):
        ReadThrough(origin, tmp_path / "local", SIZE, expected={"shards/0.tar": (SIZE, digest)})


SIZES = [100, 300, 0, 250, 700, 100, 400]


@settings(max_examples=20)
@given(
    limit=st.integers(700, 1_800),
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "read", "open", "discard"]), st.integers(0, 6)), min_size=20, max_size=40
    ),
)
def test_eviction_equals_a_simple_lru(limit: int, steps: list[tuple[str, int]]) -> None:
    data = {f"o+{number}".replace("+", "/"): content(number, size) for number, size in enumerate(SIZES)}
    with tempfile.TemporaryDirectory() as folder:
        root = Origin(Path(folder, "origin"))
        for name, bytes_ in data.items():
            put(root, name, bytes_)
        through = ReadThrough(root, Path(folder, "local"), limit, expected=promised(data))
        held: collections.OrderedDict[int, int] = collections.OrderedDict()
        fetches = 0
        for action, number in steps:
            name = f"o/{number}"
            if action == "discard":
                through.discard(name)
                held.pop(number, None)
                continue
            if number not in held:
                fetches += 1
                while sum(held.values()) + SIZES[number] > limit:
                    held.popitem(last=False)
            held[number] = SIZES[number]
            held.move_to_end(number)
            assert (whole_file(through, name) if action == "open" else through.read(name)) == data[name]
            assert names_in(through.files.folder) == [str(number) for number in sorted(held)]
            assert through.files.used() == sum(held.values()) <= limit
            assert through.fetches == fetches


def test_a_read_of_an_evicted_object_goes_on(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = ReadThrough(origin, tmp_path / "local", SIZE)
    through.read("shards/0.tar")
    pread = os.pread

    def late(descriptor: int, length: int, start: int) -> bytes:
        monkeypatch.setattr(os, "pread", pread)
        assert ReadThrough(origin, tmp_path / "local", SIZE).read("shards/1.tar") == content(1)
        assert names_in(tmp_path / "local") == ["1.tar"]
        return pread(descriptor, length, start)

    monkeypatch.setattr(os, "pread", late)
    assert through.read_range("shards/0.tar", 100, 50) == content(0)[100:150]
    assert not [link for link in open_files() if "(deleted)" in link and str(tmp_path) in link]


def open_files() -> list[str]:
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return links


def test_threads_fetch_an_object_once(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE)
    origin.before = lambda: time.sleep(0.05)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(through.read, ["shards/0.tar"] * 16)) == {content(0)}
    assert origin.fetches() == ["shards/0.tar"]


def test_an_object_rewritten_while_it_is_fetched(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_through, "CHUNK", SIZE // 2)
    monkeypatch.setattr(read_through, "PARALLEL", 1)
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE)
    rewritten = iter([None, content(50)])

    def rewrite() -> None:
        new = next(rewritten, None)
        if new is not None:
            put(origin, "shards/0.tar", new)

    origin.before = rewrite
    assert through.read("shards/0.tar") == content(50)  # not half of each
    origin.before = lambda: put(origin, "shards/1.tar", content(random.randrange(100)))
    with pytest.raises(StoreError, match="rewritten while it was fetched"):
        through.read("shards/1.tar")


# processes


def run(*works: Callable[[], Any]) -> list[multiprocessing.process.BaseProcess]:
    processes: list[multiprocessing.process.BaseProcess] = [FORK.Process(target=work) for work in works]
    for process in processes:
        process.start()
    return processes


def ended_well(processes: list[multiprocessing.process.BaseProcess]) -> bool:
    until = time.monotonic() + 120
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes == [0] * len(processes)


def test_processes_fetch_an_object_once(origin: Origin, tmp_path: Path) -> None:
    origin.before = lambda: time.sleep(0.1)

    def work() -> None:
        assert ReadThrough(origin, tmp_path / "local", 10 * SIZE).read("shards/0.tar") == content(0)

    assert ended_well(run(*[work] * 5))
    assert origin.fetches() == ["shards/0.tar"]


def test_processes_under_a_small_limit_read_right_bytes_and_one_is_killed(origin: Origin, tmp_path: Path) -> None:
    limit = 3 * SIZE + 100
    seed = random.randrange(1 << 30)
    print("seed", seed)
    origin.before = lambda: time.sleep(0.001)
    expected = promised({f"shards/{number}.tar": content(number) for number in range(6)})
    right = [content(number) for number in range(6)]

    def work(worker: int, reads: int) -> None:
        through = ReadThrough(origin, tmp_path / "local", limit, expected=expected, wait_s=30)
        rng = random.Random(seed + worker)
        for _ in range(reads):
            number, start, length = rng.randrange(6), rng.randrange(SIZE), rng.randrange(SIZE)
            found = through.read_range(f"shards/{number}.tar", start, length)
            assert found == right[number][start : start + length]

    watched = ReadThrough(origin, tmp_path / "local", limit).files
    processes = run(*[lambda worker=worker: work(worker, 40) for worker in range(4)])
    doomed = run(lambda: work(9, 1_000_000))[0]
    most = samples = 0
    kill_at = time.monotonic() + random.Random(seed).uniform(0.1, 0.4)
    while any(process.is_alive() for process in [*processes, doomed]):
        with watched._locked():
            most, samples = max(most, watched.used()), samples + 1
        if time.monotonic() > kill_at and doomed.is_alive():
            doomed.kill()
        assert time.monotonic() < kill_at + 120
        time.sleep(0.002)
    assert ended_well(processes)
    doomed.join()
    assert doomed.exitcode == -signal.SIGKILL
    assert SIZE < most <= limit, f"{most} bytes in {samples} samples"
    work(10, 20)
    assert list((tmp_path / "local" / "fetching").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_fetched_by_the_next(origin: Origin, tmp_path: Path) -> None:
    def hang() -> None:
        time.sleep(60)

    for name in ("shards/0.tar", "shards/1.tar"):  # the same object, and another that needs the room
        origin.before = hang
        [process] = run(lambda: ReadThrough(origin, tmp_path / "local", SIZE).read("shards/0.tar"))
        until_true(lambda: len(origin.fetches()) % 2 == 1)
        origin.before = None
        through = ReadThrough(origin, tmp_path / "local", SIZE, wait_s=0.2)
        assert through.files.used() == SIZE  # reserved in full
        with pytest.raises(StoreError, match=rf"waited .* for .*process {process.pid} .*|by process {process.pid}\)"):
            through.read(name)
        process.kill()
        process.join()
        assert through.read(name) == origin.read(name)
        assert through.files.used() == SIZE
        through.discard(name)


def test_waiting_for_a_hung_holder_of_the_lock_ends(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE, wait_s=0.2)
    through.read("shards/0.tar")

    def hold() -> None:
        with through.files._locked():
            (tmp_path / "held").touch()
            time.sleep(60)

    [process] = run(hold)
    until_true((tmp_path / "held").exists)
    assert through.read("shards/0.tar") == content(0)  # what is there needs no lock
    with pytest.raises(StoreError, match=rf"lock: waited 0 s for process {process.pid}"):
        through.read("shards/1.tar")
    process.kill()
    process.join()
    assert through.read("shards/1.tar") == content(1)


def test_a_child_forked_during_a_fetch_does_not_keep_its_parents_lock(origin: Origin, tmp_path: Path) -> None:
    """As a DataLoader's workers that are started while a thread fetches, and outlive their killed parent."""
    receive, send = FORK.Pipe(duplex=False)

    def parent() -> None:
        origin.before = lambda: time.sleep(60)
        reading = threading.Thread(target=ReadThrough(origin, tmp_path / "local", SIZE).read, args=("shards/0.tar",))
        reading.start()
        until_true(lambda: len(origin.fetches()) == 1)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        send.send(child)
        os.kill(os.getpid(), signal.SIGKILL)

    [process] = run(parent)
    assert receive.poll(120)
    child = receive.recv()
    process.join()
    try:
        assert ReadThrough(origin, tmp_path / "local", SIZE, wait_s=10).read("shards/0.tar") == content(0)
    finally:
        os.kill(child, signal.SIGKILL)


# the folder


def filler_of(key: str) -> Callable[[int], None]:
    """What fills a file of SIZE bytes in two writes, and can be told from every other key's."""

    def fill(descriptor: int) -> None:
        data = content(int(key))
        os.pwrite(descriptor, data[:100], 0)
        os.pwrite(descriptor, data[100:], 100)

    return fill


def made(folder: SharedFolder, key: str) -> mmap.mmap:
    """The file, mapped: a page of it that changes later, or is cut off, is seen."""
    descriptor = folder.make(key, SIZE, filler_of(key))
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("fails", [False, True], ids=["completes", "fails"])
def test_who_opened_a_file_that_then_became_complete_or_failed_neither_cuts_nor_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Between opening the file that another makes and trying its lock a process may be stopped for any time."""
    folder, opened, ended = SharedFolder(tmp_path, 10 * SIZE, 30), threading.Event(), threading.Event()
    late, try_lock = threading.get_ident(), shared_folder._try_lock

    def stopped(descriptor: int) -> bool:
        in_fetching = "fetching" in os.readlink(f"/proc/self/fd/{descriptor}")
        if threading.get_ident() == late and in_fetching and not opened.is_set():
            opened.set()
            ended.wait(0.5)
        return try_lock(descriptor)

    def fill(descriptor: int) -> None:
        filling.set()
        assert opened.wait(60)
        filler_of("7")(descriptor)
        if fails:
            raise KeyError("network gone")

    def first() -> mmap.mmap:
        try:
            descriptor = folder.make("7", SIZE, fill)
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            ended.set()  # not before the other goes on, where that holds the folder's lock

    filling = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        one = pool.submit(first)
        assert filling.wait(60)
        monkeypatch.setattr(shared_folder, "_try_lock", stopped)
        fills: list[int] = []
        descriptor = folder.make("7", SIZE, lambda file: fills.append(file) or filler_of("7")(file))
        if fails:
            with pytest.raises(KeyError):
                one.result()
        else:
            assert one.result()[:] == content(7)
    assert os.pread(descriptor, SIZE, 0) == folder.path("7").read_bytes() == content(7)
    assert len(fills) == fails
    os.close(descriptor)
    assert folder.used() == SIZE


def test_a_folder_cleared_away_while_it_is_filled_completes_nobody_elses_half_file(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path / "local", 10 * SIZE, 30)

    def clear_and_meet_another(descriptor: int) -> None:
        filler_of("7")(descriptor)
        shutil.rmtree(folder.folder)
        other.submit(folder.make, "7", SIZE, half)
        assert half_way.wait(60)

    def half(descriptor: int) -> None:
        os.pwrite(descriptor, b"half", 0)
        half_way.set()
        assert first_done.wait(60)
        filler_of("7")(descriptor)

    half_way, first_done = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as other:
        descriptor = folder.make("7", SIZE, clear_and_meet_another)
        seen = folder.open("7")
        first_done.set()
    assert seen is None
    assert os.pread(descriptor, SIZE, 0) == folder.path("7").read_bytes() == content(7)


@pytest.fixture
def hesitant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening a file and trying its lock everybody is stopped for a moment now and then."""
    try_lock = shared_folder._try_lock

    def late(descriptor: int) -> bool:
        if random.random() < 0.3:
            time.sleep(0.002)
        return try_lock(descriptor)

    monkeypatch.setattr(shared_folder, "_try_lock", late)


@pytest.mark.usefixtures("hesitant")
def test_many_threads_of_many_processes_some_of_them_killed_never_see_a_file_change(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    until = time.monotonic() + 4
    folder = SharedFolder(tmp_path / "local", 7 * SIZE, 60)

    def read_on(worker: int) -> int:
        rng, held = random.Random(worker), collections.deque[tuple[str, mmap.mmap]](maxlen=4)
        while time.monotonic() < until:
            key = str(rng.randrange(10))
            held.append((key, made(folder, key)))
            if rng.random() < 0.1:
                folder.discard(key)
            assert all(mapped[:] == right[int(key)] for key, mapped in held)
        return worker

    def work(worker: int) -> None:
        sys.setswitchinterval(1e-4)
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(read_on, (seed + 2 * worker, seed + 2 * worker + 1)))

    right = [content(number) for number in range(10)]
    workers = run(*[lambda worker=worker: work(worker) for worker in range(3)])
    rng = random.Random(seed)
    while time.monotonic() < until:
        [doomed] = run(lambda: work(9))
        time.sleep(rng.uniform(0.02, 0.2))
        doomed.kill()
        doomed.join()
    assert ended_well(workers)
    for number in range(10):
        assert made(folder, str(number))[:] == right[number]
    assert folder.used() <= 7 * SIZE
    assert list((tmp_path / "local" / "fetching").iterdir()) == []


@pytest.mark.usefixtures("hesitant")
def test_threads_that_meet_at_every_new_file_all_get_it(tmp_path: Path) -> None:
    folder, together = SharedFolder(tmp_path, 1 << 30, 30), threading.Barrier(4, timeout=20)
    fills: list[str] = []

    def fill(key: str, descriptor: int) -> None:
        fills.append(key)
        filler_of(key)(descriptor)

    def meet(_: int) -> None:
        for number in range(150):
            together.wait()
            descriptor = folder.make(str(number), SIZE, functools.partial(fill, str(number)))
            assert os.pread(descriptor, SIZE, 0) == content(number)
            os.close(descriptor)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(meet, range(4)))
    assert fills == [str(number) for number in range(150)]


# a disk that fails


def test_a_failing_local_disk(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE)
    pwrite = os.pwrite

    def fail(number: int) -> Callable[..., int]:
        def failing(descriptor: int, data: bytes, start: int) -> int:
            if start > SIZE // 2:
                raise OSError(number, os.strerror(number))
            return pwrite(descriptor, data[:3_000], start)

        return failing

    for number, kind in [(errno.ENOSPC, OutOfSpaceError), (errno.EIO, StoreError)]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fail(number))
            with pytest.raises(kind, match="local"):
                through.read("shards/0.tar")
        assert through.files.used() == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda descriptor, data, start: pwrite(descriptor, data[:777], start))
        assert through.read("shards/0.tar") == content(0)  # short writes are gone on with

    def unreadable(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", unreadable)
        with pytest.raises(StoreError, match="Input/output error"):
            through.read("shards/0.tar")
    assert through.read("shards/0.tar") == content(0)


def test_a_folder_that_goes_away_or_is_no_folder(origin: Origin, tmp_path: Path) -> None:
    through = ReadThrough(origin, tmp_path / "local", 10 * SIZE)
    through.read("shards/0.tar")
    (tmp_path / "local").rename(tmp_path / "moved")
    assert through.read("shards/0.tar") == content(0)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="check the folder"):
        ReadThrough(origin, tmp_path / "file", 10 * SIZE).read("shards/0.tar")


def test_sizes_as_people_write_them() -> None:
    assert [bytes_of(text) for text in ("200GB", "1.5 TiB", "7", "10mb", " 3 KiB ")] == [
        200 * 10**9, 3 * 2**39, 7, 10**7, 3072,
    ]  # fmt: skip
    for text in ("", "GB", "1 parsec", "-1GB", "1e9"):
        with pytest.raises(ConfigError, match="200GB"):
            bytes_of(text)
