"""A rank's place in the order of a run: steps are handed out ahead, and only those that training has reached count.

What is read ahead when a process dies was not trained on, so a state that counted it would lose those frames.
"""

from __future__ import annotations

from trainer.order_state import OrderState
from trainer.partition import rank_part
from trainer.run_order import RankStep, RunOrder


class OrderCursor:
    """A rank's steps one after another, handed out ahead of training; its state counts only what training has reached.

    steps: of the whole run. Not for several threads at once.
    """

    def __init__(self, order: RunOrder, steps: int, rank: int = 0, world: int = 1) -> None:
        rank_part(0, rank, world)  # refuses at once a rank that there is not
        self._order, self._steps, self._rank, self._world = order, steps, rank, world
        self._next = self._reached = 0

    def reset(self, state: OrderState | None = None, where: str = "the state to go on from") -> None:
        """Begins anew, or behind the last step that training had reached, whatever had been handed out ahead of it.
        FingerprintError where the state is of another order."""
        if state is not None:
            state.require_same_order(self._order.state(0), where)
        self._next = self._reached = 0 if state is None else state.step

    def __iter__(self) -> OrderCursor:
        return self

    def __next__(self) -> RankStep:
        if self._next >= self._steps:
            raise StopIteration
        self._next += 1
        return self._order.rank_step(self._next - 1, self._rank, self._world)

    def reached(self, step: int) -> None:
        """Says that the batch of `step` has reached training: steps come in order, none twice. ValueError otherwise."""
        if step != self._reached or step >= self._next:
            raise ValueError(f"step {step} reached training, expected step {self._reached} of the {self._next} given")
        self._reached += 1

    def get_state(self) -> OrderState:
        """Where a run that is killed now goes on."""
        return self._order.state(self._reached)
