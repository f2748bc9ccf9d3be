"""A module for torchrun: gradients of first steps as this rank's share of the work gives them, written by rank 0.

    python -m tests.trainer.rank_gradients CASES CACHE OUT

CASES: a JSON file of {name: [recipe, step]}; OUT: a folder, one safetensors file a case: gradients, buffers, and the
scalars of the log.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.distributed import Ranks, joined
from trainer.feed import Feed
from trainer.norms import sync_norms
from trainer.plan import make_plan
from trainer.recipe import Recipe, load_recipe
from trainer.setup import make_training
from trainer.step import Stepper


def gradients(recipe: Recipe, cache: Path, step: int, ranks: Ranks) -> dict[str, Tensor]:
    """After one step from the initial weights: every parameter's gradient, before its clipping where there is none."""
    plan = make_plan(recipe, cache)
    training = make_training(plan, ranks.device)
    feed = Feed(plan, training.model, ranks.rank, ranks.world)  # type: ignore[arg-type]
    fed = feed.build(plan.run_order.rank_step(step, ranks.rank, ranks.world))
    sync = sync_norms(training.objective, ranks) if recipe.train.sync_bn and not ranks.alone else None
    scalars = Stepper(training, plan, ranks, sync).take(fed.pieces, step)
    out = {f"gradient.{name}": p.grad for name, p in training.named_parameters().items() if p.grad is not None}
    out |= {f"buffer.{name}": buffer for name, buffer in training.objective.named_buffers()}
    return out | {f"scalar.{name}": torch.tensor(value) for name, value in scalars.items()}


def main() -> None:
    torch.set_num_threads(1)
    cases, cache, out = (Path(argument) for argument in sys.argv[1:])
    with joined("cpu", timeout_s=60) as ranks:
        for name, (recipe, step) in json.loads(cases.read_text()).items():
            path = out / f"{name}.recipe{ranks.rank}.json"
            path.write_text(json.dumps(recipe))
            found = gradients(load_recipe(path), cache, step, ranks)
            if ranks.first:
                save_file({key: value.contiguous() for key, value in found.items()}, out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
