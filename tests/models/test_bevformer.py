"""BEVFormer as a whole: presets by their sizes, frames and pasts kept apart, geometry of answers, what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from cache.errors import DataError
from models.build import build_detector, load_preset
from models.detector import Batch, Memory, Past
from models.query_decoder import inverse_sigmoid
from tests.models.synthetic import BEVFORMER, rig, synthetic_batch

SIZE = (128, 64)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(**over):
    """With offsets and weights of attention that depend on what is looked at."""
    torch.manual_seed(0)
    model = build_detector({**BEVFORMER, **over})
    for name, parameter in model.named_parameters():
        if name.endswith(("offsets.weight", "weights.weight")):
            nn.init.normal_(parameter, std=0.05)
    return model


def motion(*numbers: tuple[float, float, float]) -> torch.Tensor:
    """(B, 4, 4) of B turns (rad) and steps x, y (m)."""
    out = torch.eye(4, dtype=torch.float64).repeat(len(numbers), 1, 1)
    for matrix, (yaw, x, y) in zip(out, numbers, strict=True):
        matrix[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
        matrix[:2, 3] = torch.tensor([x, y])
    return out


def shaken(batch: Batch, seed: int) -> Batch:
    """Another calibration for every frame."""
    g = torch.Generator().manual_seed(seed)
    k, to_lidar = batch.intrinsics.clone(), batch.camera_to_lidar.clone()
    k[:, :, :2] *= 1 + 0.3 * torch.rand(len(k), 6, 2, 1, generator=g)
    to_lidar[:, :, :3, 3] += torch.rand(len(k), 6, 3, generator=g)
    return dataclasses.replace(batch, intrinsics=k, camera_to_lidar=to_lidar)


def windows() -> Batch:
    """Three frames of different rigs: one at its scene's start, one with a past of two moments, one with a gap."""
    batch = shaken(synthetic_batch(frames=3, image_size=SIZE), 1)
    first = shaken(synthetic_batch(frames=3, image_size=SIZE, seed=11), 2)
    second = shaken(synthetic_batch(frames=3, image_size=SIZE, seed=12), 3)
    older, newer = motion((0, 0, 0), (0.2, 1, -8), (0.1, 0, -9)), motion((0, 0, 0), (0.1, 0, -4), (0, 0, 0))
    return dataclasses.replace(
        batch,
        history=[
            Past(first, older, torch.tensor([False, True, True]), torch.tensor([0.0, 1.0, 1.0])),
            Past(second, newer, torch.tensor([False, True, False]), torch.tensor([0.0, 0.5, 0.0])),
        ],
    )


def frame_of(batch: Batch, i: int) -> Batch:
    """Frame i alone, with its past."""
    one = slice(i, i + 1)
    pasts = [Past(frame_of(p.frames, i), p.past_to_now[one], p.known[one], p.age_s[one]) for p in batch.history]
    return dataclasses.replace(
        batch,
        images=batch.images[one],
        intrinsics=batch.intrinsics[one],
        camera_to_lidar=batch.camera_to_lidar[one],
        boxes=batch.boxes[one],
        labels=batch.labels[one],
        tokens=batch.tokens[one],
        history=pasts,
    )


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_presets_have_the_released_sizes_part_by_part():
    """Counted by hand: C = 256, S cells, L levels, per encoder layer temporal, spatial, two linear layers and norms."""

    def encoder(side: int, levels: int, layers: int) -> int:
        temporal = 2 * 256 * 257 + 513 * (8 * 2 * 4 * 2) + 513 * (8 * 2 * 4)
        spatial = 2 * 256 * 257 + 257 * (8 * levels * 8 * 2) + 257 * (8 * levels * 8)
        layer = temporal + spatial + 257 * 512 + 513 * 256 + 3 * 512
        told = 10 * 128 + 129 * 256 + 512
        return side * side * 256 + side * 256 + told + (6 + levels) * 256 + layers * layer

    one_level = 2049 * 256 + 9 * 256 * 256 + 256
    four_levels = 3 * 256 + (512 + 1024 + 2048) * 256 + 4 * (9 * 256 * 256 + 256)
    attention = 4 * 256 * 257 + (2 * 256 * 257 + 257 * (8 * 4 * 2) + 257 * (8 * 4)) + 257 * 512 + 513 * 256 + 3 * 512
    transformer = 6 * attention + 900 * 512 + 257 * 3
    head = 6 * ((2 * 256 * 257 + 2 * 512 + 2570) + (2 * 256 * 257 + 2570))
    expected = {
        "bevformer-tiny": [23_508_032, one_level, encoder(50, 1, 3), transformer, head],
        "bevformer-small": [42_500_160, one_level, encoder(150, 1, 3), transformer, head],
        "bevformer-base": [42_500_160, four_levels, encoder(200, 4, 6), transformer, head],
        "bevformer-r50-128": [23_508_032, four_levels, encoder(128, 4, 6), transformer, head],
    }
    sides, queues = {"tiny": 50, "small": 150, "base": 200, "r50-128": 128}, {"tiny": 3, "small": 3}
    padded = {"tiny": (800, 480), "small": (1280, 736)}
    for name, counts in expected.items():
        short = name.removeprefix("bevformer-")
        with torch.device("meta"):
            model = build_detector(load_preset(name))
        parts = (model.backbone, model.pyramid, model.encoder, model.transformer, model.head)
        assert [sum(p.numel() for p in part.parameters()) for part in parts] == counts, name
        assert model.grid.shape == (sides[short],) * 2
        assert (model.grid.x_min, model.grid.y_max, model.bev_channels) == (-51.2, 51.2, 256)
        assert model.settings.padded_size == padded.get(short, (1600, 928))
        assert model.settings.queue == queues.get(short, 4)
        assert (model.adaptor is not None) == (short == "r50-128")
    assert model.adaptor[0].weight.shape == (256, 256, 3, 3) and model.levels["adapted"].grid == model.grid


def test_a_batch_of_three_equals_three_batches_of_one():
    """Rigs, scene starts and gaps differ from frame to frame."""
    model, batch = built().eval(), windows()
    with torch.no_grad():
        together = model(batch)
        for i in range(3):
            alone = model(frame_of(batch, i))
            close(alone.bev[0], together.bev[i])
            close(alone.queries.logits[:, 0], together.queries.logits[:, i])
            close(alone.queries.boxes[:, 0], together.queries.boxes[:, i])
            close(alone.heads[0]["heatmap"][0], together.heads[0]["heatmap"][i])
    assert (together.bev[0] - together.bev[1]).abs().max() > 0.1


def test_the_past_is_seen_where_it_is_known_and_only_there():
    model, batch = built().eval(), windows()
    with torch.no_grad():
        alone = model(dataclasses.replace(batch, history=[])).bev
        found = model(batch).bev
        close(found[0], alone[0])
        assert all((found[i] - alone[i]).abs().max() > 0.05 for i in (1, 2))
        gap = model(dataclasses.replace(batch, history=batch.history[:1])).bev
        close(gap[2], found[2])  # its second moment is unknown: the first one stands
        assert (gap[1] - found[1]).abs().max() > 0.05
        still = [dataclasses.replace(p, past_to_now=motion(*[(0, 0, 0)] * 3)) for p in batch.history]
        assert (model(dataclasses.replace(batch, history=still)).bev - found)[1:].abs().amax((1, 2, 3)).min() > 0.02


def test_moments_that_are_not_known_are_not_looked_at():
    model, batch = built().eval(), windows()
    spoilt = []
    for past in batch.history:
        frames, unknown = past.frames, ~past.known
        images, k, to_lidar, pose = (
            t.clone() for t in (frames.images, frames.intrinsics, frames.camera_to_lidar, past.past_to_now)
        )
        for tensor in (images, k, to_lidar, pose):
            tensor[unknown] = torch.nan
        frames = dataclasses.replace(frames, images=images, intrinsics=k, camera_to_lidar=to_lidar)
        spoilt.append(dataclasses.replace(past, frames=frames, past_to_now=pose))
    with torch.no_grad():
        close(model(dataclasses.replace(batch, history=spoilt)).bev, model(batch).bev)
        gone = [dataclasses.replace(p, known=torch.zeros(3, dtype=torch.bool)) for p in spoilt]
        close(model(dataclasses.replace(batch, history=gone)).bev, model(dataclasses.replace(batch, history=[])).bev)


def test_a_memory_handed_on_equals_the_window_gone_through_again():
    """Two ways to say one past: as images, or as the map that was made of them then."""
    model, batch = built().eval(), windows()
    with torch.no_grad():
        whole = model(batch).bev[1]
        first, second = (frame_of(batch, 1).history[i] for i in range(2))
        then = model(first.frames).bev
        step = torch.linalg.solve(second.past_to_now, first.past_to_now)
        middle = model(
            dataclasses.replace(second.frames, memory=Memory(then, step, first.known, torch.tensor([0.5])))
        ).bev
        memory = Memory(middle, second.past_to_now, second.known, second.age_s)
        close(model(dataclasses.replace(frame_of(batch, 1), history=[], memory=memory)).bev[0], whole)
        older = Memory(then, first.past_to_now, first.known, first.age_s)
        close(model(dataclasses.replace(frame_of(batch, 1), history=[second], memory=older)).bev[0], whole)


def test_a_memory_that_is_not_known_is_not_looked_at():
    model, batch = built().eval(), synthetic_batch(image_size=SIZE)
    with torch.no_grad():
        alone = model(batch).bev
        bev = alone.clone()
        bev[0] = torch.nan
        poses = motion((0, 0, 0), (0.1, 0, -4))
        poses[0] = 0  # has no inverse
        memory = Memory(bev, poses, torch.tensor([False, True]), torch.tensor([torch.nan, 0.5]))
        found = model(dataclasses.replace(batch, memory=memory)).bev
        close(found[0], alone[0])
        assert (found[1] - alone[1]).abs().max() > 0.05
        later = dataclasses.replace(memory, age_s=torch.tensor([torch.nan, 1.0]))
        again = model(dataclasses.replace(batch, memory=later)).bev
        assert (again[1] - found[1]).abs().max() > 1e-3, "how long ago it was is told"


def test_cameras_are_told_apart_and_come_in_any_order():
    model, batch = built().eval(), shaken(synthetic_batch(frames=1, image_size=SIZE), 1)
    order = [3, 0, 5, 1, 4, 2]
    mixed = dataclasses.replace(
        batch,
        images=batch.images[:, order],
        intrinsics=batch.intrinsics[:, order],
        camera_to_lidar=batch.camera_to_lidar[:, order],
    )
    with torch.no_grad():
        plain, unnamed = model(batch).bev, model(mixed).bev
        model.encoder.camera_embedding.copy_(model.encoder.camera_embedding[order].clone())
        close(model(mixed).bev, plain)
    assert (unnamed - plain).abs().max() > 0.05


def test_the_past_leaves_no_gradient_and_no_trace_in_norms():
    model, batch = built().train(), windows()
    model.backbone.bn1.eval()  # frozen by someone
    batch.history[0].frames.images.requires_grad_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    assert model.remember(batch).bev.requires_grad is False
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert model.training and model.backbone.layer1.training and not model.backbone.bn1.training
    sum(model.loss(model(batch), batch).values()).backward()
    assert batch.history[0].frames.images.grad is None


def test_modes_come_back_when_the_past_cannot_be_read():
    model = built().train()
    batch = windows()
    broken = dataclasses.replace(batch.history[0], frames=Batch(images=batch.images))
    with pytest.raises(
        DataError, match=r"preset bevformer-demo with .*moment of the history holds no images with calibration"
    ):
        model(dataclasses.replace(batch, history=[broken]))
    assert model.training and model.backbone.layer1.training


def test_the_heatmap_trains_the_map():
    model, batch = built().train(), synthetic_batch(image_size=SIZE)
    model.loss_parts(model(batch), batch)["heatmap"].value().backward()
    assert model.encoder.query.grad.abs().sum() > 0 and model.backbone.conv1.weight.grad.abs().sum() > 0


def test_images_are_padded_on_the_right_and_below_with_zeros():
    model = built(image_size=[120, 50]).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = synthetic_batch(image_size=(120, 50))
    assert torch.isfinite(model(batch).bev).all()
    assert seen[0].shape == (12, 3, 64, 128)
    assert torch.equal(seen[0][:, :, :50, :120], batch.images.flatten(0, 1))
    assert not seen[0][:, :, 50:].any() and not seen[0][..., 120:].any()


def symmetric():
    """A model whose cells and queries know nothing of their own place: what it says turns with what it sees.

    Reference points are the first three numbers of a query's position; cells and queries look at their own place only.
    """
    model = built().eval()
    with torch.no_grad():
        model.encoder.query.copy_(model.encoder.query[:1].clone().expand_as(model.encoder.query))
        model.encoder.of_row.fill_(0.5)
        model.encoder.of_column.fill_(0.5)
        for layer in model.encoder.layers:
            layer.temporal.offsets.weight.zero_()
            layer.temporal.offsets.bias.zero_()
        transformer = model.transformer
        transformer.reference.weight.zero_()
        transformer.reference.weight[:, :3] = torch.eye(3)
        for layer in transformer.decoder:
            layer.interaction.attention.in_proj_weight[:64].zero_()  # all queries attend to all alike
            for part in (layer.attention.offsets, layer.attention.weights):
                part.weight.zero_()
            layer.attention.offsets.bias.zero_()
        for branch in model.head.boxes:
            branch[-1].weight[:2].zero_()
            branch[-1].bias[:2].zero_()
    return model


def test_a_narrower_grid_is_a_part_of_the_map():
    """Cells that look at their own place only say the same whichever other cells there are; rows are not columns."""
    whole, narrow = symmetric(), built(bev={"cell_m": 6.4, "y_min": -25.6, "y_max": 25.6}).eval()
    weights = whole.state_dict()
    weights["encoder.query"] = weights["encoder.query"][: 8 * 16]
    weights["encoder.of_row"] = weights["encoder.of_row"][:8]
    narrow.load_state_dict(weights)
    batch = synthetic_batch(image_size=SIZE)
    with torch.no_grad():
        found, expected = narrow(batch).bev, whole(batch).bev[:, :, 4:12]
    assert found.shape == (2, 32, 8, 16)
    close(found, expected)


@pytest.mark.parametrize("name", ["quarter turn", "flip"])
def test_decoded_boxes_move_as_the_rig_is_turned_and_mirrored(name):
    model = symmetric()
    matrix = torch.eye(4)
    quarter = [[0.0, -1.0], [1.0, 0.0]]
    matrix[:2, :2] = torch.tensor(quarter if name == "quarter turn" else [[-1.0, 0.0], [0.0, 1.0]])
    g = torch.Generator().manual_seed(2)
    places = torch.rand(40, 3, generator=g) * 0.8 + 0.1
    places_moved = places.clone()
    places_moved[:, :2] = (places[:, :2] - 0.5) @ matrix[:2, :2].T + 0.5
    batch = synthetic_batch(frames=1, image_size=SIZE)
    turned = dataclasses.replace(batch, camera_to_lidar=matrix @ rig(SIZE)[1][None])
    said = []
    for at, frames in ((places, batch), (places_moved, turned)):
        with torch.no_grad():
            model.transformer.query_position[:, :3] = inverse_sigmoid(at)
            output = model(frames)
            said.append((output.bev[0], model.decode(output)[0]))
    (bev, boxes), (bev_moved, boxes_moved) = said
    expected = bev.flip(1).transpose(1, 2) if name == "quarter turn" else bev.flip(2)
    close(bev_moved, expected)
    assert (bev_moved - bev).abs().max() > 0.1
    close(torch.from_numpy(boxes_moved.scores), torch.from_numpy(boxes.scores))
    centres, moved = torch.from_numpy(boxes.boxes_lidar[:, :2]), torch.from_numpy(boxes_moved.boxes_lidar[:, :2])
    torch.testing.assert_close(moved, centres @ matrix[:2, :2].T, atol=1e-3, rtol=0)
    torch.testing.assert_close(boxes_moved.boxes_lidar[:, 2], boxes.boxes_lidar[:, 2], atol=1e-3, rtol=0)
    assert len(boxes.scores) > 100 and boxes.scores.std() > 1e-4


def test_reference_points_have_a_height_within_the_range():
    model, batch = built().eval(), synthetic_batch(image_size=SIZE)
    with torch.no_grad():
        queries = model(batch).queries
    assert queries.references.shape == (2, 2, 40, 2) and queries.boxes.shape == (2, 2, 40, 10)
    assert model.transformer.reference.weight.shape[0] == 3
    assert queries.boxes[..., 2].min() > -5 and queries.boxes[..., 2].max() < 3
    with torch.no_grad():
        for branch in model.head.boxes:
            branch[-1].weight.zero_()
            branch[-1].bias.zero_()
        place = model.transformer.reference(model.transformer.query_position).sigmoid()
        boxes = model(batch).queries.boxes[:, 0]
    low, high = torch.tensor([-51.2, -51.2, -5.0]), torch.tensor([51.2, 51.2, 3.0])
    torch.testing.assert_close(boxes[0, :, :3], low + place * (high - low), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(boxes[1, :, :3], boxes[0, :, :3], atol=1e-3, rtol=1e-4)


def test_batches_move_with_their_history():
    batch = windows()
    memory = Memory(
        torch.zeros(3, 32, 16, 16), motion(*[(0, 0, 0)] * 3), torch.ones(3, dtype=torch.bool), torch.zeros(3)
    )
    moved = dataclasses.replace(batch, memory=memory).to("meta")
    past = moved.history[1]
    parts = (past.frames.images, past.past_to_now, past.known, past.age_s, moved.memory.bev, moved.memory.past_to_now)
    assert all(part.device.type == "meta" for part in parts)


def test_what_does_not_fit_is_refused_with_what_was_found_and_expected():
    batch = windows()
    with pytest.raises(DataError, match=r"preset bevformer-demo with .*single frames"):
        built(queue=1)(batch)
    model = built()
    with pytest.raises(DataError, match=r"images of shape \(3, 5, 3, 64, 128\), expected 3 frames of 6 cameras"):
        model(dataclasses.replace(batch, images=batch.images[:, :5], history=[]))
    with pytest.raises(DataError, match=r"camera_to_lidar of shape \(3, 6, 4\)"):
        model(dataclasses.replace(batch, camera_to_lidar=batch.camera_to_lidar[:, :, 0], history=[]))
    with pytest.raises(
        DataError, match=r"preset bevformer-demo .*a history of 3 moments, a window \(queue = 3\) holds 2"
    ):
        model(dataclasses.replace(batch, history=[*batch.history, batch.history[0]]))
    short = [dataclasses.replace(batch.history[0], known=torch.ones(2, dtype=torch.bool))]
    with pytest.raises(DataError, match=r"preset bevformer-demo .*Past.known has shape \(2,\), expected \(3,\)"):
        model(dataclasses.replace(batch, history=short))
    memory = Memory(
        torch.zeros(3, 8, 16, 16), motion(*[(0, 0, 0)] * 3), torch.ones(3, dtype=torch.bool), torch.zeros(3)
    )
    words = r"preset bevformer-demo .*Memory.bev has shape \(3, 8, 16, 16\), the model reads \(3, 32, 16, 16\)"
    with pytest.raises(DataError, match=words):
        model(dataclasses.replace(batch, memory=memory))
