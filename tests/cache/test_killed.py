"""SIGKILL at any moment of writing: no reader ever sees a part of a shard, and a rerun ends in the same bytes."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache import tar_writer
from cache.errors import StoreError
from cache.store import FrameStore
from tests.cache.stores import TOKENS, frame_plan, frame_values, tree, write_store

REPOSITORY = Path(__file__).resolve().parents[2]


def check_what_a_reader_sees(root: Path, whole: dict[str, bytes]) -> bool:
    """Every file that is not `*.partial` is whole; the store is refused, or it is complete (then True)."""
    for path in root.rglob("*"):
        if path.suffix != ".partial" and path.is_file():
            name = str(path.relative_to(root))
            assert path.read_bytes() == whole[name], f"{name} is visible and not whole"
    try:
        store = FrameStore(root)
    except StoreError:
        assert not (root / "manifest.json").exists()
        return False
    assert [store.points(row).tobytes() for row in range(len(store))] == [
        frame_values(token)["points"].tobytes() for token in TOKENS
    ]
    store.close()
    return True


def write_and_die(root: Path, step: int) -> bool:
    """In a forked process: writes the store, dies by SIGKILL before the step-th write, fsync or rename. True if so."""
    child = os.fork()
    if child == 0:
        try:
            left = step

            def before(call: Callable[..., Any]) -> Callable[..., Any]:
                def run(*args: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args)

                return run

            write = tar_writer._HashingFile.write

            def flushed_write(self: tar_writer._HashingFile, data: bytes) -> int:
                written = write(self, data)
                self._file.flush()
                return written

            tar_writer._HashingFile.write = before(flushed_write)  # type: ignore[method-assign]
            os.replace = before(os.replace)
            os.fsync = before(os.fsync)
            write_store(root, frame_plan())
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the writer failed by itself"
    return os.WIFSIGNALED(status)


def test_killed_at_every_single_step_then_rerun(tmp_path: Path, frames_root: Path) -> None:
    whole = tree(frames_root)
    step, finished_early = 0, 0
    while write_and_die(tmp_path / "store", step):
        finished_early += check_what_a_reader_sees(tmp_path / "store", whole)
        write_store(tmp_path / "store", frame_plan())
        assert tree(tmp_path / "store") == whole, f"killed before step {step}"
        shutil.rmtree(tmp_path / "store")
        step += 1
    assert step > 50  # 17 files, each written, synced, renamed and its folder synced
    assert finished_early == 1  # only between the manifest's rename and its folder's fsync


def test_killed_again_and_again_each_run_keeps_what_it_committed(tmp_path: Path, frames_root: Path) -> None:
    """Three runs, each killed at its 14th step, one shard further than the last."""
    whole = tree(frames_root)
    committed = []
    for _ in range(3):
        assert write_and_die(tmp_path, 14)
        check_what_a_reader_sees(tmp_path, whole)
        committed.append(len(list(tmp_path.glob("records/*.json"))))
    assert committed == [1, 2, 3]
    write_store(tmp_path, frame_plan())
    assert tree(tmp_path) == whole


def test_a_process_killed_from_outside_while_a_reader_looks(tmp_path: Path, frames_root: Path) -> None:
    whole = tree(frames_root)
    root = tmp_path / "store"

    def start(writes: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.cache.killed_writer", str(root), str(writes)]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

    for writes, committed in ((7, 1), (8, 2)):  # a shard takes five: in the second, then again in the third
        with start(writes) as process:
            while not select.select([process.stdout], [], [], 0.02)[0]:
                check_what_a_reader_sees(root, whole)
            assert process.stdout is not None and process.stdout.readline() == "stuck\n"
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not check_what_a_reader_sees(root, whole)
        assert len(list(root.glob("records/*.json"))) == committed and list(root.rglob("*.tar.*.partial"))
    write_store(root, frame_plan())
    assert tree(root) == whole and check_what_a_reader_sees(root, whole)
