from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.store import FrameStore, TeacherStore
from tests.trainer.test_batches import augments
from trainer.batches import BatchBuilder, Needs
from trainer.said_reader import SaidReader, Wanted
from trainer.teachers import TeachersReader
from trainer.transfer import ALIGN, bytes_in, pack, replaced, tensors_in


@dataclass(frozen=True)
class Tree:
    a: Tensor
    b: list[Any] = field(default_factory=list)
    c: Any = None
    name: str = "x"


def tree() -> Tree:
    return Tree(
        torch.arange(24, dtype=torch.float64).view(2, 3, 4),
        [torch.tensor([True, False, True]), torch.tensor(3), torch.zeros(0, 9)],
        {"half": torch.ones(3, dtype=torch.float16), "deep": (Tree(torch.tensor([1, 2])), "text", None)},
    )


def test_a_packed_tree_is_the_same_tree_in_one_piece_of_memory() -> None:
    packed = pack(tree(), pin=False)
    for moved in (packed.tree, packed.to("cpu")):
        assert moved.name == "x" and moved.c["deep"][1:] == ("text", None)
        pairs = list(zip(tensors_in(moved), tensors_in(tree()), strict=True))
        assert len(pairs) == 6
        assert all(torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape for a, b in pairs)
        assert {a.untyped_storage().data_ptr() for a, _ in pairs if a.numel()} == {packed.buffer.data_ptr()}
    assert all(place.start % ALIGN == 0 for place in packed.places)
    assert bytes_in(tree()) == 24 * 8 + 3 + 8 + 6 + 16


def test_moving_copies_the_buffer_once_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(tree(), pin=False)
    calls: list[tuple[int, bool]] = []
    real = Tensor.to

    def to(self: Tensor, device: Any, non_blocking: bool = False) -> Tensor:
        calls.append((self.numel(), non_blocking))
        return real(self, device).clone()

    monkeypatch.setattr(Tensor, "to", to)
    moved = packed.to("cpu")
    assert calls == [(packed.buffer.numel(), True)]
    moved.a.zero_()
    assert packed.tree.a.sum() > 0 and {t.untyped_storage().data_ptr() for t in tensors_in(moved) if t.numel()} == {
        moved.a.untyped_storage().data_ptr()
    }


def test_strides_are_kept_and_tensors_with_holes_made_whole() -> None:
    last = torch.arange(2 * 3 * 4 * 5.0).view(2, 4, 5, 3).permute(0, 3, 1, 2)
    holes, spread = torch.arange(20.0).view(4, 5)[:, ::2], torch.ones(1, 3).expand(4, 3)
    found = pack([last, holes, spread], pin=False).to("cpu")
    assert found[0].stride() == last.stride() and found[1].is_contiguous() and found[2].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(found, [last, holes, spread], strict=True))


def test_what_holds_no_tensor_is_left_as_it_is() -> None:
    made = tree()
    assert replaced(made, lambda tensor: tensor + 0).c["deep"][0] is not made.c["deep"][0]
    words = ["a", {"b": 2}]
    assert replaced([words, made.a], lambda tensor: tensor)[0] is words


def test_a_whole_batch_with_its_teacher_goes_in_one_buffer(cache: Path) -> None:
    frames, teacher = FrameStore(cache / "frames"), TeacherStore(cache / "teachers" / "demo")
    reader = SaidReader(teacher, frames, Wanted(cells=True, detections=True))
    said_by = TeachersReader({"demo": reader}, {"demo": np.arange(len(frames))})
    builder = BatchBuilder(frames, Needs(points=True, image_size=(64, 32), depth=True, labels=True), said_by)
    batch, said = builder.build([0, 1], augments([0, 1]))
    packed = pack((batch, said), pin=False)
    got_batch, got_said = packed.to("cpu")
    assert got_batch.images.is_contiguous(memory_format=torch.contiguous_format) == batch.images.is_contiguous()
    assert got_batch.tokens == batch.tokens and got_said.by_name["demo"].grid is said.by_name["demo"].grid
    before, after = list(tensors_in((batch, said))), list(tensors_in((got_batch, got_said)))
    assert len(before) > 15
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
