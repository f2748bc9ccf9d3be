from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from trainer.optimiser import Average, lr_at, make_optimiser, parameter_groups, set_lr
from trainer.recipe import TrainConfig


def config(**values: object) -> TrainConfig:
    return TrainConfig.model_validate({"steps": 100, "lr": 0.1, **values})


def test_cosine_rises_over_the_warm_up_and_falls_to_its_floor() -> None:
    rates = [lr_at(step, 100, config(warmup_steps=10, min_lr_factor=0.01)) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) / 11 for step in range(10)])
    assert rates[10] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0.001 <= rates[-1] < 0.0012


def test_one_cycle_peaks_at_two_fifths() -> None:
    rates = [lr_at(step, 100, config(schedule="one_cycle")) for step in range(100)]
    assert max(range(100), key=rates.__getitem__) == 40
    assert rates[0] == pytest.approx(0.01)
    assert rates[40] == pytest.approx(0.1)
    assert rates[-1] < 0.001


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(schedule: str, total: int) -> None:
    assert all(0 < lr_at(step, total, config(schedule=schedule)) <= 0.1 for step in range(total))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


def named() -> dict[str, nn.Parameter]:
    return {f"model.{name}": parameter for name, parameter in Net().named_parameters()}


def test_norms_and_biases_do_not_decay_and_the_backbone_has_its_own_rate() -> None:
    groups = {
        tuple(group["names"]): (group["weight_decay"], group["lr_factor"])
        for group in parameter_groups(named(), config(weight_decay=0.5, backbone_lr_factor=0.1))
    }
    assert groups == {
        ("model.backbone.0.weight",): (0.5, 0.1),
        ("model.backbone.0.bias", "model.backbone.1.weight", "model.backbone.1.bias"): (0.0, 0.1),
        ("model.head.weight",): (0.5, 1.0),
        ("model.head.bias",): (0.0, 1.0),
    }


def test_every_parameter_stands_in_one_group_and_gets_its_rate() -> None:
    parameters = named()
    optimiser = make_optimiser(parameters, config(backbone_lr_factor=0.1))
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(parameters)
    set_lr(optimiser, 0.2)
    assert {round(group["lr"], 9) for group in optimiser.param_groups} == {0.2, 0.02}


def test_the_average_follows_weights_and_statistics() -> None:
    torch.manual_seed(0)
    net = Net().train()
    average = Average(net, decay=0.9)
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        net.backbone(torch.randn(2, 3, 4, 4))
        average.update(net, step)
        weight = 1 - min(0.9, (1 + step) / (10 + step))
        for name, tensor in net.state_dict().items():
            kept[name] = kept[name] + weight * (tensor - kept[name]) if tensor.is_floating_point() else tensor
    for name, tensor in average.tensors.items():
        assert torch.allclose(tensor, kept[name], atol=1e-5), name
    assert average.tensors["backbone.1.num_batches_tracked"] == 30
