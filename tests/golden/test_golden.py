"""Stores that earlier versions wrote read as they did then, value by value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cache.errors import StoreError
from cache.same_frames import require_same_frames
from cache.serving import NeededSelector, StoreOffer, TermNeed, serves
from cache.store import FrameStore, TeacherStore
from tests.golden.make import content, make, stores_of

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "expected.json").is_file())


@pytest.mark.parametrize("cache", VERSIONS, ids=lambda path: path.name)
def test_every_value_is_what_it_was(cache: Path) -> None:
    expected = json.loads((cache / "expected.json").read_text())
    stores = stores_of(cache)
    assert set(stores) == set(expected) and len(expected) >= 6
    for name, store in stores.items():
        assert store.manifest.digest == expected[name]["digest"]
        assert content(store) == expected[name]["values"]
    teachers = [store for store in stores.values() if isinstance(store, TeacherStore)]
    frames = FrameStore(cache / "frames")
    for teacher in teachers:
        assert teacher.selectors == expected[teacher.root.url.rsplit("/", 1)[1]]["selectors"]
        assert len(require_same_frames(frames, teacher, range(len(frames)))) == 6
        offer = StoreOffer(tuple(spec.name for spec in teacher.manifest.fields), teacher.grid, teacher.coverage)
        for selector, verdict in (
            ("gaussian(dilate=0,overlap=0.1,min_radius=1)", "served"),  # what there was no option for is the default
            ("gaussian(min_radius=2)", "refused"),
            ("gaussian*confident", "refused"),
        ):
            need = TermNeed(("bev_weights",), (NeededSelector.parse(selector),), grid=teacher.grid)
            assert serves(offer, need).verdict == verdict, selector


def test_the_golden_stores_are_small_and_cover_both_formats() -> None:
    files = [path for cache in VERSIONS for path in cache.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 600_000
    formats = {store.manifest.format.name for store in stores_of(VERSIONS[-1]).values()}
    layouts = {(s.bev.layout, s.bev.dtype) for s in stores_of(VERSIONS[-1]).values() if isinstance(s, TeacherStore)}
    assert formats == {"webdataset", "zarr"} and len(layouts) >= 4


def test_todays_writers_make_the_same_values(tmp_path: Path) -> None:
    """Not the same bytes: compressors may change. Images are the codec's of this machine, so they are left out."""
    make(tmp_path / "now")
    now, then = (json.loads((cache / "expected.json").read_text()) for cache in (tmp_path / "now", VERSIONS[-1]))
    for name in then:
        for token, values in then[name]["values"].items():
            for field, value in values.items():
                assert field in ("left", "right") or now[name]["values"][token][field] == value, (name, field)


def test_a_store_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(VERSIONS[-1] / "frames", tmp_path / "frames")
    path = tmp_path / "frames" / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreError, match="version 2, expected bevcask version 1"):
        FrameStore(tmp_path / "frames")
