from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.grid import BevGrid
from trainer.augment import BevAugment
from trainer.terms.places import augmented_cells, inside_grid
from trainer.terms.sampling import sample_bilinear

GRID = BevGrid(-8.0, 8.0, -6.0, 6.0, 0.8)  # 20 x 15 cells; 0.8 is no binary fraction
B, C = 3, 4


def every_cell(augment: BevAugment, sample: int) -> tuple[torch.Tensor, ...]:
    index = torch.arange(GRID.height * GRID.width)
    samples = torch.full_like(index, sample)
    matrices = torch.eye(4, dtype=torch.float64).repeat(B, 1, 1)
    matrices[sample] = torch.from_numpy(augment.matrix())
    return index, samples, *augmented_cells(index, samples, matrices, GRID)


def a_map(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, C, *GRID.shape, generator=torch.Generator().manual_seed(seed))


def test_identity_reads_the_very_cells() -> None:
    index, samples, row, col = every_cell(BevAugment(), 1)
    assert torch.equal(row, (index // GRID.width).double())
    assert torch.equal(col, (index % GRID.width).double())
    found = sample_bilinear(a_map(), samples, row, col)
    assert torch.equal(found, a_map()[1].flatten(1).T)


@pytest.mark.parametrize(("flip_x", "flip_y"), [(True, False), (False, True), (True, True)])
def test_flips_read_the_very_cells_of_the_mirrored_map(flip_x: bool, flip_y: bool) -> None:
    _, samples, row, col = every_cell(BevAugment(flip_x=flip_x, flip_y=flip_y), 2)
    dims = [d for d, flipped in ((2, flip_x), (1, flip_y)) if flipped]
    assert torch.equal(sample_bilinear(a_map(), samples, row, col), a_map()[2].flip(dims).flatten(1).T)


@pytest.mark.parametrize(
    "augment", [BevAugment(0.3), BevAugment(-1.0, 1.05, True), BevAugment(2.0, 0.93, False, True)], ids=str
)
def test_sampling_equals_grid_sample(augment: BevAugment) -> None:
    _, samples, row, col = every_cell(augment, 0)
    kept = inside_grid(row, col, GRID)
    found = sample_bilinear(a_map().double(), samples[kept], row[kept], col[kept])
    u = (2 * col[kept] + 1) / GRID.width - 1
    v = (2 * row[kept] + 1) / GRID.height - 1
    places = torch.stack([u, v], dim=1)[None, None]
    wanted = F.grid_sample(a_map()[:1].double(), places, align_corners=False, padding_mode="border")[0, :, 0].T
    assert torch.allclose(found, wanted, atol=1e-12)


def test_sampled_places_are_where_the_matrix_puts_the_centres() -> None:
    augment = BevAugment(0.7, 1.1, True, False)
    index, _, row, col = every_cell(augment, 0)
    centres = GRID.centres().reshape(-1, 2)
    moved = np.concatenate([centres, np.zeros((len(index), 1)), np.ones((len(index), 1))], axis=1) @ augment.matrix().T
    assert np.allclose(GRID.x_min + (col.numpy() + 0.5) * GRID.cell_m, moved[:, 0], atol=1e-9)
    assert np.allclose(GRID.y_min + (row.numpy() + 0.5) * GRID.cell_m, moved[:, 1], atol=1e-9)
    on_grid = (np.abs(moved[:, 0]) < 8) & (np.abs(moved[:, 1]) < 6)
    assert np.array_equal(inside_grid(row, col, GRID).numpy(), on_grid)
    assert 0 < on_grid.sum() < len(index)


def test_gradients_reach_only_the_cells_that_were_read() -> None:
    bev = a_map().requires_grad_()
    row, col = torch.tensor([2.25], dtype=torch.float64), torch.tensor([3.5], dtype=torch.float64)
    sample_bilinear(bev, torch.tensor([1]), row, col).sum().backward()
    touched = bev.grad.abs().sum(dim=1).nonzero().tolist()
    assert touched == [[1, 2, 3], [1, 2, 4], [1, 3, 3], [1, 3, 4]]
    assert bev.grad[1, 0, 2, 3] == pytest.approx(0.375)


def test_no_cells_give_no_rows_and_a_gradient_of_zero() -> None:
    bev = a_map().requires_grad_()
    none = torch.zeros(0, dtype=torch.float64)
    found = sample_bilinear(bev, torch.zeros(0, dtype=torch.int64), none, none)
    assert found.shape == (0, C)
    found.sum().backward()
    assert bev.grad.abs().sum() == 0
