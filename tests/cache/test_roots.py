"""One suite for every kind of root: a folder, memory://, S3; then what only a folder or only a network can do wrong."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import random
import resource
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cache import remote_root, roots
from cache.errors import ConfigError, OutOfSpaceError, StoreError
from cache.remote_root import FsspecRoot
from cache.roots import LocalRoot, Root, join, open_root

BAD_NAMES = [
    "",
    "/etc/passwd",
    "../x",
    "a/../x",
    ".hidden",
    "a/.hidden",
    "a//b",
    "a/",
    "a\0b",
    "a\\b",
    "a\n",
    "x" * 300,
]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    return f"memory://{uuid.uuid4().hex}/root" if request.param == "memory" else request.getfixturevalue("s3_root")


@pytest.fixture
def root(place: str) -> Iterator[Root]:
    opened = open_root(place)
    yield opened
    opened.close()


def put(root: Root, name: str, data: bytes) -> None:
    with root.write(name) as file:
        file.write(data)


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process."""
    receive, send = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: send.send(work()))
    child.start()
    send.close()
    try:
        assert receive.poll(60), "the child said nothing"
        return receive.recv()
    finally:
        child.kill()
        child.join()


def test_what_is_written_reads_back_whole_and_by_ranges(root: Root) -> None:
    data = random.Random(1).randbytes(10_000)
    put(root, "shards/00000.tar", data)
    assert root.read("shards/00000.tar") == data
    assert root.size("shards/00000.tar") == len(data)
    rng = random.Random(2)
    starts = [0, 9_999, 10_000, 10_001, 1 << 40]
    for start in [*starts, *(rng.randrange(12_000) for _ in range(4))]:
        for length in [0, 10_000, rng.randrange(12_000)]:
            assert root.read_range("shards/00000.tar", start, length) == data[start : start + length]


def test_an_empty_object_is_an_object(root: Root) -> None:
    put(root, "empty", b"")
    assert (root.read("empty"), root.size("empty"), root.read_range("empty", 0, 5)) == (b"", 0, b"")
    assert root.sizes() == {"empty": 0}


def test_a_large_object_reads_back(root: Root) -> None:
    data = random.Random(3).randbytes(9 << 20)  # over what a remote root reads by one request
    put(root, "large", data)
    assert root.read("large") == data
    assert root.read_range("large", 8 << 20, 1 << 30) == data[8 << 20 :]


def test_sizes_names_everything_below_and_nothing_beside(root: Root, place: str) -> None:
    assert root.sizes() == {}
    put(root, "manifest.json", b"{}")
    put(root, "data.zarr/bev/c/0/0", b"123")
    put(open_root(place + "2"), "beside", b"1")
    assert root.sizes() == {"data.zarr/bev/c/0/0": 3, "manifest.json": 2}


def test_nothing_is_visible_before_the_block_ends_nor_after_an_error_in_it(root: Root) -> None:
    with root.write("a") as file:
        file.write(b"one")
        assert root.size("a") is None

    def fail(name: str, error: Exception) -> None:
        with root.write(name) as file:
            file.write(b"three")
            raise error

    with pytest.raises(KeyError):
        fail("a", KeyError())
    with pytest.raises(OSError, match="the caller's"):  # not taken for the root's own trouble
        fail("b", OSError("the caller's"))
    assert root.read("a") == b"one"
    assert root.sizes() == {"a": 3}


def test_a_rewritten_object_is_seen_at_once_and_has_another_version(root: Root) -> None:
    put(root, "a", b"first")
    before = root.version("a")
    assert root.version("a") == before
    assert root.read_range("a", 0, 9) == b"first"
    with root.write("a") as file:
        assert root.read_range("a", 0, 9) == b"first"
        file.write(b"no")
    assert root.read_range("a", 0, 9) == b"no"
    assert root.version("a") != before


def test_put_new_refuses_what_is_there(root: Root) -> None:
    root.put_new("records/0.json", b"first")
    with pytest.raises(FileExistsError):
        root.put_new("records/0.json", b"second")
    assert root.read("records/0.json") == b"first"
    assert root.sizes() == {"records/0.json": 5}


def test_of_many_threads_one_puts_the_new_object(root: Root) -> None:
    def attempt(number: int) -> int:
        try:
            root.put_new("record", str(number).encode())
        except FileExistsError:
            return 0
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(attempt, range(1, 17)) if number]
    assert [str(number).encode() for number in winners] == [root.read("record")]


def test_remove(root: Root) -> None:
    put(root, "a", b"1")
    assert root.read_range("a", 0, 1) == b"1"
    root.remove("a")
    root.remove("a")
    assert root.size("a") is None
    with pytest.raises(FileNotFoundError):
        root.read_range("a", 0, 1)


def test_odd_leftovers_are_removed_but_nothing_outside(root: Root, place: str) -> None:
    neighbour = open_root(place + "2")
    put(neighbour, "a", b"1")
    name = place.rpartition("/")[2]
    for outside in [f"../{name}2/a", f"x/../../{name}2/a", "a\0b", ".."]:
        with pytest.raises(StoreError):
            root.remove(outside)
    assert neighbour.read("a") == b"1"
    put(root, "shards/a", b"1")
    root.remove("shards/.odd name.partial")  # not there, and no name that we would give


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_by_every_method(root: Root, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: root.read(name),
        lambda: root.read_range(name, 0, 1),
        lambda: root.size(name),
        lambda: root.version(name),
        lambda: put(root, name, b"1"),
        lambda: root.put_new(name, b"1"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="not a plain relative path"):
            call()


@pytest.mark.parametrize("name", ["nothing", "folder/nothing", "folder", "folder/a/below"])
def test_missing_objects(root: Root, name: str) -> None:
    put(root, "folder/a", b"1")
    for call in (root.read, root.version, lambda name: root.read_range(name, 0, 3)):
        with pytest.raises(FileNotFoundError):
            call(name)
    assert root.size(name) is None


def test_nonsense_ranges_are_errors(root: Root) -> None:
    put(root, "a", b"123")
    for start, length in [(-2, 2), (0, -1)]:
        with pytest.raises(StoreError):
            root.read_range("a", start, length)


def test_a_root_without_copies_has_none_to_discard(root: Root) -> None:
    put(root, "a", b"1")
    root.expect({"a": (1, "0" * 64)})
    assert root.discard("a") is False
    assert root.read("a") == b"1"


def test_an_open_file_stays_what_it_was(root: Root) -> None:
    put(root, "a", b"first")
    put(root, "folder/b", b"")
    file = root.open_file("a")
    if file is None:
        assert not isinstance(root, LocalRoot)
        return
    with file:
        put(root, "a", b"another")
        root.remove("a")
        assert file.read() == b"first"
    for name in ("a", "folder"):
        with pytest.raises(FileNotFoundError):
            root.open_file(name)
    with pytest.raises(StoreError, match="not a plain relative path"):
        root.open_file("../a")


def test_threads_share_a_root(root: Root) -> None:
    data = {f"{i}.tar": random.Random(i).randbytes(2_000) for i in range(5)}
    for name, content in data.items():
        put(root, name, content)

    def read(seed: int) -> bool:
        rng = random.Random(seed)
        name, start, length = f"{rng.randrange(5)}.tar", rng.randrange(2_000), rng.randrange(2_000)
        return root.read_range(name, start, length) == data[name][start : start + length]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(24)))


def test_a_forked_worker_and_a_copy_read_on(root: Root) -> None:
    put(root, "a", b"123456")
    assert root.read_range("a", 1, 2) == b"23"
    assert in_child(lambda: root.read_range("a", 2, 3)) == b"345"
    assert copy.copy(root).read_range("a", 1, 2) == open_root(root.url).read("a")[1:3]  # as a spawned worker's


# a folder


def test_one_of_two_racing_processes_puts_the_new_object(tmp_path: Path) -> None:
    start = FORK.Event()
    receive, send = FORK.Pipe(duplex=False)

    def attempt(name: bytes) -> None:
        start.wait(30)
        for i in range(50):
            try:
                LocalRoot(tmp_path).put_new(f"{i:03d}", name)
                send.send((i, name))
            except FileExistsError:
                pass

    racers = [FORK.Process(target=attempt, args=(name,)) for name in (b"left", b"right")]
    for racer in racers:
        racer.start()
    start.set()
    won = [receive.recv() for _ in range(50)]
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
    assert not receive.poll()
    assert sorted(number for number, _ in won) == list(range(50))
    assert all(LocalRoot(tmp_path).read(f"{number:03d}") == name for number, name in won)
    assert len(LocalRoot(tmp_path).sizes()) == 50


def test_more_files_than_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "MAX_OPEN", 5)
    root = LocalRoot(tmp_path)
    for i in range(12):
        put(root, str(i), bytes([i]) * 3)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [root.read_range(str(i), 1, 1) for i in range(12)] == [bytes([i]) for i in range(12)]
    assert len(os.listdir("/proc/self/fd")) - before == 5
    del root
    assert len(os.listdir("/proc/self/fd")) == before


def test_roots_give_back_what_they_keep_open_where_the_process_may_open_no_more(tmp_path: Path) -> None:
    one, other = LocalRoot(tmp_path), LocalRoot(tmp_path)
    for i in range(60):
        put(one, str(i), bytes([i]))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limits[1]))
    try:
        for root in (one, other):
            assert [root.read_range(str(i), 0, 1) for i in range(60)] == [bytes([i]) for i in range(60)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_closing_and_rewriting_while_others_read_never_gives_them_another_file(tmp_path: Path) -> None:
    root = LocalRoot(tmp_path)
    for i in range(8):
        put(root, str(i), bytes([i]) * 4096)
    wrong: list[str] = []
    done = threading.Event()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            i = rng.randrange(8)
            if root.read_range(str(i), rng.randrange(2048), 64) != bytes([i]) * 64:
                wrong.append(str(i))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for reader in readers:
        reader.start()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        root.close()
        put(root, "3", bytes([3]) * 4096)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_read_under_way_keeps_its_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race of the test above, forced: closed and another file opened between finding the descriptor and reading."""
    root = LocalRoot(tmp_path)
    put(root, "a", b"a" * 10)
    put(root, "b", b"b" * 10)
    root.read_range("a", 0, 1)
    pread = os.pread

    def late(descriptor: int, length: int, start: int) -> bytes:
        monkeypatch.setattr(os, "pread", pread)
        root.close()
        assert root.read_range("b", 0, 10) == b"b" * 10
        return pread(descriptor, length, start)

    monkeypatch.setattr(os, "pread", late)
    assert root.read_range("a", 0, 10) == b"a" * 10


def test_a_file_replaced_while_it_is_opened_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = LocalRoot(tmp_path)
    put(root, "a", b"old")
    opening = os.open

    def late(path: Any, *arguments: Any, **options: Any) -> int:
        monkeypatch.setattr(os, "open", opening)
        descriptor = opening(path, *arguments, **options)
        put(root, "a", b"new")
        return descriptor

    monkeypatch.setattr(os, "open", late)
    assert root.read_range("a", 0, 3) == b"old"
    assert root.read_range("a", 0, 3) == b"new"


def test_a_pipe_in_a_files_place_is_no_object(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        LocalRoot(tmp_path).open_file("a")


def test_a_failing_disk_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = LocalRoot(tmp_path)
    put(root, "a", b"123")

    def fail(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(StoreError, match=r"/a: .*Input/output error"):
            root.read_range("a", 0, 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="cannot be written"):
            put(root, "a", b"45")
        with pytest.raises(StoreError, match="cannot be written"):
            root.put_new("b", b"45")
    with pytest.raises(StoreError, match="cannot be written"):
        put(root, "a/below", b"1")  # `a` is no folder
    assert root.read("a") == b"123"
    assert root.sizes() == {"a": 3}


def test_a_damaged_length_allocates_no_more_than_there_is(tmp_path: Path) -> None:
    root = LocalRoot(tmp_path)
    put(root, "a", b"123")
    assert root.read_range("a", 1, 1 << 60) == b"23"
    with pytest.raises(StoreError):
        root.read_range("a", 1 << 70, 5)


# a network


@pytest.fixture
def no_cached_clients() -> Iterator[None]:
    """A client keeps the endpoint that it was made with."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("s3_endpoint", "no_cached_clients")
@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_a_dead_endpoint_is_told_soon(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never says anything
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        if not answers:
            listener.close()
        monkeypatch.setattr(remote_root, "SLOWEST_BYTES_PER_S", 1e9)
        root = FsspecRoot("s3://bucket/store", call_seconds=0.3)
        calls: list[Callable[[], Any]] = [
            lambda: root.read("a"),
            lambda: root.size("a"),
            root.sizes,
            lambda: put(root, "a", b"1"),
            lambda: root.put_new("a", b"1"),
            lambda: root.remove("a"),
        ]
        began = time.monotonic()
        for call in calls:
            with pytest.raises(StoreError, match="check the address") as caught:
                call()
            assert "s3://bucket/store" in str(caught.value) and "\n" not in str(caught.value)
        assert time.monotonic() - began < 60  # left to themselves the libraries try for minutes


def test_a_bucket_that_is_not_there_is_named(s3_endpoint: str) -> None:
    root = open_root("s3://bevcask-nowhere/store")
    for call in (lambda: put(root, "a", b"1"), lambda: root.put_new("a", b"1")):
        with pytest.raises(StoreError, match=r"bevcask-nowhere.*make the bucket"):
            call()
    assert root.sizes() == {}


def test_an_object_that_arrives_short_is_an_error(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = FsspecRoot(s3_root)
    monkeypatch.setattr(FsspecRoot, "size", lambda self, name: 2)
    with pytest.raises(StoreError, match="2 of 3 bytes arrived"):
        put(root, "a", b"123")


def test_a_full_temporary_disk_is_told(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = FsspecRoot(s3_root)
    with pytest.raises(OutOfSpaceError), root.write("a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert root.sizes() == {}


def test_urls(tmp_path: Path) -> None:
    assert isinstance(open_root(f"file://{tmp_path}"), LocalRoot)
    assert isinstance(open_root(f"local://{tmp_path}"), LocalRoot)
    assert open_root(tmp_path).url == open_root(f"file://{tmp_path}").url == str(tmp_path)
    assert join("s3://bucket/", "a", "b") == "s3://bucket/a/b"
    assert join(tmp_path, "a", "b") == tmp_path / "a" / "b"
    with pytest.raises(ConfigError, match="nosuch"):
        open_root("nosuch://x")
