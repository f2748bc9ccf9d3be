"""Convolutions at some cells against those of the whole map, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainer.terms.adaptor import AtCells, adapted_at, student_adaptor
from trainer.terms.sampling import sample_bilinear
from trainer.terms.some_cells import SomeCells, between, conv_at, layer_at, rows_of

SHAPE = (3, 7, 9)
CHANNELS, OUT = 4, 5


def some_cells(seed: int, share: float) -> SomeCells:
    picked = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < share
    return SomeCells.of(picked.flatten().nonzero()[:, 0].flip(0).repeat(2), SHAPE)


def a_map(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = SHAPE
    return torch.randn(batch, CHANNELS, height, width, dtype=torch.float64, generator=generator).requires_grad_()


def test_neighbours_are_those_of_the_map_and_of_no_other() -> None:
    _, height, width = SHAPE
    cells = SomeCells.of(torch.arange(3 * height * width), SHAPE)
    for flat, around in zip(cells.index.tolist(), cells.neighbours().tolist(), strict=True):
        frame, row, col = flat // (height * width), flat // width % height, flat % width
        wanted = [
            frame * height * width + r * width + c if 0 <= r < height and 0 <= c < width else -1
            for r in range(row - 1, row + 2)
            for c in range(col - 1, col + 2)
        ]
        assert around == wanted
    few = some_cells(1, 0.1)
    assert few.grown().index.tolist() == sorted({n for around in few.neighbours().tolist() for n in around} - {-1})
    asked = torch.tensor([-1, int(few.index[0]), int(few.index[-1])])
    assert few.positions(asked).tolist() == [-1, 0, len(few.index) - 1]


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_at_cells_is_that_of_the_whole_map(share: float, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, OUT, 3, padding=1, bias=bias).double()
    bev, cells = a_map(), some_cells(2, share)
    found = conv_at(conv, rows_of(bev), cells.neighbours())
    wanted = rows_of(conv(bev))[cells.index]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn(found.shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), [bev, *conv.parameters()]),
        torch.autograd.grad((wanted * weights).sum(), [bev, *conv.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_layers_behind_one_another_are_the_whole_maps_where_each_has_its_surroundings() -> None:
    torch.manual_seed(0)
    layers = [student_adaptor("conv3x3", CHANNELS, OUT).double().eval(), nn.Conv2d(OUT, 2, 3, padding=1).double()]
    bev, last = a_map(), some_cells(3, 0.05)
    first = last.grown()
    rows = layer_at(layers[0], rows_of(bev), first.neighbours())
    found = layer_at(layers[1], rows, first.positions(last.neighbours()))
    wanted = rows_of(layers[1](layers[0](bev)))[last.index]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    one, other = (torch.autograd.grad(out.square().sum(), bev)[0] for out in (found, wanted))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_an_adaptor_at_cells_reads_places_as_the_whole_map_says_them() -> None:
    """With the norm's running statistics, which do not depend on the cells that are computed."""
    torch.manual_seed(0)
    adaptor = student_adaptor("conv3x3_cells", CHANNELS, OUT).double().eval()
    assert isinstance(adaptor, AtCells)
    for part in adaptor[1:2]:
        nn.init.normal_(part.running_mean)
        nn.init.uniform_(part.running_var, 0.5, 2.0)
    bev, generator = a_map(), torch.Generator().manual_seed(4)
    samples = torch.randint(0, SHAPE[0], (20,), generator=generator)
    row = torch.rand(20, generator=generator, dtype=torch.float64) * (SHAPE[1] + 1) - 1
    col = torch.rand(20, generator=generator, dtype=torch.float64) * (SHAPE[2] + 1) - 1
    found = adapted_at(adaptor, bev, samples, row, col)
    wanted = sample_bilinear(adaptor(bev), samples, row, col)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    leaves = [bev, *adaptor.parameters()]
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_norms_take_their_statistics_from_the_computed_cells() -> None:
    torch.manual_seed(0)
    adaptor = student_adaptor("conv3x3_cells", CHANNELS, OUT).double().train()
    assert isinstance(adaptor, AtCells)
    bev, cells = a_map(), some_cells(5, 0.2)
    found = layer_at(adaptor, rows_of(bev), cells.neighbours())
    values = rows_of(adaptor[0](bev))[cells.index]
    wanted = ((values - values.mean(0)) / (values.var(0, unbiased=False) + 1e-5).sqrt()).relu()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(adaptor[1].running_mean, 0.1 * values.mean(0), rtol=1e-9, atol=1e-9)
    for number in (0, 1):  # nothing to take statistics of: the running ones
        few = SomeCells(cells.index[:number], SHAPE)
        out = layer_at(adaptor, rows_of(bev), few.neighbours())
        assert out.shape == (number, OUT) and bool(torch.isfinite(out).all())


def test_places_between_cells_read_them_alone() -> None:
    bev, cells = a_map(), SomeCells.of(torch.arange(SHAPE[0] * SHAPE[1] * SHAPE[2]), SHAPE)
    samples, row, col = torch.tensor([0, 2]), torch.tensor([1.25, 6.0]), torch.tensor([3.5, 8.0])
    found = between(rows_of(bev), cells, samples, row.double(), col.double())
    torch.testing.assert_close(found, sample_bilinear(bev, samples, row.double(), col.double()))
