from __future__ import annotations

import torch
from torch import Tensor

from models.detector import LossPart, total_of
from trainer.global_loss import GlobalParts, layout_of, packed


def parts_of(weights: Tensor, rows: Tensor) -> dict[str, LossPart]:
    """Parts of a made-up loss on rows (n, 3): a constant normaliser, one that depends on the weights, an empty one."""
    values = rows @ weights
    return {
        "plain": LossPart((values**2).sum()[None], torch.tensor([float(len(rows))]), 0.7),
        "grouped": LossPart(
            torch.stack([values.clamp(min=0).sum(), values.abs().sum()]),
            torch.stack([values.exp().sum(), (values * 0.1).exp().sum()]),
            2.0,
        ),
        "empty": LossPart((values * 0).sum()[None], torch.zeros(1), 1.0),
    }


def test_shares_of_pieces_add_up_to_the_gradient_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    for sizes in ((5,), (1, 4), (2, 0, 3), (1, 1, 1, 1, 1)):
        rows = torch.randn(5, 3, generator=generator)
        weights = torch.randn(3, generator=generator).requires_grad_()
        expected = total_of(parts_of(weights, rows))
        torch.stack(list(expected.values())).sum().backward()
        assert weights.grad is not None
        whole_gradient, weights.grad = weights.grad, None

        # a piece of nothing runs on the first row with weight 0
        pieces = [(piece, 1.0) if len(piece) else (rows[:1], 0.0) for piece in rows.split(list(sizes))]
        sums = sum(packed(parts_of(weights, piece), {"seen": len(piece)}, weight) for piece, weight in pieces)
        assert isinstance(sums, Tensor)
        whole = GlobalParts.of(sums, parts_of(weights, rows), {"seen": 0})
        assert whole.counts == {"seen": 5}
        for name, value in whole.values(parts_of(weights, rows)).items():
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-5, atol=1e-6)
        for piece, weight in pieces:
            whole.share(parts_of(weights, piece), weight).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(weights.grad, whole_gradient, rtol=1e-5, atol=1e-6)


def test_a_piece_of_weight_0_adds_nothing_even_where_its_loss_is_none() -> None:
    bad = {"x": LossPart(torch.tensor([float("nan")]), torch.tensor([float("inf")]), 1.0)}
    assert packed(bad, {}, 0.0).tolist() == [0.0, 0.0]


def test_layouts_differ_by_names_groups_and_counts() -> None:
    one = {"x": LossPart(torch.zeros(1), torch.zeros(1), 1.0)}
    layouts = [
        layout_of(one, {}),
        layout_of({"y": one["x"]}, {}),
        layout_of({"x": LossPart(torch.zeros(2), torch.zeros(2), 1.0)}, {}),
        layout_of(one, {"n": 3}),
    ]
    assert len(set(layouts)) == 4
    assert layout_of({"x": LossPart(torch.ones(1), torch.ones(1), 9.0)}, {}) == layouts[0]
