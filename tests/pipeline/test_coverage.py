"""A coverage's weights: one map a selector, a union that holds each part, nothing without its evidence."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.cells import gather_cells
from cache.coverage import Coverage
from cache.errors import ConfigError
from cache.grid import BevGrid
from cache.selectors import SELECTORS
from pipeline.coverage import Evidence, coverage_weights, reads_heat
from pipeline.selectors.confident import confident_mask
from pipeline.selectors.footprint import footprint_mask
from pipeline.selectors.occupied import occupied_mask
from pipeline.selectors.view import view_mask
from tests.pipeline.selectors.scenes import GRID, SQUARE, random_boxes, some_camera, turned, turned_map

UNIT = BevGrid(-8, 8, -8, 8, 1.0)
BOX = np.array([[0.3, 0.2, 0, 1, 1, 1, 0, 0, 0]], np.float32)
REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = hashlib.md5(b"a frame").hexdigest()
DIGEST = """
import hashlib
import math
from tests.pipeline.test_coverage import some_evidence, weights
for row in weights("dense+random(cells=50,seed=5)+footprint+confident+lidar+gaussian", some_evidence(3)):
    print(hashlib.sha256(row.tobytes()).hexdigest())
"""


def weights(text: str, evidence: Evidence, grid: BevGrid = GRID) -> np.ndarray:
    return coverage_weights(Coverage.parse(text), evidence, grid)


def some_evidence(seed: int, grid: BevGrid = GRID, boxes: int = 6) -> Evidence:
    rng = np.random.default_rng(seed)
    heat = rng.uniform(0, 1, (4, *grid.shape)).astype(np.float32) ** 40
    cloud = rng.normal(0, 3, (300, 5)).astype(np.float32)
    cloud[:, 4] = 0
    return Evidence(
        TOKEN,
        random_boxes(rng, boxes, reach=6),
        heat,
        cloud,
        labels=np.arange(boxes) % 3,
        classes=("car", "person", "cone"),
        cameras=(some_camera(0.0), some_camera(2.0, channel="CAM_BACK")),
    )


def test_the_literal_gaussian_of_a_small_object_is_its_centre_and_eight_neighbours() -> None:
    found = weights("gaussian(dilate=0)", Evidence(TOKEN, BOX), UNIT)
    rows, cols = np.nonzero(found[0])
    assert sorted(zip(rows.tolist(), cols.tolist(), strict=True)) == [(r, c) for r in (7, 8, 9) for c in (7, 8, 9)]
    assert found[0, 8, 8] == 1 and found[0, 8, 9] == pytest.approx(np.exp(-2), rel=1e-5)


def test_dilation_adds_a_ring_of_cells_and_is_the_default_on_coarse_cells() -> None:
    assert (weights("gaussian(dilate=1)", Evidence(TOKEN, BOX), UNIT)[0] > 0).sum() == 25
    coarse = BevGrid(-16, 16, -16, 16, 1.6)
    assert (weights("gaussian", Evidence(TOKEN, BOX), coarse)[0] > 0).sum() == 25
    assert (weights("gaussian", Evidence(TOKEN, BOX), UNIT)[0] > 0).sum() == 9


def test_each_column_is_what_its_selector_alone_gives() -> None:
    evidence = some_evidence(1)
    assert evidence.boxes_lidar is not None and evidence.heat is not None and evidence.cloud is not None
    found = weights(
        "lidar(points=2)+gaussian+dense+confident(threshold=0.3)+footprint(margin=0.25)+random(cells=9)", evidence
    )
    assert found.shape == (6, *GRID.shape) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0], occupied_mask(evidence.cloud, GRID, 2))
    np.testing.assert_array_equal(found[1], weights("gaussian", evidence)[0])
    np.testing.assert_array_equal(found[2], np.ones(GRID.shape))
    np.testing.assert_array_equal(found[3], confident_mask(evidence.heat, GRID, 0.3))
    np.testing.assert_array_equal(found[4], footprint_mask(evidence.boxes_lidar, GRID, 0.25))
    assert found[5].sum() == 9


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(list(SELECTORS)), min_size=1, unique=True), st.integers(0, 99))
def test_stored_cells_hold_each_selectors_cells_with_its_weights(names: list[str], seed: int) -> None:
    coverage, evidence = Coverage.parse("+".join(names)), some_evidence(seed)
    found = coverage_weights(coverage, evidence, GRID)
    bev = np.random.default_rng(seed).normal(size=(2, *GRID.shape)).astype(np.float32)
    cells = gather_cells(bev, found)
    assert len(cells) == (found > 0).any(axis=0).sum() and (cells.index < GRID.height * GRID.width).all()
    for column, name in enumerate(coverage.names):
        kept = cells.index[cells.weights[:, column] > 0]
        np.testing.assert_array_equal(kept, np.flatnonzero(found[column]), err_msg=name)


def test_random_draws_from_what_the_others_leave_wherever_it_stands() -> None:
    evidence = some_evidence(2)
    last = weights("gaussian+footprint+confident+lidar+random(cells=60,seed=1)", evidence)
    first = weights("random(cells=60,seed=1)+gaussian+footprint+confident+lidar", evidence)
    np.testing.assert_array_equal(first[0], last[4])
    assert last[4].sum() == 60 and not (last[4] * last[:4].sum(axis=0)).any()


def test_dense_changes_no_other_column() -> None:
    evidence = some_evidence(3)
    without = weights("gaussian+random(cells=30)", evidence)
    np.testing.assert_array_equal(weights("dense+gaussian+random(cells=30)", evidence)[1:], without)


def test_without_annotations_maps_of_boxes_are_empty_and_the_others_are_not() -> None:
    known = some_evidence(4)
    found = weights(
        "gaussian+footprint+confident+lidar+random(cells=5)+dense", Evidence(TOKEN, None, known.heat, known.cloud)
    )
    assert [bool(part.any()) for part in found] == [False, False, True, True, True, True]
    np.testing.assert_array_equal(found[2:4], weights("confident+lidar", known))


def test_a_frame_without_objects_has_no_foreground() -> None:
    assert not weights("gaussian+footprint", Evidence(TOKEN, np.zeros((0, 9), np.float32))).any()


def test_boxes_with_nan_add_nothing() -> None:
    evidence = some_evidence(5)
    assert evidence.boxes_lidar is not None
    more = np.concatenate([evidence.boxes_lidar, np.full((2, 9), np.nan, np.float32)])
    np.testing.assert_array_equal(
        weights("gaussian+footprint", Evidence(TOKEN, more)), weights("gaussian+footprint", evidence)
    )


def test_a_quarter_turn_of_the_scene_turns_every_map() -> None:
    scene = some_evidence(6, SQUARE)
    assert scene.boxes_lidar is not None and scene.heat is not None and scene.cloud is not None
    scene.boxes_lidar[:, 3] = scene.boxes_lidar[:, 4] + 0.3
    cloud = scene.cloud.copy()
    cloud[:, 0], cloud[:, 1] = -scene.cloud[:, 1], scene.cloud[:, 0]
    after = Evidence(TOKEN, turned(scene.boxes_lidar), turned_map(scene.heat), cloud)
    text = "gaussian+footprint+confident+lidar+dense"
    np.testing.assert_array_equal(weights(text, after, SQUARE), turned_map(weights(text, scene, SQUARE)))


def test_another_process_computes_the_same_bytes() -> None:
    text = "dense+random(cells=50,seed=5)+footprint+confident+lidar+gaussian"
    here = [hashlib.sha256(row.tobytes()).hexdigest() for row in weights(text, some_evidence(3))]
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={"PYTHONHASHSEED": "5", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == here


def test_missing_evidence_is_named() -> None:
    with pytest.raises(ConfigError, match="confident reads the teacher's heatmaps"):
        weights("confident", Evidence(TOKEN, BOX))
    with pytest.raises(ConfigError, match="topk reads the teacher's heatmaps"):
        weights("gaussian*topk", Evidence(TOKEN, BOX))
    with pytest.raises(ConfigError, match="lidar reads the frame's points"):
        weights("lidar", Evidence(TOKEN, BOX))
    with pytest.raises(ConfigError, match="camera is any, the frame's cameras are none"):
        weights("view", Evidence(TOKEN, BOX))
    assert reads_heat(Coverage.parse("lidar*topk"))
    assert reads_heat(Coverage.parse("dense+confident")) and not reads_heat(Coverage.parse("dense+lidar"))


def slow_gaussian(boxes: np.ndarray, grid: BevGrid, overlap: float, min_radius: int, dilate: int) -> np.ndarray:
    """Cell by cell in float64, CornerNet's radius by its three quadratics."""
    out = np.zeros(grid.shape)
    for box in boxes.astype(float):
        col, row = (math.floor((box[i] - low) / grid.cell_m) for i, low in ((0, grid.x_min), (1, grid.y_min)))
        if not (0 <= row < grid.height and 0 <= col < grid.width):
            continue
        l, w = box[3] / grid.cell_m, box[4] / grid.cell_m
        roots = [
            (b + math.sqrt(b * b - 4 * a * c)) / 2
            for a, b, c in (
                (1, l + w, l * w * (1 - overlap) / (1 + overlap)),
                (4, 2 * (l + w), (1 - overlap) * l * w),
                (4 * overlap, -2 * overlap * (l + w), (overlap - 1) * l * w),
            )
        ]
        radius = max(int(min(roots)), min_radius) + dilate
        sigma = (2 * radius + 1) / 6
        for r in range(max(0, row - radius), min(grid.height, row + radius + 1)):
            for c in range(max(0, col - radius), min(grid.width, col + radius + 1)):
                value = math.exp(-((r - row) ** 2 + (c - col) ** 2) / (2 * sigma**2))
                out[r, c] = max(out[r, c], value)
    return out


@pytest.mark.parametrize(("overlap", "min_radius", "dilate"), [(0.1, 1, 0), (0.7, 1, 0), (0.1, 2, 0), (0.5, 4, 1)])
def test_the_gaussian_equals_the_loop_under_all_its_options(overlap: float, min_radius: int, dilate: int) -> None:
    boxes = random_boxes(np.random.default_rng(10), 12)
    text = f"gaussian(overlap={overlap},min_radius={min_radius},dilate={dilate})"
    found = weights(text, Evidence(TOKEN, boxes))[0]
    np.testing.assert_allclose(found, slow_gaussian(boxes, GRID, overlap, min_radius, dilate), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["gaussian", "footprint"])
def test_classes_choose_the_boxes(kind: str) -> None:
    evidence = some_evidence(11)
    assert evidence.boxes_lidar is not None
    found = weights(f"{kind}+{kind}(classes=car)+{kind}(classes=cone|person)", evidence)
    for column, labels in ((1, [0]), (2, [1, 2])):
        chosen = evidence.boxes_lidar[[i for i in range(6) if i % 3 in labels]]
        np.testing.assert_array_equal(found[column], weights(kind, Evidence(TOKEN, chosen))[0])
    np.testing.assert_array_equal(found[0], found[1:].max(axis=0))
    assert not (found[1] == found[0]).all() and found[1].any()
    with pytest.raises(ConfigError, match=r"classes is bus\|car, the frames' classes are car, person, cone"):
        weights(f"{kind}(classes=car|bus)", evidence)
    assert not weights(f"{kind}(classes=car)", Evidence(TOKEN)).any()  # a frame without annotations


def test_a_product_has_each_cells_weights_multiplied_whichever_way_it_is_written() -> None:
    evidence = some_evidence(12)
    found = weights("gaussian+confident(threshold=0.2)+lidar+gaussian*confident(threshold=0.2)*lidar", evidence)
    for row in range(GRID.height):
        for col in range(GRID.width):
            a, b, c, product = (float(value) for value in found[:, row, col])
            assert product == pytest.approx(a * b * c, rel=1e-6)
    assert 0 < (found[3] > 0).sum() < (found[1] > 0).sum()
    turned_round = weights("lidar*gaussian*confident(threshold=0.2)", evidence)
    assert turned_round.tobytes() == found[3:].tobytes()


def test_sparsekds_default_weight_is_a_product() -> None:
    """w = (max_c p_T) (max_c G): overlap 0.1, smallest radius 2, threshold 0."""
    evidence = some_evidence(13)
    assert evidence.heat is not None and evidence.boxes_lidar is not None
    found = weights("confident(threshold=0)*gaussian(min_radius=2,dilate=0)", evidence)[0]
    expected = evidence.heat.max(axis=0) * slow_gaussian(evidence.boxes_lidar, GRID, 0.1, 2, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_lgkds_masks_are_products_of_lidar_and_each_camera() -> None:
    evidence = some_evidence(14)
    found = weights("lidar+lidar*view(camera=CAM_FRONT)+view(camera=CAM_BACK)*lidar+view*lidar", evidence)
    for column, cameras in ((1, evidence.cameras[:1]), (2, evidence.cameras[1:]), (3, evidence.cameras)):
        np.testing.assert_array_equal(found[column], found[0] * view_mask(cameras, GRID))
        assert 0 < found[column].sum() < found[0].sum()
    with pytest.raises(ConfigError, match="camera is CAM_LEFT, the frame's cameras are CAM_FRONT, CAM_BACK"):
        weights("view(camera=CAM_LEFT)", evidence)


def test_random_draws_from_what_products_leave() -> None:
    evidence = some_evidence(15)
    found = weights("random(cells=700)+gaussian*confident", evidence)
    assert found[0].sum() == 700 and not (found[0] * found[1]).any() and found[1].any()


def test_the_ground_is_left_out_by_height_or_by_class() -> None:
    rng = np.random.default_rng(16)
    cloud = np.c_[rng.uniform(-10, 10, (900, 2)), np.full(900, -1.8), np.zeros((900, 2))]
    cloud[600:, 2] += 1.0
    evidence = Evidence(TOKEN, cloud=cloud)
    np.testing.assert_array_equal(weights("lidar(ground=0.2)", evidence)[0], occupied_mask(cloud[600:], GRID))
    np.testing.assert_array_equal(weights("lidar", evidence)[0], occupied_mask(cloud, GRID))
    known = Evidence(TOKEN, cloud=cloud, lidarseg=np.full(900, 17, np.uint8))
    np.testing.assert_array_equal(weights("lidar(ground=0.2)", known)[0], occupied_mask(cloud, GRID))
