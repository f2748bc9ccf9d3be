"""The audit: small worlds counted by hand, a slow reference on random ones, simulated stores, the real keyframe."""

from __future__ import annotations

import cmath
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from rich.console import Console

from cache.cells import scatter_cells
from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, CorruptError, FingerprintError
from cache.frame import Detections, GroundTruth, Pose
from cache.grid import BevGrid
from cache.store import FrameStore, TeacherStore
from evaluation.audit import (
    BANDS,
    BORDER_M,
    CLASS_RANGE_M,
    MATCH_M,
    MEASURES,
    Audit,
    AuditedFrame,
    Setting,
    audit_frame,
    audit_store,
    footprint_cells,
)
from evaluation.audit_table import audit_tables, percent
from evaluation.boxes import truth_to_canonical
from evaluation.draw import draw_audit
from evaluation.official import CONFIG, _filtered, _StoredTables, _truth_boxes, evaluate
from evaluation.submission import submission_results
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher
from tests.evaluation.worlds import made_up_frame, made_up_truth, noisy_detections
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

VERSION = "v1.0-mini"
GRID = BevGrid(-8.0, 8.0, -8.0, 8.0, 1.0)
SETTING = Setting(GRID, ("one", "two"))
CAR, PEDESTRIAN, CONE = (DETECTION_CLASSES.index(name) for name in ("car", "pedestrian", "traffic_cone"))


# a world to count by hand: the car stands at (100, 200) of the map, and the canonical frame is the map's, moved there

Box = tuple[int, float, float, float, float]  # class, x, y, length, width; yaw 0


def world(
    boxes: Sequence[Box],
    said: Sequence[tuple[int, float, float, float]] = (),
    cells: Sequence[tuple[float, float]] = (),
    *,
    lidar: int = 5,
    radar: int = 0,
    racks: Sequence[tuple[float, float, float]] = (),
) -> AuditedFrame:
    """said: class, x, y, score; cells: a place in each, held by the first column; racks: x, y, side."""
    origin = np.array([100.0, 200.0, 0.0])
    upright = np.array([1.0, 0.0, 0.0, 0.0])
    frame = dataclasses.replace(
        made_up_frame(np.random.default_rng(0), 1),
        ego_to_global=Pose(origin, upright),
        lidar_to_ego=Pose(np.zeros(3), upright),
    )
    rows = np.array([[100 + x, 200 + y, 0, w, n, 1, 1, 0, 0, 0, 0, 0] for _, x, y, n, w in boxes]).reshape(-1, 12)
    count = np.full(len(boxes), 1, np.int32)
    truth = GroundTruth(
        rows,
        np.array([label for label, *_ in boxes], np.int32),
        -count,
        lidar * count,
        radar * count,
        count,
        np.array([[100 + x, 200 + y, 0, side, side, 2, 1, 0, 0, 0] for x, y, side in racks]).reshape(-1, 10),
    )
    detections = Detections(
        np.array([[x, y, 0, 4, 2, 1, 0, 0, 0] for _, x, y, _ in said], np.float32).reshape(-1, 9),
        np.array([score for *_, score in said], np.float32),
        np.array([label for label, *_ in said], np.int32),
    )
    index = np.array(sorted(int(np.floor(y + 8)) * 16 + int(np.floor(x + 8)) for x, y in cells), np.int32)
    weights = np.tile(np.array([0.5, 0.0], np.float32), (len(index), 1))
    return AuditedFrame(frame, truth, truth_to_canonical(frame, truth)[0], detections, index, weights)


def totals(given: AuditedFrame, setting: Setting = SETTING) -> dict[str, int]:
    return audit_frame(given, setting).totals()


def test_a_box_half_outside_the_grid_has_the_cells_on_it_and_one_farther_out_has_none() -> None:
    half, gone = (CAR, 9.0, 0.0, 4.0, 2.0), (CAR, 12.0, 0.0, 4.0, 2.0)
    given = world([half, gone], cells=[(7.5, 0.5)])
    box, cell = footprint_cells(given.boxes_lidar, GRID)
    assert box.tolist() == [0, 0] and cell.tolist() == [7 * 16 + 15, 8 * 16 + 15]
    found = totals(given)
    assert (found["counted"], found["outside_grid"], found["with_cells"]) == (2, 1, 1)
    assert totals(world([half, gone], cells=[(6.5, 0.5)]))["with_cells"] == 0


def test_two_boxes_and_one_detection_support_the_nearer_box_alone() -> None:
    found = audit_frame(world([(CAR, 1.5, 0, 4, 2), (CAR, -1.0, 0, 4, 2)], [(CAR, 0, 0, 0.9)]), SETTING)
    assert found.totals()["supported"] == 1 and found.totals()["unmatched"] == 0
    assert found.totals()["without_support"] == 1


def test_a_second_detection_takes_the_next_free_box_and_a_third_finds_nothing() -> None:
    boxes: list[Box] = [(CAR, 0.0, 0, 4, 2), (CAR, 1.5, 0, 4, 2)]
    said = [(CAR, 0.1, 0.0, score) for score in (0.9, 0.8, 0.7)]
    found = totals(world(boxes, said))
    assert (found["supported"], found["detections"], found["unmatched"]) == (2, 3, 1)


def test_the_better_score_goes_first_though_it_stands_later() -> None:
    # the worse one reaches both boxes, the better one only the first: in the order given both would not be found
    boxes: list[Box] = [(CAR, 0.0, 0, 4, 2), (CAR, 2.5, 0, 4, 2)]
    said = [(CAR, 1.0, 0.0, 0.3), (CAR, -0.5, 0.0, 0.8)]
    assert totals(world(boxes, said))["supported"] == 2
    assert totals(world(boxes, [(*one[:3], 1.1 - one[3]) for one in said]))["supported"] == 1


def test_of_equal_scores_the_later_goes_first_as_the_devkit_sorts() -> None:
    boxes: list[Box] = [(CAR, 0.0, 0, 4, 2), (CAR, 2.5, 0, 4, 2)]
    both, first = (CAR, 1.0, 0.0, 0.5), (CAR, -0.5, 0.0, 0.5)
    for said, supported in (([both, first], 2), ([first, both], 1)):
        given = world(boxes, said)
        assert totals(given)["supported"] == slow_audit([given], SETTING).totals()["supported"] == supported


@pytest.mark.parametrize(
    ("said", "supported"),
    [
        ((CAR, 1.99, 0, 0.5), 1),
        ((CAR, 2.0, 0, 0.5), 0),
        ((PEDESTRIAN, 0, 0, 0.5), 0),
        ((CAR, 0, 0, 0.1), 1),
        ((CAR, 0, 0, 0.0999), 0),
    ],
)
def test_support_asks_for_the_class_the_score_and_less_than_two_metres(
    said: tuple[int, float, float, float], supported: int
) -> None:
    assert totals(world([(CAR, 0, 0, 4, 2)], [said]))["supported"] == supported


def test_a_cone_smaller_than_a_cell_has_the_cell_that_holds_it() -> None:
    cone = (CONE, 0.2, 0.2, 0.3, 0.3)
    assert totals(world([cone], cells=[(0.5, 0.5)]))["with_cells"] == 1
    assert totals(world([cone], cells=[(1.5, 0.5), (-0.5, 0.5), (0.5, -0.5)]))["with_cells"] == 0
    assert totals(world([cone]))["outside_grid"] == 0


def test_cells_of_weight_zero_and_columns_are_told_apart() -> None:
    given = world([(CAR, 0.5, 0.5, 1, 1)], cells=[(0.5, 0.5), (1.5, 0.5), (2.5, 0.5)])
    weights = np.array([[0, 0], [0, 1], [0.5, 1]], np.float32)  # of the cells at x = 0.5, 1.5, 2.5
    found = audit_frame(dataclasses.replace(given, weights=weights), SETTING)
    assert found.totals()["with_cells"] == 0
    assert found.cells.tolist() == [[2, 1, 2], [0, 0, 0]] and found.in_boxes.tolist() == [0, 0, 0]
    weights[0, 0] = 0.1
    found = audit_frame(dataclasses.replace(given, weights=weights), SETTING)
    none = audit_frame(dataclasses.replace(given, weights=np.zeros((3, 2), np.float32)), SETTING)
    assert found.without_cells.tolist() == [0, 0] and none.without_cells.tolist() == [1, 0]
    assert found.totals()["with_cells"] == 1 and found.in_boxes.tolist() == [1, 1, 0]
    assert found.cell_shares() == [("any", 3.0, 1 / 3), ("one", 2.0, 0.5), ("two", 2.0, 0.0)]


def test_an_empty_frame_counts_as_a_frame_without_cells() -> None:
    found = audit_frame(world([]), SETTING)
    assert not found.objects.any() and not found.cells.any()
    assert found.frames.tolist() == found.without_cells.tolist() == [1, 0]
    assert found.cell_shares()[0] == ("any", 0.0, None)


def test_a_frame_without_annotations_tells_of_its_cells_alone() -> None:
    given = world([(CAR, 0, 0, 4, 2)], [(CAR, 0, 0, 0.9)], cells=[(0.5, 0.5)])
    found = audit_frame(dataclasses.replace(given, truth=None, boxes_lidar=None), SETTING)
    assert not found.objects.any() and found.frames.tolist() == [0, 1] and found.without_cells.tolist() == [0, 0]
    assert found.cells.tolist() == [[0, 0, 0], [1, 1, 0]]
    assert "classes" not in found.to_dict() and found.to_dict()["cells"]["any"] == {"per_frame": 1.0, "in_boxes": None}


@pytest.mark.parametrize(
    ("label", "x", "band", "counted"),
    [
        (CAR, 9.99, "0-10", 1),
        (CAR, 10.0, "10-20", 1),
        (CAR, 49.99, "40-50", 1),
        (CAR, 50.0, "50+", 0),
        (PEDESTRIAN, 39.99, "30-40", 1),
        (PEDESTRIAN, 40.0, "40-50", 0),
        (CONE, 29.99, "20-30", 1),
        (CONE, 30.0, "30-40", 0),
    ],
)
def test_bands_and_ranges_are_of_the_distance_from_the_car(label: int, x: float, band: str, counted: int) -> None:
    found = audit_frame(world([(label, 0, -x, 1, 1)], [(label, 0, -x, 0.9)]), SETTING)
    place = label, BANDS.index(band)
    assert found.of("annotated")[place] == 1 and found.of("annotated").sum() == 1
    assert found.of("counted")[place] == found.of("supported")[place] == found.totals()["counted"] == counted
    assert found.totals()["detections"] == counted


def test_a_box_that_only_the_radar_saw_counts_and_one_that_nobody_saw_does_not() -> None:
    box: Box = (CAR, 0, 0, 4, 2)
    for lidar, radar, expected in ((5, 0, (1, 0)), (0, 2, (1, 1)), (0, 0, (0, 0))):
        found = totals(world([box], lidar=lidar, radar=radar))
        assert (found["counted"], found["no_lidar"]) == expected


def test_cycles_in_a_rack_do_not_count_on_either_side() -> None:
    bicycle = DETECTION_CLASSES.index("bicycle")
    found = totals(
        world([(bicycle, 0, 0, 1, 1), (CAR, 0, 0, 4, 2)], [(bicycle, 1.4, 0, 0.5), (CAR, 0, 0, 0.5)], racks=[(0, 0, 3)])
    )
    assert (found["annotated"], found["counted"], found["detections"], found["unmatched"]) == (2, 1, 1, 0)
    assert totals(world([], [(bicycle, 1.6, 0, 0.5)], racks=[(0, 0, 3)]))["unmatched"] == 1


def test_ranges_and_the_match_are_the_metrics_own() -> None:
    config = config_factory(CONFIG)
    assert config.class_range == CLASS_RANGE_M and config.dist_th_tp == MATCH_M


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_outside_0_to_1_is_refused(score: float) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        Setting(GRID, ("one",), score)


def test_audits_of_two_settings_do_not_add_up() -> None:
    with pytest.raises(ConfigError, match="do not add up"):
        Audit.empty(SETTING) + Audit.empty(Setting(GRID, ("one", "two"), 0.5))


# against loops that follow the devkit's lines


def slow_audit(given: Sequence[AuditedFrame], setting: Setting) -> Audit:
    """The same counts: the devkit's own filters, its matching over all frames at once, every cell against every box."""
    frames, truth = [one.frame for one in given], [one.truth for one in given if one.truth is not None]
    out = Audit.empty(setting)
    config, tables = config_factory(CONFIG), _StoredTables(frames, truth)
    all_truth = _truth_boxes(frames, truth)
    listed = {frame.token: list(all_truth[frame.token]) for frame in frames}
    said = {one.frame.token: one.detections.above(setting.score) for one in given}
    truth_boxes, _ = _filtered(tables, all_truth, config)
    results = EvalBoxes.deserialize(submission_results(frames, said), DetectionBox)
    predicted, _ = _filtered(tables, results, config)

    def add(measure: str, box: DetectionBox) -> None:
        band = sum(box.ego_dist >= edge for edge in (10, 20, 30, 40, 50))
        out.objects[MEASURES.index(measure), DETECTION_CLASSES.index(box.detection_name), band] += 1

    taken: set[int] = set()
    ordered = sorted(((box.detection_score, i) for i, box in enumerate(predicted.all)), reverse=True)
    for _, i in ordered:
        box = predicted.all[i]
        add("detections", box)
        best, nearest = None, np.inf
        for other in truth_boxes[box.sample_token]:
            away = float(np.hypot(*np.subtract(other.translation, box.translation)[:2]))
            if other.detection_name == box.detection_name and id(other) not in taken and away < nearest:
                best, nearest = other, away
        if best is not None and nearest < 2.0:
            taken.add(id(best))
            add("supported", best)
        else:
            add("unmatched", box)
    for one in given:
        assert one.truth is not None and one.boxes_lidar is not None
        counted = {id(box) for box in truth_boxes[one.frame.token]}
        weights = dict(zip(one.index.tolist(), one.weights.tolist(), strict=True))
        held = [slow_footprint(box, setting.grid) for box in one.boxes_lidar.tolist()]
        for i, box in enumerate(listed[one.frame.token]):
            add("annotated", box)
            if id(box) not in counted:
                continue
            add("counted", box)
            if any(any(weights.get(cell, [0])) for cell in held[i]):
                add("with_cells", box)
            if not held[i]:
                add("outside_grid", box)
            if one.truth.num_lidar_pts[i] == 0:
                add("no_lidar", box)
        under = {cell for cells in held for cell in cells}
        out.frames[0] += 1
        out.without_cells[0] += not any(any(row) for row in weights.values())
        for cell, row in weights.items():
            for column, weight in enumerate([max(row), *row]):
                out.cells[0, column] += weight > 0
                out.in_boxes[column] += weight > 0 and cell in under
    return out


def slow_footprint(box: Sequence[float], grid: BevGrid) -> set[int]:
    x, y, _, length, width, _, yaw = box[:7]
    out = set()
    for number, centre in enumerate(grid.centres().reshape(-1, 2).tolist()):
        local = (complex(*centre) - complex(x, y)) * cmath.exp(-1j * yaw)
        inside = abs(local.real) <= length / 2 + BORDER_M and abs(local.imag) <= width / 2 + BORDER_M
        half = grid.cell_m / 2
        own = -half < centre[0] - x <= half and -half < centre[1] - y <= half
        if inside or own:
            out.add(number)
    return out


def random_frame(random: np.random.Generator, number: int, grid: BevGrid) -> AuditedFrame:
    frame = made_up_frame(random, number)
    truth = made_up_truth(random, frame, boxes=30)
    seen = np.where(random.random(30) < 0.2, 0, truth.num_lidar_pts).astype(np.int32)
    truth = dataclasses.replace(truth, num_lidar_pts=seen, num_radar_pts=random.integers(0, 2, 30).astype(np.int32))
    index = np.flatnonzero(random.random(grid.height * grid.width) < 0.15).astype(np.int32)
    weights = random.random((len(index), 2), np.float32) * (random.random((len(index), 2)) < 0.6)
    boxes, _ = truth_to_canonical(frame, truth)
    return AuditedFrame(frame, truth, boxes, noisy_detections(random, frame, truth), index, weights.astype(np.float32))


def assert_equal(ours: Audit, theirs: Audit) -> None:
    for name in ("objects", "frames", "without_cells", "cells", "in_boxes"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize(
    ("grid", "score", "seed"),
    [
        (BevGrid(-51.2, 51.2, -51.2, 51.2, 3.2), 0.1, 40),
        (BevGrid(-16.0, 16.0, -8.0, 16.0, 0.8), 0.5, 41),
        (BevGrid(-30.0, 30.0, -30.0, 30.0, 6.0), 0.0, 42),
    ],
)
def test_the_audit_equals_the_slow_one_on_random_worlds(grid: BevGrid, score: float, seed: int) -> None:
    print("seed", seed)
    random = np.random.default_rng(seed)
    setting = Setting(grid, ("one", "two"), score)
    given = [random_frame(random, number, grid) for number in range(3)]
    ours = Audit.empty(setting)
    for one in given:
        ours += audit_frame(one, setting)
    assert_equal(ours, slow_audit(given, setting))
    found = ours.totals()
    assert found["counted"] < found["annotated"] and found["no_lidar"] and found["supported"] and found["unmatched"]
    assert found["without_support"] == found["counted"] - found["supported"]
    assert 0 < found["with_cells"] <= found["counted"] - found["outside_grid"]


# stores


@pytest.fixture(scope="module")
def stores(simulated_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One teacher twice beside a frame store: cells as WebDataset, and whole maps as Zarr."""
    cache = tmp_path_factory.mktemp("cache")
    cache_frames(simulated_root, VERSION, cache, options=FrameOptions(image_scale=0.1, points=True), workers=1)
    for name, options in (
        ("cells", TeacherOptions("gaussian+random(cells=50)")),
        ("dense", TeacherOptions("gaussian+random(cells=50)+dense", encoding="dense", format="zarr")),
    ):
        cache_teacher(cache, name, teacher="own", checkpoint=weights, options=options, workers=1)
    return cache


def opened(cache: Path, name: str) -> tuple[FrameStore, TeacherStore, list[int]]:
    frames = FrameStore(cache / "frames")
    return frames, TeacherStore(cache / "teachers" / name), list(range(len(frames)))


def read(frames: FrameStore, teacher: TeacherStore, rows: Sequence[int]) -> list[AuditedFrame]:
    """The same frames by way of dense maps."""
    out = []
    for row in rows:
        other = teacher.row_of(frames.token(row))
        maps = scatter_cells(teacher.cells(other), teacher.grid.shape)[1].reshape(len(teacher.selectors), -1)
        index = np.flatnonzero(maps.any(axis=0))
        said = frames.frame(row), frames.truth(row), frames.boxes_lidar(row), teacher.detections(other)
        out.append(AuditedFrame(*said, index, maps[:, index].T))
    return out


@pytest.mark.parametrize("name", ["cells", "dense"])
def test_the_audit_of_simulated_stores_equals_the_slow_one(stores: Path, name: str) -> None:
    frames, teacher, rows = opened(stores, name)
    ours = audit_store(frames, teacher, rows)
    assert_equal(ours, slow_audit(read(frames, teacher, rows), ours.setting))
    assert ours.frames.tolist() == [6, 0] and ours.totals()["counted"] > 50
    assert name != "dense" or ours.cells[0].tolist()[0] == 6 * teacher.bev.height * teacher.bev.width


def test_both_formats_and_layouts_say_the_same_of_the_columns_they_share(stores: Path) -> None:
    one, other = (audit_store(*opened(stores, name)) for name in ("cells", "dense"))
    without_cells = [i for i, measure in enumerate(MEASURES) if measure != "with_cells"]
    np.testing.assert_array_equal(one.objects[without_cells], other.objects[without_cells])
    np.testing.assert_array_equal(one.cells[0, 1:], other.cells[0, 1:3])
    np.testing.assert_array_equal(one.in_boxes[1:], other.in_boxes[1:3])


def test_it_counts_what_the_metric_counts(stores: Path) -> None:
    frames, teacher, rows = opened(stores, "cells")
    ours = audit_store(frames, teacher, rows, 0.0).totals()
    detections = {frames.token(row): teacher.detections(teacher.row_of(frames.token(row))) for row in rows}
    metric = evaluate([frames.frame(row) for row in rows], [frames.truth(row) for row in rows], detections)
    assert (ours["annotated"], ours["counted"]) == (metric.truth_counts.given, metric.truth_counts.outside_racks)
    assert ours["detections"] == metric.detection_counts.outside_racks
    assert ours["unmatched"] == ours["detections"] - ours["supported"]


def test_a_store_of_other_frames_is_refused(stores: Path) -> None:
    frames, _, rows = opened(stores, "cells")
    other = TeacherStore(Path(__file__).parents[1] / "golden" / "v1" / "teachers" / "cells-fp16")
    with pytest.raises(FingerprintError, match="cache the teacher again on these frames"):
        audit_store(frames, other, rows)


def test_a_cell_off_the_grid_is_a_damaged_store(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, teacher, rows = opened(stores, "cells")
    beyond = np.array([0, teacher.bev.height * teacher.bev.width], np.int32), np.ones((2, 2), np.float32)
    monkeypatch.setattr(TeacherStore, "read_many", lambda *_: beyond)
    with pytest.raises(CorruptError, match=rf"cells 0\.\.{beyond[0][1]}, expected 0\.\.{beyond[0][1] - 1}; cache"):
        audit_store(frames, teacher, rows)


@needs_real_data
def test_the_real_keyframe_is_audited(weights: Path, tmp_path: Path) -> None:
    cache_frames(REAL_ROOT, VERSION, tmp_path, options=FrameOptions(image_scale=0.1), workers=1)
    options = TeacherOptions("gaussian", sweeps=0)
    cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, data_root=REAL_ROOT, options=options, workers=1)
    frames, teacher, rows = opened(tmp_path, "t")
    ours = audit_store(frames, teacher, rows)
    assert_equal(ours, slow_audit(read(frames, teacher, rows), ours.setting))
    found = ours.totals()
    # a gaussian has the cell of every object's centre, so every object on the grid has a cell
    assert (found["annotated"], found["counted"], found["with_cells"]) == (68, 33, 33 - found["outside_grid"])


# what a person sees


def shown(audit: Audit) -> str:
    text = io.StringIO()
    console = Console(file=text, width=80)
    for part in audit_tables(audit):
        console.print(part)
    return text.getvalue()


def test_tables_fit_80_columns_with_the_counts_of_a_whole_data_set() -> None:
    audit = Audit.empty(SETTING)
    audit.objects[:] = 1_000
    audit.objects[:, CAR, 0] = 490_000
    audit.frames[0] = 28_130
    text = shown(audit)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80 and "…" not in text
    line = next(line for line in text.splitlines() if line.startswith("car"))
    assert line.split() == ["car", "495000", "495000", "495000", "100%", "495000", "100%", *["495000"] * 3]
    assert "0 objects have no support" in text.replace("\n", " ")


def test_classes_without_anything_are_named_below_the_table() -> None:
    text = shown(audit_frame(world([(CAR, 0, 0, 4, 2)], [(CAR, 0, 0, 0.9)]), SETTING))
    assert "nothing of: truck" in text and not any(line.startswith("truck") for line in text.splitlines())


@pytest.mark.parametrize(
    ("part", "whole", "expected"), [(0, 0, "–"), (0, 9, "0%"), (1, 999, "1%"), (998, 999, "99%"), (9, 9, "100%")]
)
def test_only_all_is_100_percent_and_only_none_is_0(part: int, whole: int, expected: str) -> None:
    assert percent(part, whole) == expected


def test_the_heat_maps_show_where_support_is_missing() -> None:
    boxes: list[Box] = [(CAR, 5, 0, 4, 2), (PEDESTRIAN, 25, 0, 1, 1)]
    full = draw_audit(audit_frame(world(boxes, [(CAR, 5, 0, 0.9), (PEDESTRIAN, 25, 0, 0.9)]), SETTING), "t")
    lost = draw_audit(audit_frame(world(boxes, [(CAR, 5, 0, 0.9)]), SETTING), "t")
    assert full.shape == lost.shape == (860, 1500, 3) and full.dtype == np.uint8
    rows, columns = np.nonzero((full != lost).any(axis=-1))
    fields = rows > 140  # below the heading, whose figures change too
    assert fields.sum() > 5_000  # the whole field, not only its text
    # the sixth of ten rows and the third of five columns of the left panel
    assert rows[fields].min() > 450 and rows[fields].max() < 530
    assert columns[fields].min() > 440 and columns[fields].max() < 590
