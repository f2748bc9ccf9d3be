"""Claims about SparseKD's students: factors on widths, larger pillars, and the published sizes."""

from __future__ import annotations

import pytest
import torch

from cache.errors import ConfigError
from models.build import build_detector, load_preset, resolve_config
from models.cost_published import SPARSEKD, compare
from tests.models.synthetic import LIDAR, VOXEL, synthetic_batch

# encoder channels, its canvas, 2-D stages, upsampled stages, shared channels: the table of the paper's students
WIDTHS = {
    "cp-voxel": ([16, 32, 64, 128], 256, (128, 256), (256, 256), 64),
    "cp-voxel-s": ([16, 32, 64, 128], 256, (64, 128), (128, 128), 32),
    "cp-voxel-xs": ([12, 24, 48, 96], 192, (64, 128), (128, 128), 32),
    "cp-voxel-xxs": ([8, 16, 32, 64], 128, (32, 64), (64, 64), 16),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_voxel_students_have_the_published_widths(name):
    channels, canvas, stages, upsampled, shared = WIDTHS[name]
    with torch.device("meta"):
        model = build_detector(load_preset(name))
    blocks = [stage.blocks[0].conv1.out_channels for stage in model.encoder.stages]
    assert (blocks, model.encoder.input.conv.out_channels, model.encoder.out_channels) == (
        channels,
        channels[0],
        canvas,
    )
    assert tuple(block[0].out_channels for block in model.backbone.blocks) == stages
    assert tuple(up[0].out_channels for up in model.backbone.neck.deblocks) == upsampled
    assert model.bev_channels == sum(upsampled)
    assert model.head.shared[0].out_channels == shared
    assert {branch[0].out_channels for task in model.head.tasks for branch in task.values()} == {shared}
    assert [len(stage.blocks) for stage in model.encoder.stages] == [2, 2, 2, 2]  # the depth stays
    assert model.grid.shape == (128, 128)


def test_pillar_students_are_one_network_on_larger_pillars():
    maps = {"cp-pillar": 320, "cp-pillar-v0.4": 256, "cp-pillar-v0.48": 216, "cp-pillar-v0.64": 160}
    with torch.device("meta"):
        models = {name: build_detector(load_preset(name)) for name in maps}
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in models.values()]
    assert all(shape == shapes[0] for shape in shapes)
    for name, model in models.items():
        assert model.grid.shape == (maps[name], maps[name])
        assert model.grid.cell_m == model.levels["canvas"].grid.cell_m  # the head stands on every pillar
        assert min(model.grid.x_max, model.grid.y_max) >= 51.2


@pytest.mark.parametrize("name", SPARSEKD)
def test_sizes_and_costs_for_waymo_are_those_of_the_published_table(name):
    """Parameters to the digit that is printed; FLOPs and activations within 5 %."""
    row = compare(name)
    assert round(row.parameters / 1e6, 1) == row.published.parameters_m
    assert abs(row.gflops_off) < 0.05
    assert abs(row.activations_off) < 0.05


def test_what_the_table_leaves_for_the_sparse_encoder_follows_the_encoders_width():
    """22.07 GFLOPs and 29.13 M activations of the teacher, times the factors: one figure explains three students."""
    left = {name: compare(name) for name in ("cp-voxel-s", "cp-voxel-xs", "cp-voxel-xxs")}
    for name, factor in (("cp-voxel-s", 1.0), ("cp-voxel-xs", 0.75), ("cp-voxel-xxs", 0.5)):
        row = left[name]
        assert row.published.gflops - row.dense_gflops == pytest.approx(22.07 * factor**2, rel=0.02)
        assert row.published.activations_m - row.dense_activations_m == pytest.approx(29.13 * factor, rel=0.01)


@pytest.mark.parametrize(
    ("config", "narrow"),
    [
        (LIDAR, {"pillar_channels": 8, "backbone": {"filters": [8, 16, 32], "upsample_filters": [8, 8, 8]}}),
        (
            VOXEL,
            {
                "sparse": {"channels": [2, 4, 4, 8], "out_channels": 8},
                "backbone": {"layers": [1, 1], "filters": [8, 16], "upsample_filters": [12, 12]},
            },
        ),
    ],
    ids=["pillar", "voxel"],
)
def test_factors_build_the_network_of_the_narrow_channels(config, narrow):
    by_factor = build_detector({**config, "width": {"encoder": 0.5, "backbone": 0.25, "head": 0.5}})
    by_hand = build_detector({**config, **narrow, "head": {"shared_channels": 32, "branch_channels": 16}})
    by_factor.load_state_dict(by_hand.state_dict())
    batch = synthetic_batch(frames=1, points=300)
    with torch.no_grad():
        assert torch.equal(by_factor.eval()(batch).bev, by_hand.eval()(batch).bev)
    again = build_detector(by_factor.config)  # its config rebuilds it: factors are not applied twice
    assert [t.shape for t in again.state_dict().values()] == [t.shape for t in by_hand.state_dict().values()]


@pytest.mark.parametrize(
    ("preset", "width", "words"),
    [
        ("cp-voxel", {"encoder": 0.3}, "sparse.channels 16 times width 0.3 is 4.8 channels"),
        ("cp-voxel", {"head": 0.01}, "head.shared_channels 64 times width 0.01"),
        ("cp-pillar", {"encoder": 0.0156250}, "odd"),
        ("cp-pillar", {"encoder": -1.0}, "greater than 0"),
        ("cp-pillar", {"neck": 0.5}, "allowed there: backbone, encoder, head"),
    ],
)
def test_a_factor_that_gives_no_whole_number_is_refused(preset, width, words):
    with pytest.raises(ConfigError, match=words) as caught:
        resolve_config({"preset": preset, "width": width})
    assert "\n" not in str(caught.value)


def test_tiny_students_stand_on_their_teachers_ground():
    with torch.device("meta"):
        teacher, small, smallest = (
            build_detector(load_preset(n)) for n in ("centerpoint-voxel-tiny", "cp-voxel-tiny-s", "cp-voxel-tiny-xxs")
        )
        pillar, larger = (build_detector(load_preset(n)) for n in ("centerpoint-pillar-tiny", "cp-pillar-tiny-v0.8"))
    assert teacher.grid == small.grid == smallest.grid
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, small, smallest)]
    assert sizes == [795_788, 296_620, 75_552]
    assert larger.grid.cell_m == 2 * pillar.grid.cell_m
    assert larger.grid.x_max == pillar.grid.x_max
