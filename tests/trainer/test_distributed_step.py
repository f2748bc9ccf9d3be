from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from studies.ranks import run_to_end, torchrun
from tests.trainer.rank_gradients import gradients
from tests.trainer.test_loop import recipe
from trainer.distributed import Ranks
from trainer.recipe import Recipe

# name: options of [train] and the step. Of the six frames step 0 takes four and step 1 two: of three ranks one holds
# two of four, and one none of two. Without batch statistics, or with those of all ranks.
PLAIN: dict[str, Any] = {"precision": "fp32", "clip": 0.0}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "frozen": ({**PLAIN, "freeze_bn": "all"}, 0),
    "frozen-short": ({**PLAIN, "freeze_bn": "all"}, 1),
    "synced": ({**PLAIN, "sync_bn": True}, 0),
    "synced-short": ({**PLAIN, "sync_bn": True}, 1),
    "accumulated": ({**PLAIN, "freeze_bn": "all", "micro_batch": 1}, 0),
    "accumulated-short": ({**PLAIN, "freeze_bn": "all", "micro_batch": 1}, 1),
    "stages": ({**PLAIN, "freeze_bn": "all", "frozen": ["backbone.conv1", "backbone.layer1"]}, 0),
}


def of_one_process(values: dict[str, Any], **over: Any) -> Recipe:
    return recipe(**{**values, "micro_batch": 0, "sync_bn": False, **over})


@pytest.mark.parametrize("world", [2, 3])
def test_a_step_s_gradient_over_several_processes_is_the_single_one_s(tmp_path: Path, cache: Path, world: int) -> None:
    cases = {name: (recipe(**values).to_dict(), step) for name, (values, step) in CASES.items()}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = torchrun(world, "tests.trainer.rank_gradients", str(tmp_path / "cases.json"), str(cache), str(tmp_path))
    done = run_to_end(command, limit_s=120)
    assert done.returncode == 0, done.stderr[:4000]
    for name, (values, step) in CASES.items():
        found, expected = (
            load_file(tmp_path / f"{name}.safetensors"),
            gradients(of_one_process(values), cache, step, Ranks()),
        )
        assert found.keys() == expected.keys(), name
        names = [key for key in found if key.startswith("gradient.")]
        assert len(names) > 40
        off = sum(float((found[key] - expected[key]).double().square().sum()) for key in names)
        assert (off / sum(float(expected[key].double().square().sum()) for key in names)) ** 0.5 < 1e-5, name
        # of single tensors: gradients through batch statistics of few rows are differences of large numbers in fp32
        limit = 3e-5 if values.get("sync_bn") else 1e-5
        for key, value in expected.items():
            largest = max(float(value.abs().max()), 1e-3)
            difference = float((found[key].double() - value.double()).abs().max()) / largest
            assert difference < limit, f"{name}: {key} differs by {difference:.1e}"


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("kind", ["distilled", "teacher"])
def test_accumulated_gradients_are_those_of_the_whole_batch(cache: Path, kind: str, micro: int) -> None:
    values = {**PLAIN, "freeze_bn": "all"}
    whole = gradients(recipe(kind, **values), cache, 0, Ranks())
    parts = gradients(recipe(kind, **values, micro_batch=micro), cache, 0, Ranks())
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        scale = max(float(value.abs().max()), 1e-3)
        torch.testing.assert_close(parts[key] / scale, value / scale, rtol=0, atol=1e-5)


def test_running_statistics_of_a_pass_without_gradient_do_not_count(cache: Path) -> None:
    """With batch statistics every micro-batch counts once, whichever of them ran twice."""
    chosen = recipe("student", **PLAIN, micro_batch=2)
    found = gradients(chosen, cache, 0, Ranks())
    tracked = {int(value) for key, value in found.items() if key.endswith("num_batches_tracked")}
    assert tracked == {2}
