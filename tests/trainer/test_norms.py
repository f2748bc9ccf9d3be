from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cache.errors import ConfigError
from models.build import load_weights
from models.sparse_encoder import SiteNorm
from studies.ranks import run_to_end, torchrun
from tests.trainer.test_loop import quiet, recipe
from trainer.distributed import Ranks
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.norms import is_synced, sync_norms
from trainer.plan import make_plan
from trainer.setup import make_training


@pytest.mark.parametrize("kind", ["1d", "2d", "sites", "no affine", "cumulative"])
def test_a_synchronised_norm_of_one_rank_is_the_plain_one(kind: str) -> None:
    torch.manual_seed(3)
    plain: nn.Module = {
        "1d": nn.BatchNorm1d(5),
        "2d": nn.BatchNorm2d(5, momentum=0.3),
        "sites": SiteNorm(5),
        "no affine": nn.BatchNorm2d(5, affine=False),
        "cumulative": nn.BatchNorm1d(5, momentum=None),
    }[kind]
    shape = (7, 5, 4, 3) if kind in ("2d", "no affine") else (9, 5)
    synced = copy.deepcopy(plain)
    sync_norms(synced, Ranks())
    assert is_synced(synced) and not is_synced(plain)
    for _ in range(3):
        x, weights = torch.randn(shape) * 3 + 1, torch.randn(shape)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        for norm, value in zip((plain, synced), inputs, strict=True):
            norm.zero_grad()
            (norm(value) * weights).sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
        for (name, p), q in zip(plain.named_parameters(), synced.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, b), c in zip(plain.state_dict().items(), synced.state_dict().values(), strict=True):
        torch.testing.assert_close(c, b, rtol=1e-5, atol=1e-6, msg=name)
    for norm in (plain, synced):
        norm.eval()
    torch.testing.assert_close(synced(x), plain(x), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_synchronised_norm_is_that_of_its_values() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    sync_norms(norm, Ranks())
    x = torch.randn(6, 3, requires_grad=True)
    direction, step = torch.randn_like(x), 1e-2
    loss = lambda value: (norm(value) ** 3).sum()  # noqa: E731
    loss(x).backward()
    assert x.grad is not None
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(float(slope), rel=2e-2, abs=1e-2)


def test_frozen_stages_and_norms_stay_as_they_are_while_the_rest_learns(tmp_path: Path, cache: Path) -> None:
    chosen = recipe("student", steps=3, frozen=["backbone.layer1"], freeze_bn="backbone", ema=0.0, weight_decay=0.1)
    before = make_training(make_plan(chosen, cache), torch.device("cpu")).model.state_dict()
    result = train(chosen, cache, tmp_path / "run", progress=quiet)
    after = load_weights(result.weights).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("backbone.layer1.") for name in changed)
    assert not any("running" in name for name in changed if name.startswith("backbone."))
    assert any(name.startswith("backbone.layer2.") for name in changed)
    assert any("running" in name for name in changed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frozen": ["backbone.layer9"]}, r"no part 'backbone.layer9'; there are backbone\.conv1"),
        ({"frozen": ["spine"]}, r"no part 'spine'; there are backbone"),
    ],
)
def test_parts_that_the_model_lacks_are_refused(
    tmp_path: Path, cache: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(recipe("student", **values), cache, tmp_path / "run", progress=quiet)
    with pytest.raises(ConfigError, match="sync_bn has no norm left"):
        recipe("student", sync_bn=True, freeze_bn="all")


def test_a_deterministic_run_is_the_plain_one_on_a_cpu_and_leaves_torch_as_it_was(tmp_path: Path, cache: Path) -> None:
    seen = []
    for name, wanted in (("plain", False), ("deterministic", True)):
        train(recipe("student", steps=2, deterministic=wanted), cache, tmp_path / name, progress=quiet)
        seen.append([line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert seen[0] == seen[1]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.timeout(90)
def test_a_rank_that_skips_a_norm_of_another_width_is_told_on_every_rank() -> None:
    """As of a pillar encoder whose cloud is empty: neither a wait without end nor numbers of another norm."""
    done = run_to_end(torchrun(2, "tests.trainer.skipping_rank"), 80)
    said = "sync_bn: ranks are at different norms, 0 and 2: a frame takes another way; set it to false"
    # the two write at once, so that one's line may lie inside the other's
    assert all(done.stdout.count(f"{rank} says {said}") == 1 for rank in (0, 1)), done.stdout + done.stderr[-2000:]
