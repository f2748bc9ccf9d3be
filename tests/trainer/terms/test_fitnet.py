"""Claims about FitNet and FG."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from tests.trainer.terms.slow_pieces import slow_bilinear
from tests.trainer.terms.sparsekd_builders import (
    CHANNELS,
    COARSE,
    FINE,
    SELECTORS,
    STUDENT_CHANNELS,
    World,
    a_student,
    require_batch_invariant,
    require_falls,
    require_gradcheck,
    require_nothing,
    require_reference,
    value_of,
)
from trainer.augment import BevAugment
from trainer.terms.fitnet import FgOptions, FitNet, FitNetOptions, needs_of
from trainer.terms.standardise import Standardise


def a_term(world: World, **options: Any) -> FitNet:
    torch.manual_seed(0)
    student = a_student(world.student_grid)
    return FitNet("fit", 0.1, FitNetOptions(**options), STUDENT_CHANNELS, CHANNELS, student)


def slow(term: FitNet, world: World) -> Tensor:
    total, mass = torch.zeros((), dtype=torch.float64), 0.0
    column, everywhere = SELECTORS.index(term.options.selector), term.options.mask == "none"
    lifted = term.adaptor(world.student["bev"])
    for b in range(world.frames):
        for k in world.kept(b):
            row, col = divmod(int(k), world.grid.width)
            w = 1.0 if everywhere else float(world.weights[b, column, row, col])
            place = world.slow_row_column(b, *world.centre(int(k)))
            if w == 0 or place is None:
                continue
            w = w if term.options.soft else 1.0
            found = slow_bilinear(lifted[b], *place)
            for c in range(CHANNELS):
                total = total + w * (found[c] - world.bev[b, c, row, col]) ** 2 / CHANNELS
            mass += w
    return term.weight * total / max(mass, 1.0)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"mask": "none"}, FINE),
        ({"selector": "gaussian", "soft": False}, COARSE),
        ({}, FINE),
        ({"adaptor": "conv3x3_linear", "soft": False}, FINE),
        ({"adaptor": "conv3x3"}, FINE),
    ],
)
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any], grid: Any) -> None:
    world = World(31, student_grid=grid)
    require_reference(a_term(world, **options), world, slow)


def test_fg_equals_the_slow_formula() -> None:
    """Of its own defaults: every cell with a weight alike."""
    world = World(31)
    torch.manual_seed(0)
    term = FitNet("fg", 0.1, FgOptions(), STUDENT_CHANNELS, CHANNELS, a_student())
    plain = a_term(world, mask="selector", selector="gaussian", soft=False, adaptor="conv1x1")
    plain.adaptor = term.adaptor
    require_reference(term, world, lambda _, world: slow(plain, world))


def test_without_augmentation_over_every_cell_it_is_the_plain_mean_square() -> None:
    world = World(32, augments=[BevAugment()] * 4)
    world.weights[:, 2] = 1
    term = a_term(world, mask="none").double()
    wanted = 0.1 * (term.adaptor(world.student["bev"]) - torch.from_numpy(world.bev)).square().mean()
    assert value_of(term, world).item() == pytest.approx(wanted.item(), rel=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    world = World(33)
    require_gradcheck(a_term(world), world, ["bev"])


def test_single_frames_sum_to_the_batch() -> None:
    world = World(34)
    require_batch_invariant(a_term(world, selector="gaussian"), world)


def test_frames_without_objects_cells_or_annotations_add_nothing() -> None:
    world = World(35, labelled=(True, True, True, False), empty=(1,))
    term = a_term(world, selector="gaussian").double()
    for frame in (1, 2, 3):
        require_nothing(term, world, [frame])
    assert value_of(term, world).item() == pytest.approx(value_of(term, world, [0]).item(), rel=1e-12)


def test_optimised_alone_it_falls() -> None:
    world = World(36)
    require_falls(a_term(world, selector="gaussian"), world, share=0.4)


def test_they_name_their_cells_and_adaptors() -> None:
    assert needs_of(FitNetOptions()).selectors == needs_of(FgOptions()).selectors == ("gaussian",)
    every = needs_of(FitNetOptions(mask="none"))
    assert every.every_cell and not every.selectors
    world = World(37)
    with pytest.raises(ConfigError, match=r"2 channels .* of 3; set adaptor"):
        a_term(world, adaptor="none")
    world.channels = STUDENT_CHANNELS
    same = FitNet("fit", 1.0, FitNetOptions(adaptor="none"), CHANNELS, CHANNELS, a_student())
    assert not list(same.parameters())


def test_fg_counts_each_cell_near_an_object_alike() -> None:
    world = World(38)
    soft, hard = a_term(world).double(), a_term(world).double()
    hard.options = FgOptions()
    masses = [term(world.output(), world.batch(), world.said())["fit"].normaliser.item() for term in (soft, hard)]
    assert masses[0] < masses[1] == int(masses[1])


def test_standardised_teacher_values_are_compared() -> None:
    world = World(39)
    term = a_term(world).double()
    term.standardise = Standardise(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 4.0])).double()
    found = value_of(term, world)
    world.bev = (world.bev - np.array([1.0, -2, 0.5])[:, None, None]) / np.array([2.0, 0.5, 4])[:, None, None]
    term.standardise = Standardise()
    assert found.item() == pytest.approx(value_of(term, world).item(), rel=1e-9)
