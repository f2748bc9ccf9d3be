"""The teacher pass: what it stores is what the model says, from points or files; every refusal names both sides."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.cells import scatter_cells
from cache.errors import ConfigError, CorruptError, DataError, FingerprintError, StoreError
from cache.store import FrameStore, TeacherStore
from models.build import build_detector, load_weights, save_weights
from models.detector import Batch
from models.gaussian import foreground_mask
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher, resolve_checkpoint
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def cached(simulated_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a frame store with points and a teacher store of dense and gaussian coverage."""
    cache = tmp_path_factory.mktemp("cached")
    cache_frames(
        simulated_root, VERSION, cache, options=FrameOptions(image_scale=0.1, points=True, sweeps=2), workers=1
    )
    cache_teacher(
        cache, "t", teacher="own", checkpoint=weights, options=TeacherOptions("gaussian,dense", sweeps=2), workers=1
    )
    return cache


def test_the_store_holds_what_the_model_says(cached: Path, weights: Path) -> None:
    frames, teacher = FrameStore(cached / "frames"), TeacherStore(cached / "teachers" / "t")
    model = load_weights(weights)
    assert len(teacher) == len(frames)
    for row in (0, len(frames) - 1):
        token = frames.tokens[row]
        with torch.inference_mode():
            output = model(Batch(points=[torch.from_numpy(frames.points(row).copy())], tokens=[token]))
        expected = output.bev[0].numpy()
        values, maps = scatter_cells(teacher.cells(teacher.row_of(token)), teacher.grid.shape)
        scale = np.abs(expected).max()
        assert np.abs(values.astype(np.float32) - expected).max() < 2e-3 * scale  # fp16 of fp32
        np.testing.assert_array_equal(
            maps[0], foreground_mask(frames.boxes_lidar(row), teacher.grid, min_radius=1, dilate=1)
        )
        assert (maps[1] == 1).all()
        said = model.decode(output)[0]
        stored = teacher.detections(teacher.row_of(token))
        assert len(stored) == len(said) > 0
        np.testing.assert_allclose(stored.scores, said.scores, atol=1e-5)


def test_gaussian_cells_are_the_same_values_and_far_fewer(cached: Path, weights: Path) -> None:
    cache_teacher(cached, "sparse", teacher="own", checkpoint=weights, workers=1)
    dense, sparse = TeacherStore(cached / "teachers" / "t"), TeacherStore(cached / "teachers" / "sparse")
    for row in range(len(sparse)):
        few, all_cells = sparse.cells(row), dense.cells(row)
        assert 0 < len(few) < len(all_cells) / 2
        np.testing.assert_array_equal(few.values, all_cells.values[few.index])


def test_clouds_from_the_data_root_give_the_same_bytes_as_stored_points(
    cached: Path, simulated_root: Path, weights: Path, tmp_path: Path
) -> None:
    cache_frames(simulated_root, VERSION, tmp_path, options=FrameOptions(image_scale=0.1), workers=1)
    options = TeacherOptions("gaussian,dense", sweeps=2)
    with pytest.raises(StoreError, match="holds no points; give --data-root"):
        cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, options=options, workers=1)
    cache_teacher(
        tmp_path, "t", teacher="own", checkpoint=weights, data_root=simulated_root, options=options, workers=1
    )
    for shard in TeacherStore(tmp_path / "teachers" / "t").manifest.shards:
        name = shard.files[0].name
        a, b = tmp_path / "teachers" / "t" / name, cached / "teachers" / "t" / name
        assert a.read_bytes() == b.read_bytes()


def test_two_workers_write_the_same_bytes_as_one(cached: Path, weights: Path) -> None:
    one = cache_teacher(cached, "one", teacher="own", checkpoint=weights, workers=1)
    two = cache_teacher(cached, "two", teacher="own", checkpoint=weights, workers=2)
    assert one.digest == two.digest


def test_a_store_begun_with_another_grid_is_refused_with_both_values(
    cached: Path, weights: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    other = tmp_path / "other.safetensors"
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny", "pillars": {"cell_m": 0.8}}), other)
    with pytest.raises(FingerprintError, match=r"header\.grid\.cell_m = 1\.6, this run asks for 3\.2"):
        cache_teacher(
            cached, "t", teacher="own", checkpoint=other, options=TeacherOptions("gaussian,dense", sweeps=2), workers=1
        )


def test_other_weights_for_the_same_store_are_refused(cached: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny"}), other)
    with pytest.raises(FingerprintError, match="weights_sha256"):
        cache_teacher(
            cached, "t", teacher="own", checkpoint=other, options=TeacherOptions("gaussian,dense", sweeps=2), workers=1
        )


def test_missing_or_foreign_checkpoints_are_named(tmp_path: Path, cached: Path) -> None:
    with pytest.raises(ConfigError, match="teacher 'mine' is not shipped"):
        resolve_checkpoint("mine", None)
    with pytest.raises(ConfigError, match=r"gone\.safetensors: no such checkpoint"):
        resolve_checkpoint("demo", tmp_path / "gone.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"bad\.safetensors: not readable as a safetensors file"):
        cache_teacher(cached, "bad", teacher="own", checkpoint=tmp_path / "bad.safetensors", workers=1)
    assert not (cached / "teachers" / "bad").exists()


def teacher_of(cached: Path, name: str, weights: Path, **options: Any) -> TeacherStore:
    cache_teacher(cached, name, teacher="own", checkpoint=weights, options=TeacherOptions(**options), workers=1)
    return TeacherStore(cached / "teachers" / name)


def test_a_zarr_store_reads_as_the_webdataset_one_and_has_room_for_every_frame(cached: Path, weights: Path) -> None:
    tar = teacher_of(cached, "tar", weights)
    zarr = teacher_of(cached, "zarr", weights, format="zarr")
    assert zarr.manifest.format.name == "zarr" and set(zarr.manifest.format.capacity) == {"K", "N"}
    assert zarr.manifest.format.capacity["K"] == max(len(tar.cells(row)) for row in range(len(tar)))  # counted
    assert zarr.tokens == tar.tokens
    for row in range(len(tar)):
        for spec in tar.manifest.fields:
            found, expected = zarr.read(row, spec.name), tar.read(row, spec.name)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    again = cache_teacher(
        cached, "zarr", teacher="own", checkpoint=weights, options=TeacherOptions(format="zarr"), workers=1
    )
    assert again.digest == zarr.manifest.digest


def test_a_capacity_that_is_too_small_fails_with_the_one_that_is_needed(cached: Path, weights: Path) -> None:
    with pytest.raises(StoreError, match=r"field bev_index: \d+ of K, .* hold 1; .* new store with --capacity K=\d+"):
        teacher_of(cached, "short", weights, format="zarr", capacity={"K": 1})
    root = cached / "teachers" / "short"
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"plan.json"}
    for capacity, message in (({"Q": 5}, "some of K, N"), ({"K": 0}, "sizes of 1 or more")):
        with pytest.raises(ConfigError, match=message):
            teacher_of(cached, "other", weights, format="zarr", capacity=capacity)
    with pytest.raises(ConfigError, match="--capacity is for --format zarr"):
        TeacherOptions(capacity={"K": 5})


@pytest.mark.parametrize(("encoding", "dtype"), [("cells", "u8"), ("dense", "float16"), ("dense", "u8")])
def test_every_encoding_holds_the_same_cells_as_near_as_its_dtype_is(
    cached: Path, weights: Path, encoding: str, dtype: str
) -> None:
    exact = teacher_of(cached, "exact", weights, dtype="float32")
    store = teacher_of(cached, f"{encoding}-{dtype}", weights, encoding=encoding, dtype=dtype)
    assert (store.bev.layout, store.bev.dtype) == (encoding, dtype)
    for row in range(len(store)):
        found, expected = store.cells(row), exact.cells(row)
        np.testing.assert_array_equal(found.index, expected.index)
        np.testing.assert_array_equal(found.weights, expected.weights)
        bound = store.read(row, "bev_scale")[1] * 0.502 if dtype == "u8" else 1e-3 * np.abs(expected.values).max()
        assert (np.abs(found.values - expected.values) <= bound + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "--dtype 'int4' is unknown, expected one of float16, float32, u8"),
        ({"encoding": "sparse"}, "--encoding 'sparse' is unknown, expected one of cells, dense"),
        ({"format": "hdf5"}, "--format 'hdf5' is unknown, expected one of webdataset, zarr"),
        ({"sweeps": -1}, "--sweeps -1 is negative"),
    ],
)
def test_unknown_options_are_refused_with_those_there_are(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TeacherOptions(**options)


@pytest.mark.parametrize("name", ["", "../up", "Upper", "a/b", "a.b"])
def test_a_store_name_is_never_a_path(cached: Path, weights: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="teacher store"):
        cache_teacher(cached, name, teacher="own", checkpoint=weights, workers=1)


def test_an_unreadable_cloud_is_quarantined_and_added_after_repair(
    simulated_root: Path, weights: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(simulated_root, tmp_path / "data"))
    cache = tmp_path / "c"
    cache_frames(root, VERSION, cache, options=FrameOptions(image_scale=0.1), workers=1)
    victim = sorted((root / "sweeps" / "LIDAR_TOP").iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:1000])
    options = TeacherOptions(sweeps=2)
    manifest = cache_teacher(cache, "t", teacher="own", checkpoint=weights, data_root=root, options=options, workers=1)
    assert len(manifest.quarantined) == 1 and victim.name in manifest.quarantined[0]["reason"]
    victim.write_bytes(whole)
    repaired = cache_teacher(cache, "t", teacher="own", checkpoint=weights, data_root=root, options=options, workers=1)
    fresh = cache_teacher(cache, "u", teacher="own", checkpoint=weights, data_root=root, options=options, workers=1)
    assert not repaired.quarantined and repaired.digest == fresh.digest


def test_a_frame_that_the_frame_store_lost_is_quarantined_here_and_added_after_its_repair(
    simulated_root: Path, weights: Path, tmp_path: Path
) -> None:
    root, cache = Path(shutil.copytree(simulated_root, tmp_path / "data")), tmp_path / "c"
    victim = sorted((root / "samples" / "CAM_BACK").iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:1000])
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    lost = cache_frames(root, VERSION, cache, options=options, workers=1).quarantined[0]["token"]
    first = cache_teacher(cache, "t", teacher="own", checkpoint=weights, workers=1)
    assert [entry["token"] for entry in first.quarantined] == [lost]
    assert len(TeacherStore(cache / "teachers" / "t")) == 5
    victim.write_bytes(whole)
    cache_frames(root, VERSION, cache, options=options, workers=1)
    assert not cache_teacher(cache, "t", teacher="own", checkpoint=weights, workers=1).quarantined
    assert lost in TeacherStore(cache / "teachers" / "t").tokens


def test_sweeps_that_the_stored_clouds_do_not_have_are_refused(cached: Path, weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"--sweeps 7: .* holds clouds of 2 sweeps"):
        cache_teacher(cached, "s", teacher="own", checkpoint=weights, options=TeacherOptions(sweeps=7), workers=1)
    with pytest.raises(ConfigError, match=r"--sweeps-after 1: .* holds clouds, of earlier sweeps only"):
        cache_teacher(cached, "s", teacher="own", checkpoint=weights, options=TeacherOptions(sweeps_after=1), workers=1)
    with pytest.raises(ConfigError, match="--sweeps-after -1 is negative"):
        TeacherOptions(sweeps_after=-1)


def test_later_sweeps_are_read_on_request_and_named_in_the_header(
    simulated_root: Path, weights: Path, tmp_path: Path
) -> None:
    options = FrameOptions(image_scale=0.1)
    cache_frames(simulated_root, VERSION, tmp_path, split="mini_train", options=options, workers=1)

    def run(name: str, after: int) -> TeacherStore:
        wanted = TeacherOptions(sweeps=1, sweeps_after=after)
        cache_teacher(
            tmp_path, name, teacher="own", checkpoint=weights, data_root=simulated_root, options=wanted, workers=1
        )
        return TeacherStore(tmp_path / "teachers" / name)

    past, both = run("past", 0), run("both", 3)
    assert "sweeps_after" not in past.manifest.header and both.manifest.header["sweeps_after"] == 3
    assert np.abs(past.cells(0).values.astype(np.float32) - both.cells(0).values).max() > 1e-3


def test_a_corrupt_frame_store_stops_the_pass_by_name(cached: Path, weights: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(cached, tmp_path / "c"))
    shard = cache / "frames" / FrameStore(cache / "frames").manifest.shards[0].files[0].name
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 :: 997] = b"\x5a" * len(data[len(data) // 2 :: 997])
    shard.write_bytes(data)
    with pytest.raises(CorruptError, match=shard.name):
        cache_teacher(cache, "new", teacher="own", checkpoint=weights, workers=1)
    assert not (cache / "teachers" / "new" / "manifest.json").exists()
    assert not list((cache / "teachers" / "new").rglob("*.partial"))


def test_a_version_without_annotations_is_cached_with_no_gaussian_cells(weights: Path, tmp_path: Path) -> None:
    from pipeline.simulator import simulate

    simulate(tmp_path / "data", version="v1.0-test", scenes={"test": 1}, frames=1, sweeps=0, seed=5, workers=1)
    cache = tmp_path / "c"
    cache_frames(tmp_path / "data", "v1.0-test", cache, options=FrameOptions(image_scale=0.1, points=True), workers=1)
    frames = FrameStore(cache / "frames")
    assert not frames.is_labelled(0) and frames.manifest.header["annotated"] is False
    manifest = cache_teacher(cache, "t", teacher="own", checkpoint=weights, workers=1)
    teacher = TeacherStore(cache / "teachers" / "t")
    assert manifest.header["coverage"]["unlabelled"] == [] and len(teacher.cells(0)) == 0
    assert len(teacher.detections(0)) > 0


@needs_real_data
def test_the_pass_runs_on_the_real_keyframe(weights: Path, tmp_path: Path) -> None:
    cache_frames(REAL_ROOT, VERSION, tmp_path, workers=1)
    manifest = cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, data_root=REAL_ROOT, workers=1)
    teacher = TeacherStore(tmp_path / "teachers" / "t")
    assert not manifest.quarantined and len(teacher) == 1
    cells = teacher.cells(0)
    assert 50 < len(cells) < 1000 and np.isfinite(cells.values).all()
