"""Weights of an image backbone from elsewhere: files of torchvision, mmdetection, and of whole detectors.

All of them name a ResNet's tensors alike, behind a prefix that tells which part of a network it is. Everything under
the prefix is used, or skipped by a rule with a name; every tensor of ours is filled. torchvision's order of strides is
meant ("pytorch" style, RGB): weights of the "caffe" style have the same names and shapes, so they load, and see wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cache.errors import ConfigError, DataError
from models.build import told_preset
from models.detector import Detector
from models.foreign_files import read_checkpoint
from models.resnet import ResNet

PREFIXES = ("", "backbone.", "img_backbone.", "model.backbone.", "model.img_backbone.")
FIRST = "conv1.weight"
CLASSIFIER = re.compile(r"^(fc|head\.fc)\.")
STAGE = re.compile(r"^layer(\d)\.")
COUNTER = "num_batches_tracked"  # of a norm; files before torch 0.4.1 have none, and nothing here reads it
NAMED = 3


@dataclass(frozen=True)
class BackboneLoad:
    """What became of a file: its prefix, how many of our tensors it filled, and the names it skipped by rule."""

    path: str
    prefix: str
    filled: int
    skipped: Mapping[str, tuple[str, ...]]

    def line(self) -> str:
        """For people."""
        under = f" under {self.prefix}" if self.prefix else ""
        left = "; ".join(f"{rule}: {_some(names)}" for rule, names in self.skipped.items() if names)
        return f"{self.path}: {self.filled} tensors of the backbone{under}; skipped {left or 'nothing'}"


def load_backbone(model: Detector, path: Path) -> BackboneLoad:
    """Fills the ResNet of a camera detector from a file of torch.save or safetensors. Nothing in it is ever run.

    Raises ConfigError where the detector has no such backbone; DataError naming what is missing, of another shape,
    left over or not finite, and as `read_checkpoint` does.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, ResNet):
        raise ConfigError(f"{path}: a {model.config['kind']} has no image backbone to fill; leave backbone_weights out")
    tensors = read_checkpoint(path).tensors
    prefix = next((start for start in PREFIXES if start + FIRST in tensors), None)
    if prefix is None:
        raise DataError(
            f"{path}: no {FIRST} under {', '.join(repr(start) for start in PREFIXES)}, its tensors are "
            f"{_some(tuple(tensors))}; give a ResNet of torchvision or mmdetection"
        )
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    stages = len(backbone.config.layers)
    skipped = {
        "the classifier": tuple(name for name in found if CLASSIFIER.match(name)),
        "stages that the model has not": tuple(
            name for name in found if (stage := STAGE.match(name)) and int(stage[1]) > stages
        ),
        "other parts": tuple(name for name in tensors if not name.startswith(prefix)),
    }
    left_out = {name for names in skipped.values() for name in names}
    wanted = {name: tensor for name, tensor in found.items() if name not in left_out}
    expected = backbone.state_dict()
    _require_fit(expected, wanted, str(path), model)
    for name, own in expected.items():
        if name in wanted:
            own.copy_(wanted[name])
    return BackboneLoad(str(path), prefix, sum(name in wanted for name in expected), skipped)


def _require_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, model: Detector) -> None:
    missing = tuple(name for name in expected if name not in found and not name.endswith(COUNTER))
    left = tuple(name for name in found if name not in expected)
    other = tuple(
        f"{name} {tuple(found[name].shape)} for our {tuple(own.shape)}"
        for name, own in expected.items()
        if name in found and found[name].shape != own.shape
    )
    problems = {"missing": missing, "of another shape": other, "without a place": left}
    if any(problems.values()):
        told = "; ".join(f"{len(names)} tensors {what}: {_some(names)}" for what, names in problems.items() if names)
        raise DataError(
            f"{where}: another backbone than that of {told_preset(model.config)}: {told}; set [model.backbone] to the "
            "one of the file"
        )
    for name, tensor in found.items():
        if not torch.isfinite(tensor.float()).all():
            raise DataError(f"{where}: tensor {name} holds NaN or infinite values; take another file")


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
