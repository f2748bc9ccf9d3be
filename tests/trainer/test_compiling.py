"""`compile = true`: the same training, and one clear line where torch.compile cannot do it.

What inductor makes of a model on a CPU takes minutes of C++ compilation, so these tests take torch's `eager` backend:
Dynamo reads and cuts the very models that are trained, and runs the graphs as they are. Inductor's own codes are the
claim `compiled` of `./bevcask prove --part 6`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cache.errors import ConfigError
from models.build import load_weights
from tests.trainer.test_loop import killed_at, losses, quiet, recipe
from trainer import setup
from trainer.loop import train


@pytest.fixture(autouse=True)
def forgotten() -> None:
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs that Dynamo handed to a backend that runs them as they are."""
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(str(graph.graph))
        return graph.forward

    monkeypatch.setattr(setup, "compiled", lambda model: nn.Module.compile(model, backend=backend))
    return graphs


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["distilled", "teacher"])
def test_a_compiled_training_has_the_losses_of_the_plain_one(
    tmp_path: Path, cache: Path, traced: list[str], kind: str
) -> None:
    chosen = {"steps": 3, "precision": "fp32"}
    train(recipe(kind, **chosen), cache, tmp_path / "plain", progress=quiet)
    assert not traced
    with pytest.raises(KeyboardInterrupt):
        train(recipe(kind, **chosen, compile=True), cache, tmp_path / "run", progress=killed_at(2))
    train(recipe(kind, **chosen, compile=True), cache, tmp_path / "run", resume=True, progress=quiet)
    assert any("conv2d" in graph for graph in traced)  # it is the model that was compiled
    plain, seen = losses(tmp_path / "plain"), losses(tmp_path / "run")
    assert [line["digest"] for line in seen] == [line["digest"] for line in plain]
    assert [line["loss"] for line in seen] == pytest.approx([line["loss"] for line in plain], rel=1e-4)
    names = load_weights(tmp_path / "plain" / "model.safetensors").state_dict().keys()
    assert load_weights(tmp_path / "run" / "model.safetensors").state_dict().keys() == names


@pytest.mark.timeout(120)
def test_without_a_compiler_the_run_ends_in_one_clear_line(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(ConfigError, match=r"^\[train\] compile: .*No working C\+\+ compiler.*; set compile = false"):
        train(recipe("student", steps=1, compile=True), cache, tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run" / "model.safetensors").exists()
