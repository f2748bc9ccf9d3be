"""Averaging over views and checkpoints: geometry by hand, and that a mirrored cloud gives the mirrored answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError, FingerprintError
from cache.store import TeacherStore
from models.build import build_detector, save_weights
from models.center_head import BRANCHES, _encode
from models.detector import Batch, Detector, DetectorOutput
from pipeline.averaging import VIEWS, Averaged, View
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher

ALL_VIEWS = VIEWS["turns"]


def matrix_of(view: View) -> np.ndarray:
    """(2, 2): where the view puts x and y, written down independently: exchange first, then the mirrors."""
    swap = np.array([[0, 1], [1, 0]]) if view.swap else np.eye(2)
    return np.diag([-1 if view.flip_x else 1, -1 if view.flip_y else 1]) @ swap


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(3)
    return build_detector({"preset": "centerpoint-pillar-tiny"}).eval()


def cloud(seed: int, points: int = 3000) -> Tensor:
    rng = np.random.default_rng(seed)
    xyz = rng.normal([3, -5, -1], [20, 12, 1], (points, 3))
    return torch.from_numpy(np.column_stack([xyz, rng.uniform(0, 99, points), rng.uniform(0, 0.4, points)])).float()


@pytest.mark.parametrize("view", ALL_VIEWS, ids=str)
def test_points_go_where_the_matrix_says(view: View) -> None:
    points = cloud(0, 50)
    moved = view.of_points(points)
    assert np.allclose(moved[:, :2].numpy(), points[:, :2].numpy() @ matrix_of(view).T)
    assert torch.equal(moved[:, 2:], points[:, 2:])


@pytest.mark.parametrize("view", ALL_VIEWS, ids=str)
def test_boxes_of_a_view_are_brought_back_with_place_heading_and_velocity(view: View, model: Detector) -> None:
    """Boxes are moved by the matrix and encoded as targets of the view; what is undone decodes to the boxes."""
    grid, rng, matrix = model.grid, np.random.default_rng(7), matrix_of(view)
    boxes = np.zeros((6, 9), np.float32)
    boxes[:, :2] = rng.uniform(grid.x_min + 2, grid.x_max - 2, (6, 2))
    boxes[:, 2:6] = rng.uniform(0.5, 4, (6, 4))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, 6)
    boxes[:, 7:] = rng.normal(0, 5, (6, 2))
    moved = boxes.copy()
    moved[:, :2] = boxes[:, :2] @ matrix.T
    heading = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])]) @ matrix.T
    moved[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    moved[:, 7:] = boxes[:, 7:] @ matrix.T
    col = np.floor((moved[:, 0] - grid.x_min) / grid.cell_m).astype(int)
    row = np.floor((moved[:, 1] - grid.y_min) / grid.cell_m).astype(int)
    maps = torch.full((1, 10, grid.height, grid.width), torch.nan)
    maps[0, :, row, col] = torch.from_numpy(_encode(moved, row, col, grid)).T
    parts = dict(zip(BRANCHES, maps.split([2, 1, 3, 2, 2], dim=1), strict=True))
    back = torch.cat([view.undone_branch(name, part) for name, part in parts.items()], dim=1)[0]
    at = torch.from_numpy(np.floor((boxes[:, :2] - [grid.x_min, grid.y_min]) / grid.cell_m).astype(int))
    values = back[:, at[:, 1], at[:, 0]].T.numpy()
    assert np.allclose(grid.x_min + (at[:, 0].numpy() + values[:, 0]) * grid.cell_m, boxes[:, 0], atol=1e-4)
    assert np.allclose(grid.y_min + (at[:, 1].numpy() + values[:, 1]) * grid.cell_m, boxes[:, 1], atol=1e-4)
    assert np.allclose(values[:, 2], boxes[:, 2]) and np.allclose(np.exp(values[:, 3:6]), boxes[:, 3:6], rtol=1e-5)
    assert np.allclose(np.exp(1j * np.arctan2(values[:, 6], values[:, 7])), np.exp(1j * boxes[:, 6]), atol=1e-5)
    assert np.allclose(values[:, 8:], boxes[:, 7:], atol=1e-5)


def answers(model: Any, points: Tensor) -> DetectorOutput:
    with torch.inference_mode():
        return model(Batch(points=[points, cloud(99)], tokens=["a", "b"]))  # type: ignore[no-any-return]


def largest_difference(one: DetectorOutput, other: DetectorOutput) -> float:
    pairs = [(one.bev, other.bev)]
    for a, b in zip(one.heads, other.heads, strict=True):
        pairs += [(a[name].sigmoid(), b[name].sigmoid()) if name == "heatmap" else (a[name], b[name]) for name in a]
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_no_views_and_one_model_are_the_model(model: Detector) -> None:
    assert largest_difference(answers(Averaged([model]), cloud(1)), answers(model, cloud(1))) < 1e-5
    assert largest_difference(answers(Averaged([model, model]), cloud(1)), answers(model, cloud(1))) < 1e-5


@pytest.mark.parametrize(("tta", "moves"), [("flips", VIEWS["flips"]), ("turns", VIEWS["turns"])])
def test_a_moved_cloud_gives_the_moved_answer(model: Detector, tta: str, moves: tuple[View, ...]) -> None:
    """The mean over all views does not care which of them the cloud came in; the model alone does."""
    averaged, points = Averaged([model], tta), cloud(2)
    still = answers(averaged, points)
    for move in moves[1:]:
        moved = answers(averaged, move.of_points(points))
        back = DetectorOutput(
            move.undone(moved.bev),
            [{name: move.undone_branch(name, maps) for name, maps in head.items()} for head in moved.heads],
        )
        first = DetectorOutput(still.bev[:1], [{n: m[:1] for n, m in head.items()} for head in still.heads])
        again = DetectorOutput(back.bev[:1], [{n: m[:1] for n, m in head.items()} for head in back.heads])
        # vel and rot of another order of summation; a point on a cell's edge may fall into the neighbour
        assert largest_difference(first, again) < 2e-3, move
        alone = answers(model, move.of_points(points))
        assert float((move.undone(alone.bev)[0] - answers(model, points).bev[0]).abs().max()) > 0.05


def test_an_ensemble_is_the_mean_of_its_members(model: Detector) -> None:
    torch.manual_seed(4)
    other = build_detector({"preset": "centerpoint-pillar-tiny"}).eval()
    found = answers(Averaged([model, other]), cloud(5))
    one, two = answers(model, cloud(5)), answers(other, cloud(5))
    assert torch.allclose(found.bev, (one.bev + two.bev) / 2, atol=1e-6)
    heat = [(a["heatmap"].sigmoid() + b["heatmap"].sigmoid()) / 2 for a, b in zip(one.heads, two.heads, strict=True)]
    for maps, expected in zip(found.heads, heat, strict=True):
        assert torch.allclose(maps["heatmap"].sigmoid(), expected, atol=1e-5)


def test_what_cannot_be_averaged_is_refused() -> None:
    tiny = {"preset": "centerpoint-pillar-tiny"}
    model = build_detector(tiny)
    coarse = build_detector({**tiny, "pillars": {"cell_m": 0.8}})
    with pytest.raises(ConfigError, match="expected checkpoints of one architecture"):
        Averaged([model, coarse])
    shifted = build_detector({**tiny, "pillars": {"x_min": 0.0, "x_max": 102.4}})
    with pytest.raises(ConfigError, match="--tta flips needs a grid that is symmetric"):
        Averaged([shifted], "flips")
    Averaged([shifted])
    with pytest.raises(ConfigError, match="--tta 'mirror' is unknown, expected one of flips, turns"):
        TeacherOptions(tta="mirror")


@pytest.mark.parametrize(("name", "channels"), [("reg", 2), ("rot", 1), ("yaw", 1)])
def test_a_branch_that_no_view_knows_is_refused(name: str, channels: int) -> None:
    maps = torch.zeros(1, channels, 4, 4)
    assert torch.equal(View().undone_branch(name, maps), maps), "an ensemble turns nothing"
    with pytest.raises(ConfigError, match=rf"branch {name} of {channels} channels is unknown, .* rot \(2\)"):
        View(flip_x=True).undone_branch(name, maps)
    View(flip_x=True).undone_branch("iou", torch.zeros(1, 1, 4, 4))


def test_a_pass_with_views_and_an_ensemble_says_so_and_is_not_continued_otherwise(
    simulated_root: Path, weights: Path, tmp_path: Path
) -> None:
    frames = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(simulated_root, "v1.0-mini", tmp_path / "c", split="mini_val", options=frames, workers=1)
    torch.manual_seed(9)
    more = tmp_path / "more.safetensors"
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny"}), more)

    def run(name: str, **options: Any) -> TeacherStore:
        cache_teacher(
            tmp_path / "c", name, teacher="own", checkpoint=weights, options=TeacherOptions(**options), workers=1
        )
        return TeacherStore(tmp_path / "c" / "teachers" / name)

    plain, flips, both = run("plain"), run("flips", tta="flips"), run("both", tta="flips", ensemble=(more,))
    assert "tta" not in plain.manifest.header and flips.manifest.header["tta"] == "flips"
    assert len(both.manifest.header["ensemble_sha256"]) == 1
    values = [store.cells(0).values.astype(np.float32) for store in (plain, flips, both)]
    assert values[0].shape == values[1].shape == values[2].shape  # gaussian cells come from the annotations
    assert np.abs(values[0] - values[1]).max() > 1e-2 < np.abs(values[1] - values[2]).max()
    with pytest.raises(FingerprintError, match=r"header\.tta"):
        run("flips", tta="turns")
    with pytest.raises(ConfigError, match=r"gone\.safetensors: no such checkpoint"):
        run("gone", ensemble=(tmp_path / "gone.safetensors",))
    assert not (tmp_path / "c" / "teachers" / "gone").exists()
    shutil.rmtree(tmp_path / "c")
