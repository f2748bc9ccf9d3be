"""Box codes under an augmentation are the codes of the boxes that the trainer moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.trainer.terms.bevdistill_builders import moved_boxes
from tests.trainer.terms.slow_pieces import AUGMENTS
from trainer.augment import BevAugment, move_boxes
from trainer.terms.box_code import decode_codes, encode_boxes, move_codes


def some_boxes(count: int = 20) -> np.ndarray:
    rng = np.random.default_rng(4)
    boxes = rng.uniform(-20, 20, (count, 9))
    boxes[:, 3:6] = rng.uniform(0.3, 12, (count, 3))
    boxes[:, 6] = rng.uniform(-3.1, 3.1, count)
    return boxes


@pytest.mark.parametrize("augment", AUGMENTS)
def test_moved_codes_are_those_of_moved_boxes(augment: BevAugment) -> None:
    boxes = torch.from_numpy(some_boxes())
    matrix = augment.matrix()
    found = move_codes(encode_boxes(boxes), torch.from_numpy(matrix).expand(len(boxes), 4, 4))
    wanted = torch.from_numpy(moved_boxes(boxes.numpy(), matrix))
    assert torch.allclose(found, encode_boxes(wanted), atol=1e-12)
    assert np.allclose(decode_codes(found).numpy(), move_boxes(boxes.numpy(), matrix), atol=1e-5)


def test_without_augmentation_codes_keep_their_very_bits() -> None:
    codes = encode_boxes(torch.from_numpy(some_boxes()).float())
    assert torch.equal(move_codes(codes, torch.eye(4, dtype=torch.float64).expand(len(codes), 4, 4)), codes)


def test_the_length_of_a_heading_stays_and_unknown_velocities_stay_unknown() -> None:
    codes = encode_boxes(torch.from_numpy(some_boxes()))
    codes[:, 6:8] *= 0.3
    codes[0, 8:10] = torch.nan
    moved = move_codes(codes, torch.from_numpy(AUGMENTS[2].matrix()).expand(len(codes), 4, 4))
    assert torch.allclose(moved[:, 6:8].norm(dim=1), torch.full((len(codes),), 0.3, dtype=torch.float64))
    assert torch.isnan(moved[0, 8:10]).all()
    assert torch.isfinite(moved[:, :8]).all()


def test_decoding_is_the_inverse() -> None:
    boxes = torch.from_numpy(some_boxes())
    assert torch.allclose(decode_codes(encode_boxes(boxes)), boxes, atol=1e-12)
