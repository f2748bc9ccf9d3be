"""A batch as one piece of memory: every tensor of it in one buffer, pinned where it goes to a GPU by one copy.

A batch is some thirty tensors, many of them tiny; a copy each costs more in launches than in bytes, and memory that is
not pinned is copied twice and in step with the GPU. Packing is one copy on the host, in the loader's threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
ALIGN = 256  # bytes: what CUDA's own allocations begin at


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of a tree of data classes, lists, tuples and mappings, one that stands twice twice."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, Packed):
        yield value.buffer
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, part.name) for part in dataclasses.fields(value)])


def bytes_in(value: Any) -> int:
    """Bytes of memory that the tensors of a tree keep, each piece of it once."""
    pieces = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_in(value)}
    return sum(pieces.values())


def replaced(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """The same tree with every tensor changed; what holds none is the very same object."""
    return cast(T, _replaced(value, change))


def _replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if next(tensors_in(value), None) is None:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(item, change) for item in value)
    if isinstance(value, Mapping):
        return {name: _replaced(item, change) for name, item in value.items()}
    parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    return dataclasses.replace(value, **{name: _replaced(part, change) for name, part in parts.items()})


@dataclass(frozen=True)
class Packed(Generic[T]):
    """A tree whose tensors lie in `buffer` (bytes,) uint8 on the host; places: each one's, in the order of
    `tensors_in`."""

    tree: T
    buffer: Tensor
    places: tuple[Place, ...]

    def to(self, device: torch.device | str) -> T:
        """The tree with its tensors on `device`, by one copy, which a GPU makes while the host goes on where the buffer
        is pinned."""
        moved = self.buffer.to(device, non_blocking=True)
        places = iter(self.places)
        return replaced(self.tree, lambda tensor: next(places).of(moved))


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a buffer. start: bytes; size, stride: of its elements."""

    start: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        """The tensor, a view of `buffer`."""
        count = self.size.numel() * self.dtype.itemsize
        return buffer[self.start : self.start + count].view(self.dtype).as_strided(self.size, self.stride)


def pack(tree: T, pin: bool) -> Packed[T]:
    """`tree` in one buffer, strides kept where a tensor has no holes (channels last stays so). Safe in any thread:
    torch keeps pinned memory for the next batch once the GPU has read it."""
    places, end = [], 0
    for tensor in tensors_in(tree):
        start = -(-end // ALIGN) * ALIGN
        stride = tensor.stride() if _dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
        places.append(Place(start, tensor.shape, stride, tensor.dtype))
        end = start + tensor.numel() * tensor.element_size()
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pin)
    left = iter(places)

    def moved(tensor: Tensor) -> Tensor:
        return next(left).of(buffer).copy_(tensor)

    return Packed(replaced(tree, moved), buffer, tuple(places))


def _dense(tensor: Tensor) -> bool:
    """Whether its elements fill a piece of memory without holes, in whatever order of axes."""
    axes = sorted(range(tensor.dim()), key=lambda axis: (tensor.stride(axis), tensor.size(axis)), reverse=True)
    return tensor.permute(axes).is_contiguous()
