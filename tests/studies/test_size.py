"""Claims about the size benchmark: what it counts is what lies on disk, and its codec table measures what it says."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.layout import teacher_place
from cache.store import TeacherStore
from pipeline.frames import FrameOptions, cache_frames
from pipeline.tables import open_tables
from pipeline.teacher import cache_teacher
from studies.benches import full_width, size
from studies.benches.codecs import LAYOUTS, codec_table, codecs, decoded, encoded, from_stored, to_bfloat16, to_stored
from studies.benches.exactness import Agreement
from studies.benches.registry import BENCHES
from studies.benches.size import StoreSize, exactness_figures, size_figures, store_size
from studies.benches.size_report import codec_lines, report
from tests.conftest import SIMULATED_VERSION

CONTRACT = {
    "dense_fp16_bytes",
    "cells_fp16_bytes",
    "cells_u8_bytes",
    "ratio_fp16",
    "ratio_u8",
    "loss_rel_err",
    "grad_rel_err",
    "ratio_same_codec",
    "trainval_gb_fp16",
    "trainval_gb_u8",
}


def features(frames: int = 3, seed: int = 0) -> list[np.ndarray]:
    """(K, C) as after a ReLU: half zeros, heavy tails, one channel dead."""
    rng = np.random.default_rng(seed)
    out = [np.maximum(rng.normal(0, 2, (50 + 10 * i, 7)), 0).astype(np.float32) for i in range(frames)]
    for values in out:
        values[:, 3] = 0
    return out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "u8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_codec_gives_back_what_was_stored(dtype: str, layout: str) -> None:
    stored, _ = to_stored(features()[0], dtype)
    for name, codec in codecs().items():
        if name.startswith("pcodec") and dtype == "u8":
            continue
        array = np.ascontiguousarray(stored.T if layout == "channels" else stored)
        found = decoded(codec, encoded(codec, array), array, layout)
        assert np.array_equal(found, stored) and found.flags.c_contiguous, name


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(0).normal(0, 100, 10_000).astype(np.float32)
    values[:3] = [0.0, 1.00390625, 3.0e38]  # a tie, and near the end of the range
    wanted = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bfloat16(values), wanted)


def test_zero_stays_zero_and_errors_are_those_of_the_dtype() -> None:
    values = features()[0]
    errors = {}
    for dtype in ("float16", "bfloat16", "u8"):
        found = from_stored(*to_stored(values, dtype), dtype)
        assert (found[values == 0] == 0).all()
        errors[dtype] = np.abs(found - values).max()
    assert 0 < errors["float16"] < errors["bfloat16"] < errors["u8"]
    assert errors["u8"] <= values.max() / 255 / 2 * 1.001


def test_the_tables_bytes_count_values_and_side_arrays() -> None:
    values = features()
    rows = {(row.dtype, row.codec, row.layout): row for row in codec_table(values, 10_000, repeats=1)}
    cells = np.mean([len(frame) for frame in values])
    assert rows["float16", "none", "cells"].bytes_per_frame == cells * 7 * 2
    assert rows["u8", "none", "channels"].bytes_per_frame == cells * 7 + 2 * 7 * 4
    row = rows["float16", "zstd-1", "cells"]
    assert row.ratio == pytest.approx(10_000 / row.bytes_per_frame)
    assert row.error == pytest.approx(rows["float16", "lz4", "channels"].error)
    assert {dtype for dtype, _, _ in rows} == {"float16", "bfloat16", "u8"}
    lines = codec_lines([row.to_dict() for row in rows.values()]).splitlines()
    assert len(lines) == len(rows) + 2


@pytest.fixture(scope="module")
def cache(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("size")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(simulated_root, SIMULATED_VERSION, cache, options=options, workers=1)
    for name in ("literal-float16", "literal-u8", "dense-float16"):
        cache_teacher(cache, name, options=size.STORES[name], workers=1)
    return cache


@pytest.mark.parametrize("name", ["literal-float16", "literal-u8", "dense-float16"])
def test_a_stores_size_is_all_that_lies_on_disk(cache: Path, name: str) -> None:
    found = store_size(cache, name)
    on_disk = sum(path.stat().st_size for path in Path(teacher_place(cache, name)).rglob("*") if path.is_file())
    assert found.frames == 6
    assert found.total * found.frames == pytest.approx(on_disk)
    assert sum(found.parts.values()) == pytest.approx(found.total)
    assert all(value > 0 for value in found.parts.values()), found.parts


def test_cells_are_smaller_than_dense_and_u8_than_fp16(cache: Path) -> None:
    totals = {name: store_size(cache, name) for name in ("literal-float16", "literal-u8", "dense-float16")}
    store = TeacherStore(teacher_place(cache, "literal-float16"))
    assert totals["literal-float16"].cells == np.mean([len(store.cells(row)) for row in range(6)])
    values = {name: found.parts.get("bev_values", 0) + found.parts.get("bev_map", 0) for name, found in totals.items()}
    assert values["literal-u8"] < values["literal-float16"] < values["dense-float16"]


def test_the_figures_are_those_of_the_contract() -> None:
    sizes = {name: StoreSize(2, 10.0, float(total), {}) for name, total in _totals().items()}
    found = size_figures(sizes, raw=8_388_608)
    assert found["ratio_fp16"] == 8_388_608 / 100_000
    assert found["ratio_u8_dilated"] == 8_388_608 / 120_000
    assert found["ratio_same_codec"] == 20.0
    assert found["trainval_gb_fp16"] == pytest.approx(3.4149)
    one = {"loss": 1e-6, "gradient": 2e-4}
    first = {"stored": dict.fromkeys(("literal-float16", "dilated-float16", "literal-u8"), one)}
    assert {*found, *exactness_figures(first)} >= CONTRACT


def _totals() -> dict[str, int]:
    return {
        "literal-float16": 100_000,
        "literal-u8": 60_000,
        "dilated-float16": 200_000,
        "dilated-u8": 120_000,
        "dense-float16": 2_000_000,
    }


def test_the_report_tells_every_figure() -> None:
    sizes = {name: StoreSize(2, 10.0, float(total), {"bev_values": total / 2}) for name, total in _totals().items()}
    agreement = Agreement(1.5e-6, 2e-4, 1e-4, 3e-5, 1.25).to_dict()
    stage = {"stage": "end", "step": 9, **{part: {"literal-u8": agreement} for part in PARTS}}
    details = {
        "teacher": {"steps": 600, "first_loss": 15.0, "last_loss": 2.5, "mAP": 0.45, "mAP_shuffled": 0.0},
        "frames": 2,
        "objects_per_frame": 35.1,
        "stores": {name: asdict(found) for name, found in sizes.items()},
        "stages": [stage],
        "residual_curve": {"literal-u8": [{"asked": 0.5, **agreement}]},
        "codecs": {"literal": [codec_table(features(), 10_000, dtypes=["u8"], repeats=1)[0].to_dict()]},
    }
    text = report(size_figures(sizes, 8_388_608), details)
    for expected in ("83.9", "35.1 objects", "end (9)", "1.25", "2.0e-04", "u8 none, cells-major", "4.10"):
        assert expected in text, expected


PARTS = ("rounded", "augmented", "stored")


def test_a_folder_of_some_scenes_opens_as_just_those(simulated_root: Path, tmp_path: Path) -> None:
    names = _scene_names(open_tables(simulated_root, SIMULATED_VERSION, None, 0).scenes)
    full_width.folder_of(simulated_root, SIMULATED_VERSION, tmp_path / "busy", names[:1])
    data = open_tables(tmp_path / "busy", SIMULATED_VERSION, None, 0)
    assert _scene_names(data.scenes) == names[:1]
    assert len(data) == 2
    assert (tmp_path / "busy" / data.records[0][0].image_paths[0]).is_file()


def _scene_names(scenes: Sequence[object]) -> list[str]:
    return [str(getattr(scene, "name")) for scene in scenes]  # noqa: B009 - plain objects here


def test_the_bench_is_registered_and_its_options_are_named() -> None:
    assert BENCHES["size"] == size.__name__
    assert list(inspect.signature(size.run).parameters)[2:] == [
        "train_scenes",
        "val_scenes",
        "teacher_steps",
        "student_steps",
    ]
    assert len(size.ABOUT) < 110
