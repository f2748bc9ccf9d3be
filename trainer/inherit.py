"""Teacher-guided initialisation: a narrower student begins with slices of its teacher's weights.

For every space of channels the student takes some of the teacher's, and every tensor is cut to those it reads and
writes. Schemes: fnav1 (leading slices of every tensor), fnav2 (leading channels, followed through flattening and
concatenation), fnav2_released (with the released order of flattening, which our canvas does not have), bn_scale (those
of the largest |gamma|), ofa (those of the largest kernels). Detectors of two kinds are matched by the layers' roles:
a camera student gets trunk, neck and head. Nothing is left unsaid: every tensor has its line.
Source: Yang et al. 2022 (SparseKD), section on TGI, and its released code; see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from rich.table import Table
from torch import Tensor, nn

from cache.errors import ConfigError
from trainer.layer_graph import Concat, Flatten, Graph, Layer, flat_index, layer_graph

Scheme = Literal["fnav1", "fnav2", "fnav2_released", "bn_scale", "ofa"]
How = Literal["inherited", "sliced", "left"]


@dataclass(frozen=True)
class Line:
    """What became of one tensor of the student: inherited whole, sliced from `source`, or left, and why."""

    name: str
    how: How
    shape: tuple[int, ...]
    source: str = ""
    source_shape: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Inheritance:
    """state: every tensor of the student, in its order; lines: one each; channels: by the teacher's space, the chosen
    channels in order."""

    state: dict[str, Tensor]
    lines: tuple[Line, ...]
    channels: Mapping[str, Tensor]

    def count(self, how: How) -> int:
        """Tensors of which this became."""
        return sum(line.how == how for line in self.lines)

    def table(self) -> Table:
        """For the terminal: a line a tensor."""
        table = Table("tensor", "what", "shape", "from", "its shape", "note", title=self.summary())
        for line in self.lines:
            style = {"inherited": "green", "sliced": "cyan", "left": "yellow"}[line.how]
            shapes = ["x".join(map(str, shape)) for shape in (line.shape, line.source_shape)]
            table.add_row(line.name, f"[{style}]{line.how}[/]", shapes[0], line.source, shapes[1], line.note)
        return table

    def summary(self) -> str:
        """One sentence."""
        parts = ", ".join(f"{self.count(how)} {how}" for how in get_args(How))
        return f"{len(self.lines)} tensors of the student: {parts}"


def inherit(student: nn.Module, teacher: nn.Module, scheme: Scheme = "fnav2") -> Inheritance:
    """What `student.load_state_dict` should be given; neither model is changed.

    Raises ConfigError for an unknown scheme, for detectors without a graph, and where nothing could be inherited.
    """
    if scheme not in get_args(Scheme):
        raise ConfigError(f"scheme {scheme!r} is unknown; the schemes are {', '.join(get_args(Scheme))}")
    theirs = {name: tensor.detach().cpu() for name, tensor in teacher.state_dict().items()}
    out = inherited_state(student.state_dict(), layer_graph(student), theirs, layer_graph(teacher), scheme)
    if out.count("left") == len(out.lines):
        raise ConfigError("no tensor of the student fits one of the teacher; choose a teacher of its layers")
    return out


def inherited_state(
    student: Mapping[str, Tensor],
    student_graph: Graph,
    teacher: Mapping[str, Tensor],
    teacher_graph: Graph,
    scheme: Scheme = "fnav2",
) -> Inheritance:
    """`inherit` on state dicts."""
    chooser = _Chooser(teacher, teacher_graph, scheme)
    state = {name: tensor.clone() for name, tensor in student.items()}
    lines: dict[str, Line] = {}
    roles = teacher_graph.by_role()
    anchored = set(student_graph.fixed)  # spaces that mean what the teacher's mean
    for layer in student_graph.layers:
        names = [layer.weight, *(name for _, name in layer.vectors)]
        theirs = roles.get(layer.role)
        reason = _misfit(layer, student_graph, theirs, teacher_graph, student, teacher)
        if theirs is not None and not reason:
            shape = student[layer.weight].shape
            out, into, reason = chooser.channels(theirs, (shape[layer.axes[0]], shape[layer.axes[1]]))
        if theirs is None or reason:
            lines |= {name: Line(name, "left", tuple(student[name].shape), note=reason) for name in names}
            continue
        cut = teacher[theirs.weight].index_select(theirs.axes[0], out).index_select(theirs.axes[1], into)
        note = "" if layer.reads in anchored else f"what it reads, {layer.reads}, was left"
        lines[layer.weight] = _take(state, layer.weight, cut, theirs.weight, teacher, note)
        anchored.add(layer.writes)
        anchored |= {name for name, made in student_graph.derived.items() if set(_parts(made)) <= anchored}
        vectors = dict(theirs.vectors)
        for what, name in layer.vectors:
            if what in vectors:
                lines[name] = _take(state, name, teacher[vectors[what]][out], vectors[what], teacher)
            else:
                lines[name] = Line(name, "left", tuple(student[name].shape), note=f"the teacher's layer has no {what}")
        if layer.role in student_graph.scalars and layer.role in teacher_graph.scalars:
            name, source = student_graph.scalars[layer.role], teacher_graph.scalars[layer.role]
            lines[name] = _take(state, name, teacher[source].clone(), source, teacher)
    in_graph = {name for layer in student_graph.layers for name in (layer.weight, *(n for _, n in layer.vectors))}
    for name in (name for name in student if name not in lines):
        same = name in teacher and teacher[name].shape == student[name].shape and name not in in_graph
        if same and _alike(student_graph, teacher_graph) and name not in student_graph.scalars.values():
            lines[name] = _take(state, name, teacher[name].clone(), name, teacher)
        else:
            lines[name] = Line(name, "left", tuple(student[name].shape), note=_why_not(name, student_graph, teacher))
    return Inheritance(state, tuple(lines[name] for name in student), chooser.chosen)


class _Chooser:
    """The chosen channels of the teacher's spaces, each fixed by the first layer that asks."""

    def __init__(self, teacher: Mapping[str, Tensor], graph: Graph, scheme: Scheme) -> None:
        self.teacher, self.graph, self.scheme = teacher, graph, scheme
        self.chosen: dict[str, Tensor] = {}

    def channels(self, layer: Layer, sizes: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        """Written and read channels of a teacher's layer for a student that writes and reads so many, or why not."""
        nothing = torch.zeros(0, dtype=torch.int64)
        into, reason = self._space(layer.reads, sizes[1], self._width(layer, 1))
        if reason:
            return nothing, nothing, reason
        out, reason = self._space(layer.writes, sizes[0], self._width(layer, 0))
        return out, into, reason

    def _width(self, layer: Layer, which: int) -> int:
        return self.teacher[layer.weight].shape[layer.axes[which]]

    def _space(self, space: str, wanted: int, width: int) -> tuple[Tensor, str]:
        if space not in self.chosen:
            if not self._followed(space) and wanted != width:
                return torch.arange(0), f"{space} is made of layers that were left, and is {wanted} wide, not {width}"
            if wanted > width:
                return torch.arange(0), f"{wanted} channels of {space}, the teacher has {width}"
            if space in self.graph.fixed and wanted != width:
                return torch.arange(0), f"{wanted} channels of {space}, the teacher has other {width}"
            self.chosen[space] = self._choose(space, wanted, width)
        if len(self.chosen[space]) != wanted:
            return torch.arange(0), f"{wanted} channels of {space}, of which {len(self.chosen[space])} were chosen"
        return self.chosen[space], ""

    def _choose(self, space: str, wanted: int, width: int) -> Tensor:
        junction = self.graph.derived.get(space)
        if space in self.graph.fixed or wanted == width:
            return torch.arange(wanted)
        if junction is not None and self.scheme != "fnav1":
            return self._derived(junction)
        if self.scheme in ("bn_scale", "ofa"):
            strength = self._strength(space, width)
            if strength is not None:
                return strength.topk(wanted).indices.sort().values
        return torch.arange(wanted)

    def _derived(self, junction: Flatten | Concat) -> Tensor:
        if isinstance(junction, Flatten):
            index = self.chosen[junction.of]
            if self.scheme == "fnav2_released":
                return torch.cat([index + z * self._full(junction.of) for z in range(junction.times)])
            return flat_index(index, junction)
        out, offset = [], 0
        for part in junction.of:
            out.append(self.chosen[part] + offset)
            offset += self._full(part)
        return torch.cat(out)

    def _followed(self, space: str) -> bool:
        """Whether the channels of all parts of a derived space were chosen, so that it can be cut as they were."""
        junction = self.graph.derived.get(space)
        return junction is None or self.scheme == "fnav1" or all(part in self.chosen for part in _parts(junction))

    def _full(self, space: str) -> int:
        """The teacher's channels of a space that a layer writes."""
        writer = next(layer for layer in self.graph.layers if layer.writes == space)
        return self._width(writer, 0)

    def _strength(self, space: str, width: int) -> Tensor | None:
        """(width,): how much each channel counts, summed over all layers that write it; None where nothing says."""
        total, found = torch.zeros(width), False
        for layer in (layer for layer in self.graph.layers if layer.writes == space):
            vectors = dict(layer.vectors)
            if self.scheme == "bn_scale" and "norm.weight" in vectors:
                total, found = total + self.teacher[vectors["norm.weight"]].detach().float().abs(), True
            elif self.scheme == "ofa":
                weight = self.teacher[layer.weight].detach().float()
                if layer.reads in self.chosen and len(self.chosen[layer.reads]):
                    weight = weight.index_select(layer.axes[1], self.chosen[layer.reads])
                others = [axis for axis in range(weight.dim()) if axis != layer.axes[0]]
                total, found = total + weight.abs().sum(dim=others), True
        return total if found else None


def _misfit(
    layer: Layer,
    graph: Graph,
    theirs: Layer | None,
    their_graph: Graph,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
) -> str:
    """Why a layer cannot be had of the teacher's, "" where it can."""
    if theirs is None:
        return f"the teacher has no {layer.role}"
    if layer.kind != theirs.kind:
        return f"{layer.kind} here, {theirs.kind} there"
    kernels = [
        [size for axis, size in enumerate(state[one.weight].shape) if axis not in one.axes]
        for one, state in ((layer, student), (theirs, teacher))
    ]
    if kernels[0] != kernels[1]:
        return f"kernel {kernels[0]} here, {kernels[1]} there"
    entries = {*graph.fixed, *their_graph.fixed, *_ENTRIES}
    if layer.reads != theirs.reads and {layer.reads, theirs.reads} & entries:
        return f"reads {layer.reads}, the teacher's reads {theirs.reads}"
    return ""


_ENTRIES = ("pillars", "canvas", "splat")  # what the trunk reads: of another sensor or encoder it is not the same


def _alike(one: Graph, other: Graph) -> bool:
    """Whether two detectors are of one kind, so that equal names mean equal things outside the graph too."""
    return one.fixed & set(_INPUTS) == other.fixed & set(_INPUTS)


_INPUTS = ("points.released", "points.scaled", "voxels", "splat")


def _why_not(name: str, graph: Graph, teacher: Mapping[str, Tensor]) -> str:
    if name in graph.scalars.values():
        return "its layer was left"
    return "no role in the teacher" if name not in teacher else f"the teacher's is {tuple(teacher[name].shape)}"


def _parts(junction: Flatten | Concat) -> tuple[str, ...]:
    return (junction.of,) if isinstance(junction, Flatten) else junction.of


def _take(
    state: dict[str, Tensor], name: str, values: Tensor, source: str, teacher: Mapping[str, Tensor], note: str = ""
) -> Line:
    """Copies `values` into the student's tensor, keeping its dtype and memory layout."""
    state[name] = torch.empty_like(state[name]).copy_(values)
    how: How = "inherited" if values.shape == teacher[source].shape else "sliced"
    return Line(name, how, tuple(values.shape), source, tuple(teacher[source].shape), note)


def kept_channels(inheritance: Inheritance, spaces: Sequence[str]) -> dict[str, list[int]]:
    """Plain lists of the channels that were chosen of these spaces of the teacher, for a run's record."""
    return {space: inheritance.channels[space].tolist() for space in spaces if space in inheritance.channels}
