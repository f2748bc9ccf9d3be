"""Claims about places on a student's map and about cells read as a map."""

from __future__ import annotations

import torch

from models.detector import Batch
from tests.trainer.terms.sparsekd_builders import AUGMENTS, FINE, NARROW, World
from trainer.terms.places import cells_on, rows_and_columns, stored_bilinear, stored_positions
from trainer.terms.sampling import augmented_cells, sample_bilinear


def test_on_one_grid_cells_lie_where_the_dense_term_puts_them() -> None:
    world = World(71)
    cells, batch = world.said().cells, world.batch()
    samples, row, col = cells_on(cells, FINE, batch, FINE)
    wanted = augmented_cells(cells.index, cells.samples(), batch.bev_augmentation, FINE)
    assert torch.allclose(row, wanted[0], atol=1e-12) and torch.allclose(col, wanted[1], atol=1e-12)
    exact = [i for i, augment in enumerate(AUGMENTS) if augment.rotation_rad == 0]
    for frame in exact:  # the identity and flips: centres on centres
        assert torch.equal(row[samples == frame], row[samples == frame].round())


def test_a_batch_without_an_augmentation_is_canonical() -> None:
    world = World(72)
    cells = world.said().cells
    _, row, col = cells_on(cells, FINE, Batch(), FINE)
    assert torch.equal((row * FINE.width + col).long(), cells.index)
    assert not torch.equal(cells_on(cells, FINE, Batch(), NARROW)[2], col)


def test_stored_cells_are_found_and_others_are_not() -> None:
    world = World(73)
    cells = world.said().cells
    frames, size = world.frames, FINE.height * FINE.width
    samples = torch.arange(frames).repeat_interleave(size)
    cell = torch.arange(size).repeat(frames)
    found = stored_positions(cells, FINE, samples, cell // FINE.width, cell % FINE.width)
    table = {(int(s), int(i)): k for k, (s, i) in enumerate(zip(cells.samples(), cells.index, strict=True))}
    assert found.tolist() == [table.get((int(s), int(i)), -1) for s, i in zip(samples, cell, strict=True)]
    off = torch.tensor([-1, FINE.height, 3])
    assert stored_positions(cells, FINE, off * 0, off, torch.tensor([0, 0, FINE.width])).tolist() == [-1, -1, -1]


def test_a_map_read_from_its_cells_is_the_map() -> None:
    world = World(74)
    world.weights[:] = 1
    cells = world.said().cells
    points = torch.rand(200, 2, dtype=torch.float64) * 18 - 9
    samples = torch.randint(0, 4, (200,))
    row, col = rows_and_columns(points, FINE)
    values, known = stored_bilinear(cells, FINE, samples, row, col)
    inside = (points[:, 0].abs() < 8) & (points[:, 1].abs() < 6.4)
    assert torch.equal(known, inside) and 20 < int(known.sum()) < 200
    wanted = sample_bilinear(torch.from_numpy(world.bev), samples, row, col)
    assert torch.allclose(values[known], wanted[known], atol=1e-12)
    assert not values[~known].any()
    world.weights[1] = 0
    _, fewer = stored_bilinear(world.said().cells, FINE, samples, row, col)
    assert torch.equal(fewer, known & (samples != 1))
