"""Shards of the coming steps are in the local cache before they are read, and never more than it can hold."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from cache.files import file_sha256
from cache.local_cache import FOLDER, LIMIT
from cache.read_through import ReadThrough
from cache.roots import open_root
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from trainer import feed
from trainer.loop import train
from trainer.prefetch import Prefetcher, ShardFile
from trainer.recipe import make_recipe

SIZE = 1000


def files(tmp_path: Path, count: int) -> list[ShardFile]:
    origin = tmp_path / "origin"
    origin.mkdir()
    for i in range(count):
        (origin / f"{i}.tar").write_bytes(bytes([i]) * SIZE)
    root = ReadThrough(open_root(origin), tmp_path / "local", 6 * SIZE)
    return [ShardFile(root, f"{i}.tar", SIZE) for i in range(count)]


def settled(prefetch: Prefetcher, fetched: int) -> bool:
    """Whether it comes to `fetched` files, and stays there."""
    ends = time.monotonic() + 5
    while prefetch.fetched < fetched and time.monotonic() < ends:
        time.sleep(0.01)
    time.sleep(0.1)
    return prefetch.fetched == fetched


@pytest.mark.timeout(60)
def test_it_goes_as_far_ahead_as_half_the_cache_holds_and_on_as_training_does(tmp_path: Path) -> None:
    of_steps = [[file] for file in files(tmp_path, 8)]
    with Prefetcher(iter(enumerate(of_steps)), 6 * SIZE) as prefetch:
        assert settled(prefetch, 3)
        prefetch.reached(0)
        assert settled(prefetch, 4)
        prefetch.reached(4)
        assert settled(prefetch, 8)
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.timeout(60)
def test_steps_of_the_same_shards_count_them_once_and_leaving_early_ends_the_thread(tmp_path: Path) -> None:
    first, second, third, fourth = files(tmp_path, 4)
    steps = [[first, second], [second, first], [first, third], [fourth]]
    with Prefetcher(iter(enumerate(steps)), 6 * SIZE) as prefetch:
        assert settled(prefetch, 6)  # the fourth shard waits
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.timeout(60)
def test_a_shard_that_cannot_be_fetched_is_left_to_the_read_that_needs_it(tmp_path: Path) -> None:
    good, bad = files(tmp_path, 2)
    (tmp_path / "origin" / "1.tar").unlink()
    with Prefetcher(iter([(0, [bad]), (1, [good])]), 6 * SIZE) as prefetch:
        assert settled(prefetch, 1)


@pytest.mark.timeout(120)
def test_a_run_from_a_remote_store_fetches_ahead_and_trains_as_from_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frames(tmp_path / "cache", points=False)
    write_teacher(tmp_path / "cache")
    url = f"memory://{uuid.uuid4().hex}"
    for store in ("frames", "teachers/demo"):
        there, here = open_root(f"{url}/{store}"), open_root(tmp_path / "cache" / store)
        for name in here.sizes():
            with there.write(name) as file:
                file.write(here.read(name))
    made: list[Prefetcher] = []

    def watched(*args: Any) -> Prefetcher:
        made.append(Prefetcher(*args))
        return made[0]

    monkeypatch.setattr(feed, "Prefetcher", watched)
    values: dict[str, Any] = {
        "model": TINY_STUDENT,
        "data": {"teacher": "demo"},
        "train": {"steps": 4, "batch": 3, "lr": 1e-3},
        "terms": [{"name": "bevdistill_dense"}],
    }
    recipe = make_recipe(values, "test", "remote")
    local = train(recipe, tmp_path / "cache", tmp_path / "local", progress=lambda report: None)
    assert not made
    monkeypatch.setenv(FOLDER, str(tmp_path / "through"))
    monkeypatch.setenv(LIMIT, "100MB")
    remote = train(recipe, url, tmp_path / "remote", progress=lambda report: None)
    assert made and made[0].fetched >= 4
    assert file_sha256(remote.weights) == file_sha256(local.weights)
