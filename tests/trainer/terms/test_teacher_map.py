"""The stored map read at any place equals the whole map read there; missing cells are known to be missing."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tests.trainer.terms.bevdistill_builders import (
    AUGMENTS,
    GRID,
    TEACHER,
    a_frame,
    bilinear,
    cells_of,
    moved,
)
from trainer.terms.adaptor import FrozenAdaptor
from trainer.terms.sampling import grid_places
from trainer.terms.teacher_map import canonical_points, teacher_at


def places(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    points = np.stack([rng.uniform(-4.8, 4.8, count), rng.uniform(-4, 4, count)], axis=1)
    return torch.from_numpy(points), torch.from_numpy(np.sort(rng.integers(0, 2, count)))


def test_of_every_cell_it_is_the_bilinear_value_of_the_map() -> None:
    frames = [a_frame(1), a_frame(2)]
    points, samples = places(30)
    values, known = teacher_at(cells_of([f.cells for f in frames]), GRID, samples, *grid_places(points, GRID))
    assert known.all()
    for value, point, sample in zip(values, points.tolist(), samples.tolist(), strict=True):
        assert torch.allclose(value, bilinear(torch.from_numpy(frames[sample].teacher_map), *point), atol=1e-12)


def test_a_place_beside_a_missing_cell_is_unknown_and_one_on_a_stored_cell_known() -> None:
    frame = a_frame(1, every_cell=False)
    cells = cells_of([frame.cells])
    centres = torch.from_numpy(GRID.centres().reshape(-1, 2))
    zeros = torch.zeros(len(centres), dtype=torch.int64)
    values, known = teacher_at(cells, GRID, zeros, *grid_places(centres, GRID))
    assert known.nonzero().flatten().tolist() == sorted(frame.cells.index.tolist())
    assert torch.equal(values[cells.index], cells.values)
    assert (values[~known] == 0).all()
    _, between = teacher_at(cells, GRID, zeros, *grid_places(centres + 0.2, GRID))
    assert 0 < int(between.sum()) < int(known.sum())


def test_a_frame_without_cells_knows_nothing() -> None:
    frame = a_frame(1, objects=0, every_cell=False)
    points, samples = places(5)
    values, known = teacher_at(cells_of([frame.cells] * 2), GRID, samples, *grid_places(points, GRID))
    assert values.shape == (5, TEACHER)
    assert not known.any()


def test_canonical_points_are_where_the_augmentation_takes_them_from() -> None:
    points, samples = places(10)
    matrices = torch.from_numpy(np.stack([AUGMENTS[1].matrix(), AUGMENTS[2].matrix()]))
    there = torch.tensor([moved(AUGMENTS[1 + s], *p) for p, s in zip(points.tolist(), samples.tolist(), strict=True)])
    assert torch.allclose(canonical_points(there.double(), samples, matrices), points, atol=1e-5)


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
