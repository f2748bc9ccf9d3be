"""The past map where the vehicle is now: exact shifts and turns, a world that stands still, gaps, unknown moments."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from cache.frame import Pose
from cache.geometry import past_to_now
from cache.grid import BevGrid
from models.bev_history import before, motion_numbers, renewed, resample, sound
from models.detector import Batch, Memory, Past

GRID = BevGrid(-8.0, 8.0, -6.0, 6.0, 1.0)


def motion(yaw: float = 0.0, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> torch.Tensor:
    """(1, 4, 4) fp64."""
    out = torch.eye(4, dtype=torch.float64)
    out[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    out[:3, 3] = torch.tensor([x, y, z])
    return out[None]


def centres(grid=GRID) -> torch.Tensor:
    """(1, 2, H, W): a map whose values are its own cells' x and y."""
    return torch.from_numpy(grid.centres()).permute(2, 0, 1)[None]


def random_map(grid=GRID, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_standing_still_changes_nothing():
    bev = random_map()
    torch.testing.assert_close(resample(bev, motion(), GRID), bev)


def test_driving_two_cells_ahead_moves_the_map_two_rows_back():
    """Ahead is +y, so what was at y is at y - 2: past_to_now is a step of -2 along y."""
    bev = random_map()
    moved = resample(bev, motion(y=-2.0), GRID)
    torch.testing.assert_close(moved[:, :, :-2], bev[:, :, 2:])
    assert not moved[:, :, -2:].any(), "what lay off the past map is zero"
    sideways = resample(bev, motion(x=3.0), GRID)
    torch.testing.assert_close(sideways[..., 3:], bev[..., :-3])


def test_a_quarter_turn_and_a_mirror_move_cells_onto_cells():
    square = BevGrid(-6.0, 6.0, -6.0, 6.0, 1.0)
    bev = random_map(square)
    turned = resample(bev, motion(yaw=math.pi / 2), square)  # (x, y) -> (-y, x)
    torch.testing.assert_close(turned, bev.flip(2).transpose(2, 3))
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1]))[None]
    torch.testing.assert_close(resample(bev, mirror, square), bev.flip(3))


@pytest.mark.parametrize("pose", [(0.4, 1.3, -0.7), (-1.1, 0.2, 2.6)])
def test_every_cell_is_read_where_it_lay(pose):
    """Bilinear sampling repeats a linear map exactly, so a map of coordinates tells where each cell was read."""
    back = resample(centres(), motion(*pose), GRID)[0].flatten(1)
    now = centres()[0].flatten(1)
    there = torch.linalg.inv(motion(*pose)[0]) @ torch.cat([now, torch.zeros(1, 192), torch.ones(1, 192)])
    inside = (there[0].abs() < 7.5) & (there[1].abs() < 5.5)
    torch.testing.assert_close(back[:, inside], there[:2, inside])
    assert 50 < inside.sum() < 192


def global_poses():
    past = Pose(np.array([1500.3, 820.1, 1.8]), np.array([math.cos(0.4), 0.004, 0.003, math.sin(0.4)])).matrix()
    now = Pose(np.array([1502.9, 821.6, 1.7]), np.array([math.cos(0.47), 0.0, 0.005, math.sin(0.47)])).matrix()
    return past, now


@pytest.mark.parametrize("augmented", [False, True])
def test_past_to_now_carries_what_stands_still(augmented):
    past, now = global_poses()
    a = np.eye(4)
    if augmented:
        a[:3, :3] = 1.05 * np.array([[-math.cos(0.3), math.sin(0.3), 0], [math.sin(0.3), math.cos(0.3), 0], [0, 0, 1]])
    places = np.random.default_rng(0).uniform(-40, 40, (20, 3)) + np.array([1501, 821, 0])
    there = np.concatenate([places, np.ones((20, 1))], axis=1).T
    seen_then, seen_now = a @ np.linalg.inv(past) @ there, a @ np.linalg.inv(now) @ there
    np.testing.assert_allclose(past_to_now(past, now, a if augmented else None) @ seen_then, seen_now, atol=1e-9)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_world_that_stands_still_is_the_same_map_seen_from_a_moving_vehicle(augmented):
    """A smooth pattern on the ground, drawn from both poses: the past drawing resampled is the present one."""
    grid = BevGrid(-12.0, 12.0, -12.0, 12.0, 0.5)
    past = Pose(np.array([1500.3, 820.1, 1.8]), np.array([math.cos(0.4), 0, 0, math.sin(0.4)])).matrix()
    now = Pose(np.array([1501.9, 821.6, 1.8]), np.array([math.cos(0.47), 0, 0, math.sin(0.47)])).matrix()
    a = np.eye(4)
    if augmented:
        a[:2, :2] = 1.1 * np.array([[-math.cos(0.3), math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
        a[2, 2] = 1.1

    def drawn(pose):
        cells = grid.centres().reshape(-1, 2)
        lidar = (
            np.linalg.inv(a) @ np.concatenate([cells, np.zeros((len(cells), 1)), np.ones((len(cells), 1))], axis=1).T
        )
        x, y = (pose @ lidar)[:2]
        return torch.from_numpy(np.sin(x / 3) * np.cos(y / 4)).view(1, 1, *grid.shape)

    moved = resample(drawn(past), torch.from_numpy(past_to_now(past, now, a))[None], grid)
    inner = (..., slice(10, -10), slice(10, -10))
    assert (moved - drawn(now))[inner].abs().max() < 0.01
    assert (drawn(past) - drawn(now))[inner].abs().max() > 0.3


def past_of(*motions: torch.Tensor, known: list[bool], age: float) -> Past:
    return Past(Batch(), torch.cat(motions), torch.tensor(known), torch.full((len(known),), age))


def test_frames_without_a_moment_keep_what_they_had():
    first, second = (
        past_of(motion(y=-3), motion(y=-4), known=[True, k], age=a) for k, a in ((True, 1.0), (False, 0.5))
    )
    memory = renewed(None, first, torch.tensor([0, 1]), torch.full((2, 1, 2, 2), 1.0))
    memory = renewed(memory, second, torch.tensor([0]), torch.full((1, 1, 2, 2), 2.0))
    assert memory.bev[:, 0, 0, 0].tolist() == [2.0, 1.0]
    assert memory.age_s.tolist() == [0.5, 1.0]
    assert memory.known.tolist() == [True, True]
    third = past_of(motion(), motion(), known=[False, True], age=0.1)
    none = renewed(None, third, torch.tensor([1]), torch.ones(1, 1, 2, 2))
    assert none.known.tolist() == [False, True]


def test_motion_between_two_moments_is_that_from_one_to_now_less_that_from_the_other():
    memory = Memory(
        torch.zeros(2, 1, 2, 2),
        torch.cat([motion(0.3, 1, 2), motion(0.9)]),
        torch.tensor([True, True]),
        torch.tensor([1.5, 1.5]),
    )
    past = past_of(motion(0.1, 0.5, 0.2), motion(), known=[True, False], age=0.5)
    told = before(memory, past, torch.tensor([0]))
    torch.testing.assert_close(past.past_to_now[:1] @ told.past_to_now, memory.past_to_now[:1])
    assert told.age_s.tolist() == [1.0] and len(told.bev) == len(told.known) == 1


def test_motion_is_told_in_numbers_and_the_unknown_is_zero():
    memory = Memory(
        torch.zeros(2, 1, 2, 2),
        torch.cat([motion(math.pi / 2, 1, 2, 3), motion()]),
        torch.tensor([True, False]),
        torch.tensor([0.5, 0.5]),
    )
    numbers = motion_numbers(memory)
    torch.testing.assert_close(numbers[0], torch.tensor([1.0, 2, 3, -1, -1, 1, -1, 0.5, 1]))
    assert not numbers[1].any()


def test_what_stands_in_place_of_the_unknown_is_not_looked_at():
    memory = Memory(
        torch.zeros(2, 1, 2, 2), torch.full((2, 4, 4), torch.nan), torch.tensor([False, False]), torch.zeros(2)
    )
    assert torch.equal(sound(memory).past_to_now, torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))
    assert not motion_numbers(memory).any()
    known = dataclasses.replace(memory, past_to_now=motion(0.2).repeat(2, 1, 1), known=torch.tensor([True, False]))
    assert torch.equal(sound(known).past_to_now[0], motion(0.2)[0])
