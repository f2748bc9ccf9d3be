from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.ragged_linear import RaggedLinear, padded_count

ROOT = Path(__file__).resolve().parents[2]
GROWTH = """
import torch
from models.ragged_linear import RaggedLinear

torch.set_num_threads(1)
layer = RaggedLinear(10, 32, bias=False)


def resident_mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024


for step in range(161):
    if step == 40:
        begun = resident_mb()
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(20000 + 37 * step, 10)).float().sum().backward()
print(resident_mb() - begun)
"""


def test_sizes_are_few_and_little_is_added() -> None:
    sizes = {padded_count(count) for count in range(65536, 131073)}
    assert len(sizes) == 17
    for count in [*range(200), 1000, 4097, 400001]:
        assert count <= padded_count(count) <= count * 17 / 16
        assert padded_count(padded_count(count)) == padded_count(count)


@pytest.mark.parametrize("rows", [0, 1, 2, 31, 1000, 1025])
def test_values_and_gradients_are_those_of_a_plain_layer(rows: int) -> None:
    torch.manual_seed(rows)
    ours = RaggedLinear(7, 5)
    plain = nn.Linear(7, 5)
    plain.load_state_dict(ours.state_dict())
    cloud, weights = torch.randn(rows, 7), torch.randn(rows, 5)

    def outcome(layer: nn.Linear) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        leaf = cloud.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(leaf)
        assert found.dtype == torch.bfloat16 and found.shape == (rows, 5)
        (found.float() * weights).sum().backward()
        assert leaf.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
        return found.float(), leaf.grad, layer.weight.grad, layer.bias.grad

    for a, b in zip(outcome(ours), outcome(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_without_autocast_it_is_the_plain_layer() -> None:
    layer, cloud = RaggedLinear(7, 5), torch.randn(33, 7)
    assert torch.equal(layer(cloud), nn.functional.linear(cloud, layer.weight, layer.bias))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_variety_of_counts() -> None:
    """120 further counts: the plain layer's grew by 188 MB, this one's by 8."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", GROWTH], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60
