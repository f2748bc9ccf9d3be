"""Pictures: right size, right place, repeatable, and an error where arguments do not fit each other."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cache.errors import DataError
from cache.frame import Detections, Frame
from cache.grid import BevGrid
from evaluation.bev_view import paint_bev
from evaluation.draw import (
    BoxLayer,
    MapLayer,
    MaskLayer,
    _figure,
    _rgb,
    decode_jpeg,
    detection_layer,
    draw_bev,
    draw_cameras,
    draw_frame,
    encode_jpeg,
    encode_png,
    truth_layer,
    write_png,
)
from evaluation.layers import CLASS_COLOURS, GROUND, LAYER_COLOURS, layer_colour, mask_colour
from tests.evaluation.worlds import made_up_frame, made_up_truth, noisy_detections

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 1.6)


@pytest.fixture(scope="module")
def frame() -> Frame:
    return made_up_frame(np.random.default_rng(60), 1)


@pytest.fixture(scope="module")
def images(frame: Frame) -> list[np.ndarray]:
    """Six dark images; the position of each in the frame's order is its brightness."""
    return [
        np.full((camera.height, camera.width, 3), 10 * number, np.uint8) for number, camera in enumerate(frame.cameras)
    ]


def car(x: float, y: float, yaw: float = np.pi / 2, name: str = "ground truth") -> BoxLayer:
    return BoxLayer(name, np.array([[x, y, 0.0, 4.0, 2.0, 1.5, yaw, 0.0, 0.0]], np.float32), np.zeros(1, np.int32))


def share_of(colour: str, picture: np.ndarray) -> float:
    """How much of a picture has this colour, to a tolerance that anti-aliasing does not reach."""
    return float((np.abs(picture.astype(float) - 255 * np.array(to_rgb(colour))).max(axis=-1) < 30).mean())


def test_bev_puts_forward_up_and_right_to_the_right() -> None:
    picture = draw_bev(None, [car(30, 20)], size=512)
    assert picture.shape == (512, 512, 3)
    assert picture.dtype == np.uint8
    column, row = int(512 * (30 + 51.2) / 102.4), int(512 * (51.2 - 20) / 102.4)
    assert share_of(LAYER_COLOURS["ground truth"], picture[row - 12 : row + 12, column - 8 : column + 8]) > 0.05
    assert share_of(LAYER_COLOURS["ground truth"], picture[256:, 100:]) == 0.0


def test_bev_mask_covers_its_own_cells_only() -> None:
    mask = np.zeros(GRID.shape, np.float32)
    mask[-8:, -8:] = 1.0  # the corner at x_max, y_max
    with_mask, without = (draw_bev(None, [], grid=GRID, mask=m, size=512) for m in (mask, None))
    changed = (with_mask != without).any(axis=-1)
    assert changed[2:60, -60:-2].all()
    assert not changed[200:, :].any()


def test_bev_tells_layers_apart_and_the_tick_points_where_the_box_heads() -> None:
    layers = [
        car(0, 20),
        car(10, 20, name="teacher"),
        car(20, 20, name="student"),
        car(30, 20, name="distilled student"),
    ]
    picture = draw_bev(None, layers, size=512)
    assert all(share_of(layer_colour(layer.name), picture) > 0 for layer in layers)
    assert len({layer_colour(layer.name) for layer in layers}) == 4
    green = 255 * np.array(to_rgb(LAYER_COLOURS["ground truth"]))
    rows = []
    for yaw in (np.pi / 2, -np.pi / 2):
        strip = draw_bev(None, [car(0, 20, yaw)], size=1024)[256:362].astype(float)
        rows.append(np.flatnonzero((np.abs(strip - green) < 30).all(axis=-1).any(axis=1)))
    assert rows[0].min() < rows[1].min() - 5
    assert rows[0].max() < rows[1].max() - 5


def test_bev_draws_points_and_more_of_them_than_it_shows(frame: Frame) -> None:
    points = np.random.default_rng(61).uniform(-40, 40, (200_000, 5)).astype(np.float32)
    first, second = (draw_bev(points, [], size=256) for _ in range(2))
    assert (first != draw_bev(None, [], size=256)).mean() > 0.3
    np.testing.assert_array_equal(first, second)


def test_a_mask_of_another_grid_is_refused() -> None:
    with pytest.raises(DataError, match=r"mask of shape \(3, 3\), expected \(64, 64\)"):
        draw_bev(None, [], grid=GRID, mask=np.zeros((3, 3)))
    with pytest.raises(DataError, match="expected a grid beside it"):
        draw_bev(None, [], mask=np.zeros((64, 64)))


def test_cameras_stand_as_on_the_car(frame: Frame, images: list[np.ndarray]) -> None:
    picture = draw_cameras(images, frame, [], width=480)
    assert picture.shape == (180, 480, 3)
    middles = [int(picture[row, column, 0]) for row in (45, 135) for column in (80, 240, 400)]
    assert middles == [0, 10, 20, 50, 40, 30]  # front left, front, front right; back left, back, back right


def test_a_box_ahead_is_drawn_in_the_front_image_alone(frame: Frame, images: list[np.ndarray]) -> None:
    picture, empty = (draw_cameras(images, frame, car(0, distance), width=960) for distance in (12, 5000))
    changed = (picture != empty).any(axis=-1)
    assert changed[:180, 320:640].any()
    changed[:180, 320:640] = False
    assert not changed.any()
    assert share_of(CLASS_COLOURS["car"], picture[:180, 320:640]) > 0.002


def test_several_layers_are_told_apart_by_colour(frame: Frame, images: list[np.ndarray]) -> None:
    picture = draw_cameras(images, frame, [car(-3, 12), car(3, 12, name="student")], width=960)[:180, 320:640]
    assert share_of(LAYER_COLOURS["ground truth"], picture[:, :160]) > 0.002
    assert share_of(LAYER_COLOURS["student"], picture[:, 160:]) > 0.002


def test_images_that_do_not_fit_the_calibration_are_refused(frame: Frame, images: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match="5 images, expected 6"):
        draw_cameras(images[:5], frame, [])
    with pytest.raises(DataError, match=r"CAM_FRONT_LEFT: image of shape \(100, 100, 3\)"):
        draw_cameras([np.zeros((100, 100, 3), np.uint8), *images[1:]], frame, [])


def test_whole_frame_with_everything_and_with_nothing(frame: Frame, images: list[np.ndarray]) -> None:
    random = np.random.default_rng(62)
    truth = made_up_truth(random, frame)
    layers = [truth_layer(frame, truth), detection_layer("teacher", noisy_detections(random, frame, truth), 0.3)]
    points = random.uniform(-50, 50, (5000, 5)).astype(np.float32)
    full = draw_frame(points, images, frame, layers, grid=GRID, mask=random.random(GRID.shape), width=900)
    bare = draw_frame(None, images, frame, [BoxLayer("ground truth", np.zeros((0, 9)), np.zeros(0, int))], width=900)
    assert full.shape == bare.shape
    assert full.shape[1] == 900


def test_detection_layer_leaves_out_low_scores() -> None:
    detections = Detections(np.ones((3, 9), np.float32), np.array([0.1, 0.5, 0.3], np.float32), np.zeros(3, np.int32))
    assert detection_layer("student", detections, 0.3).scores is not None
    assert len(detection_layer("student", detections, 0.3)) == 2


def test_png_keeps_every_pixel_and_its_colour_order(tmp_path: Path) -> None:
    image = np.random.default_rng(63).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    write_png(tmp_path / "a" / "picture.png", image)
    back = cv2.imread(str(tmp_path / "a" / "picture.png"))
    np.testing.assert_array_equal(cv2.cvtColor(back, cv2.COLOR_BGR2RGB), image)
    np.testing.assert_array_equal(decode_jpeg(encode_png(image)), image)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["picture.png"]


def test_jpeg_round_trip_keeps_red_red_and_bad_bytes_are_refused() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 220
    assert decode_jpeg(encode_jpeg(red))[8, 8, 0] > 180
    for data in (b"", b"not an image"):
        with pytest.raises(DataError, match="do not decode"):
            decode_jpeg(data)


def corner_mask(name: str, row: int, col: int, weight: float = 1.0) -> MaskLayer:
    """Eight by eight cells from (row, col) on."""
    weights = np.zeros(GRID.shape, np.float32)
    weights[row : row + 8, col : col + 8] = weight
    return MaskLayer(name, weights)


def test_each_mask_is_a_layer_of_the_view_and_a_panel_of_its_own(frame: Frame, images: list[np.ndarray]) -> None:
    layers = [BoxLayer("ground truth", np.zeros((0, 9)), np.zeros(0, int))]
    masks = [corner_mask("gaussian", 56, 56), corner_mask("lidar*view(camera=CAM_FRONT)", 0, 0, 0.5)]
    bare = draw_frame(None, images, frame, layers, grid=GRID, width=1200)
    full = draw_frame(None, images, frame, layers, grid=GRID, masks=masks, width=1200)
    assert full.shape[1] == 1200 and 200 < len(full) - len(bare) < 260
    top = len(bare) - 744  # the view is 744 pixels high and wide, below the cameras
    view, plain = full[top : len(bare), :744], bare[top:, :744]
    changed = (view != plain).any(axis=-1)
    assert changed[5:80, -80:-5].all() and changed[-80:-5, 5:80].all() and not changed[200:500].any()
    strip = full[len(bare) :].astype(float)
    for position, (rows, cols) in enumerate(((slice(48, 62), slice(176, 192)), (slice(-24, -8), slice(208, 224)))):
        colour = 255 * np.array(to_rgb(mask_colour(position)))
        assert (strip[:, 200 * position : 200 * (position + 1)] != strip[0, 0]).any()
        found = strip[rows, cols].mean(axis=(0, 1))
        share = 1.0 if position == 0 else 0.12 + 0.88 * 0.5
        expected = share * colour + (1 - share) * 255 * np.array(to_rgb(GROUND))
        assert np.abs(found - expected).max() < 12, mask_colour(position)
    assert (strip[:, 401:] == strip[0, 0]).all()


def test_a_mask_over_much_of_the_grid_is_only_outlined_and_dense_veils_nothing() -> None:
    weights = np.ones(GRID.shape, np.float32)
    weights[20:44, 20:44] = 0
    with_mask, without = (draw_masks([MaskLayer("view", weights)] if some else []) for some in (True, False))
    changed = (with_mask != without).any(axis=-1)
    assert 0 < changed.mean() < 0.05 and not changed[240:260].reshape(20, 500)[:, 200:300].any()


def draw_masks(masks: list[MaskLayer]) -> np.ndarray:
    figure, canvas = _figure(500, 500)
    paint_bev(figure.add_axes((0, 0, 1, 1)), None, [], GRID, None, "", masks)
    return _rgb(canvas)


def test_masks_of_another_grid_or_of_none_are_refused(frame: Frame, images: list[np.ndarray]) -> None:
    layers = [BoxLayer("ground truth", np.zeros((0, 9)), np.zeros(0, int))]
    with pytest.raises(DataError, match=r"mask lidar of shape \(3, 3\), expected \(64, 64\)"):
        draw_frame(None, images, frame, layers, grid=GRID, masks=[MaskLayer("lidar", np.ones((3, 3)))])
    with pytest.raises(DataError, match="masks without the grid"):
        draw_frame(None, images, frame, layers, masks=[MaskLayer("lidar", np.ones((64, 64)))])


def test_each_map_is_a_panel_of_its_own_below_the_masks(frame: Frame, images: list[np.ndarray]) -> None:
    layers = [BoxLayer("ground truth", np.zeros((0, 9)), np.zeros(0, int))]
    fine = BevGrid(**{**GRID.to_dict(), "cell_m": GRID.cell_m / 2})
    values = np.zeros(fine.shape, np.float32)
    values[: fine.height // 2] = 3.0  # the lower half
    points = np.array([[0.0, 20.0]])
    nothing = np.zeros(GRID.shape)
    maps = [MapLayer("level", fine, values), MapLayer("samples", GRID, points=points), MapLayer("none", GRID, nothing)]
    masks = [corner_mask("gaussian", 56, 56)]
    without = draw_frame(None, images, frame, layers, grid=GRID, masks=masks, width=1200)
    full = draw_frame(None, images, frame, layers, grid=GRID, masks=masks, maps=maps, width=1200)
    assert 200 < len(full) - len(without) < 260
    strip = full[len(without) :].astype(int)
    dark, level = strip[60:100, 60:140], strip[-60:-20, 60:140]
    assert level.mean() > dark.mean() + 80 and np.ptp(level.reshape(-1, 3), axis=0).max() < 10
    seen = np.argwhere((strip[50:-10, 210:390] != strip[60, 215]).any(axis=-1))
    assert 3 < len(seen) < 60 and seen[:, 0].mean() < 90  # one dot, in the upper half
    assert (strip[50:-10, 420:580] == strip[60, 425]).all()
    with pytest.raises(DataError, match=r"map level of shape"):
        draw_frame(None, images, frame, layers, grid=GRID, maps=[MapLayer("level", GRID, values)])
