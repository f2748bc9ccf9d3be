"""`export`: files that say what the run's model says, checked before they are kept."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from invoke.context import Context

from cache.errors import ConfigError, DataError
from models import export as model_export
from models.build import build_detector, load_weights, preset_names, save_weights
from models.export import ExportError, export_program, inputs_of, made_up_frame, why_not
from studies.commands.training import export
from studies.exporting import export_run
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, write_frames
from tests.trainer.test_predict import eager

BEVDEPTH = {**TINY_STUDENT, "preset": "bevdepth-tiny"}


def run_of(config: dict[str, Any], folder: Path) -> Path:
    torch.set_num_threads(1)
    folder.mkdir()
    save_weights(eager(config), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("config", [TINY_STUDENT, BEVDEPTH], ids=["lift-splat", "bevdepth"])
def test_a_program_says_what_the_model_says_of_frames_it_was_not_made_with(
    config: dict[str, Any], tmp_path: Path
) -> None:
    write_frames(tmp_path / "cache", frames=3, points=False, split="val")
    run = run_of(config, tmp_path / "run")
    done = export_run(run, tmp_path / "out" / "student.pt2", "pt2", cache=tmp_path / "cache")
    assert done.difference <= done.tolerance == 1e-4 and done.frame == f"{0:032x}"
    program = torch.export.load(tmp_path / "out" / "student.pt2").module()
    model = load_weights(run / "model.safetensors")
    turned = made_up_frame(model)  # another rig: the calibration is an input, not a constant
    with torch.no_grad():
        found, output = program(*inputs_of(turned)), model(turned)
    for name in ("heatmap", "center", "vel"):
        assert torch.allclose(found[f"heads.0.{name}"], output.heads[0][name], atol=1e-4)
    (decoded,) = model.decode(output)
    best = found["scores"][0].argmax()
    assert float(found["scores"][0, best]) == pytest.approx(float(decoded.scores[0]), abs=1e-5)
    assert found["boxes"][0, best].numpy() == pytest.approx(decoded.boxes_lidar[0], abs=1e-3)
    assert int(found["labels"][0, best]) == decoded.labels[0]


def test_a_program_runs_without_this_project_and_holds_no_pickle(tmp_path: Path) -> None:
    run = run_of(TINY_STUDENT, tmp_path / "run")
    path = tmp_path / "student.pt2"
    export_run(run, path, "pt2")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            head = archive.read(name)[:2]
            assert head not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"), name
    code = (
        "import sys, torch; p = torch.export.load(sys.argv[1]).module();"
        "out = p(torch.zeros(1, 6, 3, 32, 64), torch.eye(3).expand(1, 6, 3, 3), torch.eye(4).expand(1, 6, 4, 4));"
        "print(out['boxes'].shape[2], 'models' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["9", "False"], done.stderr[-1000:]


def test_weights_come_back_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(TINY_TEACHER, tmp_path / "run")
    write_frames(tmp_path / "cache", frames=2, split="val")
    export(Context(), run=str(run), out=str(tmp_path / "w.safetensors"), cache=str(tmp_path / "cache"), json=True)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["format"] == "safetensors" and said["difference"] == 0 and said["bytes"] > 0
    one, other = load_weights(run / "model.safetensors"), load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "run", "w.safetensors"]


def test_every_preset_can_be_exported_or_says_why_not() -> None:
    can = set()
    for name in preset_names():
        with torch.device("meta"):
            model = build_detector({"preset": name})
        if not (reason := why_not(model)):
            can.add(name)
        elif model.modality == "lidar":
            assert "clouds" in reason
        else:
            assert "earlier moments" in reason
    camera = {
        name for name in preset_names() if name.startswith(("lift-splat", "bevdet", "bevdepth", "ablation-student"))
    }
    assert can == camera and camera


@pytest.mark.parametrize(
    ("config", "says"),
    [(TINY_TEACHER, "reads clouds.*--format safetensors"), ({"preset": "bevformer-demo"}, "earlier moments")],
)
def test_what_cannot_be_a_program_is_refused_with_its_reason(config: Any, says: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    save_weights(build_detector(config), tmp_path / "run" / "model.safetensors")
    with pytest.raises(ConfigError, match=says):
        export_run(tmp_path / "run", tmp_path / "x.pt2", "pt2")
    assert not (tmp_path / "x.pt2").exists()


def test_a_program_that_says_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = eager(TINY_STUDENT).eval()
    made = torch.export.export

    def wrong(module: Any, inputs: Any) -> Any:
        program = made(module, inputs)
        for name, tensor in program.state_dict.items():
            if name.endswith("heatmap.1.bias"):
                program.state_dict[name] = torch.nn.Parameter(tensor + 0.01)
        return program

    monkeypatch.setattr(model_export.torch.export, "export", wrong)
    (tmp_path / "x.pt2").write_bytes(b"what was here")
    with pytest.raises(ExportError, match="nothing is written"):
        export_program(model, tmp_path / "x.pt2", made_up_frame(model))
    assert (tmp_path / "x.pt2").read_bytes() == b"what was here"


def test_bad_options_are_told(tmp_path: Path) -> None:
    run = run_of(TINY_STUDENT, tmp_path / "run")
    with pytest.raises(ConfigError, match="expected safetensors or pt2"):
        export_run(run, tmp_path / "x", "onnx")
    with pytest.raises(ConfigError, match="is a folder"):
        export_run(run, tmp_path)
    (run / "checkpoints").mkdir()
    for own in ("model.safetensors", "checkpoints/../best.safetensors", "run.json", "checkpoints/step-00000001.x"):
        with pytest.raises(ConfigError, match="is a file of the run itself; give another name"):
            export_run(run, run / own, "pt2")
    load_weights(run / "model.safetensors")  # as it was
    with pytest.raises(ConfigError, match="validate_every"):
        export_run(run, tmp_path / "x", weights="best")
    with pytest.raises(ConfigError, match="give the folder of a finished run"):
        export_run(tmp_path / "none", tmp_path / "x")
    (run / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="not readable"):
        export_run(run, tmp_path / "x")
