"""Object-DGCNN as released, in plain torch functions over a state dict with its names. For tests only.

A second implementation, written from the released networks' description and not from ours: bilinear samples, attention,
graphs and voxels by hand, their own names, box code and conventions. Tensors are full size, ranges may be small.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from tests.pipeline.foreign_networks import MMDetection3D, flat_norm, shape_of

CLASSES = "car truck trailer bus construction_vehicle bicycle motorcycle pedestrian traffic_cone barrier".split()
# Unlike the other, not its own inverse: which way classes are brought over shows.
PAPER_CLASSES = "car truck construction_vehicle bus trailer barrier motorcycle bicycle pedestrian traffic_cone".split()
HEAD, TRANSFORMER = "pts_bbox_head", "pts_bbox_head.transformer"
LEVELS, POINTS, HEADS, WIDTH = 4, 4, 8, 256


class ObjectDgcnn(MMDetection3D):
    """kind: `voxel`, as BEVDistill's: learned voxels, attention, a heatmap; or `pillar`, as the paper's: graphs.

    learned: voxels by a small network, in place of the mean; queries: how many.
    """

    def __init__(self, kind: str, *, learned: bool = True, queries: int = 300, old_boxes: bool = True) -> None:
        super().__init__(kind, seed=3, old_boxes=old_boxes)
        self.learned, self.graph, self.heat, self.queries = learned, kind == "pillar", kind == "voxel", queries
        self.classes = CLASSES if kind == "voxel" else PAPER_CLASSES
        w = self.w
        for name in [name for name in w if name.startswith(("pts_neck.", HEAD))]:
            del w[name]
        if kind == "voxel" and learned:
            for i, (inputs, gain) in enumerate(((11, 0.05), (128, 1.0))):
                w.layer(f"pts_voxel_encoder.vfe_layers.{i}.0", 64, inputs, gain=gain)
                w.norm(f"pts_voxel_encoder.vfe_layers.{i}.1", 64)
            w.layer("pts_middle_encoder.conv_input.0", 16, 64, 3, 3, 3)
        filters = (128, 256) if kind == "voxel" else (64, 128, 256)
        for s, inputs in enumerate(filters):
            for name, shape in (
                (f"lateral_convs.{s}", (WIDTH, inputs, 1, 1)),
                (f"fpn_convs.{s}", (WIDTH, WIDTH, 3, 3)),
            ):
                w.layer(f"pts_neck.{name}.conv", *shape)
                w.norm(f"pts_neck.{name}.bn", WIDTH)
        self._transformer(hidden=1024 if kind == "voxel" else 512)
        for i in range(6):
            p = f"{HEAD}.cls_branches.{i}"
            for j in (0, 3):
                w.layer(f"{p}.{j}", WIDTH, WIDTH, bias=WIDTH)
                self._layer_norm(f"{p}.{j + 1}")
            w.layer(f"{p}.6", 10, WIDTH, bias=10)
            p = f"{HEAD}.reg_branches.{i}"
            for j in (0, 2):
                w.layer(f"{p}.{j}", WIDTH, WIDTH, bias=WIDTH)
            w.layer(f"{p}.4", 10, WIDTH, bias=10, gain=0.2)
        if self.heat:
            w.layer(f"{HEAD}.shared_conv.conv", WIDTH, WIDTH, 3, 3)
            w.norm(f"{HEAD}.shared_conv.bn", WIDTH)
            for i, inputs in enumerate((WIDTH, 64)):
                w.layer(f"{HEAD}.task_heads.0.heatmap.{i}.conv", 64, inputs, 3, 3)
                w.norm(f"{HEAD}.task_heads.0.heatmap.{i}.bn", 64)
            w.layer(f"{HEAD}.task_heads.0.heatmap.2", 10, 64, 3, 3, bias=10)

    def _transformer(self, hidden: int) -> None:
        w = self.w
        w[f"{HEAD}.query_embedding.weight"] = torch.randn(self.queries, 2 * WIDTH, generator=w.generator)
        w[f"{TRANSFORMER}.level_embeds"] = torch.randn(LEVELS, WIDTH, generator=w.generator)
        w.layer(f"{TRANSFORMER}.reference_points", 2, WIDTH, bias=2, gain=0.7)
        for part, layers in (("encoder", 2), ("decoder", 6)):
            for i in range(layers):
                p = f"{TRANSFORMER}.{part}.layers.{i}"
                attention = f"{p}.attentions.{int(part == 'decoder')}"
                many = HEADS * LEVELS * POINTS
                w.layer(f"{attention}.sampling_offsets", 2 * many, WIDTH, bias=2 * many, gain=0.7)
                w.layer(f"{attention}.attention_weights", many, WIDTH, bias=many, gain=0.7)
                for name in ("value_proj", "output_proj"):
                    w.layer(f"{attention}.{name}", WIDTH, WIDTH, bias=WIDTH)
                w.layer(f"{p}.ffns.0.layers.0.0", hidden, WIDTH, bias=hidden)
                w.layer(f"{p}.ffns.0.layers.1", WIDTH, hidden, bias=WIDTH)
                for j in range(2 if part == "encoder" else 3):
                    self._layer_norm(f"{p}.norms.{j}")
                if part == "encoder":
                    continue
                if self.graph:
                    for n in (1, 2):
                        w.layer(f"{p}.attentions.0.conv{n}.0", WIDTH, 2 * WIDTH, 1, 1)
                        w.norm(f"{p}.attentions.0.conv{n}.1", WIDTH)
                else:
                    scale = math.sqrt(1 / WIDTH)
                    w[f"{p}.attentions.0.attn.in_proj_weight"] = scale * torch.randn(768, 256, generator=w.generator)
                    w[f"{p}.attentions.0.attn.in_proj_bias"] = w.uniform(768, -0.5, 0.5)
                    w.layer(f"{p}.attentions.0.attn.out_proj", WIDTH, WIDTH, bias=WIDTH)

    def _layer_norm(self, name: str) -> None:
        self.w[f"{name}.weight"], self.w[f"{name}.bias"] = self.w.uniform(256, 0.7, 1.3), self.w.uniform(256, -0.3, 0.3)

    def voxel_values(self, points, x_range, y_range) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxel by voxel."""
        if not self.learned:
            return super().voxel_values(points, x_range, y_range)
        rows, cols = shape_of(x_range, y_range, 0.1)
        values, mask = torch.zeros(len(points), 64, 41, rows, cols), torch.zeros(len(points), 1, 41, rows, cols)
        low, size = torch.tensor([x_range[0], y_range[0], -5.0]), torch.tensor([0.1, 0.1, 0.2])
        for b, cloud in enumerate(points):
            place = ((cloud[:, :3] - low) / size).floor().long()
            inside = ((place >= 0) & (place < torch.tensor([cols, rows, 40]))).all(1)
            for x, y, z in place[inside].unique(dim=0).tolist():
                p = cloud[(place == torch.tensor([x, y, z])).all(1)]
                centre = low + (torch.tensor([x, y, z]) + 0.5) * size
                f = torch.cat([p, p[:, :3] - p[:, :3].mean(0), p[:, :3] - centre], dim=1)
                first = self._vfe(0, f)
                f = torch.cat([first, first.amax(0).expand_as(first)], dim=1)
                values[b, :, z, y, x], mask[b, 0, z, y, x] = self._vfe(1, f).amax(0), 1.0
        return values, mask

    def _vfe(self, i: int, f: torch.Tensor) -> torch.Tensor:
        p = f"pts_voxel_encoder.vfe_layers.{i}"
        return F.relu(flat_norm(self.w, f"{p}.1", f @ self.w[f"{p}.0.weight"].T))

    def pyramid(self, points, x_range, y_range) -> list[torch.Tensor]:
        w = self.w
        x = self.sparse(points, x_range, y_range) if self.kind == "voxel" else self.pillars(points, x_range, y_range)
        laterals = []
        for s, layers in enumerate(self.layers):
            for i in range(layers + 1):
                p = f"pts_backbone.blocks.{s}"
                x = F.conv2d(x, w[f"{p}.{3 * i}.weight"], None, self.strides[s] if i == 0 else 1, padding=1)
                x = F.relu(flat_norm(w, f"{p}.{3 * i + 1}", x))
            laterals.append(self._conv_module(f"pts_neck.lateral_convs.{s}", x, 1e-3))
        for s in range(len(laterals) - 2, -1, -1):
            coarse = laterals[s + 1]
            laterals[s] = laterals[s] + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
        out = [self._conv_module(f"pts_neck.fpn_convs.{s}", x, 1e-3) for s, x in enumerate(laterals)]
        while len(out) < LEVELS:
            out.append(F.max_pool2d(out[-1], 1, stride=2))
        return out

    def _conv_module(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        weight = self.w[f"{name}.conv.weight"]
        return F.relu(flat_norm(self.w, f"{name}.bn", F.conv2d(x, weight, padding=weight.shape[2] // 2), eps))

    def answer(self, points, x_range, y_range) -> dict[str, torch.Tensor]:
        """bev, adapted and heatmap (voxels only), logits (6, B, Q, 10) and codes (6, B, Q, 10) in their conventions."""
        w, maps = self.w, self.pyramid(points, x_range, y_range)
        out = {"bev": maps[0]}
        if self.heat:
            out["adapted"] = self._conv_module(f"{HEAD}.shared_conv", maps[0], 1e-5)
            x = out["adapted"]
            for i in range(2):
                x = self._conv_module(f"{HEAD}.task_heads.0.heatmap.{i}", x, 1e-5)
            last = f"{HEAD}.task_heads.0.heatmap.2"
            out["heatmap"] = F.conv2d(x, w[f"{last}.weight"], w[f"{last}.bias"], padding=1)
        frames = [self._decode([level[b] for level in maps], x_range, y_range) for b in range(len(points))]
        out["logits"], out["codes"] = (torch.stack(parts, dim=1) for parts in zip(*frames, strict=True))
        return out

    def _decode(self, maps, x_range, y_range) -> tuple[torch.Tensor, torch.Tensor]:
        """One frame: logits and codes, both (6, Q, 10)."""
        w = self.w
        shapes = [level.shape[1:] for level in maps]
        tokens = torch.cat([level.flatten(1).T for level in maps])
        position = torch.cat([sine(shape) + w[f"{TRANSFORMER}.level_embeds"][i] for i, shape in enumerate(shapes)])
        own = torch.tensor(
            [((c + 0.5) / wide, (r + 0.5) / high) for high, wide in shapes for r in range(high) for c in range(wide)]
        )
        for i in range(2):
            p = f"{TRANSFORMER}.encoder.layers.{i}"
            seen = self._deformable(f"{p}.attentions.0", tokens + position, tokens, shapes, own)
            tokens = self._norm(f"{p}.norms.0", tokens + seen)
            tokens = self._norm(f"{p}.norms.1", tokens + self._ffn(p, tokens))
        query_position, query = w[f"{HEAD}.query_embedding.weight"].split(WIDTH, dim=1)
        point = self._linear(f"{TRANSFORMER}.reference_points", query_position).sigmoid()
        logits, codes = [], []
        for i in range(6):
            p = f"{TRANSFORMER}.decoder.layers.{i}"
            talk = self._edges if self.graph else self._attend
            query = self._norm(f"{p}.norms.0", query + talk(f"{p}.attentions.0", query, query_position))
            seen = self._deformable(f"{p}.attentions.1", query + query_position, tokens, shapes, point)
            query = self._norm(f"{p}.norms.1", query + seen)
            query = self._norm(f"{p}.norms.2", query + self._ffn(p, query))
            branch, x = f"{HEAD}.cls_branches.{i}", query
            for j in (0, 3):
                x = F.relu(self._norm(f"{branch}.{j + 1}", self._linear(f"{branch}.{j}", x)))
            logits.append(self._linear(f"{branch}.6", x))
            branch, x = f"{HEAD}.reg_branches.{i}", query
            for j in (0, 2):
                x = F.relu(self._linear(f"{branch}.{j}", x))
            code = self._linear(f"{branch}.4", x)
            point = (code[:, :2] + torch.log(point.clamp(1e-5) / (1 - point).clamp(1e-5))).sigmoid()
            low, span = (
                torch.tensor([x_range[0], y_range[0]]),
                torch.tensor([x_range[1] - x_range[0], y_range[1] - y_range[0]]),
            )
            codes.append(torch.cat([low + point * span, code[:, 2:]], dim=1))
        return torch.stack(logits), torch.stack(codes)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def _ffn(self, p: str, x: torch.Tensor) -> torch.Tensor:
        return self._linear(f"{p}.ffns.0.layers.1", F.relu(self._linear(f"{p}.ffns.0.layers.0.0", x)))

    def _attend(self, name: str, query: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        weight, bias = self.w[f"{name}.attn.in_proj_weight"], self.w[f"{name}.attn.in_proj_bias"]
        placed = query + position
        q, k, v = (x @ weight[i : i + 256].T + bias[i : i + 256] for i, x in ((0, placed), (256, placed), (512, query)))
        q, k, v = (x.view(len(x), HEADS, 32).transpose(0, 1) for x in (q, k, v))
        mixed = (q @ k.transpose(1, 2) / math.sqrt(32)).softmax(-1) @ v
        return self._linear(f"{name}.attn.out_proj", mixed.transpose(0, 1).flatten(1))

    def _edges(self, name: str, query: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The 16 farthest, as released."""
        x, total = query + position, torch.zeros_like(query)
        for n in (1, 2):
            distance = (x[:, None] - x[None]).square().sum(-1)
            far = distance.argsort(dim=1)[:, -16:]
            edges = torch.stack([torch.cat([x[far[i]], x[i].expand(16, -1)], dim=1) for i in range(len(x))])
            y = edges.flatten(0, 1) @ self.w[f"{name}.conv{n}.0.weight"][:, :, 0, 0].T
            y = F.relu(flat_norm(self.w, f"{name}.conv{n}.1", y, 1e-5))
            x = y.view(len(x), 16, -1).amax(1)
            total = total + x
        return total

    def _deformable(self, name: str, query, tokens, shapes, references) -> torch.Tensor:
        values = self._linear(f"{name}.value_proj", tokens).view(-1, HEADS, 32)
        offsets = self._linear(f"{name}.sampling_offsets", query).view(-1, HEADS, LEVELS, POINTS, 2)
        weights = self._linear(f"{name}.attention_weights", query).view(-1, HEADS, LEVELS * POINTS).softmax(-1)
        out, first = torch.zeros(len(query), HEADS, 32), 0
        for level, (high, wide) in enumerate(shapes):
            plane = values[first : first + high * wide].view(high, wide, HEADS, 32)
            first += high * wide
            for head in range(HEADS):
                for k in range(POINTS):
                    x = references[:, 0] * wide + offsets[:, head, level, k, 0] - 0.5
                    y = references[:, 1] * high + offsets[:, head, level, k, 1] - 0.5
                    share = weights[:, head, level * POINTS + k, None]
                    out[:, head] += share * bilinear(plane[:, :, head], x, y)
        return self._linear(f"{name}.output_proj", out.flatten(1))

    def found(self, answer: dict[str, torch.Tensor]) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """The 300 best pairs of query and class of the last layer, one by one: boxes (N, 9) with gravity centres in
        l, w, h and yaw from +x, scores, names."""
        frames = []
        for logits, codes in zip(answer["logits"][-1], answer["codes"][-1].double(), strict=True):
            scores = logits.sigmoid().flatten()
            best = scores.argsort(descending=True, stable=True)[:300]
            boxes = []
            for place in best.tolist():
                x, y, a, b, z, h, s, c, vx, vy = codes[place // 10].tolist()
                yaw = math.atan2(s, c)
                length, width = (b, a) if self.old_boxes else (a, b)
                yaw = -yaw - math.pi / 2 if self.old_boxes else yaw
                boxes.append([x, y, z, math.exp(length), math.exp(width), math.exp(h), yaw, vx, vy])
            frames.append((np.array(boxes), scores[best].numpy(), [self.classes[i % 10] for i in best.tolist()]))
        return frames


def bilinear(plane: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """plane: (H, W, C); x, y: (Q,) in cells, whole at cell centres; zero outside."""
    out = torch.zeros(len(x), plane.shape[2])
    for dx in (0, 1):
        for dy in (0, 1):
            col, row = x.floor() + dx, y.floor() + dy
            inside = (col >= 0) & (col < plane.shape[1]) & (row >= 0) & (row < plane.shape[0])
            share = (1 - (x - col).abs()) * (1 - (y - row).abs()) * inside
            at = plane[row.clamp(0, plane.shape[0] - 1).long(), col.clamp(0, plane.shape[1] - 1).long()]
            out = out + share[:, None] * at
    return out


def sine(shape) -> torch.Tensor:
    """(H * W, 256): 128 numbers of the row, then 128 of the column, sine and cosine in turns."""
    high, wide = shape
    out = torch.zeros(high, wide, 256)
    for n, along, first in ((high, 0, 0), (wide, 1, 128)):
        turn = (torch.arange(1, n + 1) - 0.5) / (n + 1e-6) * 2 * math.pi
        for i in range(0, 128, 2):
            angle = turn / 10000 ** (i / 128)
            for j, wave in enumerate((angle.sin(), angle.cos())):
                out[:, :, first + i + j] = wave[:, None] if along == 0 else wave[None]
    return out.flatten(0, 1)
