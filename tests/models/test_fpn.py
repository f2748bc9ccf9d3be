"""Feature pyramids: sums from coarse to fine, one convolution a level, further levels at half the size."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.fpn import FinestFpn, ImagePyramid

SIZES = ((8, 12), (4, 6), (2, 3))
WIDTHS = (4, 6, 8)


def maps() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, width, *size, generator=g) for width, size in zip(WIDTHS, SIZES, strict=True)]


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Every cell as 2 x 2 cells."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_every_level_is_the_sum_of_itself_and_all_coarser_ones():
    torch.manual_seed(0)
    pyramid, (fine, middle, coarse) = ImagePyramid(WIDTHS, 5, levels=3), maps()
    merged = [lateral(x) for lateral, x in zip(pyramid.lateral, (fine, middle, coarse), strict=True)]
    merged[1] = merged[1] + doubled(merged[2])
    merged[0] = merged[0] + doubled(merged[1])
    for found, output, level in zip(pyramid([fine, middle, coarse]), pyramid.output, merged, strict=True):
        torch.testing.assert_close(found, output(level))


def test_further_levels_are_convolved_from_the_last_and_then_from_what_is_positive_of_it():
    """mmdetection's `relu_before_extra_convs` spares the first further level."""
    torch.manual_seed(0)
    pyramid = ImagePyramid(WIDTHS[:1], 5, levels=3)
    first, second, third = pyramid(maps()[:1])
    assert [tuple(x.shape) for x in (first, second, third)] == [(2, 5, 8, 12), (2, 5, 4, 6), (2, 5, 2, 3)]
    conv = pyramid.further[0]
    torch.testing.assert_close(second, F.conv2d(first, conv.weight, conv.bias, stride=2, padding=1))
    conv = pyramid.further[1]
    torch.testing.assert_close(third, F.conv2d(F.relu(second), conv.weight, conv.bias, stride=2, padding=1))
    assert (first < 0).any() and (second < 0).any()


def test_the_finest_level_alone_is_that_of_the_sums():
    torch.manual_seed(0)
    pyramid, (fine, middle, coarse) = FinestFpn(WIDTHS, 5).eval(), maps()
    laterals = [lateral(x) for lateral, x in zip(pyramid.lateral, (fine, middle, coarse), strict=True)]
    merged = laterals[0] + doubled(laterals[1] + doubled(laterals[2]))
    torch.testing.assert_close(pyramid([fine, middle, coarse]), pyramid.output(merged))
