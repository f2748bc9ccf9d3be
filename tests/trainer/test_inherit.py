"""Claims about teacher-guided initialisation: which of the teacher's channels a student begins with, and what that
does."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from cache.errors import ConfigError
from models.build import build_detector, load_weights
from models.detector import Batch, DetectorOutput
from tests.models.synthetic import CAMERA, LIDAR, VOXEL, synthetic_batch
from trainer.inherit import Inheritance, inherit, kept_channels
from trainer.layer_graph import Flatten, flat_index, layer_graph

DEMO_TEACHER = Path(__file__).parents[2] / "models" / "checkpoints" / "demo-teacher.safetensors"
HEAD = {"tasks": [["car", "bus"], ["pedestrian"]], "shared_channels": 16, "branch_channels": 8}
HALF_HEAD = {**HEAD, "shared_channels": 8, "branch_channels": 4}
VOXELS = {
    **VOXEL,
    "backbone": {"layers": [1, 1], "filters": [16, 32], "upsample_filters": [8, 12]},
    "head": HEAD,
}
HALF_VOXELS = {
    **VOXELS,
    "sparse": {"channels": [2, 4, 4, 8], "out_channels": 8},
    "backbone": {"layers": [1, 1], "filters": [8, 16], "upsample_filters": [4, 6]},
    "head": HALF_HEAD,
}
BACKBONE = {"layers": [1, 1, 1], "filters": [8, 12, 16], "upsample_filters": [4, 6, 8]}
HALF_BACKBONE = {"layers": [1, 1, 1], "filters": [4, 6, 8], "upsample_filters": [2, 3, 4]}
PILLARS = {**LIDAR, "pillar_layers": 2, "backbone": BACKBONE, "head": HEAD}
HALF_PILLARS = {**PILLARS, "pillar_channels": 8, "backbone": HALF_BACKBONE, "head": HALF_HEAD}
PAIRS = {"pillars": (PILLARS, HALF_PILLARS), "voxels": (VOXELS, HALF_VOXELS)}


def a_model(config: dict[str, Any], seed: int) -> Any:
    """With norms away from the identity, so that each of their tensors matters."""
    torch.manual_seed(seed)
    model: Any = build_detector(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high)
    return model


@pytest.fixture(scope="module")
def batch() -> Batch:
    return synthetic_batch(frames=1, points=600)


def answer(model: Any, batch: Batch) -> DetectorOutput:
    with torch.no_grad():
        return model(batch)


def with_state(model: Any, inheritance: Inheritance) -> Any:
    out = copy.deepcopy(model)
    out.load_state_dict(inheritance.state)
    return out


def silenced(teacher: Any, inheritance: Inheritance) -> Any:
    """The teacher with every channel that was not chosen at zero: gamma and beta of the norms that write it."""
    out = copy.deepcopy(teacher)
    state = out.state_dict()
    for layer in layer_graph(teacher).layers:
        vectors = dict(layer.vectors)
        if "norm.weight" in vectors and layer.writes in inheritance.channels:
            dropped = torch.ones(len(state[vectors["norm.weight"]]), dtype=torch.bool)
            dropped[inheritance.channels[layer.writes]] = False
            for name in ("norm.weight", "norm.bias"):
                state[vectors[name]][dropped] = 0
    return out


def difference(one: DetectorOutput, other: DetectorOutput) -> float:
    """The largest of all head maps."""
    pairs = zip(one.heads, other.heads, strict=True)
    return max(float((a[name] - b[name]).abs().max()) for a, b in pairs for name in a)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("scheme", ["fnav1", "fnav2", "bn_scale", "ofa"])
def test_a_student_as_wide_as_its_teacher_says_the_teachers_very_words(kind: str, scheme: Any, batch: Batch) -> None:
    teacher, student = a_model(PAIRS[kind][0], 0), a_model(PAIRS[kind][0], 1)
    out = inherit(student, teacher, scheme)
    assert {line.how for line in out.lines} == {"inherited"}
    assert difference(answer(student, batch), answer(teacher, batch)) > 0.1
    assert difference(answer(with_state(student, out), batch), answer(teacher, batch)) == 0.0


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("scheme", ["fnav2", "bn_scale", "ofa"])
def test_a_student_equals_the_teacher_without_the_channels_that_were_not_chosen(
    kind: str, scheme: Any, batch: Batch
) -> None:
    """Every layer is cut to the channels it is fed: nothing of a kept channel is lost or misplaced."""
    teacher, student = a_model(PAIRS[kind][0], 2), a_model(PAIRS[kind][1], 3)
    first = inherit(student, teacher, scheme)
    quiet = silenced(teacher, first)
    again = inherit(student, quiet, scheme)
    assert all(torch.equal(again.channels[space], index) for space, index in first.channels.items())
    assert {line.how for line in again.lines} == {"inherited", "sliced"}
    found = answer(with_state(student, again), batch)
    assert difference(found, answer(quiet, batch)) < 1e-5 < difference(found, answer(teacher, batch))


def test_the_flatten_order_is_ours_and_the_released_one_is_another(batch: Batch) -> None:
    """Numerically: with the dropped channels silent our order gives the teacher's maps, the released one does not."""
    teacher, student = a_model(VOXELS, 4), a_model({**VOXELS, "sparse": HALF_VOXELS["sparse"]}, 5)
    ours = inherit(student, teacher, "fnav2")
    quiet = silenced(teacher, ours)
    wanted = answer(quiet, batch)
    canvas = answer(with_state(student, ours), batch).levels["canvas"]
    kept = ours.channels["canvas"]
    assert torch.allclose(canvas, wanted.levels["canvas"][:, kept], atol=1e-6) and float(canvas.abs().max()) > 0.1
    assert difference(answer(with_state(student, inherit(student, quiet, "fnav2")), batch), wanted) < 1e-5
    assert difference(answer(with_state(student, inherit(student, quiet, "fnav1")), batch), wanted) < 1e-5
    released = inherit(student, quiet, "fnav2_released")
    assert difference(answer(with_state(student, released), batch), wanted) > 1e-3  # a hundred times ours
    layers = teacher.encoder.layers_out
    assert layers >= 2 and len(kept) == 8 * layers
    assert torch.equal(kept, torch.arange(8 * layers))  # c * layers + z: the leading slice, whatever the width
    aligned = (released.channels["canvas"] == kept).sum().item()
    assert aligned < len(kept) and sorted(released.channels["canvas"].tolist()) != kept.tolist()


def test_channels_are_flattened_by_channel_then_layer() -> None:
    assert flat_index(torch.tensor([0, 3]), Flatten("sparse.out", 2)).tolist() == [0, 1, 6, 7]
    ours = flat_index(torch.arange(96), Flatten("sparse.out", 2))  # CP-Voxel-XS: 96 of 128 channels, two z layers
    released = torch.cat([torch.arange(96), torch.arange(96) + 128])
    assert int((ours == released).sum()) == 96  # of 192


def test_a_student_of_half_the_width_has_the_named_slices() -> None:
    teacher, student = a_model(VOXELS, 6), a_model(HALF_VOXELS, 7)
    out = inherit(student, teacher, "fnav2")
    t, s = teacher.state_dict(), out.state
    layers = teacher.encoder.layers_out

    def same(name: str, wanted: Tensor) -> None:
        assert torch.equal(s[name], wanted), name

    same("encoder.input.conv.weight", t["encoder.input.conv.weight"][:2])
    same("encoder.stages.1.down.conv.weight", t["encoder.stages.1.down.conv.weight"][:4, ..., :2])
    same("encoder.stages.3.blocks.0.conv2.weight", t["encoder.stages.3.blocks.0.conv2.weight"][:8, ..., :8])
    same("encoder.stages.3.blocks.0.bias1", t["encoder.stages.3.blocks.0.bias1"][:8])
    same("encoder.output.norm.running_var", t["encoder.output.norm.running_var"][:8])
    same("backbone.blocks.0.0.weight", t["backbone.blocks.0.0.weight"][:8, : 8 * layers])
    same("backbone.neck.deblocks.1.0.weight", t["backbone.neck.deblocks.1.0.weight"][:16, :6])  # transposed: in, out
    both = [*range(4), *range(8, 14)]  # of the first map of 8, then of the second of 12
    same("head.shared.0.weight", t["head.shared.0.weight"][:8][:, both])
    same("head.tasks.1.dim.0.weight", t["head.tasks.1.dim.0.weight"][:4, :8])
    same("head.tasks.1.dim.3.weight", t["head.tasks.1.dim.3.weight"][:, :4])  # every output, sliced inputs
    same("head.tasks.1.dim.3.bias", t["head.tasks.1.dim.3.bias"])
    plain = inherit(student, teacher, "fnav1").state
    assert torch.equal(plain["head.shared.0.weight"], t["head.shared.0.weight"][:8, :10])
    lines = {line.name: line for line in out.lines}
    assert lines["head.tasks.1.dim.3.bias"].how == "inherited" and lines["head.shared.0.weight"].how == "sliced"
    assert lines["head.shared.0.weight"].source_shape == (16, 20, 3, 3)


def test_bn_scale_takes_the_largest_gammas_and_feeds_them_on() -> None:
    teacher, student = a_model(PILLARS, 8), a_model(HALF_PILLARS, 9)
    gamma = teacher.state_dict()["backbone.blocks.1.1.weight"]
    gamma.copy_(torch.linspace(0.1, 1.2, 12).flip(0) * torch.tensor([1.0, -1.0] * 6))
    gamma[2], gamma[11] = 0.01, -9.0
    out = inherit(student, teacher, "bn_scale")
    chosen = [0, 1, 3, 4, 5, 11]
    assert kept_channels(out, ["trunk.1.0", "nowhere"]) == {"trunk.1.0": chosen}
    t = teacher.state_dict()
    into, rest = out.channels["trunk.0.1"], out.channels["trunk.1.1"]
    assert torch.equal(out.state["backbone.blocks.1.0.weight"], t["backbone.blocks.1.0.weight"][chosen][:, into])
    assert torch.equal(out.state["backbone.blocks.1.3.weight"], t["backbone.blocks.1.3.weight"][rest][:, chosen])


def test_ofa_takes_the_largest_kernels_over_the_inputs_that_are_kept() -> None:
    teacher, student = a_model(PILLARS, 10), a_model(HALF_PILLARS, 11)
    weight = teacher.state_dict()["backbone.blocks.0.3.weight"]
    first = inherit(student, teacher, "ofa").channels["trunk.0.0"]
    unused = [c for c in range(8) if c not in first.tolist()]
    weight[0, unused] = 1e3  # large only where it is not fed
    weight[0][:, :] = torch.where(torch.isin(torch.arange(8), first)[:, None, None], weight[0] * 1e-3, weight[0])
    out = inherit(student, teacher, "ofa")
    strength = weight[:, first].abs().sum(dim=(1, 2, 3))
    assert out.channels["trunk.0.1"].tolist() == sorted(strength.topk(4).indices.tolist())
    assert 0 not in out.channels["trunk.0.1"]


def test_task_groups_are_known_by_their_classes() -> None:
    teacher = a_model({**PILLARS, "head": {**HEAD, "tasks": [["pedestrian"], ["car", "bus"]]}}, 12)
    student = a_model({**HALF_PILLARS, "head": {**HALF_HEAD, "tasks": [["car", "bus"], ["truck"]]}}, 13)
    out = inherit(student, teacher)
    lines = {line.name: line for line in out.lines}
    assert lines["head.tasks.0.dim.3.bias"].source == "head.tasks.1.dim.3.bias"
    assert lines["head.tasks.1.dim.3.bias"].how == "left" and "head.truck.dim" in lines["head.tasks.1.dim.3.bias"].note


def test_a_student_begins_closer_to_its_teachers_maps_than_a_random_one() -> None:
    """The demo's teacher at half the width on clouds with boxes: maps (of the kept channels) and heat, three seeds."""
    teacher: Any = load_weights(DEMO_TEACHER)
    config = copy.deepcopy(teacher.config)
    config["pillar_channels"] //= 2
    for name in ("filters", "upsample_filters"):
        config["backbone"][name] = [width // 2 for width in config["backbone"][name]]
    for name in ("shared_channels", "branch_channels"):
        config["head"][name] //= 2
    clouds = synthetic_batch(frames=1, points=3000, seed=3)
    wanted = answer(teacher, clouds)
    for seed in range(3):
        torch.manual_seed(seed)
        random: Any = build_detector(config).eval()
        out = inherit(random, teacher)
        target = wanted.bev[:, out.channels["bev"]]
        errors = []
        for model in (random, with_state(random, out)):
            said = answer(model, clouds)
            heat = (said.class_heat() - wanted.class_heat()).abs().mean()
            errors.append(((said.bev - target).square().mean(), heat))
        assert errors[1][0] < 0.9 * errors[0][0] and errors[1][1] < 0.7 * errors[0][1]


def test_a_camera_student_gets_trunk_and_head_and_every_omission_is_said() -> None:
    camera = {**CAMERA, "encoder": {"filters": [8, 12, 16], "neck_channels": 6}, "head": HEAD}
    student, teacher = a_model(camera, 14), a_model(PILLARS, 15)  # 3 * 6 channels, as the teacher's 4 + 6 + 8
    out = inherit(student, teacher)
    lines = {line.name: line for line in out.lines}
    assert list(lines) == list(student.state_dict())
    assert all(line.how == "inherited" for name, line in lines.items() if name.startswith("head."))
    assert "was left" in lines["head.shared.0.weight"].note  # the necks differ
    assert lines["encoder.stages.0.0.conv1.weight"].note == "reads splat, the teacher's reads pillars"
    assert lines["encoder.stages.1.0.conv2.weight"].source == "backbone.blocks.1.3.weight"
    assert lines["encoder.stages.1.0.downsample.0.weight"].how == "left"
    assert lines["encoder.neck.deblocks.2.0.weight"].note == "kernel [4, 4] here, [2, 2] there"
    assert all(
        line.how == "left" for name, line in lines.items() if name.startswith(("backbone.", "fpn.", "depth_net."))
    )
    for line in out.lines:
        changed = not torch.equal(out.state[line.name], student.state_dict()[line.name])
        assert changed <= (line.how != "left")
        assert line.how != "left" or line.note
    narrow = a_model({**camera, "encoder": {"filters": [8, 12, 16], "neck_channels": 5}}, 16)
    note = {line.name: line.note for line in inherit(narrow, teacher).lines}["head.shared.0.weight"]
    assert note == "bev is made of layers that were left, and is 15 wide, not 18"


def test_behind_its_first_convolution_a_plain_camera_trunk_is_the_teachers_own() -> None:
    student, teacher = a_model({"preset": "ablation-student"}, 1), a_model({"preset": "ablation-teacher"}, 2)
    found = inherit(student, teacher)
    student = with_state(student, found)
    trunk = [line for line in found.lines if line.name.startswith(("encoder.", "head."))]
    assert {line.name.split(".")[3] for line in trunk if line.how == "left"} == {"0", "1"}
    assert all(line.name.startswith("encoder.stages.0.") for line in trunk if line.how == "left")
    assert not any(line.how == "sliced" for line in found.lines)
    first = torch.rand(1, 32, 64, 64)  # what the first convolution gives: from there on both are one function
    with torch.no_grad():
        maps = []
        for stages in (student.encoder.stages, teacher.backbone.blocks):
            out = [stages[0][3:](first)]
            for stage in list(stages)[1:]:
                out.append(stage(out[-1]))
            maps.append(out)
        mine, theirs = student.encoder.neck(maps[0]), teacher.backbone.neck(maps[1])
        torch.testing.assert_close(mine, theirs)
        heads = student.head(mine)[0], teacher.head(theirs)[0]
    for name in heads[0]:
        torch.testing.assert_close(heads[0][name], heads[1][name])


def test_wider_deeper_and_other_sensors_are_left_by_layer() -> None:
    teacher = a_model(HALF_PILLARS, 17)
    wide = a_model({**HALF_PILLARS, "backbone": {**HALF_BACKBONE, "filters": [6, 6, 8], "layers": [2, 1, 1]}}, 18)
    notes = {line.name: line.note for line in inherit(wide, teacher).lines if line.how == "left"}
    assert notes["backbone.blocks.0.0.weight"] == "6 channels of trunk.0.0, the teacher has 4"
    assert notes["backbone.blocks.0.6.weight"] == "the teacher has no trunk.0.2"
    assert "head.shared.0.weight" not in notes
    released = a_model({**HALF_PILLARS, "pillar_features": "released", "pillar_layers": 1}, 19)
    notes = {line.name: line.note for line in inherit(released, teacher).lines if line.how == "left"}
    assert notes["encoder.linear.weight"] == "reads points.released, the teacher's reads pillar.both"


def test_the_report_has_a_line_a_tensor_and_a_sentence() -> None:
    student, teacher = a_model(HALF_PILLARS, 20), a_model(PILLARS, 21)
    out = inherit(student, teacher)
    page = io.StringIO()
    Console(file=page, width=200).print(out.table())
    text = page.getvalue()
    assert all(line.name in text for line in out.lines)
    assert out.summary() in text and "8x16x3x3" not in out.summary()
    assert out.count("inherited") + out.count("sliced") + out.count("left") == len(student.state_dict())


def test_what_cannot_be_done_is_refused_by_name() -> None:
    model = a_model(HALF_PILLARS, 22)
    with pytest.raises(ConfigError, match=r"'fnav3' is unknown; the schemes are fnav1, fnav2, .*ofa"):
        inherit(model, model, "fnav3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a Linear cannot inherit"):
        inherit(nn.Linear(2, 2), model)
