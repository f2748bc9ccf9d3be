from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.order import epoch_order, step_entries, steps_per_epoch

SEEDS = st.integers(0, 2**40)


@given(SEEDS, st.integers(0, 10_000), st.integers(0, 300), st.integers(1, 40))
def test_steps_of_an_epoch_use_every_entry_exactly_once(seed: int, epoch: int, n: int, batch: int) -> None:
    order = epoch_order(seed, epoch, n)
    steps = [step_entries(order, step, batch) for step in range(steps_per_epoch(n, batch))]
    used = np.concatenate([np.zeros(0, int), *steps])
    assert sorted(used.tolist()) == list(range(n))
    assert all(len(entries) == batch for entries in steps[:-1])
    assert not steps or 1 <= len(steps[-1]) <= batch
    assert len(step_entries(order, len(steps), batch)) == 0


@given(SEEDS, st.integers(0, 10_000), st.integers(0, 300))
def test_order_is_a_function_of_its_arguments_alone(seed: int, epoch: int, n: int) -> None:
    first = epoch_order(seed, epoch, n)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    epoch_order(seed + 1, epoch, n)
    assert np.array_equal(first, epoch_order(seed, epoch, n))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_order_of_a_seed_never_changes_between_releases() -> None:
    assert epoch_order(0, 0, 8).tolist() == [1, 7, 0, 4, 6, 3, 5, 2]
    assert epoch_order(3, 2, 5).tolist() == [0, 2, 3, 1, 4]
