"""What the cameras show: nearer things hide farther ones, and a thing's pixels lie where its box projects."""

from __future__ import annotations

import numpy as np
import pytest

from cache.frame import CAMERA_CHANNELS
from pipeline.simulator.camera import View, render
from pipeline.simulator.catalogue import Model, draw_model
from pipeline.simulator.geometry import Parts
from pipeline.simulator.ground import paint_ground
from pipeline.simulator.layout import draw_world
from pipeline.simulator.rig import IMAGE_HEIGHT, IMAGE_WIDTH, rig
from pipeline.simulator.solids import block, mesh
from pipeline.simulator.world import Thing, Track, World

FRONT = CAMERA_CHANNELS.index("CAM_FRONT")
EMPTY = draw_world(np.random.default_rng(11), 0.5, True)


def _view(things: list[Thing], camera: int = FRONT) -> View:
    world = World(EMPTY.road, EMPTY.ego, tuple(things), EMPTY.daylight)
    ego = world.ego.poses(np.array([0.0]))[0]
    parts, poses = Parts(world), world.poses(0.0)
    picture = paint_ground(world.road, world.daylight, ego, parts.posed(poses))
    return render(parts, poses, ego, "boston", camera, world.daylight, picture, ego)


def _ahead(model: Model, distance_m: float, left_m: float = 0.0, yaw: float = 0.0) -> Thing:
    x, y, heading = EMPTY.ego.poses(np.array([0.0]))[0]
    at = (
        float(x + distance_m * np.cos(heading) - left_m * np.sin(heading)),
        float(y + distance_m * np.sin(heading) + left_m * np.cos(heading)),
    )
    return Thing(model, Track(at, (0.0, 0.0), float(heading + yaw)))


def _cube(side_m: float, colour: tuple[int, int, int]) -> Model:
    half = side_m / 2
    shape = mesh([block((-half, half), (-half, half), (0, side_m), colour)])
    return Model("cube", None, None, (side_m, side_m, side_m), shape, 1.0)


def test_a_box_behind_a_box_does_not_show() -> None:
    near, far = _ahead(_cube(3.0, (0, 0, 255)), 12.0), _ahead(_cube(2.0, (255, 0, 0)), 30.0)
    for order in ([near, far], [far, near]):
        view = _view(order)
        visible = view.visible(2)
        assert visible[order.index(far)] == 0
        assert visible[order.index(near)] > 10_000
        assert view.alone[order.index(far)] > 1_000


def test_half_hidden_things_are_half_visible() -> None:
    far, near = _ahead(_cube(2.0, (255, 0, 0)), 30.0), _ahead(_cube(2.0, (0, 0, 255)), 15.0, left_m=-1.0)
    view = _view([far, near])
    assert 0.35 < view.visible(2)[0] / view.alone[0] < 0.65


@pytest.mark.parametrize("camera", range(6))
def test_pixels_of_a_thing_lie_in_its_projected_box_and_fill_it(camera: int) -> None:
    mount = rig("boston").cameras[camera]
    assert mount.intrinsic is not None
    axis = mount.pose.matrix()[:3, 2]
    bearing = np.arctan2(axis[1], axis[0])
    model = draw_model("car", "parked", np.random.default_rng(camera))
    thing = _ahead(model, 16 * np.cos(bearing), 16 * np.sin(bearing), yaw=0.7)
    view = _view([thing], camera)
    x, y, yaw = thing.track.poses(np.array([0.0]))[0]
    w, l, h = model.size
    corners = np.array([[i * l / 2, j * w / 2, k] for i in (-1, 1) for j in (-1, 1) for k in (0.03, 0.03 + h)])
    c, s = np.cos(yaw), np.sin(yaw)
    world = corners @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + [x, y, 0]
    ex, ey, heading = EMPTY.ego.poses(np.array([0.0]))[0]
    ego = np.eye(4)
    ego[:2, :2] = [[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]]
    ego[:2, 3] = ex, ey
    inverse = np.linalg.inv(ego @ mount.pose.matrix())
    pixels = (world @ inverse[:3, :3].T + inverse[:3, 3]) @ mount.intrinsic.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    rows, columns = np.nonzero(view.owner == 0)
    assert len(rows) > 2_000
    assert columns.min() >= low[0] - 1.5
    assert columns.max() <= high[0] + 1.5
    assert rows.min() >= low[1] - 1.5
    assert rows.max() <= high[1] + 1.5
    inside = np.prod(np.minimum(high, (IMAGE_WIDTH, IMAGE_HEIGHT)) - np.maximum(low, 0))
    assert len(rows) > 0.35 * inside


def test_things_that_cross_the_image_plane_are_drawn_whole_on_screen() -> None:
    """A wall beside the car runs from ahead of the camera to behind it: clipped, never mirrored."""
    shape = mesh([block((-20, 20), (-0.2, 0.2), (0, 3), (0, 0, 255), kind="bricks")])
    wall = Model("wall", None, None, (0.4, 40.0, 3.0), shape, 1.0)
    view = _view([_ahead(wall, 10.0, left_m=3.0)])
    _rows, columns = np.nonzero(view.owner == 0)
    assert columns.min() == 0
    assert columns.max() < IMAGE_WIDTH / 2 + 100
    left = view.owner[:, 0] == 0
    assert left[IMAGE_HEIGHT // 2] and left.sum() > 500


def test_daylight_ground_and_things_differ_in_colour() -> None:
    """No flat colours: sky, road and a thing's faces each carry texture."""
    view = _view([_ahead(draw_model("truck", "parked", np.random.default_rng(1)), 14.0, left_m=4.0, yaw=0.6)])
    for region in (view.image[:200, 1200:], view.image[700:, :800], view.image[view.owner == 0]):
        assert region.reshape(-1, 3).astype(float).std(axis=0).min() > 2
