"""Further fields through the pass: what is stored is what the model says, in both formats, and through re-encoding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.box_points import box_points
from cache.cells import scatter_cells
from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, CorruptError, FingerprintError, StoreError
from cache.files import canonical_json, seal
from cache.merge import merge_caches
from cache.store import FrameStore, TeacherStore
from cache.verify import verify
from models.build import build_detector, load_weights, save_weights
from models.center_head import BRANCHES
from models.detector import Batch, DetectorOutput
from pipeline.extend import behind, extend_frames
from pipeline.fields.samples import sample_points
from pipeline.frames import FrameOptions, cache_frames
from pipeline.reencode import ReencodeOptions, reencode
from pipeline.teacher import TeacherOptions, cache_teacher
from studies.inspection import describe, map_layers
from studies.live_check import run_live
from tests.models.synthetic import CAMERA
from tests.pipeline.query_teacher import QUERIES, QueryTeacher

VERSION = "v1.0-mini"
LIDAR_FIELDS = (
    "logits,regression,level(name=canvas),level(name=stage2),level(name=stage3),samples(boxes=truth,level=canvas,points=2x3),"
    "samples(boxes=teacher,limit=3),adaptor"
)
# two task groups, whose classes do not stand in the order of the ids
SHUFFLED = [["pedestrian", "truck", "bus", "barrier"], ["car", "trailer", "construction_vehicle"]]
SHUFFLED += [["motorcycle", "bicycle", "traffic_cone"]]


class House:
    """A cache of two frames; stores are made when they are first asked for."""

    def __init__(self, cache: Path, weights: Path) -> None:
        self.cache, self.weights, self.names = cache, weights, {}  # type: ignore[var-annotated]

    def store(self, fields: str = LIDAR_FIELDS, **options: Any) -> TeacherStore:
        key = str((fields, options))
        if key not in self.names:
            self.names[key] = f"t{len(self.names)}"
            self.write(self.names[key], fields, **options)
        return TeacherStore(self.cache / "teachers" / self.names[key])

    def write(
        self, name: str, fields: str, *, teacher: str = "own", weights: Path | None = None, **options: Any
    ) -> Any:
        wanted = TeacherOptions(fields=fields, **options)
        checkpoint = weights or self.weights
        return cache_teacher(self.cache, name, teacher=teacher, checkpoint=checkpoint, options=wanted, workers=1)

    def files(self, store: TeacherStore) -> dict[str, bytes]:
        names = [file.name for shard in store.manifest.shards for file in shard.files]
        return {name: (Path(str(store.root)) / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def house(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    cache = tmp_path_factory.mktemp("fields")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(simulated_root, VERSION, cache, split="mini_val", options=options, workers=1)
    torch.manual_seed(4)
    weights = cache / "teacher.safetensors"
    small = {"pillars": {"cell_m": 0.8}, "pillar_channels": 8, "head": {"tasks": SHUFFLED, "branch_channels": 8}}
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny", **small}), weights)
    return House(cache, weights)


def said(house: House, row: int) -> tuple[Any, DetectorOutput]:
    model, frames = load_weights(house.weights), FrameStore(house.cache / "frames")
    with torch.inference_mode():
        return model, model(Batch(points=[torch.from_numpy(frames.points(row).copy())], tokens=["0"]))


def near(found: np.ndarray, expected: np.ndarray) -> None:
    """To float16, and to what a batch of another size changes."""
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def slow_columns(output: DetectorOutput, row: int, col: int) -> tuple[list[float], list[float]]:
    """Logits by class id, and regressed values group by group in the order of BRANCHES, at one cell, by name."""
    by_class: dict[str, float] = {}
    for names, maps in zip(SHUFFLED, output.heads, strict=True):
        by_class |= {name: float(maps["heatmap"][0, i, row, col]) for i, name in enumerate(names)}
    values = [float(v) for maps in output.heads for branch in BRANCHES for v in maps[branch][0, :, row, col]]
    return [by_class[name] for name in DETECTION_CLASSES], values


@pytest.mark.parametrize("encoding", ["cells", "dense"])
def test_logits_and_regression_are_the_models_at_each_cell_by_class_and_branch(house: House, encoding: str) -> None:
    store = house.store(encoding=encoding)
    for row in range(len(store)):
        _, output = said(house, row)
        cells = store.cells(row)
        assert 10 < len(cells) < 1000
        expected = [slow_columns(output, *divmod(int(cell), store.grid.width)) for cell in cells.index]
        near(store.logits(row), np.array([logits for logits, _ in expected]))
        near(store.regression(row), np.array([values for _, values in expected]))
    columns = [(branch.group, branch.name, branch.channels) for branch in store.further.regression]
    assert columns == [(group, name, count) for group in range(3) for name, count in BRANCHES.items()]
    assert [list(names) for names in store.further.groups] == SHUFFLED
    rows = list(range(len(store)))[::-1]
    np.testing.assert_array_equal(store.logits_of(rows), np.concatenate([store.logits(row) for row in rows]))
    np.testing.assert_array_equal(store.regression_of(rows), np.concatenate([store.regression(row) for row in rows]))
    assert store.logits_of([]).shape == (0, 10)
    assert store.has(0, "logits_map" if encoding == "dense" else "logits")


@pytest.mark.parametrize("options", [{}, {"encoding": "dense"}, {"dtype": "u8"}, {"format": "zarr"}], ids=str)
def test_a_level_is_stored_on_its_own_grid_at_the_cells_of_the_coverage(house: House, options: Any) -> None:
    store = house.store(**options)
    level = store.further.level("canvas")
    assert level.grid.cell_m == 0.8 and store.grid.cell_m == 3.2 and level.ratio == -4
    for row in range(len(store)):
        expected = said(house, row)[1].levels["canvas"][0].numpy()
        main = scatter_cells(store.cells(row), store.grid.shape)[1]
        values, weights = scatter_cells(store.level_cells(row, "canvas"), level.grid.shape)
        np.testing.assert_array_equal(weights, main.repeat(4, axis=1).repeat(4, axis=2))
        kept = weights.any(axis=0)
        step = np.abs(expected).max() * (1e-2 if options.get("dtype") == "u8" else 2e-3)
        assert np.abs(values[:, kept] - expected[:, kept]).max() <= step
        for name, cell_m in (("stage2", 3.2), ("stage3", 6.4)):
            stage = store.further.level(name)
            assert stage.grid.cell_m == pytest.approx(cell_m) and stage.own_cells == (name == "stage3")
            expected = said(house, row)[1].levels[name][0].numpy()
            values, weights = scatter_cells(store.level_cells(row, name), stage.grid.shape)
            blocks = main if name == "stage2" else main.reshape(1, 16, 2, 16, 2).max(axis=(2, 4))
            np.testing.assert_array_equal(weights, blocks)
            step = np.abs(expected).max() * (1e-2 if options.get("dtype") == "u8" else 2e-3)
            assert np.abs(values - expected)[:, weights.any(axis=0)].max() <= step
    both, offsets = store.level_cells_of([1, 0], "canvas")
    assert offsets.tolist() == [0, len(store.level_cells(1, "canvas")), len(both)]


def test_samples_are_the_maps_at_points_of_the_boxes(house: House) -> None:
    store, frames = house.store(), FrameStore(house.cache / "frames")
    seen = 0
    for row in range(len(store)):
        _, output = said(house, row)
        truth = frames.boxes_lidar(row)
        grid = store.further.level("canvas").grid
        expected, inside = sample_points(output.levels["canvas"][0].numpy(), grid, box_points(truth, "2x3"))
        found = store.samples(row, "samples(boxes=truth,level=canvas,points=2x3)")
        assert found.values.shape == (len(truth), 6, 8) and len(truth) > 0
        near(found.values, expected)
        np.testing.assert_array_equal(found.inside, inside)
        boxes = store.detections(row).boxes_lidar
        best = store.samples(row, "samples(boxes=teacher,limit=2)")
        assert len(boxes) > 3 and len(best.values) == 2 and len(store.read(row, "samples_teacher_9")) == 3
        near(best.values, sample_points(output.bev[0].numpy(), store.grid, box_points(boxes[:2], "9"))[0])
        seen += int(inside.sum())
    assert seen


def test_the_adaptor_makes_t_feat_of_the_stored_feature(house: House) -> None:
    store = house.store(encoding="dense", dtype="float32")
    adaptor = store.adaptor()
    for row in range(len(store)):
        model, output = said(house, row)
        stored = torch.from_numpy(store.read(row, "bev_map").copy())[None]
        weight, bias = torch.from_numpy(adaptor.weight), torch.from_numpy(adaptor.bias)
        found = F.conv2d(stored, weight, bias, padding=adaptor.padding).relu()
        with torch.inference_mode():
            expected = model.head.shared(output.bev)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_zarr_store_reads_as_the_webdataset_one(house: House) -> None:
    tar, zarr = house.store(), house.store(format="zarr")
    assert set(zarr.manifest.format.capacity) == {"K", "N", "A", "C", "S", "T"}
    counted = {letter: zarr.manifest.format.capacity[letter] for letter in ("K", "A", "C", "T")}
    fields = {"K": "bev_index", "A": "level_canvas_index", "C": "level_stage3_index", "T": "samples_truth_canvas_2x3"}
    assert counted == {letter: int(tar.lengths(range(len(tar)), field).max()) for letter, field in fields.items()}
    for row in range(len(tar)):
        for spec in tar.manifest.fields:
            np.testing.assert_array_equal(zarr.read(row, spec.name), tar.read(row, spec.name))
    for store in (tar, zarr):
        assert not verify(store.root)


@pytest.mark.parametrize(
    ("source", "options", "direct"),
    [
        ({}, {"format": "zarr"}, {"format": "zarr"}),
        ({"format": "zarr"}, {"format": "webdataset"}, {}),
        ({"dtype": "float32"}, {"dtype": "u8"}, {"dtype": "u8"}),
        ({"encoding": "dense"}, {"encoding": "cells"}, {}),
        ({"encoding": "dense"}, {"coverage": "footprint"}, {"encoding": "dense", "coverage": "footprint"}),
        (
            {"coverage": "gaussian+footprint"},
            {"coverage": "footprint", "format": "zarr"},
            {"coverage": "footprint", "format": "zarr"},
        ),
    ],
    ids=str,
)
def test_re_encoding_gives_the_bytes_of_caching_directly(house: House, source: Any, options: Any, direct: Any) -> None:
    name = Path(str(house.store(**source).root)).name
    shutil.rmtree(house.cache / "teachers" / "x", ignore_errors=True)
    wanted = ReencodeOptions(**options)
    capacity = house.store(**direct).manifest.format.capacity
    if capacity:
        wanted = ReencodeOptions(**options, capacity=capacity)
    reencode(house.cache, name, "x", options=wanted, workers=1)
    made = TeacherStore(house.cache / "teachers" / "x")
    assert house.files(made) == house.files(house.store(**direct))
    assert made.further.asked == house.store(**direct).further.asked and made.adaptor().weight.any()


def test_cells_of_a_level_that_are_not_stored_are_refused(house: House) -> None:
    name = Path(str(house.store().root)).name
    with pytest.raises(StoreError, match=r"asked for are missing"):
        reencode(house.cache, name, "never", options=ReencodeOptions(coverage="footprint(margin=5)"), workers=1)


def test_a_run_goes_on_under_the_same_list_only(house: House) -> None:
    store = house.store()
    name = Path(str(store.root)).name
    reordered = ",".join(
        reversed(["logits", "regression", "level(name=canvas)", "level(name=stage2)", "level(name=stage3)", "adaptor"])
    ) + (",samples(boxes=teacher,limit=3),samples(points=2x3,level=canvas)")
    assert house.write(name, reordered).digest == store.manifest.digest
    with pytest.raises(FingerprintError, match=r"header\.further"):
        house.write(name, "logits")
    with pytest.raises(FingerprintError, match=r"header"):
        house.write(name, "")


def test_without_a_list_header_and_fields_are_as_they_were(house: House) -> None:
    store = house.store("")
    assert not {"further", "adaptor", "modality"} & set(store.manifest.header)
    assert [spec.name for spec in store.manifest.fields] == [
        *("bev_index", "bev_values", "bev_weights", "boxes", "scores", "labels")
    ]
    assert store.further.asked.items == () and store.further.fields() == ()


def test_what_was_not_cached_is_refused_with_the_list_to_cache_with(house: House) -> None:
    store = house.store("logits")
    for call, item in (
        (lambda: store.regression(0), "regression"),
        (lambda: store.level_cells(0, "canvas"), r"level\(name=canvas\)"),
        (lambda: store.queries(0, 5), r"queries\(top=5\)"),
        (lambda: store.samples(0, "samples(boxes=teacher)"), r"samples\(boxes=teacher\)"),
        (lambda: store.depth(0), "depth"),
        (lambda: store.adaptor(), "adaptor"),
    ):
        with pytest.raises(StoreError, match=rf"holds no {item} .* run `cache-teacher --fields 'logits,{item}'` under"):
            call()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "depth",
            r"depth is not among what this teacher gives: logits,regression,level\(name=canvas\),.*adaptor; leave",
        ),
        ("queries(top=9)", r"queries\(top=9\) is not among what this teacher gives"),
        ("level(name=neck)", r"level\(name=neck\) is not among"),
        ("samples(level=neck)", r"samples\(level=neck\) is not among"),
        ("heat", "field 'heat' is unknown, expected one of logits"),
    ],
)
def test_what_a_teacher_does_not_give_is_refused_before_anything_is_written(
    house: House, fields: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"--fields.*{message}") as caught:
        house.write("never", fields)
    assert "\n" not in str(caught.value) and not (house.cache / "teachers" / "never").exists()


def test_a_teacher_of_other_classes_gives_no_logits(house: House, tmp_path: Path) -> None:
    few = tmp_path / "few.safetensors"
    torch.manual_seed(0)
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny", "head": {"tasks": [["car", "bus"]]}}), few)
    with pytest.raises(
        ConfigError, match=r"logits is not among .* whose heat is of 2 classes, without barrier, bicycle"
    ):
        house.write("never", "logits", weights=few)


def test_verify_live_compares_further_fields(house: House) -> None:
    store = house.store()
    name = Path(str(store.root)).name
    [check] = run_live(house.cache, name, 2, checkpoint=house.weights)
    assert check.held and check.identical == check.frames == 2 and check.worst == 0
    [other] = run_live(house.cache, Path(str(house.store(dtype="u8").root)).name, 1, checkpoint=house.weights)
    assert other.identical == 1


def test_a_forged_adaptor_is_found(house: House, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(Path(str(house.store().root)), tmp_path / "t"))
    assert not verify(copy)
    text = json.loads((copy / "manifest.json").read_text())
    assert text["header"]["adaptor"]["sha256"]
    text["header"]["adaptor"]["sha256"] = "0" * 64
    del text["digest"]
    (copy / "manifest.json").write_bytes(canonical_json(seal(text)))
    assert verify(copy)
    with pytest.raises(CorruptError, match=r"header\.adaptor: the sha256 of its values differs"):
        TeacherStore(copy).adaptor()


def test_stores_of_further_fields_are_merged_and_extended(simulated_root: Path, house: House, tmp_path: Path) -> None:
    """Two clusters' halves merged, and a store begun with one half, are what one run over both writes."""
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    for half in ("mini_val", "mini_train"):
        cache_frames(simulated_root, VERSION, tmp_path / half, split=half, options=options, workers=1)
        House(tmp_path / half, house.weights).write("t", LIDAR_FIELDS)
    merge_caches(tmp_path / "both", [tmp_path / "mini_val", tmp_path / "mini_train"])
    merged = TeacherStore(tmp_path / "both" / "teachers" / "t")
    assert len(merged) == 6 and merged.further.asked == house.store().further.asked
    for name in ("mini_val", "mini_train"):
        source = TeacherStore(tmp_path / name / "teachers" / "t")
        for row in range(len(source)):
            at = merged.row_of(source.token(row))
            np.testing.assert_array_equal(merged.logits(at), source.logits(row))
    fresh = House(tmp_path / "both", house.weights)
    fresh.write("fresh", LIDAR_FIELDS)
    assert house.files(TeacherStore(tmp_path / "both" / "teachers" / "fresh")) == house.files(merged)
    extend_frames(tmp_path / "mini_val", simulated_root, VERSION, split="mini_train", workers=1)
    [behind_now] = behind(tmp_path / "mini_val")
    assert f"--fields '{merged.further.asked}'" in behind_now.command
    House(tmp_path / "mini_val", house.weights).write("t", LIDAR_FIELDS)
    assert house.files(TeacherStore(tmp_path / "mini_val" / "teachers" / "t")) == house.files(merged)


def test_inspect_lists_the_fields_and_has_a_panel_for_each_map(house: House) -> None:
    store, frames = house.store(), FrameStore(house.cache / "frames")
    maps = {layer.name: layer for layer in map_layers(store, 0, frames.boxes_lidar(0))}
    assert list(maps)[:10] == [f"heat: {name}" for name in DETECTION_CLASSES] and len(maps) == 15
    heat, cells = maps["heat: car"].values, store.cells(0)
    assert heat is not None and (heat > 0).sum() == len(cells)
    row, col = divmod(int(cells.index[3]), store.grid.width)
    np.testing.assert_allclose(heat[row, col], 1 / (1 + np.exp(-float(store.logits(0)[3, 0]))), rtol=1e-5)
    level = maps["level canvas: mean |value|"]
    assert level.values is not None and level.values.shape == level.grid.shape == (128, 128)
    assert len(maps["samples teacher 9"].points) == int(store.samples(0, "samples(boxes=teacher,limit=3)").inside.sum())
    assert "samples truth canvas 2x3" in maps and len(map_layers(store, 0, None)) == 14
    assert any("further fields: logits,regression" in str(line) for line in describe(house.cache))


def test_views_are_averaged_for_levels_and_logits_too(house: House) -> None:
    store = house.store(tta="flips")
    plain = house.store()
    assert store.manifest.header["tta"] == "flips" and np.isfinite(store.logits(0).astype(np.float32)).all()
    spread = np.abs(plain.level_cells(0, "canvas").values).max()
    apart = np.abs(store.level_cells(0, "canvas").values - plain.level_cells(0, "canvas").values).max()
    assert 0 < apart < spread  # pillars of a mirrored cloud are other pillars, about the same
    with pytest.raises(ConfigError, match="adaptor is not among"):
        house.write("never", "adaptor", ensemble=(house.weights,))


def test_queries_are_the_best_of_the_last_layer_best_first(house: House) -> None:
    query = "tests.pipeline.query_teacher:build"
    house.write("query", "queries(top=3),adaptor,samples(boxes=teacher)", teacher=query)
    store, frames = TeacherStore(house.cache / "teachers" / "query"), FrameStore(house.cache / "frames")
    for row in range(len(store)):
        output = QueryTeacher()(Batch(points=[torch.from_numpy(frames.points(row).copy())]))
        logits, boxes = output.queries.logits[-1, 0].numpy(), output.queries.boxes[-1, 0].numpy()
        best = sorted(range(QUERIES), key=lambda q: -max(logits[q]))[:3]
        found = store.queries(row)
        np.testing.assert_array_equal(found.logits, logits[best].astype(np.float16))
        np.testing.assert_array_equal(found.boxes, boxes[best])
        assert len(store.queries(row, 2).boxes) == 2
    assert store.adaptor().padding == 0
    with pytest.raises(StoreError, match=r"holds no queries\(top=4\)"):
        store.queries(0, 4)
    [check] = run_live(house.cache, "query", 1, checkpoint=house.weights, callable=query)
    assert check.identical == 1
    house.write("queries", "queries", teacher=query)
    assert len(TeacherStore(house.cache / "teachers" / "queries").queries(0).boxes) == QUERIES
    with pytest.raises(ConfigError, match="regression is not among what this teacher gives: queries,samples"):
        house.write("never", "regression", teacher=query)
    with pytest.raises(ConfigError, match="it reads heatmaps, which this teacher does not give"):
        house.write("never", "", teacher=query, coverage="gaussian+confident")
    with pytest.raises(ConfigError, match="average maps, this teacher answers with queries"):
        house.write("never", "", teacher=query, tta="flips")
    assert not (house.cache / "teachers" / "never").exists()


@pytest.mark.parametrize("change", ["asked", "columns", "level", "channels", "adaptor"])
def test_a_header_that_does_not_fit_the_fields_is_told(house: House, change: str) -> None:
    store = house.store()
    header = dict(store.manifest.header)
    further = dict(header["further"])
    header["further"] = further
    if change == "asked":
        further["asked"] = "logits"
    elif change == "columns":
        further["regression"] = {**further["regression"], "columns": [[0, "center", 3]]}
    elif change == "level":
        further["levels"] = {"canvas": {**further["levels"]["canvas"], "channels": 10**7}}
    elif change == "channels":
        further["samples"] = {name: count + 1 for name, count in further["samples"].items()}
    else:
        del header["adaptor"]
    object.__setattr__(store.manifest, "header", header)
    with pytest.raises(CorruptError, match=r"header\.further.* the store is damaged, run verify"):
        _ = store.further


@pytest.fixture(scope="module")
def camera(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("camera") / "camera.safetensors"
    save_weights(build_detector(CAMERA), path)
    return path


def test_a_camera_teacher_is_cached_as_the_trainer_would_see_it(house: House, camera: Path) -> None:
    from trainer.augment import no_augment
    from trainer.batches import BatchBuilder, model_needs

    house.write("camera", "depth,level(name=splat),logits", weights=camera, coverage="gaussian+lidar+confident")
    store, frames = TeacherStore(house.cache / "teachers" / "camera"), FrameStore(house.cache / "frames")
    model = load_weights(camera)
    assert store.manifest.header["modality"] == "camera" and store.manifest.header["sweeps"] == 0
    bins = store.further.depth
    assert bins is not None and bins.stride == model.stride and bins.image_size == (128, 64)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(bins.edges_m, model.depth_edges.numpy())  # type: ignore[attr-defined]
    for row in range(len(store)):
        batch = BatchBuilder(frames, model_needs(model)).build([row], [no_augment(6)])[0]
        with torch.inference_mode():
            output = model(batch)
        assert output.depth_logits is not None
        near(store.depth(row), output.depth_logits.softmax(dim=1).numpy())
        values, weights = scatter_cells(store.cells(row), store.grid.shape)
        kept = weights.any(axis=0)
        near(values[:, kept], output.bev[0].numpy()[:, kept])
        assert weights[1].any() and "level_splat_index" not in store._fields
        near(store.level_cells(row, "splat").values, output.levels["splat"][0].numpy()[:, kept].T)
    [check] = run_live(house.cache, "camera", 1, checkpoint=camera)
    assert check.identical == 1
    assert not verify(store.root)


def test_what_a_camera_teacher_cannot_do_is_refused_in_one_line(house: House, camera: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"tta": "flips"}, "average LiDAR teachers, this one reads cameras"),
        ({"ensemble": (camera,)}, "average LiDAR teachers, this one reads cameras"),
        ({"sweeps": 3}, "--sweeps and --sweeps-after are for LiDAR teachers"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            house.write("never", "", weights=camera, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value) and not (house.cache / "teachers" / "never").exists()


def test_a_selector_of_points_needs_them_in_the_frame_store_of_a_camera_teacher(
    simulated_root: Path, camera: Path, tmp_path: Path
) -> None:
    options = FrameOptions(image_scale=0.1)
    cache_frames(simulated_root, VERSION, tmp_path, split="mini_val", options=options, workers=1)
    lean = House(tmp_path, camera)
    with pytest.raises(ConfigError, match=r"lidar.* reads points, which .* does not hold .* cache the frames with"):
        lean.write("t", "", coverage="gaussian+lidar")
    assert len(lean.store("depth").depth(0)) == 6  # and no data root is needed
