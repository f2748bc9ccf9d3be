"""The contrastive loss against loops over anchors and negatives."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.terms.info_nce import ProjectionHead, contrast

SAMPLES = torch.tensor([0, 0, 0, 0, 2, 2, 3])


def features(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(len(SAMPLES), 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    points = torch.rand(len(SAMPLES), 2, generator=generator, dtype=torch.float64) * 4
    return *(torch.nn.functional.normalize(d, dim=1).requires_grad_() for d in draw), points


def slow(t: torch.Tensor, s: torch.Tensor, points: torch.Tensor, tau: float, apart: float, critic: str, noise: float):  # type: ignore[no-untyped-def]
    out = []
    for i in range(len(SAMPLES)):
        own = torch.dot(t[i], s[i]) / tau
        others = [
            torch.dot(t[i], s[j]) / tau
            for j in range(len(SAMPLES))
            if j != i and SAMPLES[j] == SAMPLES[i] and math.dist(points[i].tolist(), points[j].tolist()) >= apart
        ]
        if critic == "softmax":
            total = own.exp() + sum((z.exp() for z in others), own * 0)
            out.append(-(own.exp() / total).log())
        else:
            h = [z.exp() / (z.exp() + noise) for z in (own, *others)]
            out.append(-h[0].log() - sum(((1 - other).log() for other in h[1:]), own * 0))
    return torch.stack(out)


@pytest.mark.parametrize("critic", ["softmax", "crd"])
@pytest.mark.parametrize("apart", [0.0, 1.5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_values_and_gradients_equal_the_slow_formula(critic: str, apart: float, symmetric: bool) -> None:
    t, s, points = features(1)
    options = {"tau": 0.3, "apart": apart, "symmetric": symmetric, "critic": critic, "noise": 2.5}
    found = contrast(t, s, SAMPLES, points, 4, **options)  # type: ignore[arg-type]
    wanted = slow(t, s, points, 0.3, apart, critic, 2.5)
    if symmetric:
        wanted = (wanted + slow(s, t, points, 0.3, apart, critic, 2.5)) / 2
    assert torch.allclose(found, wanted, rtol=1e-10)
    weights = torch.rand(len(SAMPLES), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (t, s)),
        torch.autograd.grad((wanted * weights).sum(), (t, s)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-10)


def test_a_place_alone_in_its_frame_says_nothing() -> None:
    t, s, points = features(2)
    loss = contrast(t, s, SAMPLES, points, 4, tau=0.07, apart=0.0, symmetric=False)
    assert loss[-1].item() == pytest.approx(0, abs=1e-12)
    assert (loss[:4] > 0).all()


def test_matching_features_are_better_than_shuffled_ones() -> None:
    t, _, points = features(3)
    options = {"tau": 0.07, "apart": 0.0, "symmetric": True}
    right = contrast(t, t, SAMPLES, points, 4, **options)  # type: ignore[arg-type]
    wrong = contrast(t, t[[1, 0, 3, 2, 5, 4, 6]], SAMPLES, points, 4, **options)  # type: ignore[arg-type]
    assert right.sum() < wrong.sum()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_heads_give_vectors_of_length_one_and_take_no_row_or_one(norm: str) -> None:
    head = ProjectionHead(3, 8, norm).train()  # type: ignore[arg-type]
    for rows in (0, 1, 5):
        out = head(torch.randn(rows, 3))
        assert out.shape == (rows, 8)
        assert torch.allclose(out.norm(dim=1), torch.ones(rows), atol=1e-5)
        head.zero_grad()
        out.sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
    assert all(torch.isfinite(buffer.float()).all() for buffer in head.buffers())


def test_layer_norm_keeps_a_place_from_depending_on_the_others() -> None:
    head, values = ProjectionHead(3, 8, "layer").double(), torch.randn(6, 3, dtype=torch.float64)
    assert torch.allclose(head(values)[:2], head(values[:2]), atol=1e-12)
