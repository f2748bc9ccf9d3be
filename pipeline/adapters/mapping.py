"""Foreign tensors into a detector, strictly: each of theirs is used or ignored by a named rule, each of ours is filled.

A family writes a plan, our name -> `Take`; `fill` carries it out and says in a table what became of every tensor.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cache.errors import DataError

COUNTER = re.compile(r"(^|\.)num_batches_tracked$")
IGNORED = {
    "counter of training batches": COUNTER,
    "counter of training steps": re.compile(r"^global_step$"),
    "weights of the loss": re.compile(r"^pts_bbox_head\.code_weights$"),
}
NAMED = 3  # tensors that a refusal names before it counts the rest


@dataclass(frozen=True)
class Step:
    """A change of layout or convention, with the words that the report has for it."""

    done: str
    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Take:
    """Where one of our tensors comes from.

    optional: a bias before a norm, zeros where the foreign network has none. bias: of a running mean, the foreign bias
    to fold into it and our own name for that bias; it is folded where they have one and we have none.
    """

    foreign: str
    steps: tuple[Step, ...] = ()
    optional: bool = False
    bias: tuple[str, str] | None = None


Plan = dict[str, Take]


@dataclass(frozen=True)
class Row:
    """One line of the report; `foreign` or `ours` is empty where there is none. shape: as the file has it."""

    foreign: str
    ours: str
    shape: tuple[int, ...]
    done: str


@dataclass(frozen=True)
class Report:
    """What was made of a checkpoint. config: overrides of the preset that the network needed."""

    family: str
    preset: str
    rows: tuple[Row, ...]
    config: Mapping[str, object] = field(default_factory=dict)

    def table(self) -> str:
        """Every tensor on its own line: foreign name, our name, shape, what was done."""
        cells = [("foreign tensor", "ours", "shape", "done")]
        cells += [(row.foreign or "-", row.ours or "-", "x".join(map(str, row.shape)), row.done) for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(3)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in cells)


def conv(ours: str, theirs: str, *steps: Step, bias: str = "") -> Plan:
    """A convolution or linear layer before a norm. bias: our name of its bias, where it is not `ours`.bias."""
    return {
        f"{ours}.weight": Take(f"{theirs}.weight", steps),
        bias or f"{ours}.bias": Take(f"{theirs}.bias", optional=True),
    }


def norm(ours: str, theirs: str, *, after: tuple[str, str]) -> Plan:
    """A batch norm. after: our and their name of the bias of the layer before it."""
    plan = {f"{ours}.{part}": Take(f"{theirs}.{part}") for part in ("weight", "bias", "running_var")}
    plan[f"{ours}.running_mean"] = Take(f"{theirs}.running_mean", bias=(after[1], after[0]))
    return plan


def conv_norm(ours: tuple[str, str], theirs: tuple[str, str], *steps: Step, bias: str = "") -> Plan:
    """A layer and the norm after it; names as (layer, norm)."""
    own_bias = bias or f"{ours[0]}.bias"
    after = (own_bias, f"{theirs[0]}.bias")
    return {**conv(ours[0], theirs[0], *steps, bias=own_bias), **norm(ours[1], theirs[1], after=after)}


def affine(ours: str, theirs: str, *steps: Step) -> Plan:
    """A layer whose weight and bias must both be there: one that gives an output, one of a transformer."""
    return {f"{ours}.{part}": Take(f"{theirs}.{part}", steps) for part in ("weight", "bias")}


def fill(
    plan: Plan, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], list[Row]]:
    """The state dict for the model whose own is `expected`, and the report's rows.

    Raises DataError where tensors are missing, left over, of another shape, or hold NaN or infinity; the first few are
    named, with both shapes.
    """
    state: dict[str, Tensor] = {}
    rows: list[Row] = []
    used: set[str] = set()
    missing: list[str] = []
    misshapen: list[str] = []
    for ours, own in expected.items():
        if COUNTER.search(ours):
            state[ours] = torch.zeros_like(own)
            continue
        take = plan[ours]
        found = tensors.get(take.foreign)
        if found is None and take.optional:
            state[ours] = torch.zeros_like(own)
            rows.append(Row("", ours, (), "they have no bias here: zeros"))
            continue
        if found is None:
            missing.append(f"{take.foreign} {tuple(own.shape)}")
            continue
        used.add(take.foreign)
        value, done = found.float(), [step.done for step in take.steps]
        with contextlib.suppress(RuntimeError, IndexError):  # a step that finds too few axes: refused by shape below
            for step in take.steps:
                value = step.change(value)
        if value.shape != own.shape:
            misshapen.append(f"{take.foreign} {tuple(found.shape)} for our {tuple(own.shape)}")
            continue
        if take.bias is not None and take.bias[0] in tensors and take.bias[1] not in expected:
            name, bias = take.bias[0], tensors[take.bias[0]].float()
            used.add(name)
            if bias.shape != own.shape:
                misshapen.append(f"{name} {tuple(bias.shape)} for our {tuple(own.shape)}")
                continue
            value = value - bias
            done.append(f"minus {name}")
            rows.append(Row(name, ours, tuple(bias.shape), "folded into the norm"))
        state[ours] = value.contiguous()
        rows.append(Row(take.foreign, ours, tuple(found.shape), ", ".join(done) or "as it is"))
    left = []
    for name, tensor in tensors.items():
        rule = next((rule for rule, pattern in IGNORED.items() if pattern.search(name)), None)
        if rule is not None:
            rows.append(Row(name, "", tuple(tensor.shape), f"ignored: {rule}"))
        elif name not in used:
            left.append(f"{name} {tuple(tensor.shape)}")
    problems = [
        _named("missing", missing),
        _named("of another shape", misshapen),
        _named("without a place", left),
    ]
    if any(problems):
        raise DataError(f"{where}: the network differs: {'; '.join(problem for problem in problems if problem)}")
    _require_sane(tensors, used, where)
    return state, rows


def _named(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} tensors {what}: {', '.join(names[:NAMED])}{more}"


def _require_sane(tensors: Mapping[str, Tensor], used: set[str], where: str) -> None:
    for name in sorted(used):
        values = tensors[name].float()
        bad, what = int((~torch.isfinite(values)).sum()), "NaN or infinite"
        if not bad and name.endswith("running_var"):
            bad, what = int((values < 0).sum()), "negative variances"
        if bad:
            raise DataError(
                f"{where}: tensor {name} holds {bad} values that are {what}; the training had failed or the file is "
                "damaged: take another checkpoint"
            )
