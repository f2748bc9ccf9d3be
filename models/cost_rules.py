"""What one forward pass computes, counted operation by operation while it runs, and in which module.

Counted: convolutions and transposed ones, linear layers and matrix products (functional ones too), attention, and
sparse convolutions by the pairs of active sites that they join. Not counted, as in the papers: norms, activation
functions, additions, biases, pooling, sampling, softmax, and the lift-splat sum. Runs on any device, on `meta` too.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """multiply_adds: multiplications that are each followed by an addition. published: the same, but with a transposed
    convolution counted as if each of its outputs saw the whole kernel, as the tables of papers have it (stride^2 times
    too many). activations: elements of the outputs of all that is counted (fvcore's convention)."""

    multiply_adds: int = 0
    published: int = 0
    activations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.multiply_adds + other.multiply_adds,
            self.published + other.published,
            self.activations + other.activations,
        )


def convolution(args: Sequence[Any], out: Tensor) -> Work:
    """aten.convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    x, weight, transposed, groups = args[0], args[1], args[6], args[8]
    per_site = weight[
        0
    ].numel()  # (in / groups) * kernel of one output; out / groups * kernel of one input if transposed
    if not transposed:
        return Work(out.numel() * per_site, out.numel() * per_site, out.numel())
    kernel = weight[0, 0].numel()
    return Work(x.numel() * per_site, out.numel() * (x.shape[1] // groups) * kernel, out.numel())


def product(left: Tensor, out: Tensor) -> Work:
    """A (batched) matrix product whose left side ends with the summed dimension."""
    count = out.numel() * left.shape[-1]
    return Work(count, count, out.numel())


def attention(args: Sequence[Any], out: Any) -> Work:
    """softmax(q k) v of q (..., Q, D), k (..., K, D), v (..., K, E): two products."""
    query, key, value = args[:3]
    answers = out[0] if isinstance(out, tuple | list) else out
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    count = scores * (query.shape[-1] + value.shape[-1])
    return Work(count, count, scores + answers.numel())


def sparse_pairs(
    sites: Tensor,
    out_sites: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int:
    """How many (input site, output site) pairs a sparse convolution joins: each is one product with a kernel matrix.

    sites, out_sites: (V, 4), (V', 4) int sample, z, row, col; shape: (z, rows, cols) of the input. A submanifold
    convolution has stride 1, the same sites on both sides, and padding by half of the kernel.
    """
    sizes = sites.new_tensor(shape).long()

    def key(samples: Tensor, places: Tensor) -> Tensor:
        return ((samples * sizes[0] + places[:, 0]) * sizes[1] + places[:, 1]) * sizes[2] + places[:, 2]

    known = key(sites[:, 0].long(), sites[:, 1:].long()).sort().values
    corners = out_sites[:, 1:].long() * sites.new_tensor(stride).long() - sites.new_tensor(padding).long()
    pairs = 0
    for tap in itertools.product(*(range(size) for size in kernel)):
        places = corners + sites.new_tensor(tap).long() * sites.new_tensor(dilation).long()
        inside = ((places >= 0) & (places < sizes)).all(dim=1)
        wanted = key(out_sites[inside, 0].long(), places[inside])
        at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        pairs += int((known[at] == wanted).sum())
    return pairs


def sparse_convolution(module: Any, x: Any, out: Any) -> Work:
    """Of an spconv module, from the tensors around it."""
    kernel, dilation = list(module.kernel_size), list(module.dilation)
    padding = [d * (k // 2) for k, d in zip(kernel, dilation, strict=True)] if module.subm else list(module.padding)
    stride = [1] * len(kernel) if module.subm else list(module.stride)
    pairs = sparse_pairs(x.indices, out.indices, x.spatial_shape, kernel, stride, padding, dilation)
    count = pairs * module.in_channels * module.out_channels
    return Work(count, count, len(out.indices) * module.out_channels)


class Counter(TorchDispatchMode):
    """While entered, adds the work of every operation to the module of `model` that runs it: `work[module's name]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.work: defaultdict[str, Work] = defaultdict(Work)
        self._model, self._hooks = model, ExitStack()
        self._inside: list[str] = [""]
        self._muted = 0  # inside a sparse convolution, whose own matrix products are not counted twice

    def __enter__(self) -> Counter:
        fast_path = torch.backends.mha.get_fastpath_enabled()  # one fused operation that tells nothing
        torch.backends.mha.set_fastpath_enabled(False)
        self._hooks.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        for name, module in self._model.named_modules():
            before = module.register_forward_pre_hook(lambda m, _, name=name: self._enter(m, name))
            after = module.register_forward_hook(lambda m, inputs, out: self._leave(m, inputs, out))
            self._hooks.callback(before.remove)
            self._hooks.callback(after.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._muted:
            work = _work_of(func.overloadpacket, args, out)
            if work is not None:
                self.work[self._inside[-1]] += work
        return out

    def _enter(self, module: nn.Module, name: str) -> None:
        self._inside.append(name)
        self._muted += _is_sparse(module)

    def _leave(self, module: Any, inputs: Any, out: Any) -> None:
        if _is_sparse(module):
            self.work[self._inside[-1]] += sparse_convolution(module, inputs[0], out)
            self._muted -= 1
        self._inside.pop()


def _is_sparse(module: nn.Module) -> bool:
    """Told by its parts: spconv is imported where a voxel detector is built, not here."""
    return hasattr(module, "subm") and hasattr(module, "kernel_size")


def _work_of(operation: Any, args: Sequence[Any], out: Any) -> Work | None:
    if operation == aten.convolution:
        return convolution(args, out)
    if operation in (aten.mm, aten.bmm, aten.mv):
        return product(args[0], out)
    if operation in (aten.addmm, aten.baddbmm):
        return product(args[1], out)
    if operation in ATTENTION:
        return attention(args, out)
    return None


ATTENTION = tuple(
    getattr(aten, name)
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(aten, name)
)
