"""Claims about lift and splat: cells by hand, equal to loops in value and gradient, and equivariant."""

from __future__ import annotations

import math

import torch

from cache.grid import BevGrid
from models.splat import frustum_cells, pixel_centres, splat
from tests.models.synthetic import rig

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 1.6)
DEPTHS = torch.linspace(2, 70, 12)


def slow_splat(context, depth, cells, num_cells):
    """Pixel by pixel, bin by bin, in float64."""
    out = torch.zeros(num_cells, context.shape[1], dtype=torch.float64)
    rows = list(out)
    for p in range(len(context)):
        for d in range(depth.shape[1]):
            n = int(cells[p, d])
            if n >= 0:
                rows[n] = rows[n] + depth[p, d].double() * context[p].double()
    return torch.stack(rows)


def index_add_splat(context, depth, cells, num_cells):
    """Over the whole lifted volume."""
    volume = (depth[:, :, None] * context[:, None, :]).flatten(0, 1)
    keep = cells.flatten() >= 0
    return context.new_zeros(num_cells, context.shape[1]).index_add(0, cells.flatten()[keep], volume[keep])


def case(seed, pixels, bins, channels, num_cells):
    g = torch.Generator().manual_seed(seed)
    context = torch.randn(pixels, channels, generator=g, requires_grad=True)
    depth = torch.rand(pixels, bins, generator=g, requires_grad=True)
    cells = torch.randint(-num_cells // 4, num_cells, (pixels, bins), generator=g).clamp(min=-1)
    return context, depth, cells, torch.randn(num_cells, channels, generator=g)


def test_splat_and_its_gradients_equal_the_loop():
    context, depth, cells, weight = case(0, 20, 6, 3, 15)
    results = []
    for function in (splat, slow_splat):
        context.grad = depth.grad = None
        out = function(context, depth, cells, 15)
        (out * weight).sum().backward()
        results.append((out.detach().float(), context.grad.clone(), depth.grad.clone()))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_splat_and_its_gradients_equal_index_add_at_size():
    for seed in range(3):
        context, depth, cells, weight = case(seed, 2000, 24, 16, 4096)
        results = []
        for function in (splat, index_add_splat):
            context.grad = depth.grad = None
            out = function(context, depth, cells, 4096)
            (out * weight).sum().backward()
            results.append((out.detach(), context.grad.clone(), depth.grad.clone()))
        for fast, slow in zip(*results, strict=True):
            torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4, msg=lambda m, s=seed: f"seed {s}: {m}")


def test_nothing_on_the_grid_gives_zeros():
    context, depth, _, _ = case(1, 10, 4, 3, 8)
    out = splat(context, depth, torch.full((10, 4), -1), 8)
    out.sum().backward()
    assert not out.any()
    assert not context.grad.any()


def cells_of(k, to_lidar, pixels, depths=DEPTHS, grid=GRID):
    return frustum_cells(k, to_lidar, pixels, depths, grid, (-5.0, 3.0))


def test_cells_equal_the_projection_done_backwards():
    """Each lifted point, projected back through the inverse matrices, falls on its pixel at its depth."""
    k, to_lidar = rig((128, 64))
    pixels = pixel_centres((8, 16), 8)
    cells = cells_of(k[None], to_lidar[None], pixels)[0]
    checked = 0
    for camera in range(6):
        to_camera = torch.linalg.inv(to_lidar[camera].double())
        for p in range(0, len(pixels), 5):
            for d, depth in enumerate(DEPTHS.tolist()):
                point = to_lidar[camera].double() @ torch.cat(
                    [torch.linalg.inv(k[camera].double()) @ pixels[p].double() * depth, torch.ones(1).double()]
                )
                back = k[camera].double() @ (to_camera @ point)[:3]
                torch.testing.assert_close(back[:2] / back[2], pixels[p, :2].double(), atol=1e-6, rtol=0)
                col, row = math.floor((point[0] + 51.2) / 1.6), math.floor((point[1] + 51.2) / 1.6)
                on = 0 <= col < 64 and 0 <= row < 64 and -5 <= point[2] < 3
                assert int(cells[camera, p, d]) == (row * 64 + col if on else -1)
                checked += on
    assert checked > 100


def test_a_point_just_outside_the_lower_border_is_dropped():
    k, to_lidar = torch.eye(3).view(1, 1, 3, 3), torch.eye(4).view(1, 1, 4, 4)
    pixels = torch.tensor([[-51.3, 0.0, 1.0], [-51.1, 0.0, 1.0]])  # with K = I and depth 1 these are x, y
    cells = frustum_cells(k, to_lidar, pixels, torch.tensor([1.0]), GRID, (-5.0, 3.0))
    assert cells.flatten().tolist() == [-1, 32 * 64]


def test_pixel_centres_are_the_middle_of_their_cell():
    centres = pixel_centres((2, 3), 8).view(2, 3, 3)
    assert centres[0, 0].tolist() == [4, 4, 1]
    assert centres[1, 2].tolist() == [20, 12, 1]


def test_a_turn_or_flip_of_the_rig_turns_or_flips_the_splat():
    k, to_lidar = rig((128, 64))
    pixels = pixel_centres((8, 16), 8)
    g = torch.Generator().manual_seed(5)
    context, depth = torch.randn(6 * 128, 4, generator=g), torch.rand(6 * 128, 12, generator=g)
    flip, quarter = torch.diag(torch.tensor([-1.0, 1, 1, 1])), torch.eye(4)
    quarter[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])

    def bev(augmentation):
        cells = cells_of(k[None], (augmentation @ to_lidar)[None], pixels)
        return splat(context, depth, cells.flatten(0, 2), 64 * 64).view(64, 64, 4)

    plain = bev(torch.eye(4))
    # a point on a cell's border may fall either way, so a few cells may differ
    agree = torch.isclose(bev(flip), plain.flip(1), atol=1e-4).float().mean()
    assert agree > 0.995
    turned = plain.flip(0).transpose(0, 1)  # (x, y) -> (-y, x): row' = col, col' = H - 1 - row
    agree = torch.isclose(bev(quarter), turned, atol=1e-4).float().mean()
    assert agree > 0.995


def test_calibration_is_of_the_image_as_given():
    """Halving the image with its intrinsics leaves the geometry alone; so does a crop."""
    k, to_lidar = rig((128, 64))
    pixels = pixel_centres((8, 16), 8)
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0])) @ k
    crop = k.clone()
    crop[:, 1, 2] -= 16
    reference = cells_of(k[None], to_lidar[None], pixels)
    torch.testing.assert_close(cells_of(half[None], to_lidar[None], pixel_centres((8, 16), 4)), reference)
    moved = pixels - torch.tensor([0.0, 16.0, 0.0])
    assert (cells_of(crop[None], to_lidar[None], moved) == reference).float().mean() > 0.999
