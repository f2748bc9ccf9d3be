"""The teacher pass with every selector: the stored columns are what boxes, heat, cloud and token of that frame give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.cells import scatter_cells
from cache.coverage import Coverage
from cache.errors import ConfigError, FingerprintError
from cache.store import FrameStore, TeacherStore
from models.build import load_weights
from models.detector import Batch
from pipeline.coverage import Evidence, coverage_weights
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import SHIPPED_TEACHERS, TeacherOptions, cache_teacher
from studies.inspection import foreground_of, mask_layers

TEXT = "dense+gaussian+footprint(margin=0.25)+confident(threshold=0.25)+lidar(points=3)+random(cells=20,seed=1)"
TEXT += "+topk(k=30)+lidar(ground=0.2)*view(camera=CAM_FRONT|CAM_BACK)+gaussian(classes=car)*confident(threshold=0)"


@pytest.fixture(scope="module")
def cached(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame store with points, and the shipped teacher's store `t` of the coverage TEXT."""
    cache = tmp_path_factory.mktemp("coverage")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=1)
    cache_frames(simulated_root, "v1.0-mini", cache, options=options, workers=1)
    cache_teacher(cache, "t", options=TeacherOptions(TEXT), workers=1)
    return cache


def test_every_column_is_what_its_selector_makes_of_the_frame(cached: Path) -> None:
    frames, teacher = FrameStore(cached / "frames"), TeacherStore(cached / "teachers" / "t")
    model = load_weights(SHIPPED_TEACHERS["demo"]).eval()
    coverage = Coverage.from_header(teacher.manifest.header["coverage"])
    assert coverage == Coverage.parse(TEXT, teacher.grid) and coverage["gaussian"]["dilate"] == 1
    assert list(coverage.names) == teacher.selectors
    for row in range(len(frames)):
        token, cloud = frames.frame(row).token, frames.points(row)
        with torch.inference_mode():
            heat = model(Batch(points=[torch.from_numpy(cloud.copy())], tokens=[token])).class_heat()[0].numpy()
        evidence = Evidence(
            token,
            frames.boxes_lidar(row),
            heat,
            cloud,
            labels=frames.truth(row).class_ids,
            classes=tuple(frames.classes),
            cameras=frames.frame(row).cameras,
        )
        expected = coverage_weights(coverage, evidence, teacher.grid)
        _, stored = scatter_cells(teacher.cells(teacher.row_of(token)), teacher.grid.shape)
        assert abs(heat.max(axis=0) - 0.25).min() > 1e-4  # else the threshold falls into the rounding of another batch
        np.testing.assert_allclose(stored, expected, atol=1e-5)
        assert stored[5].sum() == 20 and stored.any(axis=(1, 2)).all()


def test_the_picture_shows_the_union_without_dense(cached: Path) -> None:
    frames, teacher = FrameStore(cached / "frames"), TeacherStore(cached / "teachers" / "t")
    token = frames.frame(0).token
    shown = foreground_of(teacher, token)
    _, weights = scatter_cells(teacher.cells(teacher.row_of(token)), teacher.grid.shape)
    np.testing.assert_array_equal(shown, weights[1:].max(axis=0))
    assert 0 < (shown > 0).sum() < shown.size


def test_another_coverage_of_the_same_store_is_refused_with_both_values(cached: Path) -> None:
    other = TeacherOptions(TEXT.replace("margin=0.25", "margin=1"))
    with pytest.raises(FingerprintError, match=r"coverage\.options\.footprint\.margin = 0\.25, this run asks for 1\.0"):
        cache_teacher(cached, "t", options=other, workers=1)


def test_a_coverage_that_does_not_read_is_refused_before_anything_is_written(cached: Path) -> None:
    for text, said in (("gauss", "expected one of gaussian"), ("lidar(margin=1)", "its options are points, z_min")):
        with pytest.raises(ConfigError, match=f"--coverage.*{said}"):
            cache_teacher(cached, "bad", options=TeacherOptions(text), workers=1)
    assert not (cached / "teachers" / "bad").exists()


def test_every_column_is_a_layer_of_the_picture(cached: Path) -> None:
    frames, teacher = FrameStore(cached / "frames"), TeacherStore(cached / "teachers" / "t")
    token = frames.frame(1).token
    layers = mask_layers(teacher, token)
    assert [layer.name for layer in layers] == teacher.selectors
    _, weights = scatter_cells(teacher.cells(teacher.row_of(token)), teacher.grid.shape)
    np.testing.assert_array_equal(np.stack([layer.weights for layer in layers]), weights)
    assert layers[-1].cells == (weights[-1] > 0).sum() > 0
