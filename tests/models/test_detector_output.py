"""What can be asked of a detector's output."""

from __future__ import annotations

import torch

from models.build import build_detector
from models.detector import DetectorOutput
from tests.models.synthetic import LIDAR, synthetic_batch


def test_class_heat_is_every_class_as_a_probability_on_the_grid_of_the_feature() -> None:
    torch.manual_seed(0)
    tasks = [["car", "truck"], ["pedestrian"], ["bus", "trailer", "barrier"]]
    model = build_detector({**LIDAR, "head": {"tasks": tasks, "peaks": "all", "score_threshold": 0.0}}).eval()
    with torch.inference_mode():
        output = model(synthetic_batch())
        heat = output.class_heat()
    assert heat.shape == (2, 6, *model.grid.shape) and heat.shape[2:] == output.bev.shape[2:]
    assert heat.dtype == torch.float32 and heat.min() > 0 and heat.max() < 1
    torch.testing.assert_close(heat[:, 2], output.heads[1]["heatmap"][:, 0].sigmoid())
    best = model.decode(output)[0].scores.max()  # without a peak test the best score is the best heat
    torch.testing.assert_close(float(best), float(heat[0].max()))


def test_class_heat_of_half_precision_logits_is_computed_in_float32() -> None:
    logits = torch.tensor([[[[3.0, -9.0]]]], dtype=torch.bfloat16)
    heat = DetectorOutput(bev=torch.zeros(1, 1, 1, 2), heads=[{"heatmap": logits}]).class_heat()
    torch.testing.assert_close(heat, logits.float().sigmoid(), rtol=0, atol=0)
