"""Which channels of a detector's layers are the same channels: the graph that inheriting weights needs.

A layer reads the channels of one space and writes those of another; residual sums share a space; flattening z layers
and concatenating maps derive one space from others. Roles name layers by what they do, so that detectors of two kinds
can be matched. Built from modules and their names, without running anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from cache.errors import ConfigError
from models.bev_encoder import BevEncoder
from models.center_head import CenterHead
from models.centerpoint import CenterPoint
from models.lift_splat import LiftSplat
from models.pillars import PillarEncoder
from models.resnet import BasicBlock
from models.sparse_encoder import SparseEncoder


@dataclass(frozen=True)
class Layer:
    """role: what it does, equal in detectors that have such a layer; weight: its tensor's name, axes: of it, those of
    the written and the read space; vectors: (what, name) of the tensors over the written space (gamma, beta, mean,
    variance of the norm behind it, and bias); kind: layers of unlike kinds are never matched."""

    role: str
    weight: str
    reads: str
    writes: str
    axes: tuple[int, int]
    vectors: tuple[tuple[str, str], ...]
    kind: str


@dataclass(frozen=True)
class Flatten:
    """A space whose channel c * times + z is channel c of `of` at layer z, as `SparseEncoder` lays its canvas out."""

    of: str
    times: int


@dataclass(frozen=True)
class Concat:
    """A space that holds the channels of spaces one after another."""

    of: tuple[str, ...]


@dataclass
class Graph:
    """layers in the order in which data flow; derived: spaces made of others; fixed: spaces whose channels have each a
    meaning of their own (point features, classes, box codes), never a selection; scalars: counters of norms, by the
    role of their layer."""

    layers: list[Layer] = field(default_factory=list)
    derived: dict[str, Flatten | Concat] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    scalars: dict[str, str] = field(default_factory=dict)

    def by_role(self) -> dict[str, Layer]:
        """Layers by role."""
        return {layer.role: layer for layer in self.layers}


def layer_graph(model: nn.Module) -> Graph:
    """The graph of one of our detectors. ConfigError for a module of another make."""
    builder = _Builder(model)
    if isinstance(model, CenterPoint):
        bev = builder.plain_trunk("backbone", "blocks", builder.lidar_encoder("encoder", model.encoder))
    elif isinstance(model, LiftSplat):
        builder.graph.fixed.add("splat")
        bev = builder.camera_trunk("encoder", model.encoder, "splat")
    else:
        raise ConfigError(
            f"a {type(model).__name__} cannot inherit or bequeath weights; those that can are CenterPoint and LiftSplat"
        )
    builder.head("head", model.head, bev)
    return builder.graph


class _Builder:
    """Adds layers to a graph, checking their names against the model's."""

    def __init__(self, model: nn.Module) -> None:
        self.graph, self.modules = Graph(), dict(model.named_modules())
        self.tensors: dict[str, Tensor] = model.state_dict()

    def layer(self, role: str, conv: str, norm: str | None, reads: str, writes: str, bias: str | None = None) -> str:
        """Returns `writes`. bias: a parameter that stands beside the convolution; its own is found."""
        module = self.modules[conv]
        sparse = module.weight.dim() == 5
        transposed = isinstance(module, nn.ConvTranspose2d)
        axes = (0, 4) if sparse else (1, 0) if transposed else (0, 1)
        own = [("bias", bias or f"{conv}.bias")]
        parts = ("weight", "bias", "running_mean", "running_var")
        own += [(f"norm.{part}", f"{norm}.{part}") for part in parts] if norm is not None else []
        vectors = tuple((what, name) for what, name in own if name in self.tensors)
        kind = "sparse" if sparse else "transposed" if transposed else type(module).__name__
        self.graph.layers.append(Layer(role, f"{conv}.weight", reads, writes, axes, vectors, kind))
        if norm is not None and f"{norm}.num_batches_tracked" in self.tensors:
            self.graph.scalars[role] = f"{norm}.num_batches_tracked"
        return writes

    def lidar_encoder(self, at: str, encoder: PillarEncoder | SparseEncoder) -> str:
        graph = self.graph
        if isinstance(encoder, PillarEncoder):
            reads = f"points.{'released' if encoder.released else 'scaled'}"
            graph.fixed.add(reads)
            if encoder.first is not None:
                first = self.layer("pillar.first", f"{at}.first.linear", f"{at}.first.norm", reads, "pillar.first")
                graph.derived["pillar.both"] = Concat((first, first))
                reads = "pillar.both"
            return self.layer("pillar.last", f"{at}.linear", f"{at}.norm", reads, "pillars")
        graph.fixed.add("voxels")
        stream = self.layer("sparse.input", f"{at}.input.conv", f"{at}.input.norm", "voxels", "sparse.0")
        for i, stage in enumerate(cast(Iterator[nn.Module], encoder.stages)):
            here = f"{at}.stages.{i}"
            if stage.down is not None:
                stream = self.layer(f"sparse.{i}.down", f"{here}.down.conv", f"{here}.down.norm", stream, f"sparse.{i}")
            for j in range(len(stage.blocks)):  # type: ignore[arg-type]
                block, role = f"{here}.blocks.{j}", f"sparse.{i}.{j}"
                inner = self.layer(f"{role}.1", f"{block}.conv1", f"{block}.norm1", stream, role, f"{block}.bias1")
                self.layer(f"{role}.2", f"{block}.conv2", f"{block}.norm2", inner, stream, f"{block}.bias2")
        out = self.layer("sparse.output", f"{at}.output.conv", f"{at}.output.norm", stream, "sparse.out")
        graph.derived["canvas"] = Flatten(out, encoder.layers_out)
        return "canvas"

    def camera_trunk(self, at: str, encoder: BevEncoder, stream: str) -> str:
        if encoder.plain:
            return self.plain_trunk(at, "stages", stream)
        return self.residual_trunk(at, encoder, stream)

    def plain_trunk(self, at: str, stages: str, stream: str) -> str:
        ends = []
        for i, block in enumerate(cast(Iterator[nn.Sequential], self.modules[f"{at}.{stages}"])):
            convs = [k for k, module in enumerate(block) if isinstance(module, nn.Conv2d)]
            for n, k in enumerate(convs):
                here = f"{at}.{stages}.{i}"
                stream = self.layer(f"trunk.{i}.{n}", f"{here}.{k}", f"{here}.{k + 1}", stream, f"trunk.{i}.{n}")
            ends.append(stream)
        return self.neck(f"{at}.neck", ends)

    def residual_trunk(self, at: str, encoder: BevEncoder, stream: str) -> str:
        """Its nth 3x3 convolution of a stage has the role of a plain trunk's nth."""
        ends = []
        for i, stage in enumerate(cast(Iterator[nn.Sequential], encoder.stages)):
            for j, block in enumerate(cast(Iterator[BasicBlock], stage)):
                here, space = f"{at}.stages.{i}.{j}", f"trunk.{i}"
                inner = self.layer(f"trunk.{i}.{2 * j}", f"{here}.conv1", f"{here}.bn1", stream, f"{space}.{j}")
                self.layer(f"trunk.{i}.{2 * j + 1}", f"{here}.conv2", f"{here}.bn2", inner, space)
                if block.downsample is not None:
                    short, role = f"{here}.downsample", f"trunk.{i}.{j}.shortcut"
                    self.layer(role, f"{short}.0", f"{short}.1", stream, space)
                stream = space
            ends.append(stream)
        return self.neck(f"{at}.neck", ends)

    def neck(self, at: str, ends: list[str]) -> str:
        parts = [
            self.layer(f"neck.{i}", f"{at}.deblocks.{i}.0", f"{at}.deblocks.{i}.1", end, f"neck.{i}")
            for i, end in enumerate(ends)
        ]
        self.graph.derived["bev"] = Concat(tuple(parts))
        return "bev"

    def head(self, at: str, head: CenterHead, bev: str) -> None:
        """Task groups are known by their classes, wherever they stand."""
        shared = self.layer("head.shared", f"{at}.shared.0", f"{at}.shared.1", bev, "head.shared")
        for t, classes in enumerate(head.config.tasks):
            for name in cast(nn.ModuleDict, head.tasks[t]):
                here, role = f"{at}.tasks.{t}.{name}", f"head.{'+'.join(classes)}.{name}"
                hidden = self.layer(f"{role}.hidden", f"{here}.0", f"{here}.1", shared, f"{role}.hidden")
                self.graph.fixed.add(role)
                self.layer(role, f"{here}.3", None, hidden, role)


def flat_index(index: Tensor, junction: Flatten) -> Tensor:
    """The derived channels of chosen ones (C,), in the order in which they lie: (C * times,)."""
    return (index[:, None] * junction.times + torch.arange(junction.times)).flatten()
