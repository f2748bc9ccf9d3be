"""Re-encoding: the bytes of caching directly where that is possible, a named refusal where values would be invented."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.cells import scatter_cells
from cache.errors import ConfigError, FingerprintError, StoreError
from cache.quantise import dequantise_u8, quantise_u8
from cache.store import FrameStore, TeacherStore
from pipeline.extend import behind, extend_frames
from pipeline.frames import FrameOptions, cache_frames
from pipeline.reencode import ReencodeOptions, _job, reencode
from pipeline.teacher import TeacherOptions, cache_teacher

VERSION = "v1.0-mini"
ALL = "gaussian(dilate=2)+footprint+lidar(points=2)+random(cells=20)"


class House:
    """A cache whose teacher stores are made when they are first asked for."""

    def __init__(self, cache: Path, weights: Path) -> None:
        self.cache, self.weights, self._names = cache, weights, {}  # type: ignore[var-annotated]

    def direct(self, coverage: str = "gaussian", encoding: str = "cells", dtype: str = "float16", **more: Any) -> str:
        """Name of the store that the teacher pass writes with these options."""
        key = str((coverage, encoding, dtype, more))
        if key not in self._names:
            self._names[key] = f"direct{len(self._names)}"
            options = TeacherOptions(coverage, encoding, dtype, **more)
            cache_teacher(
                self.cache, self._names[key], teacher="own", checkpoint=self.weights, options=options, workers=1
            )
        return self._names[key]

    def again(self, name: str, out: str, **options: Any) -> TeacherStore:
        """The store, re-encoded; made anew."""
        shutil.rmtree(self.cache / "teachers" / out, ignore_errors=True)
        reencode(self.cache, name, out, options=ReencodeOptions(**options), workers=1)
        return self.store(out)

    def store(self, name: str) -> TeacherStore:
        return TeacherStore(self.cache / "teachers" / name)

    def shards(self, name: str) -> dict[str, bytes]:
        folder = self.cache / "teachers" / name
        names = [file.name for shard in self.store(name).manifest.shards for file in shard.files]
        assert names
        return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def house(simulated_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    cache = tmp_path_factory.mktemp("house")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(simulated_root, VERSION, cache, split="mini_train", options=options, workers=1)
    return House(cache, weights)


@pytest.mark.parametrize("coverage", ["gaussian", ALL, "random(cells=9,seed=3)+dense"])
def test_dense_to_cells_gives_the_bytes_of_caching_cells(house: House, coverage: str) -> None:
    dense = house.direct(encoding="dense")
    house.again(dense, "x", encoding="cells", coverage=coverage)
    assert house.shards("x") == house.shards(house.direct(coverage))


def test_a_task_travels_to_other_processes(house: House) -> None:
    source = house.store(house.direct(encoding="dense"))
    job = _job(house.cache, source, ReencodeOptions(encoding="cells", coverage=ALL))
    assert job.frames is not None and pickle.loads(pickle.dumps(job)) == job


def test_fewer_selectors_give_the_bytes_of_caching_fewer(house: House) -> None:
    for fewer in ("footprint", "lidar(points=2)+gaussian(dilate=2)", "gaussian"):  # the last: gaussian(dilate=1)
        house.again(house.direct(ALL), "x", coverage=fewer)
        assert house.shards("x") == house.shards(house.direct(fewer)), fewer


def test_cells_of_everything_are_a_dense_map(house: House) -> None:
    house.again(house.direct("gaussian+dense"), "x", encoding="dense", coverage="gaussian")
    assert house.shards("x") == house.shards(house.direct("gaussian", "dense"))


def test_a_higher_threshold_is_told_from_the_stored_heat(house: House) -> None:
    low = house.direct("confident(threshold=0.01)+gaussian")
    heat = np.concatenate([house.store(low).cells(row).weights[:, 0] for row in range(4)])
    high = f"confident(threshold={float(np.round(np.median(heat), 4))})"
    assert (heat >= 0.01).sum() > 0 and len(np.unique(heat)) > 10
    house.again(low, "x", coverage=high)
    assert house.shards("x") == house.shards(house.direct(high))
    kept = sum(len(house.store("x").cells(row)) for row in range(4))
    assert 0 < kept < len(heat)


def test_there_and_back_again_is_byte_for_byte_the_same(house: House) -> None:
    name = house.direct(ALL, dtype="u8")
    there = house.again(name, "z", format="zarr")
    assert there.manifest.format.name == "zarr"
    house.again("z", "back", format="webdataset")
    assert house.shards("back") == house.shards(name)
    direct = house.direct(ALL, dtype="u8", format="zarr", capacity=dict(there.manifest.format.capacity))
    assert house.shards("z") == house.shards(direct)
    source = house.store(name)
    for row in range(len(source)):
        for spec in source.manifest.fields:
            found, expected = there.read(row, spec.name), source.read(row, spec.name)
            assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def test_room_is_counted_over_all_frames_where_the_coverage_changes(house: House) -> None:
    dense = house.direct(encoding="dense")
    store = house.again(dense, "x", format="zarr", encoding="cells", coverage=ALL)
    most = max(len(store.cells(row)) for row in range(len(store)))
    assert store.manifest.format.capacity["K"] == most > 1
    assert house.again(dense, "x", format="zarr", capacity={"K": 4000}).manifest.format.capacity["K"] == 4000
    with pytest.raises(StoreError, match=r"--capacity K=\d+"):
        house.again(dense, "x", format="zarr", encoding="cells", coverage=ALL, capacity={"K": 1})


def test_u8_is_the_quantised_fp16_and_fp16_of_u8_is_marked_as_lossy(house: House) -> None:
    name = house.direct(ALL)
    source, small = house.store(name), house.again(name, "small", dtype="u8")
    back = house.again("small", "back", dtype="float16")
    for row in range(len(source)):
        codes, scale = quantise_u8(source.read(row, "bev_values").astype(np.float32), 1)
        np.testing.assert_array_equal(small.read(row, "bev_values"), codes)
        np.testing.assert_array_equal(small.read(row, "bev_scale"), scale)
        values = dequantise_u8(codes, scale, 1).astype(np.float16)
        np.testing.assert_array_equal(back.read(row, "bev_values"), values)
        np.testing.assert_array_equal(back.read(row, "bev_weights"), source.read(row, "bev_weights"))
    assert small.manifest.header["source"]["rounded_to"] == ["float16"]
    assert back.manifest.header["source"]["rounded_to"] == ["float16", "u8"]
    assert house.again(name, "same", format="zarr").manifest.header["source"]["rounded_to"] == []


def test_u8_codes_are_kept_where_the_dtype_stays(house: House) -> None:
    name = house.direct(ALL, "dense", "u8")
    dense, cells = house.store(name), house.again(name, "x", encoding="cells", coverage="footprint")
    for row in range(len(dense)):
        np.testing.assert_array_equal(cells.read(row, "bev_scale"), dense.read(row, "bev_scale"))
        whole = dense.bev.to_map({spec.name: dense.read(row, spec.name) for spec in dense.bev.fields()}, row)
        values, _ = scatter_cells(cells.cells(row), dense.grid.shape)
        index = cells.read(row, "bev_index")
        np.testing.assert_array_equal(values.reshape(len(whole), -1)[:, index], whole.reshape(len(whole), -1)[:, index])


def test_the_header_keeps_the_teacher_and_names_its_source(house: House) -> None:
    name = house.direct(ALL)
    source, store = house.store(name), house.again(name, "x", dtype="u8")
    kept = {key: value for key, value in store.manifest.header.items() if key not in ("bev", "source")}
    assert kept == {key: value for key, value in source.manifest.header.items() if key != "bev"}
    assert store.manifest.header["source"]["manifests"] == [source.manifest.digest]
    assert store.manifest.identity == source.manifest.identity
    assert [store.entry(row) for row in range(len(store))] == [source.entry(row) for row in range(len(source))]


@pytest.mark.parametrize(
    ("stored", "options", "named"),
    [
        ("gaussian", {"encoding": "dense"}, r"stored at \d+ cells .*; \d+ of the 4096 asked for are missing"),
        ("gaussian", {"coverage": "footprint(margin=5)"}, r"are missing, such as \(row, column\) \(\d+, \d+\)"),
        ("gaussian", {"coverage": "dense"}, r"of the 4096 asked for are missing"),
        ("gaussian", {"coverage": "gaussian+random(cells=3)"}, r"; 3 of the \d+ asked for are missing"),
        ("gaussian", {"coverage": "gaussian+confident"}, r"confident\(threshold=0\.1\) needs the teacher's heat"),
        ("confident(threshold=0.1)", {"coverage": "confident(threshold=0.05)"}, r"raise its threshold only"),
    ],
)
def test_values_that_are_not_stored_are_refused_by_name_and_nothing_is_written(
    house: House, stored: str, options: dict[str, str], named: str
) -> None:
    with pytest.raises(StoreError, match=named):
        house.again(house.direct(stored), "refused", **options)
    assert not (house.cache / "teachers" / "refused").exists()


def test_bad_options_are_named(house: House) -> None:
    name = house.direct()
    for options, named in (
        ({"format": "tar"}, "--format 'tar' is unknown"),
        ({"dtype": "int8"}, "--dtype 'int8' is unknown"),
        ({"coverage": "nothing"}, "--coverage 'nothing'"),
        ({"capacity": {"K": 9}}, "--capacity is for --format zarr"),
        ({"format": "zarr", "capacity": {"Q": 9}}, "expected sizes of 1 or more for K, N"),
    ):
        with pytest.raises(ConfigError, match=named):
            house.again(name, "refused", **options)
    with pytest.raises(ConfigError, match="is the source itself"):
        reencode(house.cache, name, name, options=ReencodeOptions())
    with pytest.raises(StoreError, match="no store"):
        reencode(house.cache, "absent", "refused", options=ReencodeOptions())
    assert not (house.cache / "teachers" / "refused").exists()


def test_a_store_begun_otherwise_is_refused_and_a_rerun_changes_nothing(house: House) -> None:
    name = house.direct(ALL)
    first = house.again(name, "x", dtype="u8").manifest.digest
    assert reencode(house.cache, name, "x", options=ReencodeOptions(dtype="u8"), workers=1).digest == first
    with pytest.raises(FingerprintError, match=r"was begun with number of settings\.fields = 7, this run asks for 6"):
        reencode(house.cache, name, "x", options=ReencodeOptions(dtype="float16"), workers=1)


def test_clouds_are_needed_for_lidar_only(simulated_root: Path, weights: Path, tmp_path: Path) -> None:
    cache_frames(simulated_root, VERSION, tmp_path, split="mini_val", options=FrameOptions(image_scale=0.1), workers=1)
    house = House(tmp_path, weights)
    options = TeacherOptions("gaussian", "dense", sweeps=0)
    cache_teacher(
        tmp_path, "t", teacher="own", checkpoint=weights, data_root=simulated_root, options=options, workers=1
    )
    with pytest.raises(StoreError, match=r"holds no points, which lidar\(.*\) needs"):
        house.again("t", "x", coverage="lidar")
    assert len(house.again("t", "x", encoding="cells", coverage="footprint")) == 2
    shutil.rmtree(tmp_path / "frames")
    house.again("x", "y", format="zarr")  # needs no frame store: all weights are stored
    assert house.again("y", "x2", format="webdataset").tokens == house.store("t").tokens


def test_a_store_goes_on_where_its_source_has_grown(simulated_root: Path, weights: Path, tmp_path: Path) -> None:
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(simulated_root, VERSION, tmp_path, split="mini_train", options=options, workers=1)
    cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, workers=1)
    wanted = ReencodeOptions(dtype="u8", format="zarr", capacity={"K": 4096, "N": 600})
    begun = reencode(tmp_path, "t", "x", options=wanted, workers=1)
    extend_frames(tmp_path, simulated_root, VERSION, workers=1)
    cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, workers=1)
    assert "re-encode" in behind(tmp_path)[0].command
    grown = reencode(tmp_path, "t", "x", options=ReencodeOptions(dtype="u8", format="zarr"), workers=1)
    assert grown.header == begun.header and grown.shards[:2] == begun.shards and len(grown.shards) == 3
    assert TeacherStore(tmp_path / "teachers" / "x").tokens == FrameStore(tmp_path / "frames").tokens


@pytest.mark.parametrize("coverage", ["", "gaussian(dilate=1)"])
def test_too_small_a_room_is_refused_with_that_of_the_fullest_frame_before_anything_is_written(
    house: House, coverage: str
) -> None:
    source = house.direct(ALL) if coverage else house.direct()
    if coverage:
        coverage = "gaussian(dilate=2)+footprint"
    full = house.again(source, "full", format="zarr", coverage=coverage).manifest.format.capacity["K"]
    with pytest.raises(StoreError, match=rf"fullest frames hold K={full}, but --capacity says K=1; give"):
        house.again(source, "short", format="zarr", coverage=coverage, capacity={"K": 1})
    assert not (house.cache / "teachers" / "short").exists()
    assert house.again(source, "short", format="zarr", coverage=coverage, capacity={"K": full}).tokens
