"""Claims about presets, configs and weights files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache.errors import BevcaskError, ConfigError, DataError
from models.build import (
    METADATA_KEY,
    build_detector,
    load_preset,
    load_weights,
    preset_names,
    read_metadata,
    resolve_config,
    save_weights,
)
from tests.models.synthetic import CAMERA, LIDAR, synthetic_batch

ROOT = Path(__file__).resolve().parents[2]

BOTH = pytest.mark.parametrize("config", [LIDAR, CAMERA], ids=["lidar", "camera"])


def test_every_preset_builds_and_student_and_teacher_share_a_grid():
    assert preset_names() == [
        "ablation-student",
        "ablation-teacher",
        "bevdepth-r101",
        "bevdepth-r18",
        "bevdepth-r50",
        "bevdepth-tiny",
        "bevdet-r50",
        "bevformer-base",
        "bevformer-demo",
        "bevformer-r50-128",
        "bevformer-small",
        "bevformer-tiny",
        "centerpoint-pillar-0.2",
        "centerpoint-pillar-tiny",
        "centerpoint-voxel-0.075",
        "centerpoint-voxel-0.1",
        "centerpoint-voxel-tiny",
        "cp-pillar",
        "cp-pillar-tiny-v0.8",
        "cp-pillar-v0.4",
        "cp-pillar-v0.48",
        "cp-pillar-v0.64",
        "cp-voxel",
        "cp-voxel-s",
        "cp-voxel-tiny-s",
        "cp-voxel-tiny-xxs",
        "cp-voxel-xs",
        "cp-voxel-xxs",
        "lift-splat-r50",
        "lift-splat-tiny",
        "object-dgcnn-pillar-0.2",
        "object-dgcnn-tiny",
        "object-dgcnn-voxel-0.1",
    ]
    with torch.device("meta"):
        models = {name: build_detector(load_preset(name)) for name in preset_names()}
    assert models["lift-splat-tiny"].grid == models["centerpoint-pillar-tiny"].grid
    assert models["lift-splat-tiny"].grid == models["centerpoint-voxel-tiny"].grid
    assert models["lift-splat-tiny"].grid == models["object-dgcnn-tiny"].grid
    assert models["lift-splat-tiny"].grid == models["bevformer-demo"].grid
    assert models["ablation-student"].grid == models["ablation-teacher"].grid
    assert models["lift-splat-r50"].grid == models["centerpoint-voxel-0.1"].grid
    assert models["lift-splat-r50"].grid == models["object-dgcnn-voxel-0.1"].grid
    assert models["lift-splat-r50"].grid == models["centerpoint-pillar-0.2"].grid
    assert models["bevformer-r50-128"].grid == models["object-dgcnn-voxel-0.1"].grid


def test_full_size_presets_have_the_published_shape():
    with torch.device("meta"):
        lidar = build_detector(load_preset("centerpoint-pillar-0.2"))
        camera = build_detector(load_preset("lift-splat-r50"))
    assert (lidar.bev_channels, str(lidar.grid)) == (384, "x -51.2..51.2, y -51.2..51.2, cell 0.8 m")
    names = lidar.state_dict()
    assert tuple(names["backbone.neck.deblocks.0.0.weight"].shape) == (128, 64, 2, 2)
    assert tuple(names["backbone.neck.deblocks.2.0.weight"].shape) == (256, 128, 2, 2)
    assert tuple(names["encoder.first.linear.weight"].shape) == (32, 11)
    assert tuple(names["encoder.linear.weight"].shape) == (64, 64)
    parts = [sum(p.numel() for p in part.parameters()) for part in (lidar.encoder, lidar.backbone, lidar.head)]
    assert parts == [4_640, 4_388_608, 1_595_782]
    assert len(lidar.head.tasks) == 6
    assert len(camera.head.tasks) == 6
    resnet = sum(p.numel() for p in camera.backbone.parameters())
    assert resnet == 23_508_032


def test_object_dgcnn_presets_have_the_published_shape():
    with torch.device("meta"):
        voxel = build_detector(load_preset("object-dgcnn-voxel-0.1"))
        pillar = build_detector(load_preset("object-dgcnn-pillar-0.2"))
    assert (voxel.bev_channels, voxel.grid.shape) == (256, (128, 128))
    assert voxel.transformer.shapes == ((128, 128), (64, 64), (32, 32), (16, 16))
    assert voxel.transformer.positions.shape == (21_760, 256)
    names = voxel.state_dict()
    assert tuple(names["encoder.input.conv.weight"].shape) == (16, 3, 3, 3, 64)
    assert tuple(names["encoder.voxel_features.first.linear.weight"].shape) == (64, 11)
    assert tuple(names["encoder.voxel_features.linear.weight"].shape) == (64, 128)
    assert tuple(names["transformer.decoder.5.interaction.attention.in_proj_weight"].shape) == (768, 256)
    assert voxel.adaptor[0].weight.shape == (256, 256, 3, 3)
    assert voxel.levels["canvas"].channels == 256
    assert (pillar.bev_channels, pillar.grid.shape) == (256, (256, 256))
    assert tuple(pillar.state_dict()["transformer.decoder.0.interaction.convolutions.1.linear.weight"].shape) == (
        256,
        512,
    )
    assert pillar.adaptor is None and pillar.heat_classes == () and set(pillar.levels) == {"canvas"}


def test_the_demo_teacher_is_small_enough_to_ship(tmp_path):
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny"}), tmp_path / "teacher.safetensors")
    assert (tmp_path / "teacher.safetensors").stat().st_size < 5_000_000


def test_overrides_are_laid_over_a_preset_key_by_key():
    config = resolve_config({"preset": "lift-splat-tiny", "depth": {"bins": 8}})
    assert config["depth"]["bins"] == 8
    assert config["depth"]["spacing"] == "log"
    assert resolve_config(config) == config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"preset": "centerpoint-pillar-tiny", "pilars": 1}, ["'pilars'", "allowed there", "pillars"]),
        ({"preset": "lift-splat-tiny", "depth": {"bin": 1}}, ["'depth.bin'", "bins", "spacing"]),
        ({"preset": "lift-splat-tiny", "head": {"tasks": [["car", "lorry"]]}}, ["head.tasks", "lorry"]),
        ({"preset": "lift-splat-tiny", "depth": {"bins": "many"}}, ["depth.bins", "'many'"]),
        ({"preset": "lift-splat-tiny", "image_size": [250, 96]}, ["250", "does not divide"]),
        ({"preset": "lift-splat-tiny", "bev": {"cell_m": 0.7}}, ["cells"]),
        ({"preset": "centerpoint-pillar-tiny", "pillars": {"cell_m": 5.12}}, ["divide"]),
        ({"preset": "centerpoint-pillar-tiny", "backbone": {"strides": [1, 2]}}, ["one entry per stage"]),
        ({"preset": "object-dgcnn-tiny", "transformer": {"heads": 5}}, ["64 channels", "5 heads"]),
        ({"preset": "object-dgcnn-tiny", "transformer": {"queries": 4}}, ["no 8 neighbours"]),
        ({"preset": "object-dgcnn-tiny", "backbone": {"first": 3}}, ["levels from stage 3"]),
        ({"preset": "object-dgcnn-tiny", "pillars": {"cell_m": 5.12}}, ["divide"]),
        ({"preset": "bevformer-demo", "encoder": {"heights": 3}}, ["spatial_points 4", "3 heights"]),
        ({"preset": "bevformer-demo", "transformer": {"heads": 5}}, ["64 channels", "transformer's 5 heads"]),
        ({"preset": "bevformer-demo", "transformer": {"encoder_layers": 1}}, ["encoder_layers must be 0"]),
        ({"preset": "bevformer-demo", "levels": 2}, ["3 outputs", "2 levels"]),
        ({"preset": "bevformer-demo", "z_range": [0.0, 1.0]}, ["half a metre"]),
        ({"preset": "pointnet"}, ["pointnet", "lift-splat-tiny"]),
        ({"kind": "lift-splat"}, ["image_size", "required"]),
        ({}, ["kind", "preset"]),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key_and_what_is_allowed(config, words):
    with pytest.raises(ConfigError) as caught:
        build_detector(config)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


PILLAR, SPARSE, LIFT, QUERY = (
    "centerpoint-pillar-tiny",
    "centerpoint-voxel-tiny",
    "lift-splat-tiny",
    "object-dgcnn-tiny",
)


@pytest.mark.parametrize(
    ("preset", "change", "key"),
    [
        (PILLAR, {"pillars": {"cell_m": 0}}, "grid: x range"),
        (PILLAR, {"pillars": {"cell_m": math.nan}}, "'pillars.cell_m'"),
        (PILLAR, {"pillars": {"x_min": 60.0}}, "grid: x range 60.0..51.2"),
        (PILLAR, {"z_range": [3.0, -5.0]}, "'z_range': 3 to -5 m must rise"),
        (PILLAR, {"z_range": [-5.0, math.inf]}, "'z_range.1'"),
        (PILLAR, {"backbone": {"strides": [0, 2, 2]}}, "'backbone.strides.0'"),
        (PILLAR, {"backbone": {"layers": [-1, 2, 2]}}, "'backbone.layers.0'"),
        (PILLAR, {"backbone": {"upsample": [0.0, 1.0, 2.0]}}, "'backbone.upsample.0'"),
        (PILLAR, {"width": {"encoder": math.inf}}, "'width.encoder'"),
        (PILLAR, {"head": {"tasks": [[], ["car"]]}}, "'head.tasks'"),
        (PILLAR, {"head": {"box_weight": -1}}, "'head.box_weight'"),
        (PILLAR, {"head": {"velocity_weight": math.nan}}, "'head.velocity_weight'"),
        (PILLAR, {"head": {"min_radius": -3}}, "'head.min_radius'"),
        (PILLAR, {"head": {"min_overlap": 2}}, "'head.min_overlap'"),
        (PILLAR, {"head": {"score_threshold": 5}}, "'head.score_threshold'"),
        (PILLAR, {"head": {"circle_nms_m": {"car": -1}}}, "'head.circle_nms_m.car'"),
        (SPARSE, {"sparse": {"channels": []}}, "'sparse.channels'"),
        (SPARSE, {"sparse": {"blocks": -1}}, "'sparse.blocks'"),
        (LIFT, {"image_size": [-256, 96]}, "'image_size.0'"),
        (LIFT, {"fpn_channels": -3}, "'fpn_channels'"),
        (LIFT, {"context_channels": 0}, "'context_channels'"),
        (LIFT, {"depth": {"max_m": math.nan}}, "'depth.max_m'"),
        (LIFT, {"backbone": {"layers": [0, 0, 0, 0]}}, "'backbone.layers.0'"),
        (LIFT, {"encoder": {"neck_channels": 0}}, "'encoder.neck_channels'"),
        (QUERY, {"backbone": {"levels": 99}}, "'backbone.levels'"),
        (QUERY, {"head": {"centre_range": [1, 1, 1, 0, 0, 0]}}, "'head.centre_range'"),
    ],
)
def test_a_number_out_of_bounds_is_refused_with_the_preset_and_the_key(preset, change, key):
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        build_detector({"preset": preset, **change})
    assert str(caught.value).startswith(f"model preset '{preset}': ") and key in str(caught.value)
    assert "{" not in str(caught.value)  # no whole table as what was found


@BOTH
def test_weights_rebuild_the_model_bit_for_bit(tmp_path, config):
    torch.manual_seed(1)
    model, batch = build_detector(config), synthetic_batch()
    model.train()
    model(batch)  # moves the running statistics away from their start
    path = tmp_path / "model.safetensors"
    save_weights(model, path, {"recipe_sha256": "abc"})
    loaded = load_weights(path)
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).bev, loaded(batch).bev)
    metadata = read_metadata(path)
    assert metadata["recipe_sha256"] == "abc"
    assert json.loads(metadata["classes"])[0] == "car"
    assert "gravity centre" in metadata["box_convention"]


def test_equal_models_give_equal_files(tmp_path):
    model = build_detector(LIDAR)
    for name in ("a", "b"):
        save_weights(model, tmp_path / name, {"z": "1", "y": "2", "x": "3"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def changed(path, change, **metadata):
    """The file at `path` again, with its tensors passed through `change` and its metadata updated."""
    tensors, meta = load_file(path), read_metadata(path)
    change(tensors)
    save_file(tensors, path, {METADATA_KEY: json.dumps({**meta, **metadata})})


def test_a_file_that_does_not_fit_is_refused_with_the_tensor_and_both_shapes(tmp_path):
    path = tmp_path / "model.safetensors"
    name = "encoder.linear.weight"
    changes = {
        r"encoder.linear.weight has shape \(3, 3\), preset \S+ with pillar_channels = 16 has \(16, 10\)": lambda t: (
            t.update({name: torch.zeros(3, 3)})
        ),
        r"encoder.linear.weight \(16, 10\) of preset \S+ with pillar_channels = 16 is missing": lambda t: t.pop(name),
        r"encoder.more has shape \(2,\), and preset \S+ with pillar_channels = 16 has no such": lambda t: t.update(
            {"encoder.more": torch.zeros(2)}
        ),
    }
    for message, change in changes.items():
        save_weights(build_detector(LIDAR), path)
        changed(path, change)
        with pytest.raises(DataError, match=message):
            load_weights(path)


def test_foreign_or_broken_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(BevcaskError, match="not readable"):
        load_weights(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(BevcaskError, match="not readable"):
        load_weights(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BevcaskError, match="lacks"):
        load_weights(path)
    save_weights(build_detector(LIDAR), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BevcaskError, match="not readable"):
        load_weights(path)
    path.write_bytes(whole)
    changed(path, lambda t: None, classes='["lorry"]')
    with pytest.raises(BevcaskError, match="classes"):
        load_weights(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "the config in its metadata is no JSON"),
        ("[1]", r"the config in its metadata is '\[1\]', expected a table"),
        ("null", "the config in its metadata is 'null', expected a table"),
        ('{"kind": "segmenter"}', "its config is of kind 'segmenter', known: bevformer, "),
        ("{}", "its config is of kind None"),
    ],
)
def test_a_config_that_is_none_is_refused_with_the_file(tmp_path, config, words):
    path = tmp_path / "m.safetensors"
    save_weights(build_detector(LIDAR), path)
    changed(path, lambda tensors: tensors, config=config)
    with pytest.raises(DataError, match=rf"m\.safetensors: .*{words}"):
        load_weights(path)


def test_weights_that_are_not_finite_are_refused_with_the_preset_and_the_tensor(tmp_path):
    path = tmp_path / "m.safetensors"
    model = build_detector(LIDAR)
    with torch.no_grad():
        model.encoder.linear.weight[0, 0] = math.nan
    save_weights(model, path)
    with pytest.raises(
        DataError, match=r"tensor encoder\.linear\.weight of preset \S+ with pillar_channels = 16 holds NaN"
    ):
        load_weights(path)


def test_reserved_metadata_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="config"):
        save_weights(build_detector(LIDAR), tmp_path / "x", {"config": "mine"})
    assert not (tmp_path / "x").exists()


def test_a_preset_may_be_laid_over_another_and_that_over_a_third():
    base, teacher, student = (load_preset(n) for n in ("centerpoint-voxel-0.1", "cp-voxel", "cp-voxel-xs"))
    assert teacher == base
    assert student == {**base, "width": {"encoder": 0.75, "backbone": 0.5, "head": 0.5}}
    deep = load_preset("bevdepth-tiny")
    assert "preset" not in deep
    assert deep["backbone"]["base_width"] == load_preset("lift-splat-tiny")["backbone"]["base_width"]
    assert deep["backbone"]["outputs"] == ["C2", "C3", "C4", "C5"]


def test_the_documents_table_tells_every_preset_its_parameters_and_its_map():
    rows = [line for line in (ROOT / "docs" / "models.md").read_text().splitlines() if line.startswith("| `")]
    counts, maps, cells = {}, {}, {}
    for line in rows:
        first, _, parameters, sides, metres = (cell.strip() for cell in line.strip("|").split("|"))
        names = [name.strip(" `") for name in first.split(",")]
        counts |= dict(zip(names, _of_each(parameters, ";", names), strict=True))
        shapes = [[int(side) for side in text.split(" x ")] for text in _of_each(sides, ";", names)]
        maps |= dict(zip(names, _named(shapes), strict=True))
        cells |= dict(zip(names, [float(m) for m in _of_each(metres.removesuffix(" m"), ",", names)], strict=True))
    with torch.device("meta"):
        models = {name: build_detector(load_preset(name)) for name in preset_names()}
    assert counts == {name: f"{sum(p.numel() for p in model.parameters()):,}" for name, model in models.items()}
    assert maps == {name: (model.bev_channels, *model.grid.shape) for name, model in models.items()}
    assert cells == pytest.approx({name: model.grid.cell_m for name, model in models.items()}, abs=5e-4)


def _of_each(text: str, between: str, names: list[str]) -> list[str]:
    """One entry a name; one entry alone is that of all."""
    parts = [part.strip() for part in text.split(between)]
    return parts * len(names) if len(parts) == 1 else parts


def _named(shapes: list[list[int]]) -> list[tuple[int, ...]]:
    """Channels, H, W of each; where channels are not told again they are the first one's."""
    return [tuple(shape) if len(shape) == 3 else (shapes[0][0], *shape) for shape in shapes]
