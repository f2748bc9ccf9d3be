"""SIGKILL at any moment of writing: no reader ever sees a part of a shard, and a rerun ends in the same bytes."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.errors import StoreError
from cache.plan import StorePlan
from cache.shard_writer import HashedFile
from cache.store import Store
from tests.cache.stores import SHARDS, TOKENS, ZARR, assert_equal, plan_of, teacher_plan, tree, values_of, write_store

REPOSITORY = Path(__file__).resolve().parents[2]


def check_what_a_reader_sees(root: Path, plan: StorePlan, whole: dict[str, bytes]) -> bool:
    """Every file that is not `*.partial` is whole; the store is refused, or it is complete (then True)."""
    for path in root.rglob("*"):
        if path.suffix != ".partial" and path.is_file():
            name = str(path.relative_to(root))
            assert path.read_bytes() == whole[name], f"{name} is visible and not whole"
    try:
        store = Store(root)
    except StoreError:
        assert not (root / "manifest.json").exists()
        return False
    assert store.tokens == TOKENS
    for row, token in enumerate(TOKENS):
        for name, value in values_of(plan, token).items():
            assert_equal(store.read(row, name), value)
    store.close()
    return True


def write_and_die(root: Path, plan: StorePlan, step: int, **options: Any) -> bool:
    """In a forked process: writes the store, dies by SIGKILL before the step-th write, fsync, rename or link. True if
    so."""
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

            write = HashedFile.write

            def flushed_write(self: HashedFile, data: bytes) -> int:
                written = write(self, data)
                self.flush()
                return written

            HashedFile.write = before(flushed_write)  # type: ignore[method-assign]
            os.replace, os.link, os.fsync = before(os.replace), before(os.link), before(os.fsync)
            write_store(root, plan, **options)
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the writer failed by itself"
    return os.WIFSIGNALED(status)


def test_killed_at_every_single_step_then_rerun(tmp_path: Path, teacher_root: Path) -> None:
    plan, whole = teacher_plan(), tree(teacher_root)
    step, finished_early = 0, 0
    while write_and_die(tmp_path / "store", plan, step):
        finished_early += check_what_a_reader_sees(tmp_path / "store", plan, whole)
        write_store(tmp_path / "store", plan)
        assert tree(tmp_path / "store") == whole, f"killed before step {step}"
        shutil.rmtree(tmp_path / "store")
        step += 1
    assert step > 60  # 20 files, each synced, renamed or linked, and its folder synced
    assert finished_early == 1  # only between the manifest's rename and its folder's fsync


@pytest.mark.parametrize("kind", [("frames", plan_of("frames").format), ("teacher", ZARR)], ids=["frames", "zarr"])
def test_killed_at_random_steps_then_rerun(tmp_path: Path, kind: Any, request: pytest.FixtureRequest) -> None:
    plan = plan_of(*kind)
    whole = tree(request.getfixturevalue("frames_root" if plan.kind == "frames" else "zarr_root"))
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    killed = 0
    for turn in range(6):
        root = tmp_path / str(turn)
        killed += write_and_die(root, plan, rng.randrange(3 * len(whole)))
        check_what_a_reader_sees(root, plan, whole)
        write_store(root, plan)
        assert tree(root) == whole
    assert killed > 0


def test_killed_while_it_grows_the_store_is_the_old_one_or_the_new_one(tmp_path: Path, zarr_root: Path) -> None:
    """Until the manifest is replaced the old shards are read, or the store says that a run is to be finished."""
    plan, whole = teacher_plan(format=ZARR), tree(zarr_root)
    small = teacher_plan(format=ZARR, shards=SHARDS[:2])
    write_store(tmp_path / "small", small)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for turn in range(6):
        root = Path(shutil.copytree(tmp_path / "small", tmp_path / str(turn)))
        write_and_die(root, plan, rng.randrange(2 * len(whole)), grow=True)
        try:
            store = Store(root)
        except StoreError as error:
            told = str(error)
            assert "run the caching command again" in told  # index and manifest are replaced one after the other
        else:
            assert store.tokens in (TOKENS[:4], TOKENS)
            for row in range(len(store)):
                for name, value in values_of(plan, TOKENS[row]).items():
                    assert_equal(store.read(row, name), value)
        write_store(root, plan, grow=True)
        assert tree(root) == whole


def test_killed_again_and_again_each_run_keeps_what_it_committed(tmp_path: Path, frames_root: Path) -> None:
    """Three runs, each killed at its 14th step, one shard further than the last."""
    plan, whole = plan_of("frames"), tree(frames_root)
    committed = []
    for _ in range(3):
        assert write_and_die(tmp_path, plan, 14)
        check_what_a_reader_sees(tmp_path, plan, whole)
        committed.append(len(list(tmp_path.glob("records/*.json"))))
    assert committed == [1, 2, 3]
    write_store(tmp_path, plan)
    assert tree(tmp_path) == whole


def test_a_process_killed_from_outside_while_a_reader_looks(tmp_path: Path, frames_root: Path) -> None:
    plan, whole = plan_of("frames"), tree(frames_root)
    root = tmp_path / "store"

    def start(writes: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.cache.killed_writer", str(root), str(writes)]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

    for writes, committed in ((7, 1), (8, 2)):  # a shard takes five: in the second, then again in the third
        with start(writes) as process:
            while not select.select([process.stdout], [], [], 0.02)[0]:
                check_what_a_reader_sees(root, plan, whole)
            assert process.stdout is not None and process.stdout.readline() == "stuck\n"
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not check_what_a_reader_sees(root, plan, whole)
        assert len(list(root.glob("records/*.json"))) == committed and list(root.rglob("*.tar.*.partial"))
    write_store(root, plan)
    assert tree(root) == whole and check_what_a_reader_sees(root, plan, whole)
