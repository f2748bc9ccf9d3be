"""Coverage: which cells are kept, and refusal of what is not known."""

from __future__ import annotations

import numpy as np
import pytest

from cache.errors import ConfigError
from cache.grid import BevGrid
from pipeline.coverage import Coverage

GRID = BevGrid(-8, 8, -8, 8, 1.0)
BOX = np.array([[0.3, 0.2, 0, 1, 1, 1, 0, 0, 0]], np.float32)


def test_the_literal_gaussian_of_a_small_object_is_its_centre_and_eight_neighbours() -> None:
    weights = Coverage(("gaussian",), dilate=0).weights(BOX, GRID)
    rows, cols = np.nonzero(weights[0])
    assert sorted(zip(rows.tolist(), cols.tolist(), strict=True)) == [(r, c) for r in (7, 8, 9) for c in (7, 8, 9)]
    assert weights[0, 8, 8] == 1 and weights[0, 8, 9] == pytest.approx(np.exp(-2), rel=1e-5)


def test_dilation_adds_a_ring_of_cells() -> None:
    assert (Coverage(("gaussian",), dilate=1).weights(BOX, GRID)[0] > 0).sum() == 25


def test_dilation_is_the_default_on_coarse_cells_only() -> None:
    assert Coverage.parse("gaussian", None, GRID).dilate == 0
    assert Coverage.parse("gaussian", None, BevGrid(-16, 16, -16, 16, 1.6)).dilate == 1
    assert Coverage.parse("gaussian", 0, BevGrid(-16, 16, -16, 16, 1.6)).dilate == 0


def test_a_union_has_one_weight_map_per_selector() -> None:
    weights = Coverage.parse("gaussian+dense", 0, GRID).weights(BOX, GRID)
    assert weights.shape == (2, 16, 16) and (weights[1] == 1).all() and (weights[0] > 0).sum() == 9


def test_a_frame_without_annotations_has_no_gaussian_and_the_header_says_so() -> None:
    coverage = Coverage.parse("gaussian,dense", 0, GRID)
    assert not coverage.weights(None, GRID)[0].any()
    assert coverage.header()["unlabelled"] == ["dense"]


@pytest.mark.parametrize("text", ["", "gauss", "gaussian,gaussian", "gaussian,lidar"])
def test_unknown_or_repeated_selectors_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--coverage"):
        Coverage.parse(text, None, GRID)


def test_negative_dilation_is_refused() -> None:
    with pytest.raises(ConfigError, match="--dilate -1"):
        Coverage.parse("gaussian", -1, GRID)
