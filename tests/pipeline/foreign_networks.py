"""CenterPoint as OpenPCDet and mmdetection3d have it, in plain torch functions over a state dict with their names.

A second implementation for tests, written from the released networks' description and not from ours: dense 3-D
convolutions masked to active sites, loops over pillars, their own names, biases, channel orders and box conventions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from tests.models.dense_convolutions import dense_voxels, norm, strided, submanifold

CLASSES = "car truck construction_vehicle bus trailer barrier motorcycle bicycle pedestrian traffic_cone".split()
HEATMAPS = (1, 2, 2, 1, 2, 2)
# Axes of a torch kernel (out, in, z, y, x) as each stores them.
SPCONV_1, SPCONV_2, SPCONV_EARLY_2 = (2, 3, 4, 1, 0), (0, 2, 3, 4, 1), (2, 3, 4, 0, 1)
STAGES = (16, 32, 64, 128)


class Weights(dict):
    """A state dict under construction; every tensor random, statistics too, so that none can be left out unseen."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def layer(self, name: str, *shape: int, bias: int = 0, fan_in: int = 0, gain: float = 1.0) -> None:
        scale = gain * math.sqrt(2 / (fan_in or math.prod(shape[1:])))
        self[f"{name}.weight"] = torch.randn(shape, generator=self.generator) * scale
        if bias:
            self[f"{name}.bias"] = self.uniform(bias, -0.5, 0.5)

    def norm(self, name: str, channels: int) -> None:
        self[f"{name}.weight"] = self.uniform(channels, 0.7, 1.3)
        self[f"{name}.bias"] = self.uniform(channels, -0.3, 0.3)
        self[f"{name}.running_mean"] = self.uniform(channels, -0.5, 0.5)
        self[f"{name}.running_var"] = self.uniform(channels, 0.6, 1.6)
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def uniform(self, count: int, low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=self.generator) * (high - low) + low


def flat_norm(w, name: str, x: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    """Batch norm over axis 1 of (B, C, H, W) or (P, C)."""
    parts = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts, eps=eps)


def site_norm(w, name: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return norm(x, mask, *(w[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")))


class OpenPCDet:
    """heads: per task, maps under their names; boxes l, w, h and rot (cos, sin)."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.kind, w = kind, Weights(seed)
        self.w = w
        if kind == "voxel":
            p = "backbone_3d."
            w.layer(f"{p}conv_input.0", 16, 5, 3, 3, 3, gain=0.02)  # intensities reach 255
            w.norm(f"{p}conv_input.1", 16)
            for i, width in enumerate(STAGES):
                stage = f"{p}conv{i + 1}"
                if i:
                    w.layer(f"{stage}.0.0", width, STAGES[i - 1], 3, 3, 3)
                    w.norm(f"{stage}.0.1", width)
                for block in (f"{stage}.{j + bool(i)}" for j in range(2)):
                    for n in (1, 2):
                        w.layer(f"{block}.conv{n}", width, width, 3, 3, 3, bias=width)
                        w.norm(f"{block}.bn{n}", width)
            w.layer(f"{p}conv_out.0", 128, 128, 3, 1, 1)
            w.norm(f"{p}conv_out.1", 128)
            self.layers, self.strides, filters, canvas = (5, 5), (1, 2), (128, 256), 256
            ups = ((128, 256, 1, 1), (256, 256, 2, 2))
        else:
            for i, (inputs, outputs) in enumerate(((11, 32), (64, 64))):
                w.layer(f"vfe.pfn_layers.{i}.linear", outputs, inputs, gain=0.1)
                w.norm(f"vfe.pfn_layers.{i}.norm", outputs)
            self.layers, self.strides, filters, canvas = (3, 5, 5), (2, 2, 2), (64, 128, 256), 64
            ups = ((128, 64, 2, 2), (128, 128, 1, 1), (256, 128, 2, 2))
        for s, width in enumerate(filters):
            for i in range(self.layers[s] + 1):
                inputs = width if i else (filters[s - 1] if s else canvas)
                w.layer(f"backbone_2d.blocks.{s}.{1 + 3 * i}", width, inputs, 3, 3)
                w.norm(f"backbone_2d.blocks.{s}.{2 + 3 * i}", width)
        for s, shape in enumerate(ups):
            transposed = kind == "voxel" or s > 0
            w.layer(f"backbone_2d.deblocks.{s}.0", *shape, fan_in=shape[0] if transposed else 0)
            w.norm(f"backbone_2d.deblocks.{s}.1", shape[1] if transposed else shape[0])
        w.layer("dense_head.shared_conv.0", 64, 512 if kind == "voxel" else 384, 3, 3, bias=64)
        w.norm("dense_head.shared_conv.1", 64)
        for t, classes in enumerate(HEATMAPS):
            for name, outputs in {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "vel": 2, "hm": classes}.items():
                branch = f"dense_head.heads_list.{t}.{name}"
                w.layer(f"{branch}.0.0", 64, 64, 3, 3, bias=64)
                w.norm(f"{branch}.0.1", 64)
                w.layer(f"{branch}.1", outputs, 64, 3, 3, bias=outputs, gain=0.3)
        w["global_step"] = torch.tensor([123])

    def heads(self, points, x_range, y_range) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
        """The map before the head, and the head's maps under their own names."""
        w = self.w
        x = self.sparse(points, x_range, y_range) if self.kind == "voxel" else self.pillars(points, x_range, y_range)
        ups = []
        for s, layers in enumerate(self.layers):
            for i in range(layers + 1):
                x = F.pad(x, (1, 1, 1, 1))
                bias = w.get(f"backbone_2d.blocks.{s}.{1 + 3 * i}.bias")
                x = F.conv2d(x, w[f"backbone_2d.blocks.{s}.{1 + 3 * i}.weight"], bias, self.strides[s] if i == 0 else 1)
                x = F.relu(flat_norm(w, f"backbone_2d.blocks.{s}.{2 + 3 * i}", x))
            weight = w[f"backbone_2d.deblocks.{s}.0.weight"]
            if self.kind == "pillar" and s == 0:
                up = F.conv2d(x, weight, stride=2)
            else:
                up = F.conv_transpose2d(x, weight, stride=weight.shape[-1])
            ups.append(F.relu(flat_norm(w, f"backbone_2d.deblocks.{s}.1", up)))
        bev = torch.cat(ups, dim=1)
        p = "dense_head.shared_conv"
        shared = F.relu(flat_norm(w, f"{p}.1", F.conv2d(bev, w[f"{p}.0.weight"], w[f"{p}.0.bias"], padding=1), 1e-5))
        heads = []
        for t in range(6):
            maps = {}
            for name in ("center", "center_z", "dim", "rot", "vel", "hm"):
                p = f"dense_head.heads_list.{t}.{name}"
                y = F.conv2d(shared, w[f"{p}.0.0.weight"], w[f"{p}.0.0.bias"], padding=1)
                y = F.relu(flat_norm(w, f"{p}.0.1", y, 1e-5))
                maps[name] = F.conv2d(y, w[f"{p}.1.weight"], w[f"{p}.1.bias"], padding=1)
            heads.append(maps)
        return bev, heads

    def sparse(self, points, x_range, y_range) -> torch.Tensor:
        w, p = self.w, "backbone_3d."
        x, mask = voxels(points, x_range, y_range)
        x = F.relu(site_norm(w, f"{p}conv_input.1", submanifold(x, mask, w[f"{p}conv_input.0.weight"]), mask))
        for i in range(4):
            stage = f"{p}conv{i + 1}"
            if i:
                x, mask = strided(x, mask, w[f"{stage}.0.0.weight"], 2, (0, 1, 1) if i == 3 else 1)
                x = F.relu(site_norm(w, f"{stage}.0.1", x, mask))
            for block in (f"{stage}.{j + bool(i)}" for j in range(2)):
                x = residual(w, block, x, mask)
        x, mask = strided(x, mask, w[f"{p}conv_out.0.weight"], (2, 1, 1), 0)
        x = F.relu(site_norm(w, f"{p}conv_out.1", x, mask))
        return x.reshape(len(points), -1, *x.shape[3:])

    def pillars(self, points, x_range, y_range) -> torch.Tensor:
        w, canvas = self.w, torch.zeros(len(points), 64, *shape_of(x_range, y_range, 0.2))
        for b, r, c, f in pillars_of(points, x_range, y_range):
            for i in range(2):
                p = f"vfe.pfn_layers.{i}"
                f = F.relu(flat_norm(w, f"{p}.norm", F.linear(f, w[f"{p}.linear.weight"], w.get(f"{p}.linear.bias"))))
                f = torch.cat([f, f.amax(0).expand_as(f)], dim=1) if i == 0 else f.amax(0)
            canvas[b, :, r, c] = f
        return canvas

    def boxes(self, heads, x_range, y_range) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Every cell of every class decoded: per frame, boxes (N, 9), scores (N,), class names."""
        cell = (x_range[1] - x_range[0]) / heads[0]["hm"].shape[3]
        return decode(
            [{"height": m["center_z"], "heatmap": m["hm"], **m} for m in heads],
            (x_range[0], y_range[0], cell),
            yaw=lambda rot: math.atan2(rot[1], rot[0]),
            size=lambda dim: dim,
        )


class MMDetection3D:
    """old_boxes: of versions before 1.0: sizes w, l, h and a yaw that runs the other way."""

    def __init__(self, kind: str, seed: int = 0, old_boxes: bool = False) -> None:
        self.kind, self.old_boxes, w = kind, old_boxes, Weights(seed)
        self.w = w
        if kind == "voxel":
            p = "pts_middle_encoder."
            w.layer(f"{p}conv_input.0", 16, 5, 3, 3, 3, gain=0.02)
            w.norm(f"{p}conv_input.1", 16)
            for i, width in enumerate(STAGES):
                layer = f"{p}encoder_layers.encoder_layer{i + 1}"
                for block in (f"{layer}.{j}" for j in range(2)):
                    for n in (1, 2):
                        w.layer(f"{block}.conv{n}", width, width, 3, 3, 3)
                        w.norm(f"{block}.bn{n}", width)
                if i < 3:
                    w.layer(f"{layer}.2.0", STAGES[i + 1], width, 3, 3, 3)
                    w.norm(f"{layer}.2.1", STAGES[i + 1])
            w.layer(f"{p}conv_out.0", 128, 128, 3, 1, 1)
            w.norm(f"{p}conv_out.1", 128)
            self.layers, self.strides, filters, canvas = (5, 5), (1, 2), (128, 256), 256
            ups = ((256, 128, 1, 1), (256, 256, 2, 2))
        else:
            w.layer("pts_voxel_encoder.pfn_layers.0.linear", 64, 11, gain=0.1)
            w.norm("pts_voxel_encoder.pfn_layers.0.norm", 64)
            self.layers, self.strides, filters, canvas = (3, 5, 5), (2, 2, 2), (64, 128, 256), 64
            ups = ((128, 64, 2, 2), (128, 128, 1, 1), (256, 128, 2, 2))
        for s, width in enumerate(filters):
            for i in range(self.layers[s] + 1):
                inputs = width if i else (filters[s - 1] if s else canvas)
                w.layer(f"pts_backbone.blocks.{s}.{3 * i}", width, inputs, 3, 3)
                w.norm(f"pts_backbone.blocks.{s}.{3 * i + 1}", width)
        for s, shape in enumerate(ups):
            last = s == len(ups) - 1  # the only transposed one
            w.layer(f"pts_neck.deblocks.{s}.0", *shape, fan_in=shape[0] if last else 0)
            w.norm(f"pts_neck.deblocks.{s}.1", shape[1] if last else shape[0])
        w.layer("pts_bbox_head.shared_conv.conv", 64, 512 if kind == "voxel" else 384, 3, 3)
        w.norm("pts_bbox_head.shared_conv.bn", 64)
        for t, classes in enumerate(HEATMAPS):
            for name, outputs in {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": classes}.items():
                branch = f"pts_bbox_head.task_heads.{t}.{name}"
                w.layer(f"{branch}.0.conv", 64, 64, 3, 3)
                w.norm(f"{branch}.0.bn", 64)
                w.layer(f"{branch}.1", outputs, 64, 3, 3, bias=outputs, gain=0.3)

    def heads(self, points, x_range, y_range) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
        w = self.w
        x = self.sparse(points, x_range, y_range) if self.kind == "voxel" else self.pillars(points, x_range, y_range)
        ups = []
        for s, layers in enumerate(self.layers):
            for i in range(layers + 1):
                p = f"pts_backbone.blocks.{s}"
                x = F.conv2d(x, w[f"{p}.{3 * i}.weight"], None, self.strides[s] if i == 0 else 1, padding=1)
                x = F.relu(flat_norm(w, f"{p}.{3 * i + 1}", x))
            weight = w[f"pts_neck.deblocks.{s}.0.weight"]
            if s == len(self.layers) - 1:
                up = F.conv_transpose2d(x, weight, stride=2)
            else:
                up = F.conv2d(x, weight, stride=weight.shape[-1])
            ups.append(F.relu(flat_norm(w, f"pts_neck.deblocks.{s}.1", up)))
        bev = torch.cat(ups, dim=1)
        p = "pts_bbox_head.shared_conv"
        shared = F.relu(flat_norm(w, f"{p}.bn", F.conv2d(bev, w[f"{p}.conv.weight"], padding=1), 1e-5))
        heads = []
        for t in range(6):
            maps = {}
            for name in ("reg", "height", "dim", "rot", "vel", "heatmap"):
                p = f"pts_bbox_head.task_heads.{t}.{name}"
                y = F.relu(flat_norm(w, f"{p}.0.bn", F.conv2d(shared, w[f"{p}.0.conv.weight"], padding=1), 1e-5))
                maps[name] = F.conv2d(y, w[f"{p}.1.weight"], w[f"{p}.1.bias"], padding=1)
            heads.append(maps)
        return bev, heads

    def sparse(self, points, x_range, y_range) -> torch.Tensor:
        w, p = self.w, "pts_middle_encoder."
        x, mask = self.voxel_values(points, x_range, y_range)
        x = F.relu(site_norm(w, f"{p}conv_input.1", submanifold(x, mask, w[f"{p}conv_input.0.weight"]), mask))
        for i in range(4):
            layer = f"{p}encoder_layers.encoder_layer{i + 1}"
            for j in range(2):
                x = residual(w, f"{layer}.{j}", x, mask)
            if i < 3:
                x, mask = strided(x, mask, w[f"{layer}.2.0.weight"], 2, (0, 1, 1) if i == 2 else 1)
                x = F.relu(site_norm(w, f"{layer}.2.1", x, mask))
        x, mask = strided(x, mask, w[f"{p}conv_out.0.weight"], (2, 1, 1), 0)
        x = F.relu(site_norm(w, f"{p}conv_out.1", x, mask))
        return x.reshape(len(points), -1, *x.shape[3:])

    def voxel_values(self, points, x_range, y_range) -> tuple[torch.Tensor, torch.Tensor]:
        return voxels(points, x_range, y_range)

    def pillars(self, points, x_range, y_range) -> torch.Tensor:
        """Pillars filled up to 20 points with zeros, which the maximum sees."""
        w, p = self.w, "pts_voxel_encoder.pfn_layers.0"
        canvas = torch.zeros(len(points), 64, *shape_of(x_range, y_range, 0.2))
        for b, r, c, f in pillars_of(points, x_range, y_range):
            assert len(f) <= 20
            f = torch.cat([f, torch.zeros(20 - len(f), 11)])
            weight = w[f"{p}.linear.weight"]
            f = F.linear(f[:, : weight.shape[1]], weight)
            canvas[b, :, r, c] = F.relu(flat_norm(w, f"{p}.norm", f)).amax(0)
        return canvas

    def boxes(self, heads, x_range, y_range) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        cell = (x_range[1] - x_range[0]) / heads[0]["heatmap"].shape[3]

        def yaw(rot):
            said = math.atan2(rot[0], rot[1])
            return -said - math.pi / 2 if self.old_boxes else said

        return decode(
            [{"center": m["reg"], **m} for m in heads],
            (x_range[0], y_range[0], cell),
            yaw=yaw,
            size=lambda dim: (dim[1], dim[0], dim[2]) if self.old_boxes else dim,
        )


def residual(w, block: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    y = submanifold(x, mask, w[f"{block}.conv1.weight"], w.get(f"{block}.conv1.bias"))
    y = F.relu(site_norm(w, f"{block}.bn1", y, mask))
    y = submanifold(y, mask, w[f"{block}.conv2.weight"], w.get(f"{block}.conv2.bias"))
    return F.relu(site_norm(w, f"{block}.bn2", y, mask) + x)


def shape_of(x_range, y_range, cell: float) -> tuple[int, int]:
    return round((y_range[1] - y_range[0]) / cell), round((x_range[1] - x_range[0]) / cell)


def voxels(points, x_range, y_range) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (41, *shape_of(x_range, y_range, 0.1))
    return dense_voxels(points, shape, (x_range[0], y_range[0], -5.0), (0.1, 0.1, 0.2))


def pillars_of(points, x_range, y_range):
    """Frame, row, column and the 11 features of the points of every pillar of 0.2 m."""
    height, width = shape_of(x_range, y_range, 0.2)
    for b, cloud in enumerate(points):
        cloud = cloud[(cloud[:, 2] >= -5) & (cloud[:, 2] < 3)]
        row, col = ((cloud[:, 1] - y_range[0]) / 0.2).floor(), ((cloud[:, 0] - x_range[0]) / 0.2).floor()
        for r in range(height):
            for c in range(width):
                p = cloud[(row == r) & (col == c)]
                if len(p):
                    centre = torch.tensor([x_range[0] + (c + 0.5) * 0.2, y_range[0] + (r + 0.5) * 0.2, -1.0])
                    yield b, r, c, torch.cat([p, p[:, :3] - p[:, :3].mean(0), p[:, :3] - centre], dim=1)


def decode(heads, origin, yaw, size) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Boxes x, y, z (centre), l, w, h, yaw, vx, vy of every cell and class, one by one."""
    frames = []
    for b in range(len(heads[0]["heatmap"])):
        boxes, scores, names = [], [], []
        first = 0
        for maps in heads:
            m = {name: value[b].double().numpy() for name, value in maps.items()}
            classes, height, width = m["heatmap"].shape
            for r in range(height):
                for c in range(width):
                    x = origin[0] + (c + m["center"][0, r, c]) * origin[2]
                    y = origin[1] + (r + m["center"][1, r, c]) * origin[2]
                    lwh = np.exp(size(m["dim"][:, r, c]))
                    box = [x, y, m["height"][0, r, c], *lwh, yaw(m["rot"][:, r, c]), *m["vel"][:, r, c]]
                    for k in range(classes):
                        boxes.append(box)
                        scores.append(1 / (1 + math.exp(-m["heatmap"][k, r, c])))
                        names.append(CLASSES[first + k])
            first += classes
        frames.append((np.array(boxes), np.array(scores), names))
    return frames


def stored(network, layout=SPCONV_2) -> dict[str, torch.Tensor]:
    """The network's state dict with its sparse kernels in `layout`, as a file has it."""
    return {name: t.permute(layout).contiguous() if t.dim() == 5 else t.clone() for name, t in network.w.items()}
