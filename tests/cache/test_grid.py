"""The grid: cell centres, sizes, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ConfigError
from cache.grid import BevGrid


def test_rows_run_along_y_and_columns_along_x_from_the_lower_corner() -> None:
    grid = BevGrid(-2.0, 4.0, 10.0, 12.0, 0.5)
    assert (grid.height, grid.width) == grid.shape == (4, 12)
    centres = grid.centres()
    assert centres.shape == (4, 12, 2) and centres.dtype == np.float64
    assert centres[0, 0].tolist() == [-1.75, 10.25]
    assert centres[0, 1].tolist() == [-1.25, 10.25]
    assert centres[1, 0].tolist() == [-1.75, 10.75]
    assert centres[-1, -1].tolist() == [3.75, 11.75]


def test_published_grids_have_their_published_sizes() -> None:
    assert BevGrid(-54.0, 54.0, -54.0, 54.0, 0.075).shape == (1440, 1440)
    assert BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8).shape == (128, 128)


@given(
    st.integers(-100, 100), st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.05, 0.075, 0.1, 0.2, 0.8, 1.0])
)
def test_every_centre_lies_in_the_cell_that_floor_division_names(low: int, nx: int, ny: int, cell: float) -> None:
    grid = BevGrid(float(low), low + nx * cell, float(-low), -low + ny * cell, cell)
    assert grid.shape == (ny, nx)
    centres = grid.centres()
    assert np.array_equal(np.floor((centres[0, :, 0] - grid.x_min) / cell), np.arange(nx))
    assert np.array_equal(np.floor((centres[:, 0, 1] - grid.y_min) / cell), np.arange(ny))


def test_dict_round_trip_is_exact_and_plain() -> None:
    grid = BevGrid(-51, 51, -51.2, 51.2, 0.2)  # whole numbers come back as the floats they are
    again = BevGrid.from_dict(grid.to_dict())
    assert again == grid and hash(again) == hash(grid)
    assert all(type(value) is float for value in grid.to_dict().values())


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 10.0, 0.0, 10.0, 3.0),
        (0.0, 10.0, 0.0, 10.05, 0.1),
        (10.0, 0.0, 0.0, 10.0, 1.0),
        (0.0, 0.0, 0.0, 10.0, 1.0),
        (0.0, 10.0, 0.0, 10.0, 0.0),
        (0.0, 10.0, 0.0, 10.0, -1.0),
        (0.0, 0.4, 0.0, 10.0, 1.0),
        (math.nan, 10.0, 0.0, 10.0, 1.0),
        (0.0, math.inf, 0.0, 10.0, 1.0),
        (0.0, 10.0, 0.0, 10.0, math.nan),
    ],
)
def test_a_range_that_is_no_whole_positive_number_of_cells_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="whole, positive number"):
        BevGrid(*values)


@pytest.mark.parametrize(
    "change", [{"z_min": 0.0}, {"cell_m": None}, {"cell_m": "wide"}, {"cell_m": [1.0]}, {"drop": "x_min"}]
)
def test_from_dict_refuses_unknown_missing_and_non_numeric_values(change: dict[str, object]) -> None:
    values: dict = {"x_min": 0.0, "x_max": 4.0, "y_min": 0.0, "y_max": 4.0, "cell_m": 1.0}
    values.pop(change.pop("drop", ""), None)
    with pytest.raises(ConfigError):
        BevGrid.from_dict(values | change)


def test_it_prints_what_a_message_needs() -> None:
    assert str(BevGrid(-8.0, 8.0, -4.0, 4.0, 0.5)) == "x -8..8, y -4..4, cell 0.5 m"
