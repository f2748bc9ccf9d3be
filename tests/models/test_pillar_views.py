"""Pillars in images: places by hand and point by point, what counts as seen, the lists per camera, augmentations."""

from __future__ import annotations

import math

import pytest
import torch

from cache.grid import BevGrid
from models.pillar_views import FAR_OUTSIDE, pillar_points, pillar_views, project_pillars
from tests.models.synthetic import rig

SIZE, PADDED = (120, 50), (128, 64)
GRID = BevGrid(-8.0, 12.0, -6.0, 10.0, 2.0)


def project(grid=GRID, augmentation=None, size=SIZE, padded=PADDED, heights=3):
    k, to_lidar = rig(size)
    if augmentation is not None:
        to_lidar = augmentation @ to_lidar
    points = pillar_points(grid, (-5.0, 3.0), heights)
    return points, k, to_lidar, *project_pillars(points, k[None], to_lidar[None], size, padded)


def test_pillars_stand_on_cell_centres_half_a_metre_off_both_ends():
    points = pillar_points(GRID, (-5.0, 3.0), 4)
    assert points.shape == (8 * 10, 4, 3)
    assert points[0, 0].tolist() == [-7.0, -5.0, -4.5]
    torch.testing.assert_close(points[0, :, 2], torch.tensor([-4.5, -13 / 6, 1 / 6, 2.5]))
    assert points[9, 2, :2].tolist() == [11.0, -5.0], "columns run along x"
    assert points[10, 2, :2].tolist() == [-7.0, -3.0], "rows run along y"


def test_places_equal_the_projection_of_one_point_after_another():
    points, k, to_lidar, places, visible = project()
    counts = {True: 0, False: 0}
    for camera in range(6):
        to_camera = torch.linalg.inv(to_lidar[camera].double())
        for cell in range(len(points)):
            for height in range(3):
                x, y, depth = (
                    k[camera].double() @ (to_camera @ torch.cat([points[cell, height], torch.ones(1)]).double())[:3]
                ).tolist()
                seen = depth > 1e-5 and 0 < x / depth < SIZE[0] and 0 < y / depth < SIZE[1]
                assert bool(visible[0, camera, cell, height]) == seen
                counts[seen] += 1
                if depth > 1e-5:
                    expected = [min(max(x / depth / PADDED[0], -10), 10), min(max(y / depth / PADDED[1], -10), 10)]
                    assert places[0, camera, cell, height].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
                else:
                    assert places[0, camera, cell, height].tolist() == [-FAR_OUTSIDE] * 2
    assert min(counts.values()) > 50


def test_a_point_in_the_padding_or_behind_the_camera_is_not_seen():
    to_lidar, k = torch.eye(4)[None, None], torch.eye(3)[None, None]
    points = torch.tensor(
        [
            [[119.0, 49.0, 1.0]],
            [[121.0, 49.0, 1.0]],
            [[119.0, 51.0, 1.0]],
            [[-1.0, 5.0, 1.0]],
            [[5e-4, 3e-4, -1.0]],  # behind the camera; divided by the least depth it would lie in the image
        ]
    )
    places, visible = project_pillars(points, k, to_lidar, SIZE, PADDED)
    assert visible.flatten().tolist() == [True, False, False, False, False]
    assert places[0, 0, 0, 0].tolist() == pytest.approx([119 / 128, 49 / 64])


def test_views_list_the_cells_of_each_camera_in_order():
    g = torch.Generator().manual_seed(0)
    places = torch.rand(2, 3, 11, 2, 2, generator=g)
    visible = torch.rand(2, 3, 11, 2, generator=g) < 0.3
    visible[0, 1] = False  # a camera that sees nothing
    visible[:, :, 4] = False  # a cell that nothing sees
    views = pillar_views(places, visible)
    most = 0
    for b in range(2):
        for camera in range(3):
            seen = [cell for cell in range(11) if visible[b, camera, cell].any()]
            most = max(most, len(seen))
            row = b * 3 + camera
            assert views.cells[row][views.valid[row]].tolist() == seen
            assert views.valid[row].tolist() == [True] * len(seen) + [False] * (views.valid.shape[1] - len(seen))
            assert torch.equal(views.places[row][views.valid[row]], places[b, camera, seen])
        for cell in range(11):
            assert views.cameras[b, cell] == sum(bool(visible[b, camera, cell].any()) for camera in range(3))
    assert views.cells.shape[1] == most, "not more room than the busiest camera needs"
    assert views.cameras[0, 4] == 0


def test_views_of_nothing_seen_are_one_invalid_slot():
    views = pillar_views(torch.zeros(1, 2, 5, 2, 2), torch.zeros(1, 2, 5, 2, dtype=torch.bool))
    assert views.cells.shape == (2, 1) and not views.valid.any() and not views.cameras.any()


def augmentations():
    flip = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    quarter = torch.eye(4)
    quarter[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turn, angle = torch.eye(4), 0.3
    turn[:2, :2] = 1.05 * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn[2, 2] = 1.05
    return {"flip": flip, "quarter turn": quarter, "turn and scale": turn}


@pytest.mark.parametrize("name", ["flip", "quarter turn", "turn and scale"])
def test_what_an_augmentation_moved_is_seen_where_it_was(name):
    """A point A p of the augmented frame lies in the image of the augmented rig where p lies in that of the plain."""
    matrix = augmentations()[name]
    points, k, to_lidar, places, visible = project()
    moved = points @ matrix[:3, :3].T
    again, seen = project_pillars(moved, k[None], (matrix @ to_lidar)[None], SIZE, PADDED)
    torch.testing.assert_close(again, places, atol=1e-4, rtol=1e-4)
    assert (seen == visible).float().mean() > 0.999
    left, _ = project_pillars(points, k[None], (matrix @ to_lidar)[None], SIZE, PADDED)
    assert not torch.allclose(left, places, atol=0.05)


def test_a_quarter_turn_of_the_rig_turns_the_map_of_what_is_seen():
    square = BevGrid(-8.0, 8.0, -8.0, 8.0, 2.0)
    plain = project(square)[4].any(dim=-1)[0].unflatten(1, (8, 8))
    turned = project(square, augmentations()["quarter turn"])[4].any(dim=-1)[0].unflatten(1, (8, 8))
    assert torch.equal(turned, plain.flip(1).transpose(1, 2))  # (x, y) -> (-y, x): row' = col, col' = H - 1 - row
    assert not torch.equal(turned, plain)


def test_images_halved_with_their_intrinsics_show_the_same():
    _, k, to_lidar, places, visible = project(size=(128, 64))
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0])) @ k
    points = pillar_points(GRID, (-5.0, 3.0), 3)
    again, seen = project_pillars(points, half[None], to_lidar[None], (64, 32), (64, 32))
    torch.testing.assert_close(again, places)
    assert torch.equal(seen, visible)
