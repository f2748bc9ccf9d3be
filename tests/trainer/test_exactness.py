"""Stored cells stand in for the live teacher: the demo's teacher, a student at three moments of a short training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.grid import BevGrid
from cache.layout import frames_place, teacher_place
from cache.store import FrameStore, TeacherStore
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import SHIPPED_TEACHERS, TeacherOptions, cache_teacher
from studies.benches.exactness import Agreement, dense_loss
from studies.benches.residuals import free_term, residual_curve
from studies.benches.stages import LiveBatch, Stage, compare_stages, live_batches, stored_cells
from tests.conftest import SIMULATED_VERSION
from trainer.augment import BevAugment, no_augment
from trainer.recipe import Recipe, load_recipe
from trainer.terms.places import augmented_cells, inside_grid
from trainer.terms.sampling import sample_bilinear

STEPS = 24
STORES = {"fp16": 1, "u8": 1}  # by default the gaussian is dilated by one cell on the demo's 1.6 m cells
STUDENT = {
    "image_size": [64, 32],
    "fpn_channels": 16,
    "context_channels": 8,
    "backbone": {"layers": [1, 1, 1, 1], "base_width": 8},
    "depth": {"bins": 8},
    "encoder": {"filters": [8, 12, 16], "neck_channels": 6},
}


def recipe() -> Recipe:
    train = {"steps": STEPS, "batch": 4, "checkpoint_every": STEPS // 2, "ema": 0.0, "warmup_steps": 2}
    data = {"split": "mini_train", "teacher": "fp16", "depth": False}
    return load_recipe("demo-distilled", {"model": STUDENT, "data": data, "train": train})


@pytest.fixture(scope="module")
def cache(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's teacher on simulated frames, in fp16 and in u8."""
    cache = tmp_path_factory.mktemp("exactness")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=2)
    cache_frames(simulated_root, SIMULATED_VERSION, cache, options=options, workers=1)
    for name, dtype in (("fp16", "float16"), ("u8", "u8")):
        cache_teacher(cache, name, options=TeacherOptions(dtype=dtype), workers=1)
    return cache


@pytest.fixture(scope="module")
def live(cache: Path) -> list[LiveBatch]:
    return live_batches(FrameStore(frames_place(cache)), SHIPPED_TEACHERS["demo"], count=2)


@pytest.fixture(scope="module")
def stages(cache: Path, live: list[LiveBatch], tmp_path_factory: pytest.TempPathFactory) -> list[Stage]:
    run = tmp_path_factory.mktemp("student") / "run"
    return compare_stages(recipe(), cache, run, cache, STORES, live, (0, STEPS // 2, STEPS))


def told(stage: Stage, store: str, found: Agreement) -> str:
    """For the test's output: figures and the residual that they stand at."""
    line = f"{stage.name}: {store}: loss {found.loss:.1e}, gradient {found.gradient:.1e}"
    line += f", residual {found.residual:.2f} of the teacher's spread"
    print(line)
    return line


def test_fp16_cells_give_the_loss_and_gradient_of_the_live_teacher_rounded_to_fp16(stages: list[Stage]) -> None:
    assert [stage.name for stage in stages] == ["initialisation", "mid-way", "end"]
    for stage in stages:
        found = stage.rounded["fp16"]
        assert max(found.loss, found.gradient) < 1e-6, told(stage, "fp16", found)


@pytest.mark.parametrize(("store", "bound"), [("fp16", 1e-3), ("u8", 1e-2)])
def test_stored_cells_give_the_loss_and_gradient_of_the_fp32_teacher(
    stages: list[Stage], store: str, bound: float
) -> None:
    for stage in stages:
        found = stage.stored[store]
        line = told(stage, store, found)
        assert max(found.loss, found.gradient) < bound, line
        assert found.gradient > 1e-6, line  # else the reference has been rounded too
        assert 0.2 < found.residual < 3, line


def test_under_a_bev_augmentation_the_student_is_read_as_the_float64_reference_reads_it(stages: list[Stage]) -> None:
    for stage in stages:
        found = stage.augmented["fp16"]
        assert max(found.loss, found.gradient) < 1e-6, told(stage, "fp16", found)


def test_the_student_has_learnt_between_the_stages(stages: list[Stage]) -> None:
    assert stages[2].stored["fp16"].residual < stages[0].stored["fp16"].residual


def test_the_store_holds_the_very_bits_of_the_live_map_in_fp16(cache: Path, live: list[LiveBatch]) -> None:
    frames, store = FrameStore(frames_place(cache)), TeacherStore(teacher_place(cache, "fp16"))
    for batch in live:
        for sample, row in enumerate(batch.rows):
            cells = store.cells(store.row_of(frames.token(row)))
            wanted = batch.maps[sample].flatten(1).T[torch.from_numpy(np.array(cells.index)).long()].half()
            assert len(cells) > 20
            assert np.array_equal(np.asarray(cells.values), wanted.numpy())


def test_the_comparison_sees_a_single_wrong_value_and_a_wrong_mask(cache: Path, live: list[LiveBatch]) -> None:
    frames, store, batch = FrameStore(frames_place(cache)), TeacherStore(teacher_place(cache, "fp16")), live[0]
    term = free_term(store).double()
    cells = stored_cells(frames, store, batch.rows, [no_augment(6)] * len(batch.rows))
    student = torch.zeros_like(batch.maps).double()
    rounded = batch.maps.half().double()
    mask = torch.zeros(len(batch.rows), store.grid.height * store.grid.width, dtype=torch.float64)
    mask[cells.samples(), cells.index] = cells.weights[:, 0].double()
    mask = mask.view(-1, *store.grid.shape)
    right = dense_loss(term, student, rounded, mask).item()
    spoiled = rounded.clone()
    strongest = int(cells.weights[:, 0].argmax())
    row, col = divmod(int(cells.index[strongest]), store.grid.width)
    spoiled[cells.samples()[strongest], 0, row, col] += 1.0
    assert abs(dense_loss(term, student, spoiled, mask).item() - right) / right > 1e-6
    assert abs(dense_loss(term, student, rounded, mask.roll(1, dims=2)).item() - right) / right > 1e-6


def test_the_error_grows_as_the_residual_shrinks(cache: Path, live: list[LiveBatch]) -> None:
    for store, points in residual_curve(cache, STORES, live[:1]).items():
        errors = np.array([point["map_gradient"] for point in points])
        asked = np.array([point["asked"] for point in points])
        assert (np.diff(errors) > 0).all(), store
        assert np.allclose(errors * asked, errors[0] * asked[0], rtol=0.2), store


GRID = BevGrid(-8.0, 8.0, -6.0, 6.0, 0.8)


@settings(max_examples=25, deadline=None)
@given(
    st.builds(BevAugment, st.floats(-3.2, 3.2), st.floats(0.8, 1.2), st.booleans(), st.booleans()),
    st.integers(0, 2**31),
)
def test_sampled_values_equal_a_float64_reference_written_out(augment: BevAugment, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bev = rng.normal(0, 1, (1, 3, *GRID.shape)).astype(np.float32)
    index = torch.from_numpy(rng.permutation(GRID.height * GRID.width)[:20])
    samples = torch.zeros(len(index), dtype=torch.int64)
    row, col = augmented_cells(index, samples, torch.from_numpy(augment.matrix())[None], GRID)
    inside = inside_grid(row, col, GRID)
    found = sample_bilinear(torch.from_numpy(bev), samples, row, col).numpy()
    for k, cell in enumerate(index.tolist()):
        x = GRID.x_min + (cell % GRID.width + 0.5) * GRID.cell_m
        y = GRID.y_min + (cell // GRID.width + 0.5) * GRID.cell_m
        moved = augment.matrix()[:2, :2] @ [x, y]
        c, r = (moved - [GRID.x_min, GRID.y_min]) / GRID.cell_m - 0.5
        on_grid = -0.5 <= c < GRID.width - 0.5 and -0.5 <= r < GRID.height - 0.5
        edge = min(abs(c + 0.5), abs(r + 0.5), abs(c - GRID.width + 0.5), abs(r - GRID.height + 0.5)) < 1e-5
        assert edge or on_grid == bool(inside[k])
        if on_grid:
            assert np.allclose(found[k], _bilinear(bev[0].astype(np.float64), r, c), atol=2e-6)


def _bilinear(bev: np.ndarray, row: float, col: float) -> np.ndarray:
    """(C,): every cell's value times how near it is, the border's value held in the outer half cell."""
    row, col = min(max(row, 0.0), bev.shape[1] - 1.0), min(max(col, 0.0), bev.shape[2] - 1.0)
    near_row = np.maximum(0, 1 - abs(np.arange(bev.shape[1]) - row))
    near_col = np.maximum(0, 1 - abs(np.arange(bev.shape[2]) - col))
    return np.einsum("crk,r,k->c", bev, near_row, near_col)
