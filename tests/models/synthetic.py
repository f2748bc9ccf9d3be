"""Small made-up batches for both modalities: boxes with points on them, six cameras around the car, random images."""

from __future__ import annotations

import math

import torch

from models.detector import Batch

# One small config per kind, so that tests of behaviour run in a second or two.
LIDAR = {"preset": "centerpoint-pillar-tiny", "pillars": {"cell_m": 0.8}, "pillar_channels": 16}
VOXEL = {
    "preset": "centerpoint-voxel-tiny",
    "voxels": {"cell_m": 0.4},
    "sparse": {"channels": [4, 8, 8, 16], "out_channels": 16},
    "backbone": {"layers": [1, 1], "filters": [32, 64]},
}
QUERIES = {
    "preset": "object-dgcnn-tiny",
    "pillars": {"cell_m": 0.8},
    "pillar_channels": 16,
    "backbone": {"filters": [16, 32, 32], "channels": 32},
    "transformer": {"queries": 40, "decoder_layers": 2, "hidden": 64},
    "heat": {"channels": 32, "hidden": 16},
}
CAMERA = {
    "preset": "lift-splat-tiny",
    "image_size": [128, 64],
    "bev": {"cell_m": 3.2},
    "backbone": {"layers": [1, 1, 1], "base_width": 8, "outputs": ["C3", "C4"]},
    "depth": {"bins": 16},
}
BEVFORMER = {
    "preset": "bevformer-demo",
    "image_size": [128, 64],
    "bev": {"cell_m": 6.4},
    "channels": 32,
    "levels": 2,
    "backbone": {"layers": [1, 1, 1], "base_width": 8, "outputs": ["C3", "C4"]},
    "encoder": {"hidden": 64},
    "transformer": {"queries": 40, "decoder_layers": 2, "hidden": 64},
    "heat": {"channels": 32, "hidden": 16},
}

BEVDEPTH = {
    "preset": "bevdepth-tiny",
    "image_size": [128, 64],
    "bev": {"cell_m": 3.2},
    "fpn_channels": 32,
    "depth_channels": 16,
    "backbone": {"layers": [1, 1, 1], "base_width": 8, "outputs": ["C3", "C4"]},
    "depth": {"bins": 16},
    "encoder": {"filters": [16, 24, 32], "neck_channels": 16},
}
BEVDET = {
    **CAMERA,
    "depth_net": "linear",
    "depth": {"bins": 16, "weight": 0.0},
    "encoder": {
        "layers": [1, 1, 1],
        "strides": [2, 2, 2],
        "filters": [16, 24, 32],
        "neck": "bevdet",
        "neck_channels": 16,
        "shortcut": "3x3",
    },
}


def boxes_of(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 9) boxes within 40 m and (count,) class ids."""
    r = torch.rand(count, 9, generator=generator)
    centre = torch.cat([(r[:, :2] - 0.5) * 80, r[:, 2:3] - 1.5], dim=1)
    size = torch.stack([3 + 2 * r[:, 3], 1.5 + r[:, 4], 1.5 + r[:, 5]], dim=1)
    boxes = torch.cat([centre, size, (r[:, 6:7] - 0.5) * 6, (r[:, 7:9] - 0.5) * 10], dim=1)
    return boxes, torch.randint(0, 10, (count,), generator=generator)


def rig(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Intrinsics (6, 3, 3) and camera_to_lidar (6, 4, 4) of six level cameras, 60 degrees apart."""
    width, height = size
    k = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 3], [0, 0, 1.0]])
    to_lidar = torch.eye(4).repeat(6, 1, 1)
    for i in range(6):
        a = math.pi / 2 + (1 - i) * math.pi / 3
        forward = torch.tensor([math.cos(a), math.sin(a), 0.0])
        to_lidar[i, :3, 0] = torch.tensor([math.sin(a), -math.cos(a), 0.0])
        to_lidar[i, :3, 1] = torch.tensor([0.0, 0.0, -1.0])
        to_lidar[i, :3, 2] = forward
        to_lidar[i, :3, 3] = 0.5 * forward + torch.tensor([0.0, 0.0, -0.3])
    return k.repeat(6, 1, 1), to_lidar


def synthetic_batch(
    frames: int = 2, objects: int = 8, points: int = 2000, image_size: tuple[int, int] = (128, 64), seed: int = 0
) -> Batch:
    """A batch with everything in it; the same for the same arguments."""
    g = torch.Generator().manual_seed(seed)
    clouds, boxes, labels = [], [], []
    for _ in range(frames):
        frame_boxes, frame_labels = boxes_of(g, objects)
        radius, angle = torch.rand(points, generator=g) ** 2 * 50, torch.rand(points, generator=g) * 2 * math.pi
        rest = torch.rand(points, 3, generator=g) * torch.tensor([0.1, 255.0, 0.5]) - torch.tensor([1.8, 0, 0])
        cloud = torch.cat([(radius * angle.cos())[:, None], (radius * angle.sin())[:, None], rest], dim=1)
        if objects:
            on = torch.randint(0, objects, (points // 2,), generator=g)
            offset = (torch.rand(points // 2, 3, generator=g) - 0.5) * frame_boxes[on, 3:6]
            cloud[: points // 2, :3] = frame_boxes[on, :3] + offset
        clouds.append(cloud)
        boxes.append(frame_boxes)
        labels.append(frame_labels)
    width, height = image_size
    k, to_lidar = rig(image_size)
    returns = 50 * frames * 6
    depth_points = torch.rand(returns, 4, generator=g) * torch.tensor([frames * 6, width, height, 55.0])
    depth_points[:, 0].floor_()
    return Batch(
        points=clouds,
        images=torch.randn(frames, 6, 3, height, width, generator=g),
        intrinsics=k.repeat(frames, 1, 1, 1),
        camera_to_lidar=to_lidar.repeat(frames, 1, 1, 1),
        boxes=boxes,
        labels=labels,
        depth_points=depth_points,
        tokens=[f"{i:032x}" for i in range(frames)],
    )
