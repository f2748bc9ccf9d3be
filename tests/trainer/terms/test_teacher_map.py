"""The stored map read at any place equals the whole map read there; missing cells are known to be missing."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tests.trainer.terms.bevdistill_builders import GRID, TEACHER, a_frame, bilinear, cells_of
from tests.trainer.terms.sparsekd_builders import FINE, World
from trainer.terms.adaptor import FrozenAdaptor
from trainer.terms.places import rows_and_columns
from trainer.terms.sampling import sample_bilinear
from trainer.terms.teacher_map import stored_bilinear, stored_positions


def places(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    points = np.stack([rng.uniform(-4.8, 4.8, count), rng.uniform(-4, 4, count)], axis=1)
    return torch.from_numpy(points), torch.from_numpy(np.sort(rng.integers(0, 2, count)))


def test_of_every_cell_it_is_the_bilinear_value_of_the_map() -> None:
    frames = [a_frame(1), a_frame(2)]
    points, samples = places(30)
    values, known = stored_bilinear(cells_of([f.cells for f in frames]), GRID, samples, *rows_and_columns(points, GRID))
    assert known.all()
    for value, point, sample in zip(values, points.tolist(), samples.tolist(), strict=True):
        assert torch.allclose(value, bilinear(torch.from_numpy(frames[sample].teacher_map), *point), atol=1e-12)


def test_a_place_beside_a_missing_cell_is_unknown_and_one_on_a_stored_cell_known() -> None:
    frame = a_frame(1, every_cell=False)
    cells = cells_of([frame.cells])
    centres = torch.from_numpy(GRID.centres().reshape(-1, 2))
    zeros = torch.zeros(len(centres), dtype=torch.int64)
    values, known = stored_bilinear(cells, GRID, zeros, *rows_and_columns(centres, GRID))
    assert known.nonzero().flatten().tolist() == sorted(frame.cells.index.tolist())
    assert torch.equal(values[cells.index], cells.values)
    assert (values[~known] == 0).all()
    _, between = stored_bilinear(cells, GRID, zeros, *rows_and_columns(centres + 0.2, GRID))
    assert 0 < int(between.sum()) < int(known.sum())


def test_a_frame_without_cells_knows_nothing() -> None:
    frame = a_frame(1, objects=0, every_cell=False)
    points, samples = places(5)
    values, known = stored_bilinear(cells_of([frame.cells] * 2), GRID, samples, *rows_and_columns(points, GRID))
    assert values.shape == (5, TEACHER)
    assert not known.any()


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


def test_the_frozen_adaptor_at_cells_is_the_convolution_of_the_map() -> None:
    rng = np.random.default_rng(3)
    for kernel in (1, 3, 5):
        weight, bias = rng.normal(0, 1, (6, TEACHER, kernel, kernel)), rng.normal(0, 1, 6)
        frames = [a_frame(1), a_frame(2)]
        cells = cells_of([f.cells for f in frames])
        chosen = cells.weights[:, 0] > 0
        adaptor = FrozenAdaptor(weight, bias).double()
        maps = torch.from_numpy(np.stack([f.teacher_map for f in frames]))
        dense = torch.relu(
            torch.nn.functional.conv2d(maps, adaptor.weight.double(), adaptor.bias.double(), padding=kernel // 2)
        )
        wanted = dense.permute(0, 2, 3, 1).reshape(-1, 6)[cells.samples() * 120 + cells.index][chosen]
        assert torch.allclose(adaptor.at(cells, chosen, GRID), wanted, atol=1e-10)
        order = torch.from_numpy(rng.permutation(120))  # in whatever order cells are stored
        one = cells_of([frames[0].cells])
        one = dataclasses.replace(one, index=one.index[order], values=one.values[order], weights=one.weights[order])
        found = adaptor.at(one, one.index == 13, GRID)
        assert torch.allclose(found, dense[:1, :, 13 // GRID.width, 13 % GRID.width], atol=1e-10)
