"""Claims about the pillar encoder: equal to a loop over pillars, and it follows its points."""

from __future__ import annotations

import pytest
import torch

from cache.grid import BevGrid
from models.pillars import PillarEncoder, PillarMax

GRID = BevGrid(-8.0, 8.0, -4.0, 4.0, 0.5)


def encoder() -> PillarEncoder:
    torch.manual_seed(0)
    return PillarEncoder(6, GRID, (-2.0, 2.0))


def clouds(seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scale = torch.tensor([18.0, 10.0, 5.0, 255.0, 0.5])  # some points lie off the grid or too high
    return [(torch.rand(n, 5, generator=g) - torch.tensor([0.5, 0.5, 0.5, 0, 0])) * scale for n in (300, 200)]


def slow_canvas(model: PillarEncoder, points: list[torch.Tensor]) -> torch.Tensor:
    """Pillar by pillar, in evaluation mode."""
    canvas = torch.zeros(len(points), 6, *GRID.shape)
    for b, cloud in enumerate(points):
        for row in range(GRID.height):
            for col in range(GRID.width):
                x0, y0 = GRID.x_min + col * 0.5, GRID.y_min + row * 0.5
                inside = (cloud[:, 0] >= x0) & (cloud[:, 0] < x0 + 0.5) & (cloud[:, 1] >= y0) & (cloud[:, 1] < y0 + 0.5)
                p = cloud[inside & (cloud[:, 2] >= -2) & (cloud[:, 2] < 2)]
                if not len(p):
                    continue
                centre = torch.tensor([x0 + 0.25, y0 + 0.25])
                f = [p[:, :2] / 8, p[:, 2:3], p[:, 3:4] / 32, p[:, 4:5] / 0.1]
                f += [(p[:, :3] - p[:, :3].mean(0)) / 0.5, (p[:, :2] - centre) / 0.5]
                y = model.linear(torch.cat(f, dim=1))
                norm = model.norm
                y = (y - norm.running_mean) / (norm.running_var + 1e-3).sqrt() * norm.weight + norm.bias
                canvas[b, :, row, col] = y.relu().amax(0)
    return canvas


def test_canvas_equals_the_loop_over_pillars():
    model = encoder().eval()
    torch.testing.assert_close(model(clouds()), slow_canvas(model, clouds()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "padding"), [(2, 0), (1, 4)], ids=["two layers", "padded"])
def test_the_released_forms_equal_the_loop_over_pillars(layers, padding):
    """11 features in plain units; with two layers every point sees its pillar's maximum; padding adds rows of zeros."""
    torch.manual_seed(0)
    model = PillarEncoder(6, GRID, (-2.0, 2.0), layers=layers, released=True, padding=padding).eval()
    with torch.no_grad():
        model.norm.bias.uniform_(0.0, 40.0)
        model.norm.running_mean.uniform_(-5.0, 5.0)

    def normed(norm, x):
        return (x - norm.running_mean) / (norm.running_var + 1e-3).sqrt() * norm.weight + norm.bias

    canvas, short = torch.zeros(2, 6, *GRID.shape), 0
    for b, cloud in enumerate(clouds()):
        cloud = cloud[(cloud[:, 2] >= -2) & (cloud[:, 2] < 2)]
        row, col = ((cloud[:, 1] + 4) / 0.5).floor(), ((cloud[:, 0] + 8) / 0.5).floor()
        for r in range(GRID.height):
            for c in range(GRID.width):
                p = cloud[(row == r) & (col == c)]
                if not len(p):
                    continue
                centre = torch.tensor([-8 + c * 0.5 + 0.25, -4 + r * 0.5 + 0.25, 0.0])
                f = torch.cat([p, p[:, :3] - p[:, :3].mean(0), p[:, :3] - centre], dim=1)
                if padding > len(p):
                    short += 1
                    f = torch.cat([f, torch.zeros(padding - len(p), 11)])
                if layers == 2:
                    h = normed(model.first.norm, f @ model.first.linear.weight.T).relu()
                    f = torch.cat([h, h.amax(0).expand_as(h)], dim=1)
                canvas[b, :, r, c] = normed(model.norm, f @ model.linear.weight.T).relu().amax(0)
    assert bool(short) == bool(padding)
    with torch.no_grad():
        torch.testing.assert_close(model(clouds()), canvas, atol=1e-4, rtol=1e-4)


def test_gradient_of_the_maximum_equals_torch():
    g = torch.Generator().manual_seed(2)
    features = torch.rand(50, 4, generator=g, requires_grad=True)
    pillar_of = torch.arange(50) // 7
    weight = torch.rand(8, 4, generator=g)
    (PillarMax.apply(features, pillar_of, 8) * weight).sum().backward()
    ours, features.grad = features.grad.clone(), None
    highest = torch.zeros(8, 4).scatter_reduce(0, pillar_of[:, None].expand(-1, 4), features, "amax")
    (highest * weight).sum().backward()
    torch.testing.assert_close(ours, features.grad)


def test_the_order_of_points_does_not_matter():
    model = encoder().eval()
    shuffled = [cloud[torch.randperm(len(cloud), generator=torch.Generator().manual_seed(1))] for cloud in clouds()]
    torch.testing.assert_close(model(shuffled), model(clouds()), atol=1e-5, rtol=1e-5)


def test_occupied_cells_follow_a_flip_of_the_points():
    model = encoder().eval()
    flipped = [cloud * torch.tensor([-1.0, 1, 1, 1, 1]) for cloud in clouds()]
    occupied = (model(clouds()) > 0).any(dim=1)
    torch.testing.assert_close((model(flipped) > 0).any(dim=1).sum(), occupied.sum(), atol=3, rtol=0)
    single = torch.tensor([[3.1, -1.2, 0, 9, 0], [3.1, -1.2, 0.5, 9, 0]])
    row, col = int((-1.2 + 4) / 0.5), int((3.1 + 8) / 0.5)
    with torch.no_grad():
        model.norm.bias.fill_(5.0)
    hit = model([single])[0].any(dim=0)
    mirrored = model([single * torch.tensor([-1.0, 1, 1, 1, 1])])[0].any(dim=0)
    assert hit.nonzero().tolist() == [[row, col]]
    assert torch.equal(mirrored, hit.flip(1))


def test_points_on_the_border_or_nan_stay_out():
    model = encoder().eval()
    with torch.no_grad():
        model.norm.bias.fill_(5.0)
    bad = torch.tensor(
        [[8.0, 0, 0, 1, 0], [-8.001, 0, 0, 1, 0], [0, 4.0, 0, 1, 0], [0, 0, 2.0, 1, 0], [float("nan"), 0, 0, 1, 0]]
    )
    assert not model([torch.cat([bad, bad])]).any()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_points_for_statistics_give_zeros_and_leave_them_alone(count):
    model = encoder().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    canvas = model([torch.zeros(0, 5), torch.zeros(count, 5)])
    assert canvas.shape == (2, 6, *GRID.shape)
    canvas.sum().backward()
    assert not canvas.any()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
