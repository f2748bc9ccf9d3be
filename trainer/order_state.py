"""Where a run stands in its order: a handful of integers and one digest, nothing that depends on who reads.

Not the number of ranks, not of workers, not what is read ahead: so a run may go on with other numbers of all three, and
takes the same global batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cache.errors import CorruptError, FingerprintError

_REMEDY = {
    "batch": "set the recipe's batch back, which is of all ranks together, or begin a new run",
    "seed": "set the recipe's seed back, or begin a new run",
    "frames": "train on the stores the run began with, or begin a new run",
    "digest": "take stores, split and options of the order as they were when the run began, or begin a new run",
}


@dataclass(frozen=True)
class OrderState:
    """step: steps whose batch has reached training; seed; batch: global; frames: entries of an epoch's list; digest: of
    the manifests, the split and the order's options."""

    step: int
    seed: int
    batch: int
    frames: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> OrderState:
        """What `to_dict` gave. CorruptError where it is anything else; `where` stands in front."""
        numbers = ("step", "seed", "batch", "frames")
        good = (
            isinstance(values, Mapping)
            and set(values) == {*numbers, "digest"}
            and all(type(values[name]) is int and values[name] >= 0 for name in numbers)
            and isinstance(values["digest"], str)
        )
        if not good:
            raise CorruptError(
                f"{where}: found {values!r:.120} as the state of the order, expected {', '.join(numbers)} and digest; "
                "the checkpoint is damaged, resume from another"
            )
        return cls(**values)

    def require_same_order(self, own: OrderState, where: str) -> None:
        """FingerprintError, naming both values and the remedy, where this state is of another order than `own`."""
        for name, remedy in _REMEDY.items():
            found, expected = getattr(self, name), getattr(own, name)
            if found != expected:
                raise FingerprintError(f"{where}: {name} of the order is {found}, but now {expected}; {remedy}")
