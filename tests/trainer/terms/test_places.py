"""Claims about places on a student's map."""

from __future__ import annotations

import numpy as np
import torch

from models.detector import Batch
from tests.trainer.terms.slow_pieces import AUGMENTS
from tests.trainer.terms.sparsekd_builders import COARSE, FINE, NARROW, World
from trainer.terms.places import (
    augmentation_of,
    augmented_cells,
    canonical_points,
    cell_places,
    moved,
    rows_and_columns,
)


def test_a_batch_without_an_augmentation_is_canonical() -> None:
    cells = World(72).said().cells
    at = cell_places(cells, None, Batch(tokens=list("abcd")), FINE, FINE)
    assert torch.equal((at.row * FINE.width + at.col).long(), cells.index)
    narrow = cell_places(cells, None, Batch(tokens=list("abcd")), FINE, NARROW)
    assert len(narrow.row) < len(at.row)


def test_cells_lie_where_the_slow_formula_puts_them_on_any_grid() -> None:
    for student in (FINE, COARSE, NARROW):
        world = World(71, student_grid=student)
        cells = world.said().cells
        at = cell_places(cells, cells.weights[:, :2], world.batch(), FINE, student)
        kept = iter(zip(at.samples.tolist(), at.row.tolist(), at.col.tolist(), strict=True))
        for k, (frame, index) in enumerate(zip(cells.samples().tolist(), cells.index.tolist(), strict=True)):
            place = world.slow_row_column(frame, *world.centre(index))
            counts = place is not None and bool((cells.weights[k, :2] > 0).any())
            assert bool(at.chosen[k]) == counts
            if counts:
                found = next(kept)
                assert found[0] == frame and np.allclose(found[1:], place, atol=1e-9)
        assert torch.equal(at.weights, cells.weights[:, :2][at.chosen])
        assert next(kept, None) is None


def test_the_identity_and_flips_put_centres_on_centres_to_the_last_bit() -> None:
    world = World(75)
    cells = world.said().cells
    row, col = augmented_cells(cells.index, cells.samples(), augmentation_of(world.batch()), FINE)
    for frame, augment in enumerate(AUGMENTS):
        if augment.rotation_rad == 0:
            mine = cells.samples() == frame
            assert torch.equal(row[mine], row[mine].round()) and torch.equal(col[mine], col[mine].round())


def test_canonical_points_are_where_the_augmentation_takes_them_from() -> None:
    matrices = torch.from_numpy(np.stack([augment.matrix() for augment in AUGMENTS]))
    points, samples = torch.rand(12, 2, dtype=torch.float64) * 8 - 4, torch.arange(12) % 4
    there = torch.tensor([(matrices[s] @ torch.tensor([*p, 0.0, 1.0]).double())[:2].tolist() for s, p in
                          zip(samples.tolist(), points.tolist(), strict=True)], dtype=torch.float64)  # fmt: skip
    assert torch.allclose(moved(points, matrices[samples]), there, atol=1e-6)
    assert torch.allclose(canonical_points(moved(points, matrices[samples]), samples, matrices), points, atol=1e-12)
    row, col = rows_and_columns(torch.tensor([[FINE.x_min + 0.5 * FINE.cell_m, FINE.y_min + 2.5 * FINE.cell_m]]), FINE)
    assert (row.item(), col.item()) == (2.0, 0.0)
