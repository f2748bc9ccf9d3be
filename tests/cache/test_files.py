"""Atomic files: all or nothing under errors and full disks, and JSON that is the same for the same values."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import files
from cache.errors import OutOfSpaceError, StoreError
from cache.files import (
    atomic_write,
    canonical_json,
    digest_of,
    file_sha256,
    has_valid_seal,
    read_json,
    seal,
    sha256,
    write_bytes,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_the_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.bin"
    with atomic_write(path) as file:
        file.write(b"12")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"12" and names(path.parent) == ["a.bin"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), OSError(errno.EIO, "io")])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_error_inside_leaves_what_was_there_and_passes_on(
    tmp_path: Path, error: BaseException, before: bytes | None
) -> None:
    path = tmp_path / "a.bin"
    if before is not None:
        path.write_bytes(before)

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert names(tmp_path) == ([] if before is None else ["a.bin"])
    assert before is None or path.read_bytes() == before


def test_data_reach_the_disk_before_the_name_does_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append("folder" if target == str(tmp_path) else f"file of {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def spy_replace(source: Any, target: Any) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_bytes(tmp_path / "a.bin", b"12345")
    assert calls == ["file of 5", "rename", "folder"]


def test_two_writers_of_one_file_do_not_write_into_each_others(tmp_path: Path) -> None:
    """As when a scheduler believes a worker dead and starts its task again."""
    path = tmp_path / "a.bin"
    with atomic_write(path) as first:
        first.write(b"1" * 10)
        first.flush()
        with atomic_write(path) as second:
            second.write(b"22")
        assert path.read_bytes() == b"22"
        first.write(b"1" * 10)
    assert path.read_bytes() == b"1" * 20 and names(tmp_path) == ["a.bin"]


def fail_write(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            self._file.write(data[:1])
            raise OSError(code, os.strerror(code))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    @contextlib.contextmanager
    def full_open(*args: Any, **kwargs: Any) -> Iterator[Full]:
        with open(*args, **kwargs) as file:
            yield Full(file)

    monkeypatch.setattr(files, "open", full_open, raising=False)


def fail_call(name: str) -> Callable[[pytest.MonkeyPatch, int], None]:
    def install(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, name, refuse)

    return install


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "install",
    [
        pytest.param(fail_write, id="write"),
        pytest.param(fail_call("fsync"), id="fsync"),
        pytest.param(fail_call("replace"), id="rename"),
    ],
)
@pytest.mark.parametrize("before", [None, b"old"])
def test_no_space_is_one_clear_error_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Any, code: int, before: bytes | None
) -> None:
    path = tmp_path / "a.bin"
    if before is not None:
        path.write_bytes(before)
    install(monkeypatch, code)
    with pytest.raises(OutOfSpaceError, match=rf"a\.bin: {os.strerror(code)} while writing; free space"):
        write_bytes(path, b"new and longer")
    monkeypatch.undo()
    assert names(tmp_path) == ([] if before is None else ["a.bin"])
    assert before is None or path.read_bytes() == before


def test_no_space_for_the_folder_itself_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_call("mkdir")(monkeypatch, errno.ENOSPC)
    with pytest.raises(OutOfSpaceError):
        write_bytes(tmp_path / "new" / "a.bin", b"x")
    assert names(tmp_path) == []


def test_other_errors_of_the_disk_are_not_called_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_call("replace")(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError):
        write_bytes(tmp_path / "a.bin", b"x")
    assert names(tmp_path) == []


def test_a_file_size_limit_of_the_system_is_reached(tmp_path: Path) -> None:
    """The kernel's own refusal in the middle of a write, where no file system can be mounted."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_bytes(tmp_path / "a.bin", b"old")

    def write_in_parts() -> None:
        with atomic_write(tmp_path / "b.bin") as file:
            for _ in range(200):
                file.write(bytes(1000))

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(OutOfSpaceError, match="File too large"):
            write_bytes(tmp_path / "a.bin", bytes(200_000))
        with pytest.raises(OutOfSpaceError):
            write_in_parts()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(tmp_path) == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == b"old"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no `mount` command here")
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_keeps_the_old_file_and_its_space(full_disk: Path) -> None:
    path = full_disk / "a.bin"
    write_bytes(path, b"old" * 10_000)
    for _ in range(3):  # what a failed write took is given back
        with pytest.raises(OutOfSpaceError, match="No space left on device"):
            write_bytes(path, bytes(300_000))
        assert names(full_disk) == ["a.bin"] and path.read_bytes() == b"old" * 10_000
    write_bytes(path, bytes(60_000))
    assert path.read_bytes() == bytes(60_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_equal_values_have_equal_bytes_whatever_their_key_order(value: dict[str, Any]) -> None:
    other = dict(reversed(value.items()))
    assert canonical_json(other) == canonical_json(value)
    assert digest_of(other) == digest_of(value)


def test_a_digest_tells_values_apart() -> None:
    values: list[Any] = [{}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, [1], [1, 2], {"a": 1.5}, {"a": None}]
    assert len({digest_of(value) for value in values}) == len(values)


def test_json_reads_back_from_disk_and_nan_is_never_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1.1, None], "a": "ü"})
    assert read_json(tmp_path / "a.json", "x") == {"b": [1.1, None], "a": "ü"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", {"a": math.nan})
    assert names(tmp_path) == ["a.json"]


def test_what_is_not_json_is_named_with_what_it_should_be(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": ')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "folder.json").mkdir()
    for name in ("cut.json", "bytes.json", "deep.json", "folder.json", "none.json", "cut.json/x.json"):
        with pytest.raises(StoreError, match=rf"{name}: not .*a plan"):
            read_json(tmp_path / name, "a plan")


def test_hashes_of_bytes_and_of_a_file_agree(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(b"abc") == file_sha256(tmp_path / "a") == expected


def is_sealed(values: Any) -> bool:
    """Whether `values` is what `seal` gave: the slow way, and the reference of the quick one."""
    if not isinstance(values, dict):
        return False
    try:
        return values.get("digest") == digest_of({key: value for key, value in values.items() if key != "digest"})
    except (ValueError, RecursionError):  # NaN, which json.loads lets in
        return False


def test_a_seal_holds_for_the_values_it_was_put_on_and_for_no_others() -> None:
    sealed = seal({"a": 1, "b": [2.5]})
    assert is_sealed(sealed) and is_sealed(dict(reversed(sealed.items())))
    for broken in (
        {**sealed, "a": 2},
        {**sealed, "c": 0},
        {**sealed, "digest": "0"},
        {"a": 1},
        [],
        None,
        {"a": math.nan},
    ):
        assert not is_sealed(broken)


@given(
    st.dictionaries(
        st.sampled_from(["a", "digesz", "z", 'di"gest']), st.text() | st.lists(st.just({"digest": "0" * 64}))
    )
)
def test_the_seal_of_bytes_is_the_seal_of_values(values: dict[str, Any]) -> None:
    data = canonical_json(seal({**values, "files": []}))
    assert has_valid_seal(data) and is_sealed(json.loads(data))
    for position in range(0, len(data), 7):
        broken = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        assert not has_valid_seal(broken)
    assert not has_valid_seal(b"{}\n") and not has_valid_seal(canonical_json({**values, "files": []}))
