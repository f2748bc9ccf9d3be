"""Foreign checkpoints: nothing missing, nothing left over, and the same boxes as the foreign network gives itself."""

from __future__ import annotations

import functools
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache.classes import DETECTION_CLASSES
from cache.errors import BevcaskError, ConfigError, DataError
from cache.files import file_sha256
from cache.store import FrameStore, TeacherStore
from models.detector import Batch
from pipeline.adapters.foreign import load_foreign
from pipeline.adapters.opening import open_teacher
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher
from pipeline.teacher_shard import load_teacher
from tests.pipeline.foreign_networks import (
    CLASSES,
    SPCONV_1,
    SPCONV_2,
    SPCONV_EARLY_2,
    MMDetection3D,
    OpenPCDet,
    stored,
)

RANGES = {"voxel": ((-3.2, 3.2), (-1.6, 1.6)), "pillar": ((-6.4, 6.4), (-3.2, 3.2))}
PRESETS = {"voxel": "centerpoint-voxel-0.1", "pillar": "centerpoint-pillar-0.2"}
EVERY_BOX = {"score_threshold": 0.0, "max_boxes": 5000, "circle_nms_m": dict.fromkeys(DETECTION_CLASSES, 0.0)}


def overrides(kind: str) -> dict:
    """A small range, and a decoding that keeps every cell of every class."""
    (x_min, x_max), (y_min, y_max) = RANGES[kind]
    return {f"{kind}s": {"x_min": x_min, "x_max": x_max, "y_min": y_min, "y_max": y_max}, "head": EVERY_BOX}


def clouds(kind: str) -> list[torch.Tensor]:
    """Two frames; every other point beside its neighbour, so that cells hold several; a few outside."""
    (x_min, x_max), (y_min, y_max) = RANGES[kind]
    g = torch.Generator().manual_seed(5)
    size = torch.tensor([1.1 * (x_max - x_min), 1.1 * (y_max - y_min), 8.4, 255.0, 0.5])
    low = torch.tensor([1.1 * x_min, 1.1 * y_min, -5.2, 0.0, 0.0])
    out = []
    for count in (300, 120):
        cloud = torch.rand(count, 5, generator=g) * size + low
        cloud[1::2] = cloud[::2] + 0.02
        out.append(cloud)
    return out


def save(state: dict, path: Path, family: str, **more) -> Path:
    key = "model_state" if family == "openpcdet" else "state_dict"
    torch.save({key: state, **more}, path)
    return path


def assert_same_network(path: Path, network, teacher: str) -> None:
    """Maps and boxes of the loaded detector equal the foreign network's to 1e-3 of their scale (fp32, 40 layers)."""
    kind = network.kind
    model, report = load_foreign(path, teacher, overrides(kind))
    points = clouds(kind)
    with torch.inference_mode():
        output = model(Batch(points=points, tokens=["a", "b"]))
        bev, heads = network.heads(points, *RANGES[kind])
        found = model.decode(output)
    scale = bev.abs().max().item()
    assert scale > 1
    torch.testing.assert_close(output.bev, bev, atol=1e-3 * scale, rtol=0)
    for (boxes, scores, names), ours in zip(network.boxes(heads, *RANGES[kind]), found, strict=True):
        assert len(ours) == len(boxes) > 100
        labels = np.array([DETECTION_CLASSES.index(name) for name in names])
        theirs_order, our_order = np.lexsort((scores, labels)), np.lexsort((ours.scores, ours.labels))
        np.testing.assert_array_equal(ours.labels[our_order], labels[theirs_order])
        np.testing.assert_allclose(ours.scores[our_order], scores[theirs_order], atol=1e-4)
        difference = ours.boxes_lidar[our_order] - boxes[theirs_order]
        difference[:, 6] = np.remainder(difference[:, 6] + math.pi, 2 * math.pi) - math.pi
        # a heading is as exact as its vector is long, and equal scores may change places
        wrong = np.abs(difference).max(axis=1) > 1e-2
        assert wrong.mean() < 0.01, f"{wrong.sum()} of {len(wrong)} boxes differ, the first by {difference[wrong][0]}"
    names = {row.foreign for row in report.rows if row.foreign}
    assert names == set(network.w), "every foreign tensor stands in the report"


FAMILIES: dict[str, tuple[Callable, str]] = {
    "openpcdet voxel": (lambda: OpenPCDet("voxel"), "openpcdet"),
    "openpcdet pillar": (lambda: OpenPCDet("pillar"), "openpcdet"),
    "mmdetection3d voxel": (lambda: MMDetection3D("voxel"), "mmdetection3d"),
    "mmdetection3d pillar": (lambda: MMDetection3D("pillar"), "mmdetection3d"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_gives_the_boxes_of_the_network_it_came_from(name, tmp_path):
    make, family = FAMILIES[name]
    network = make()
    path = save(stored(network), tmp_path / "foreign.pth", family)
    assert_same_network(path, network, PRESETS[network.kind])


def test_names_and_sizes_are_those_of_the_released_files():
    """557 entries and the step counter, of which 8,941,590 values are parameters."""
    state = stored(OpenPCDet("voxel"))
    assert len(state) == 558
    learnt = [t.numel() for name, t in state.items() if name.endswith((".weight", ".bias"))]
    assert sum(learnt) == 8_941_590
    assert tuple(state["backbone_3d.conv_input.0.weight"].shape) == (16, 3, 3, 3, 5)
    assert tuple(state["backbone_3d.conv_out.0.weight"].shape) == (128, 3, 1, 1, 128)
    assert tuple(state["backbone_2d.deblocks.0.0.weight"].shape) == (128, 256, 1, 1)


@pytest.mark.parametrize("cell", ["0.075", "0.1"])
@pytest.mark.parametrize("make", [OpenPCDet, MMDetection3D])
def test_both_voxel_sizes_load_at_full_range(make, cell, tmp_path):
    path = save(stored(make("voxel")), tmp_path / "foreign.pth", "openpcdet")
    model, report = load_foreign(path, f"centerpoint-voxel-{cell}")
    assert model.config["voxels"]["cell_m"] == float(cell)
    assert model.grid.shape == ((180, 180) if cell == "0.075" else (128, 128))
    assert report.preset == f"centerpoint-voxel-{cell}"
    assert not model.training


@functools.cache
def loaded_voxels(make):
    """A network and the detector made of its file with the kernels of spconv 2."""
    network = make("voxel")
    with tempfile.TemporaryDirectory() as folder:
        path = save(stored(network, SPCONV_2), Path(folder) / "2.pth", "openpcdet")
        return load_foreign(path, PRESETS["voxel"])[0], network


@pytest.mark.parametrize("layout", [SPCONV_1, SPCONV_EARLY_2, (0, 1, 2, 3, 4)], ids=["spconv 1", "early 2", "torch"])
@pytest.mark.parametrize("make", [OpenPCDet, MMDetection3D])
def test_every_layout_of_sparse_kernels_gives_the_same_weights(make, layout, tmp_path):
    today, network = loaded_voxels(make)
    other, report = load_foreign(save(stored(network, layout), tmp_path / "x.pth", "openpcdet"), PRESETS["voxel"])
    for name, tensor in today.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert sum("to spconv 2" in row.done for row in report.rows) == 21


def test_boxes_of_mmdetection3d_before_1_0_are_turned_into_ours(tmp_path):
    network = MMDetection3D("voxel", old_boxes=True)
    path = save(stored(network), tmp_path / "old.pth", "mmdetection3d", meta={"mmdet3d_version": "0.17.1"})
    with pytest.raises(ConfigError, match=r"0\.17\.1.*@new-boxes or @old-boxes"):
        load_foreign(path, PRESETS["voxel"])
    assert_same_network(path, network, f"{PRESETS['voxel']}@old-boxes")
    network.old_boxes = False
    assert_same_network(path, network, f"{PRESETS['voxel']}@new-boxes")


def test_a_linear_layer_without_the_offset_in_z_gets_a_column_of_zeros(tmp_path):
    """As some files of 2021 have it."""
    network = MMDetection3D("pillar")
    name = "pts_voxel_encoder.pfn_layers.0.linear.weight"
    network.w[name] = network.w[name][:, :10].contiguous()
    assert_same_network(save(stored(network), tmp_path / "old.pth", "mmdetection3d"), network, PRESETS["pillar"])


def test_biases_that_we_do_not_have_are_folded_into_the_norm(tmp_path):
    network = OpenPCDet("pillar")
    g = torch.Generator().manual_seed(1)
    biased = {"backbone_2d.blocks.0.1": 64, "backbone_2d.blocks.1.4": 128, "vfe.pfn_layers.1.linear": 64}
    for name, width in biased.items():
        network.w[f"{name}.bias"] = torch.randn(width, generator=g)
    path = save(stored(network), tmp_path / "biased.pth", "openpcdet")
    assert_same_network(path, network, PRESETS["pillar"])
    _, report = load_foreign(path)
    folded = {row.foreign for row in report.rows if row.done == "folded into the norm"}
    assert folded == {f"{name}.bias" for name in biased}


def test_the_report_says_of_every_tensor_what_was_done(tmp_path):
    path = save(stored(OpenPCDet("voxel")), tmp_path / "foreign.pth", "openpcdet")
    model, report = load_foreign(path, PRESETS["voxel"])
    filled = [row.ours for row in report.rows if row.ours]
    counters = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    assert sorted(filled) == sorted(set(model.state_dict()) - set(counters))
    lines = report.table().splitlines()
    assert len(lines) == 1 + len(report.rows)

    def line(start: str) -> str:
        return next(re.sub(r"\s+", " ", text) for text in lines if text.startswith(start + " "))

    assert line("backbone_2d.deblocks.0.0.weight").endswith(
        "128x256x1x1 deconvolution (in, out) to convolution (out, in)"
    )
    assert line("dense_head.heads_list.3.rot.1.bias") == (
        "dense_head.heads_list.3.rot.1.bias head.tasks.3.rot.3.bias 2 (cos, sin) to (sin, cos)"
    )
    assert line("global_step").endswith("ignored: counter of training steps")
    assert line("backbone_3d.conv_input.1.num_batches_tracked").endswith("ignored: counter of training batches")


def test_safetensors_wrapped_and_half_precision_files_load_too(tmp_path):
    state = stored(OpenPCDet("pillar"))
    plain, _ = load_foreign(save(state, tmp_path / "plain.pth", "openpcdet"))
    save_file(state, tmp_path / "foreign.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "wrapped.pth")
    for name in ("foreign.safetensors", "wrapped.pth"):
        other = open_teacher(tmp_path / name, "any").model
        assert all(torch.equal(t, other.state_dict()[key]) for key, t in plain.state_dict().items()), name
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    loaded, _ = load_foreign(save(half, tmp_path / "half.pth", "openpcdet"))
    assert all(t.dtype == torch.float32 for t in loaded.parameters())


def without(*names: str) -> Callable[[dict], None]:
    return lambda state: [state.pop(name) for name in names]  # type: ignore[return-value]


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[dict], None]:
    return lambda state: state.update({name: tensor})


BAD_STATES = {
    "missing": (
        without("dense_head.heads_list.2.vel.1.bias", "backbone_2d.blocks.1.4.weight"),
        [r"2 tensors missing: backbone_2d.blocks.1.4.weight \(128, 128, 3, 3\)", r"heads_list.2.vel.1.bias \(2,\)"],
    ),
    "left over": (
        with_tensor("dense_head.heads_list.0.iou.1.weight", torch.zeros(1, 64, 3, 3)),
        [r"1 tensors without a place: dense_head.heads_list.0.iou.1.weight \(1, 64, 3, 3\)"],
    ),
    "another width": (
        with_tensor("dense_head.shared_conv.0.weight", torch.zeros(32, 384, 3, 3)),
        [r"of another shape: dense_head.shared_conv.0.weight \(32, 384, 3, 3\) for our \(64, 384, 3, 3\)"],
    ),
    "one map with too few axes": (
        with_tensor("dense_head.heads_list.0.rot.1.weight", torch.tensor(0.0)),
        [r"of another shape: dense_head.heads_list.0.rot.1.weight \(\) for our \(2, 64, 3, 3\)"],
    ),
    "NaN": (
        with_tensor("backbone_2d.blocks.0.2.running_var", torch.full((64,), math.nan)),
        ["backbone_2d.blocks.0.2.running_var holds 64 values that are NaN or infinite"],
    ),
    "a negative variance": (
        with_tensor("backbone_2d.blocks.0.2.running_var", -torch.ones(64)),
        ["backbone_2d.blocks.0.2.running_var holds 64 values that are negative variances"],
    ),
    "a bias of another width": (
        with_tensor("backbone_2d.blocks.0.1.bias", torch.ones(1)),
        [r"of another shape: backbone_2d.blocks.0.1.bias \(1,\) for our \(64,\)"],
    ),
    "infinity": (
        with_tensor("dense_head.heads_list.0.hm.1.bias", torch.tensor([math.inf])),
        ["dense_head.heads_list.0.hm.1.bias holds 1 values"],
    ),
    "deformable": (
        with_tensor("pts_bbox_head.task_heads.0.feature_adapt_cls.weight", torch.zeros(1)),
        ["deformable convolutions"],
    ),
    "two stages": (with_tensor("roi_head.fc.weight", torch.zeros(1)), ["a two-stage network"]),
    "fusion": (with_tensor("img_backbone.conv1.weight", torch.zeros(1)), ["reads images too"]),
}


@pytest.mark.parametrize("bad", BAD_STATES)
def test_another_network_is_refused_with_the_first_tensors_and_both_shapes(bad, tmp_path):
    change, words = BAD_STATES[bad]
    state = stored(OpenPCDet("pillar"))
    change(state)
    with pytest.raises(DataError) as caught:
        load_foreign(save(state, tmp_path / "bad.pth", "openpcdet"))
    assert "\n" not in str(caught.value)
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)


def test_networks_that_are_no_centerpoint_are_named_for_what_they_are(tmp_path):
    cases = {
        "bbox_head.tasks.0.hm.0.weight": "tianweiy/CenterPoint",
        "dense_head.conv_cls.weight": "anchors",
        "pts_bbox_head.decoder.0.weight": "a transformer",
        "encoder.layer.0.weight": "a network unknown here",
    }
    for name, word in cases.items():
        torch.save({name: torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(DataError, match=f"{word}.*docs/teachers.md"):
            load_foreign(tmp_path / "other.pth")


def test_a_sparse_kernel_of_no_known_layout_is_refused(tmp_path):
    state = stored(OpenPCDet("voxel"))
    state["backbone_3d.conv_input.0.weight"] = torch.zeros(3, 16, 3, 3, 5)
    with pytest.raises(DataError, match=r"\(3, 16, 3, 3, 5\), ours \(16, 3, 3, 3, 5\); no known layout fits"):
        load_foreign(save(state, tmp_path / "x.pth", "openpcdet"), PRESETS["voxel"])
    del state["backbone_3d.conv_input.0.weight"]
    with pytest.raises(DataError, match=r"conv_input.0.weight is missing"):
        load_foreign(save(state, tmp_path / "x.pth", "openpcdet"), PRESETS["voxel"])


def meta_file(tmp_path: Path, kind: str, **meta) -> Path:
    return save(stored(MMDetection3D(kind)), tmp_path / "meta.pth", "mmdetection3d", meta=meta)


def test_another_order_of_classes_is_refused_where_the_file_tells(tmp_path):
    load_foreign(meta_file(tmp_path, "pillar", CLASSES=tuple(CLASSES)))
    load_foreign(meta_file(tmp_path, "pillar", dataset_meta={"classes": CLASSES}))
    swapped = [CLASSES[1], CLASSES[0], *CLASSES[2:]]
    for meta in ({"CLASSES": swapped}, {"dataset_meta": {"classes": swapped}}, {"CLASSES": CLASSES[:3]}):
        with pytest.raises(
            DataError, match=r"its classes are .* the order read here is car, truck, construction_vehicle"
        ):
            load_foreign(meta_file(tmp_path, "pillar", **meta))


def test_the_voxel_size_comes_from_the_file_or_the_preset_and_both_must_agree(tmp_path):
    text = "coder=dict(voxel_size=[0.075, 0.075]),\nvoxel_size = [0.075, 0.075, 2e-1]\n"
    text += "point_cloud_range = [\n    -54, -54, -5.0, 54, 54, 3.0,\n]\n"
    told = meta_file(tmp_path, "voxel", cfg=text)
    assert load_foreign(told)[1].preset == "centerpoint-voxel-0.075"
    with pytest.raises(ConfigError, match=r"says voxel_size = \[0\.075, 0\.075, 0\.2\], .* \[0\.1, 0\.1, 0\.2\]"):
        load_foreign(told, "centerpoint-voxel-0.1")
    with pytest.raises(ConfigError, match=r"a centerpoint-pillar preset, .* holds centerpoint-voxel weights"):
        load_foreign(told, "centerpoint-pillar-0.2")
    wide = meta_file(tmp_path, "voxel", cfg=text.replace("54", "60"))
    with pytest.raises(ConfigError, match="says point_cloud_range"):
        load_foreign(wide)
    silent = meta_file(tmp_path, "voxel")
    with pytest.raises(
        ConfigError, match=r"does not say its voxel size; .* centerpoint-voxel-0.075 or centerpoint-vox"
    ):
        load_foreign(silent, "mine")
    odd = meta_file(tmp_path, "voxel", config="voxel_size=[0.2, 0.2, 0.2]")
    with pytest.raises(ConfigError, match=r"says voxels of 0\.2 m, for which there is no preset"):
        load_foreign(odd)


def test_unknown_words_after_the_preset_are_refused(tmp_path):
    path = save(stored(OpenPCDet("pillar")), tmp_path / "x.pth", "openpcdet")
    with pytest.raises(ConfigError, match="@wlh: unknown, expected @old-boxes or @new-boxes"):
        load_foreign(path, "centerpoint-pillar-0.2@wlh")
    with pytest.raises(ConfigError, match="which never had those boxes"):
        load_foreign(path, "centerpoint-pillar-0.2@old-boxes")


def test_the_pass_runs_a_foreign_checkpoint_and_its_store_says_so(tmp_path, simulated_root):
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(simulated_root, "v1.0-mini", tmp_path, split="mini_val", options=options, workers=1)
    path = save(stored(OpenPCDet("pillar")), tmp_path / "foreign.pth", "openpcdet")
    cache_teacher(
        tmp_path, "f", teacher="centerpoint-pillar-0.2", checkpoint=path, options=TeacherOptions("gaussian"), workers=1
    )
    store, frames = TeacherStore(tmp_path / "teachers" / "f"), FrameStore(tmp_path / "frames")
    header = store.manifest.header
    assert header["adapter"] == "openpcdet as centerpoint-pillar-0.2"
    assert header["teacher"] == "centerpoint-pillar-0.2"
    assert header["weights_sha256"] == file_sha256(path)
    model = load_teacher(str(path), file_sha256(path), teacher="centerpoint-pillar-0.2")
    with torch.inference_mode():
        output = model(Batch(points=[torch.from_numpy(frames.points(0).copy())], tokens=[frames.tokens[0]]))
    cells = store.cells(store.row_of(frames.tokens[0]))
    expected = output.bev[0].flatten(1)[:, cells.index.astype(np.int64)].T.numpy()
    assert len(cells) > 0
    np.testing.assert_allclose(cells.values.astype(np.float32), expected, atol=2e-3 * np.abs(expected).max())


def test_a_foreign_file_that_cannot_be_read_stops_the_pass_before_it_starts(tmp_path, simulated_root):
    cache_frames(simulated_root, "v1.0-mini", tmp_path, options=FrameOptions(image_scale=0.1, points=True), workers=1)
    state = stored(OpenPCDet("pillar"))
    del state["vfe.pfn_layers.0.linear.weight"]
    path = save(state, tmp_path / "bad.pth", "openpcdet")
    with pytest.raises(BevcaskError, match=r"vfe.pfn_layers.0.linear.weight"):
        cache_teacher(tmp_path, "f", teacher="own", checkpoint=path, workers=1)
    assert not (tmp_path / "teachers" / "f").exists()
