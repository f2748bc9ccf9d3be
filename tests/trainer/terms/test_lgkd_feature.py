from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError, StoreError
from cache.frame import CAMERA_CHANNELS
from pipeline.selectors.view import view_mask
from tests.trainer.synthetic import make_camera
from tests.trainer.terms.lgkd_builders import (
    BARE,
    COARSE,
    FRAMES,
    GRID,
    IDENTITY,
    PICTURE,
    SELECTORS,
    STUDENT,
    TEACHER,
    World,
    a_model,
    a_store,
    batches_add_up,
    falls,
    gradients_are_right,
    nothing_gives_zero,
)
from tests.trainer.terms.slow_pieces import AUGMENTS, centre_of, gradients, moved_point, on_grid, slow_at, total
from trainer.augment import BevAugment
from trainer.terms.adaptor import adapted_rows
from trainer.terms.lgkd_feature import LgkdFeature, LgkdFeatureOptions, needs_of
from trainer.terms.places import cell_centres
from trainer.terms.views import cells_in_view, lidar_to_camera


def a_term(world: World, **options: Any) -> LgkdFeature:
    torch.manual_seed(1)
    parsed = LgkdFeatureOptions(**options)
    return LgkdFeature.build("lgkd", 0.7, parsed, a_model(), a_store(world), range(FRAMES)).double()


def views_of(frame: int) -> list[np.ndarray]:
    """(H, W) per camera, from the stores' own selector, un-augmented."""
    return [view_mask([make_camera("CAM_FRONT", yaw, PICTURE)], GRID) for yaw in (90.0, -60.0)]


def slow_loss(
    term: LgkdFeature, world: World, augments: list[BevAugment], views: str, counted: str, level: bool = False
) -> Tensor:
    """The formula, cell by cell and channel by channel."""
    grid, frames, bev = (COARSE, world.level, world.splat) if level else (GRID, world.cells, world.bev)
    groups = 1 if views != "each" else 2
    numerators, masses = [bev.sum() * 0 for _ in range(groups)], [0.0] * groups
    for b, frame in enumerate(frames):
        for k, cell in enumerate(frame["index"].tolist()):
            px, py = moved_point(*centre_of(cell, grid), augments[b])
            weight = float(frame["weights"][k, SELECTORS.index("lidar")])
            if weight == 0 or not on_grid(px, py, grid):
                continue
            seen = [bool(mask.flat[cell]) for mask in views_of(b)] if views != "none" else [True]
            mine = seen if views == "each" else [any(seen)]
            sampled = slow_at(bev[b], px, py, grid)
            if term.options.adaptor == "conv1x1":
                sampled = term.adaptor.weight[:, :, 0, 0] @ sampled + term.adaptor.bias
            raw = frame["values"][k]
            for v, yes in enumerate(mine):
                for c in range(len(raw)):
                    counts = counted == "all" or bool((raw[c] if counted == "nonzero" else raw.abs().sum()) != 0)
                    if yes and counts:
                        wanted = raw[c]
                        if term.standardise.kind == "channels":
                            wanted = (raw[c] - term.standardise.mean[c]) / term.standardise.scale[c]
                        numerators[v] = numerators[v] + weight * (sampled[c] - wanted) ** 2
                        masses[v] += weight
    return 0.7 * sum(n / max(m, 1.0) for n, m in zip(numerators, masses, strict=True))


@pytest.mark.parametrize(
    ("views", "counted"), [("each", "reached"), ("each", "nonzero"), ("union", "all"), ("none", "nonzero")]
)
def test_values_and_gradients_equal_the_slow_formula(views: str, counted: str) -> None:
    world = World(1)
    term = a_term(world, views=views, counted=counted)
    found = total(world.parts(term, range(FRAMES), AUGMENTS))
    # the cameras turn with the world, so that what they see of a canonical cell stays as it was
    wanted = slow_loss(term, world, AUGMENTS, views, counted)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    tensors = [world.bev, *term.parameters()]
    for one, other in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_levels_of_another_grid_equal_the_slow_formula() -> None:
    world = World(2)
    term = a_term(world, level="splat", student_level="splat", views="none", adaptor="none", standardise="none")
    found = total(world.parts(term, range(FRAMES), AUGMENTS))
    assert found.item() == pytest.approx(
        slow_loss(term, world, AUGMENTS, "none", "reached", level=True).item(), rel=1e-10
    )
    gradients_are_right(world, term, [world.splat])


def test_a_level_of_the_teacher_may_teach_a_map_of_another_grid() -> None:
    world = World(2)
    world.level[0]["index"], world.level[0]["values"] = torch.tensor([9]), torch.ones(1, 2, dtype=torch.float64)
    world.level[0]["weights"] = torch.ones(1, len(SELECTORS))
    term = a_term(world, level="splat", views="none", standardise="none")
    part = world.parts(term, [0], IDENTITY)["lgkd"]
    x, y = centre_of(9, COARSE)  # between four cells of the fine map
    col, row = int((x - GRID.x_min) / GRID.cell_m), int((y - GRID.y_min) / GRID.cell_m)
    mean = world.bev[0, :, row - 1 : row + 1, col - 1 : col + 1].mean(dim=(1, 2))
    assert part.numerator.item() == pytest.approx(
        (adapted_rows(term.adaptor, mean) - 1).square().sum().item(), rel=1e-12
    )
    assert part.normaliser.item() == 2


def test_without_augmentation_it_is_the_released_masked_mean_of_each_view() -> None:
    world = World(3)
    term = a_term(world, counted="nonzero", standardise="none")
    found = total(world.parts(term, range(FRAMES), IDENTITY))
    teacher, lidar = torch.zeros(FRAMES, TEACHER, *GRID.shape).double(), torch.zeros(FRAMES, 1, *GRID.shape)
    for b, frame in enumerate(world.cells):
        teacher[b].flatten(1)[:, frame["index"]] = frame["values"].T
        lidar[b].flatten(1)[:, frame["index"]] = frame["weights"][:, :1].T
    student = (
        torch.einsum("oc,bchw->bohw", term.adaptor.weight[:, :, 0, 0], world.bev) + term.adaptor.bias[:, None, None]
    )
    wanted = 0.0
    for view in views_of(0):
        mask = (teacher != 0) & (lidar > 0) & (torch.from_numpy(view) > 0)
        wanted = wanted + (student - teacher)[mask].square().mean()
    assert found.item() == pytest.approx(0.7 * wanted.item(), rel=1e-12)


def test_a_mirrored_world_has_the_same_loss() -> None:
    world, flipped = World(4), World(4)
    term = a_term(world)
    flipped.bev = world.bev.flip(3)
    plain = total(world.parts(term, range(FRAMES), IDENTITY))
    mirrored = total(flipped.parts(term, range(FRAMES), [BevAugment(flip_x=True)] * FRAMES))
    assert plain.item() == pytest.approx(mirrored.item(), rel=1e-12)


def test_the_views_at_cells_are_those_of_the_stores_selector() -> None:
    """Also for a turned, zoomed and mirrored batch: the calibration carries all of it."""
    world, index = World(5), torch.arange(GRID.width * GRID.height)
    for augments in (IDENTITY, AUGMENTS):
        batch = world.batch([1], augments)
        to_camera = lidar_to_camera(batch.camera_to_lidar, batch.bev_augmentation)
        seen = cells_in_view(cell_centres(index, GRID), index * 0, batch.intrinsics, to_camera, PICTURE)
        for camera, mask in enumerate(views_of(1)):
            assert 0 < mask.sum() < mask.size
            assert np.array_equal(seen[:, camera].numpy(), mask.reshape(-1) > 0)


def test_a_smaller_picture_sees_fewer_cells() -> None:
    world, term = World(6), None
    term = a_term(world, views="union")
    whole = world.parts(term, [0], IDENTITY)["lgkd"].normaliser
    narrow = world.batch([0], IDENTITY, images=torch.zeros(1, 2, 3, 16, 8))
    cut = term(world.output([0]), narrow, world.said([0]))["lgkd"].normaliser
    assert 0 < cut < whole


def test_views_of_the_store_are_read_from_its_columns() -> None:
    world = World(7)
    term = a_term(world, views="none")
    options = LgkdFeatureOptions(views_from="store")
    assert needs_of(options).selectors == tuple(f"lidar*view(camera={name})" for name in CAMERA_CHANNELS)
    assert needs_of(LgkdFeatureOptions(views_from="store", views="union")).selectors == ("lidar*view",)
    term.options, term.columns = options, ("lidar", "gaussian")  # as if these were two cameras' columns
    parts = world.parts(term, range(FRAMES), AUGMENTS)["lgkd"]
    alone = a_term(world, selector="gaussian", views="none", standardise="none")
    alone.adaptor, alone.standardise = term.adaptor, term.standardise
    assert len(parts.numerator) == 2
    assert parts.numerator[1].item() == pytest.approx(
        world.parts(alone, range(FRAMES), AUGMENTS)["lgkd"].numerator.item(), rel=1e-12
    )


def test_gradients_batches_and_frames_without_cells() -> None:
    world = World(8)
    term = a_term(world)
    gradients_are_right(world, term, [world.bev, *term.parameters()])
    batches_add_up(world, term)
    nothing_gives_zero(world, term, BARE)


def test_optimised_alone_it_falls() -> None:
    world = World(9)
    falls(world, a_term(world, standardise="none"), [world.bev], to=0.3)


def test_whitened_values_have_unit_covariance_and_channels_unit_deviation() -> None:
    world = World(10)
    values = torch.cat([f["values"][f["weights"][:, 0] > 0] for f in world.cells])
    mixed = values @ torch.tensor([[1.0, 0.9, 0, 0], [0, 0.3, 0, 0], [0, 0, 2, 1], [0, 0, 0, 1]]).double()
    for frame in world.cells:
        frame["values"] = frame["values"] @ torch.linalg.lstsq(values, mixed).solution
    white = a_term(world, standardise="whiten").standardise
    covariance = torch.cov(white(mixed).T, correction=0)
    assert torch.allclose(covariance, torch.eye(4).double(), atol=0.05)  # the ridge takes up to that
    scaled = a_term(world, standardise="channels").standardise(mixed)
    assert torch.allclose(scaled.std(dim=0, correction=0), torch.ones(4).double(), atol=1e-5)
    assert torch.allclose(scaled.mean(dim=0), torch.zeros(4).double(), atol=1e-6)


def test_what_cannot_be_compared_is_refused_when_built() -> None:
    world = World(11)
    with pytest.raises(ConfigError, match=rf"{STUDENT} channels .* {TEACHER}; set adaptor"):
        a_term(world, adaptor="none")
    with pytest.raises(ConfigError, match=r"no level 'canvas', it gives splat; set student_level"):
        a_term(world, student_level="canvas")
    options = LgkdFeatureOptions()
    with pytest.raises(ConfigError, match="views_from"):
        LgkdFeature.build("lgkd", 1.0, options, a_model(modality="lidar"), a_store(world), [0])
    with pytest.raises(StoreError, match=r"'lidar' in 1 training frames; .*nothing to distil"):
        LgkdFeature.build("lgkd", 1.0, LgkdFeatureOptions(), a_model(), a_store(world), [BARE])
