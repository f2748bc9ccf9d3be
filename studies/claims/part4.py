"""Part 4: every tiny preset learns four frames by heart, and learns from a train split what holds on val; what a
full-size forward pass spends its time on."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cache.files import write_json
from models.freed_memory import keep_freed_memory
from studies.benches.registry import run_bench
from studies.claims.claim import Claim, expect
from studies.demo import DemoWorld
from studies.overfit import overfit
from studies.short_training import learn_shortly
from studies.simulated_cache import simulated_cache
from trainer.recipe import Recipe, make_recipe

FEW = DemoWorld(train_scenes=12, val_scenes=1)  # enough for four frames that hold every class
WORLD = DemoWorld(train_scenes=100, val_scenes=40)
NDS_GOAL = 0.9
BELOW_CEILING = 0.05  # where what a head can say at all is worth less than the goal
OVERFIT_LIMIT_S, LEARN_LIMIT_S = 3600, 5400


@dataclass(frozen=True)
class Trial:
    """How a preset is trained: [train] of both trainings, keys laid over its [model], and whether there are LiDAR depth
    labels."""

    overfit: Mapping[str, Any]
    learn: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    depth: bool = True


_CENTRE = Trial({"steps": 200, "lr": 3e-3}, {"steps": 200, "lr": 3e-3})
_CAMERA = Trial({"steps": 300, "lr": 4e-3}, {"steps": 300, "lr": 4e-3})
_QUERIES = Trial({"steps": 500, "lr": 2e-3}, {"steps": 800, "lr": 2e-3})
# of single frames: four frames of different scenes have no past
_BEVFORMER = Trial({"steps": 500, "lr": 2e-3}, {"steps": 300, "lr": 2e-3}, {"queue": 1}, depth=False)
TRIALS = {
    "centerpoint-pillar-tiny": _CENTRE,
    "centerpoint-voxel-tiny": _CENTRE,
    "cp-pillar-tiny-v0.8": _CENTRE,
    "cp-voxel-tiny-s": _CENTRE,
    "cp-voxel-tiny-xxs": Trial({"steps": 250, "lr": 4e-3}, {"steps": 200, "lr": 4e-3}),
    "object-dgcnn-tiny": _QUERIES,
    "lift-splat-tiny": _CAMERA,
    "bevdepth-tiny": _CAMERA,
    "bevformer-demo": _BEVFORMER,
}


def overfit_recipe(preset: str) -> Recipe:
    """Four frames in every step, no weight decay, no augmentation."""
    train = {"batch": 4, "weight_decay": 0.0, "schedule": "one_cycle", **TRIALS[preset].overfit}
    return _recipe(preset, {"train": train})


def learning_recipe(preset: str) -> Recipe:
    """A short training with the demo's augmentations."""
    train = {"batch": 4, "schedule": "one_cycle", "ema": 0.98, "checkpoint_every": 50, **TRIALS[preset].learn}
    bev = {"flip_x": 0.5, "flip_y": 0.5, "rotation_deg": 10.0}
    return _recipe(preset, {"train": train, "data": {"bev_augmentation": bev}})


def _recipe(preset: str, values: Mapping[str, Any]) -> Recipe:
    trial = TRIALS[preset]
    data = {"split": "train", "depth": trial.depth, **values.get("data", {})}
    whole = {"model": {"preset": preset, **trial.model}, "data": data, "train": values["train"]}
    return make_recipe(whole, f"the trial of {preset}", preset)


def learns_four_frames_by_heart(preset: str, work: Path) -> str:
    """NDS on the four frames that it was trained on, beside the metric's ceilings."""
    _one_core()
    result = overfit(overfit_recipe(preset), str(simulated_cache(work / "few", FEW)))
    write_json(work / "overfit" / f"{preset}.json", result.to_dict())
    ceiling = (result.head_ceiling or result.ceiling)["NDS"]
    found = (
        f"NDS {result.scores['NDS']:.3f}, mAP {result.scores['mAP']:.3f} on {result.objects} objects of 4 frames after "
        f"{result.steps} steps ({result.seconds:.0f} s); the annotations themselves have {result.ceiling['NDS']:.3f}"
    )
    if result.head_ceiling:
        found += f", what is left of them in cells and after suppression {ceiling:.3f}"
    goal = min(NDS_GOAL, ceiling - BELOW_CEILING)
    return expect(result.scores["NDS"] >= goal, found, f"NDS at least {goal:.3f}")


def learns_what_holds_on_val(preset: str, work: Path) -> str:
    """mAP on val after a short training, against the same predictions shuffled over frames and no training at all."""
    _one_core()
    cache, recipe = simulated_cache(work / "world", WORLD), learning_recipe(preset)
    result = learn_shortly(recipe, cache, work / "learn" / f"{preset}-{recipe.digest[:8]}")
    write_json(work / "learn" / f"{preset}.json", result.to_dict())
    found = (
        f"mAP {result.mAP:.3f} on val after {result.steps} steps ({result.seconds:.0f} s); shuffled over frames "
        f"{result.shuffled_mAP:.4f}, untrained {result.untrained_mAP:.4f}"
    )
    return expect(result.held, found, "mAP at least twice the shuffled and more than the untrained")


def _one_core() -> None:
    """What a training runs on, and keeps the memory that it frees: no value changes."""
    torch.set_num_threads(1)
    keep_freed_memory()


def the_pillar_pass_multiplies(work: Path) -> str:
    """The share of a full-size pillar forward pass, batch 1, that convolutions and matrix products take on a CPU."""
    figures = run_bench("pillar-profile", work / "bench", Console(stderr=True), {})
    kept = figures.get("kept", figures)
    found = f"{kept['fp32']['share']:.1%} of the time in fp32, {kept['bf16']['share']:.1%} in bf16; {figures['cloud']}"
    return expect(kept["fp32"]["share"] >= 0.8, found, "80 % in fp32")


CLAIMS = (
    *(
        Claim(4, f"overfit-{preset}", OVERFIT_LIMIT_S, functools.partial(learns_four_frames_by_heart, preset))
        for preset in TRIALS
    ),
    *(
        Claim(4, f"learn-{preset}", LEARN_LIMIT_S, functools.partial(learns_what_holds_on_val, preset))
        for preset in TRIALS
    ),
    Claim(4, "pillar-profile", 900, the_pillar_pass_multiplies),
)
