"""What a run begins with: student, terms and optimiser as at step 0, and the values that a resumed run must share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from models.backbone_weights import load_backbone
from models.build import build_detector
from trainer.checkpoint import Training
from trainer.compiling import compiled
from trainer.initialise import begin_from
from trainer.norms import freeze_stages, frozen_norms
from trainer.objective import Objective
from trainer.optimiser import Average, make_optimiser
from trainer.plan import Plan
from trainer.terms import build_relabels, build_terms


def make_training(plan: Plan, device: torch.device) -> Training:
    """Model, terms and optimiser as at step 0; from one seed, the same student with and without terms."""
    config = plan.recipe.train
    torch.manual_seed(config.seed)
    model = build_detector(plan.recipe.model)
    backbone = load_backbone(model, Path(config.backbone_weights)) if config.backbone_weights else None
    began = begin_from(model, config.init_from, config.init_scheme) if config.init_from else None
    specs = plan.recipe.term_specs()
    terms = build_terms(specs, model, plan.teachers).to(device)
    module = cast(nn.Module, model).to(device)
    objective = Objective(module, terms, build_relabels(specs), plan.recipe, plan.steps).train()
    objective.keep_in_evaluation(freeze_stages(module, config.frozen))
    if config.freeze_bn != "none":
        objective.keep_in_evaluation(frozen_norms(module, config.freeze_bn))
    if config.compile:
        compiled(module)
    average = Average(module, config.ema) if config.ema else None
    optimiser = make_optimiser(dict(objective.named_parameters()), config)
    return Training(objective, optimiser, average, backbone, began)


def run_identity(plan: Plan, training: Training) -> dict[str, Any]:
    """What a checkpoint says of its run, and a run that goes on from it must say too."""
    identity: dict[str, Any] = {"recipe": plan.recipe.trained(), "stores": plan.manifests()}
    if training.began is not None:
        identity["init"] = training.began.identity()
    return identity
