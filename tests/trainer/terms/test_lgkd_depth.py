from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError, DataError
from tests.trainer.terms.lgkd_builders import (
    BARE,
    CAMERAS,
    EDGES,
    FRAMES,
    IDENTITY,
    PICTURE,
    World,
    a_model,
    a_store,
    batches_add_up,
    falls,
    gradients_are_right,
    nothing_gives_zero,
)
from tests.trainer.terms.slow_pieces import AUGMENTS, gradients, slow_bilinear, total
from trainer.said import DepthSaid
from trainer.terms.lgkd_depth import LgkdDepth, LgkdDepthOptions, overlap_shares

STRIDE = 4


def a_term(world: World, model: Any = None, **options: Any) -> LgkdDepth:
    parsed = LgkdDepthOptions(**options)
    return LgkdDepth.build("depth", 0.7, parsed, model or a_model(), a_store(world), range(FRAMES)).double()


def slow_judged(world: World, b: int, camera: int, row: int, col: int) -> bool:
    """Whether the nearest return of that cell lies in the bins."""
    near = math.inf
    for who, u, v, depth in world.returns[b]:
        if int(who) == camera and int(u // STRIDE) == col and int(v // STRIDE) == row:
            near = min(near, depth)
    return EDGES[0] <= near < EDGES[-1]


def slow_loss(world: World, form: str, t: float, where: str = "lidar") -> Tensor:
    """Cell by cell and bin by bin, of pictures that the student sees as the teacher did."""
    numerator, count = world.depth_logits.sum() * 0, 0
    for b in range(FRAMES):
        for camera in range(CAMERAS):
            for row in range(4):
                for col in range(8):
                    if where == "lidar" and not slow_judged(world, b, camera, row, col):
                        continue
                    z, p = world.depth_logits[b, camera, :, row, col], world.depth[b, camera, :, row, col]
                    count += 1
                    for d in range(len(p)):
                        if form == "sound":
                            q = p[d] ** (1 / t) / sum(p[e] ** (1 / t) for e in range(len(p)))
                            s = (z[d] / t).exp() / sum((z[e] / t).exp() for e in range(len(p)))
                            numerator = numerator + t * t * q * (q.log() - s.log())
                        else:
                            s = z[d].exp() / sum(z[e].exp() for e in range(len(p))) / t
                            numerator = numerator - t * t * (p[d] / t * s.log() + (1 - p[d] / t) * (1 - s).log())
    return 0.7 * numerator / max(count, 1)


@pytest.mark.parametrize(("form", "t", "where"), [("sound", 1.25, "lidar"), ("released", 1.25, "all")])
def test_values_and_gradients_equal_the_slow_formula(form: str, t: float, where: str) -> None:
    world = World(1)
    found = total(world.parts(a_term(world, form=form, where=where), range(FRAMES), AUGMENTS))
    wanted = slow_loss(world, form, t, where)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    pair = [gradients(value, [world.depth_logits])[0] for value in (found, wanted)]
    assert torch.allclose(*pair, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["sound", "released"])
def test_a_student_that_is_not_finite_is_told_by_the_loss_and_not_by_an_error_of_torch(form: str) -> None:
    """Training ends with the frames' names where a loss is NaN: it must get that far."""
    world = World(1)
    world.depth_logits = world.depth_logits.detach() * math.nan
    assert math.isnan(total(world.parts(a_term(world, form=form, where="all"), range(FRAMES), IDENTITY)).item())


def test_softened_probabilities_are_the_softmax_of_the_teachers_logits() -> None:
    """A store keeps probabilities alone: whatever the lost constant, the loss is that of the logits."""
    world, logits = World(2), torch.randn(FRAMES, CAMERAS, 4, 4, 8, dtype=torch.float64) * 3 + 7
    world.depth = logits.softmax(dim=2)
    found = total(world.parts(a_term(world, where="all", temperature=2.0), range(FRAMES), IDENTITY))
    q, s = (logits / 2).softmax(dim=2), (world.depth_logits / 2).log_softmax(dim=2)
    wanted = 4 * (q * (q.log() - s)).sum(dim=2).mean()
    assert found.item() == pytest.approx(0.7 * wanted.item(), rel=1e-10)


def picture_affine(resize: float, crop: tuple[float, float], flip: bool) -> Tensor:
    """Stored pixel (centres at whole numbers) -> the student's, as a camera's picture is made, written out."""
    rows = [[resize, 0.0, 0.5 * resize - crop[0]], [0.0, resize, 0.5 * resize - crop[1]]]
    if flip:
        rows[0] = [-resize, 0.0, PICTURE[0] - (0.5 * resize - crop[0])]
    return torch.tensor(rows, dtype=torch.float64)


def compared(world: World, affine: Tensor, form: str = "sound") -> Tensor:
    """Value of frame 0 where the first camera's picture was made by `affine`, the second as the teacher's."""
    base = world.batch([0], IDENTITY)
    both = torch.stack([affine, base.image_affine[0, 1]])[None]
    term = a_term(world, where="all", form=form, temperature=1.0)
    return total(term(world.output([0]), dataclasses.replace(base, image_affine=both), world.said([0])))


def test_a_mirrored_picture_is_compared_with_the_mirrored_distribution() -> None:
    world, other = World(3), World(3)
    with torch.no_grad():
        other.depth_logits[:, 0] = world.depth_logits[:, 0].flip(-1)
    plain = compared(world, picture_affine(1.0, (0, 0), False))
    assert compared(other, picture_affine(1.0, (0, 0), True)).item() == pytest.approx(plain.item(), rel=1e-12)
    assert compared(world, picture_affine(1.0, (0, 0), True)).item() != pytest.approx(plain.item(), rel=1e-3)


def test_a_zoomed_and_cropped_picture_is_compared_where_its_cells_come_from() -> None:
    world = World(4)
    found = compared(world, picture_affine(1.6, (5.0, 9.0), True))
    numerator, count = 0.0, 0
    for camera in range(CAMERAS):
        for row in range(4):
            for col in range(8):
                u, v = (col + 0.5) * STRIDE, (row + 0.5) * STRIDE
                if camera == 0:  # undo the flip, the crop, the zoom
                    u, v = (PICTURE[0] - u + 5.0) / 1.6, (v + 9.0) / 1.6
                p = slow_bilinear(world.depth[0, camera], v / STRIDE - 0.5, u / STRIDE - 0.5)
                student = world.depth_logits[0, camera, :, row, col].detach().log_softmax(0)
                numerator += float((p * (p.log() - student)).sum())
                count += 1
    assert found.item() == pytest.approx(0.7 * numerator / count, rel=1e-9)


def test_cells_that_the_teacher_did_not_see_are_not_judged() -> None:
    world = World(5)
    term = a_term(world, where="all")
    shrunk = picture_affine(0.5, (-8.0, 0.0), False).repeat(1, CAMERAS, 1, 1)  # its left and right quarters are black
    batch = world.batch([0], IDENTITY, image_affine=shrunk)
    assert term(world.output([0]), batch, world.said([0]))["depth"].normaliser.item() == CAMERAS * 2 * 4


def test_a_teacher_of_other_pictures_and_stride_is_read_at_the_same_places() -> None:
    """Twice the resolution at twice the stride: the same cells."""
    world = World(6)
    said = world.said(range(FRAMES))
    twice = torch.tensor([[2.0, 0, 1.0], [0, 2.0, 1.0]], dtype=torch.float64).repeat(FRAMES, CAMERAS, 1, 1)
    large = DepthSaid(said.depth.probs, EDGES, 2 * STRIDE, (2 * PICTURE[0], 2 * PICTURE[1]), twice)
    term, output, batch = a_term(world), world.output(range(FRAMES)), world.batch(range(FRAMES), IDENTITY)
    plain = total(term(output, batch, said)).item()
    assert total(term(output, batch, dataclasses.replace(said, depth=large))).item() == pytest.approx(plain, rel=1e-12)


def test_other_bins_are_refused_or_shared_out() -> None:
    world = World(7)
    finer = torch.tensor([1.0, 2.0, 4.0, 10.0, 20.0])
    with pytest.raises(ConfigError, match=r"4 bins of 1\.\.20 m .* teacher's 4 bins of 1\.\.12 m; .*rebin"):
        a_term(world, a_model(depth_edges=finer))
    shares = overlap_shares(torch.tensor(EDGES), finer)
    # 1..3: half each in 1..2 and 2..4; 3..5: half in 2..4, half in 4..10; 5..8: all there; 8..12: half there, half past
    wanted = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0], [0, 0, 0.5, 0.5]])
    assert torch.allclose(shares, wanted)
    term = a_term(world, a_model(depth_edges=finer), bins="rebin", where="all", temperature=1.0)
    found = total(world.parts(term, range(FRAMES), IDENTITY))
    p, s = torch.einsum("bkdhw,de->bkehw", world.depth, wanted.double()), world.depth_logits.log_softmax(dim=2)
    assert found.item() == pytest.approx(0.7 * (p * (p.log() - s)).sum(dim=2).mean().item(), rel=1e-6)


def test_mass_beyond_the_students_bins_is_left_out_of_the_target() -> None:
    world = World(8)
    world.depth = torch.zeros_like(world.depth)
    world.depth[:, :, -1] = 1.0  # all in 8..12 m
    world.depth[0, 0, :, 0, 0] = torch.tensor([0.0, 0.2, 0.0, 0.8])
    near = a_model(depth_edges=torch.tensor([1.0, 3.0, 5.0, 6.0, 7.0]))
    log_s = world.depth_logits[0, 0, :, 0, 0].detach().log_softmax(0)
    wanted = {
        "sound": -log_s[1].item(),
        "released": -(log_s[1] + sum((1 - log_s[d].exp()).log() for d in (0, 2, 3))).item(),
    }
    for form, value in wanted.items():
        term = a_term(world, near, form=form, bins="rebin", where="all", temperature=1.0)
        part = world.parts(term, range(FRAMES), IDENTITY)["depth"]
        assert part.normaliser.item() == 1
        assert part.numerator.item() == pytest.approx(value, rel=1e-6), form


def test_probabilities_of_zero_stay_finite() -> None:
    world = World(9)
    world.depth = torch.zeros_like(world.depth)
    world.depth[:, :, 1] = 1.0
    with torch.no_grad():
        world.depth_logits[:, :, 0] = 1e4  # the student is sure of another bin
    for form in ("sound", "released"):
        value = total(world.parts(a_term(world, form=form, where="all"), range(FRAMES), IDENTITY))
        assert torch.isfinite(value)
        assert torch.isfinite(gradients(value, [world.depth_logits])[0]).all()


def test_gradients_batches_and_frames_without_returns() -> None:
    world = World(10)
    for form in ("sound", "released"):
        term = a_term(world, form=form)
        gradients_are_right(world, term, [world.depth_logits])
        batches_add_up(world, term)
        nothing_gives_zero(world, term, BARE)


def test_optimised_alone_it_falls() -> None:
    world = World(11)
    falls(world, a_term(world), [world.depth_logits], to=0.1)


def test_what_is_missing_is_named() -> None:
    world = World(12)
    with pytest.raises(ConfigError, match="gives no depth_logits"):
        a_term(world, a_model(depth_edges=None))
    with pytest.raises(ValueError, match=r"temperature 0\.5"):
        LgkdDepthOptions(form="released", temperature=0.5)
    batch = world.batch([0], IDENTITY, depth_points=None)
    with pytest.raises(DataError, match=r"\[data\] depth = true"):
        a_term(world)(world.output([0]), batch, world.said([0]))
