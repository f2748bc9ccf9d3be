"""Where the stores of a cache lie, for paths and URLs alike."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from cache.errors import ConfigError
from cache.layout import frames_place, teacher_names, teacher_place
from cache.roots import join, open_root


def test_places_of_a_path_and_of_a_url() -> None:
    assert frames_place("cache") == frames_place(Path("cache")) == Path("cache/frames")
    assert teacher_place(Path("/c"), "demo") == Path("/c/teachers/demo")
    for url in ("s3://bucket/cache", "s3://bucket/cache/"):
        assert frames_place(url) == "s3://bucket/cache/frames"
        assert teacher_place(url, "demo") == "s3://bucket/cache/teachers/demo"


@pytest.mark.parametrize("name", ["demo", "a", "0", "_x", "full-width_2", "a" * 64])
def test_plain_words_are_names(name: str) -> None:
    assert teacher_place("c", name) == Path("c/teachers") / name


@pytest.mark.parametrize("name", ["", "../up", "Upper", "a/b", "a.b", "-a", "a b", "ä", "a\n", "a" * 65, ".", ".."])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"teacher store .*: expected 1 to 64 lower-case letters"):
        teacher_place("cache", name)


def put(place: str | Path, *names: str) -> None:
    for name in names:
        with open_root(place).write(name) as file:
            file.write(b"{}")


@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_teachers_of_a_cache_are_its_committed_stores(where: str, tmp_path: Path) -> None:
    cache = str(tmp_path) if where == "local" else f"memory://{uuid.uuid4().hex}/cache"
    assert teacher_names(cache) == []
    put(join(cache, "teachers"), "b/manifest.json", "b/shards/00000.tar", "a-1/manifest.json", "unfinished/plan.json")
    put(join(cache, "teachers"), "deep/er/manifest.json", "Not-A-Name/manifest.json", "manifest.json")
    put(frames_place(cache), "manifest.json")
    assert teacher_names(cache) == ["a-1", "b"]
