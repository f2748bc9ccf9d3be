"""A module for torchrun: `trainer.main` with a student whose loss is not finite wherever a certain frame is in the
batch.

    python -m tests.trainer.poisoned_rank TOKEN [arguments of trainer.main]
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from models.detector import LossPart
from models.lift_splat import LiftSplat
from trainer.main import main


def poisoned(token: str) -> Callable[..., dict[str, LossPart]]:
    """`LiftSplat.loss_parts` with a NaN in its part `vel` where the frame is in the batch."""
    original = LiftSplat.loss_parts

    def loss_parts(self: LiftSplat, output: Any, batch: Any) -> dict[str, LossPart]:
        parts = original(self, output, batch)
        if token in batch.tokens:
            parts["vel"] = dataclasses.replace(parts["vel"], numerator=parts["vel"].numerator * float("nan"))
        return parts

    return loss_parts


if __name__ == "__main__":
    LiftSplat.loss_parts = poisoned(sys.argv[1])  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
