"""Reading foreign files: harmless objects become placeholders, all else is refused by name, and nothing is ever run."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache.errors import DataError
from pipeline.adapters.opening import open_teacher
from pipeline.adapters.reading import Inert, is_torch_file, read_checkpoint


@pytest.fixture
def foreign_class(monkeypatch):
    """Makes a class under the name of a library that is not installed here, for the time of saving."""

    def make(path: str, base: type = object) -> type:
        module_name, _, name = path.rpartition(".")
        parts = module_name.split(".")
        for i in range(1, len(parts) + 1):
            parent = ".".join(parts[:i])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        made = type(name, (base,), {"__module__": module_name, "__qualname__": name})
        monkeypatch.setattr(sys.modules[module_name], name, made, raising=False)
        return made

    return make


WEIGHTS = OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2))


def test_training_checkpoints_with_harmless_objects_are_read(tmp_path, foreign_class):
    history = foreign_class("mmengine.logging.history_buffer.HistoryBuffer")()
    history.__dict__.update(_log_history=np.arange(4.0), _count_history=np.arange(3), max_length=10)
    settings = foreign_class("mmengine.config.config.ConfigDict", dict)(lr=0.1, inner={"a": 1})
    content = {
        "state_dict": WEIGHTS,
        "message_hub": {"log_scalars": {"loss": history}},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "lr": np.float64(1e-3), "steps": np.int64(4)},
        "meta": {"args": argparse.Namespace(gpus=8), "work": pathlib.PosixPath("/x"), "cfg": "voxel_size = 1"},
        "dtype": np.dtype("float32"),
        "rng": {
            "numpy": np.zeros((2, 3), np.float32),
            "words": np.arange(5, dtype=np.uint32),
            "flags": np.ones(2, bool),
        },
        "config": settings,
    }
    for new in (True, False):  # the zip of today and the pickle of torch before 1.6
        path = tmp_path / f"{new}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        checkpoint = read_checkpoint(path)
        assert list(checkpoint.tensors) == ["a", "b"]
        assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in WEIGHTS.items())
        assert checkpoint.meta["cfg"] == "voxel_size = 1"
        assert isinstance(checkpoint.meta["args"], Inert)


class Runs:
    """Unpickled, it calls a function with an argument."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touched_by(marker: Path) -> list:
    """Ways to make a file on being unpickled."""
    import os

    return [
        Runs(os.system, f"touch {marker}"),
        Runs(exec, f"open({str(marker)!r}, 'w')"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(pathlib.Path.touch, marker),
        Runs(np.save, str(marker), np.zeros(2)),
        Runs(torch.save, {}, str(marker)),
    ]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("place", ["beside", "in the weights"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(number, place, tmp_path):
    marker = tmp_path / "touched"
    hostile = touched_by(marker)[number]
    pickle.loads(pickle.dumps(hostile))  # it does what it says, where pickles are run
    made = list(tmp_path.glob("touched*"))
    assert len(made) == 1
    made[0].unlink()
    content = (
        {"state_dict": {**WEIGHTS, "c": hostile}}
        if place == "in the weights"
        else {"state_dict": WEIGHTS, "x": hostile}
    )
    for new in (True, False):
        path = tmp_path / f"{new}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        with pytest.raises(DataError, match="refused"):
            read_checkpoint(path)
        assert not list(tmp_path.glob("touched*"))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "bare"])
def test_a_pickle_of_a_later_protocol_is_refused_for_that_and_not_as_damaged(new, tmp_path, recwarn):
    marker = tmp_path / "touched"
    for number, content in enumerate(({"state_dict": WEIGHTS}, {"state_dict": WEIGHTS, "x": touched_by(marker)[0]})):
        for protocol in (4, 5):
            path = tmp_path / f"{number}.pth"
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
            with pytest.raises(DataError, match=rf"a pickle of protocol {protocol}, .* refused.*torch\.save"):
                read_checkpoint(path)
    assert not marker.exists()
    assert not recwarn, "the error says it all"


def test_what_getattr_stands_for_cannot_be_called(tmp_path):
    """A hand-written pickle: getattr(Path(marker), 'touch')(), all of it names that have placeholders."""
    marker = tmp_path / "touched"
    text = str(marker).encode()
    path = tmp_path / "hand.pth"
    path.write_bytes(
        b"\x80\x02c__builtin__\ngetattr\ncpathlib\nPosixPath\nX"
        + len(text).to_bytes(4, "little")
        + text
        + b"\x85RX\x05\x00\x00\x00touch\x86R)R."
    )
    pickle.loads(path.read_bytes())  # it does what it says, where pickles are run
    assert marker.exists()
    marker.unlink()
    with pytest.raises(DataError, match="not readable as weights"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_class_without_a_placeholder_is_refused_by_its_name(tmp_path, foreign_class):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": WEIGHTS, "hook": foreign_class("mmcv.runner.hooks.Hook")()}, path)
    with pytest.raises(DataError, match=r"holds mmcv\.runner\.hooks\.Hook, .* torch\.save\(model\.state_dict\(\)"):
        read_checkpoint(path)


def test_a_file_without_weights_is_refused_by_what_it_holds(tmp_path):
    path = tmp_path / "x.pth"
    for content, words in (
        ([1, 2], "holds a list"),
        ({"epoch": 3, "best": 0.5}, r"no weights under model_state or state_dict; its keys are epoch, best"),
        ({"state_dict": {"a": torch.zeros(1), "b": "text"}}, "b and 0 other entries of the state dict are no plain"),
        ({"state_dict": {"a": torch.zeros(1), "b": torch.eye(2).to_sparse()}}, "b and 0 other entries"),
        ({"state_dict": {"a": torch.zeros(1), 7: torch.zeros(1)}}, "7 and 0 other entries"),
        ({"state_dict": {"a": torch.zeros(1, dtype=torch.complex64)}}, "a and 0 other entries"),
        ({"state_dict": {"a": torch.zeros(1, device="meta")}}, "a and 0 other entries"),
    ):
        torch.save(content, path)
        with pytest.raises(DataError, match=words):
            read_checkpoint(path)


def test_safetensors_are_told_whatever_the_length_of_their_header(tmp_path):
    path, seen = tmp_path / "x.safetensors", set()
    for number in range(0, 264, 4):
        save_file({"a": torch.arange(3.0)}, path, {"x": "y" * number})
        seen.add(path.read_bytes()[0])
        assert not is_torch_file(path) and read_checkpoint(path).tensors["a"].tolist() == [0, 1, 2]
    assert {0x50, 0x80} <= seen, "P and the mark of a pickle"


def test_damaged_files_are_refused(tmp_path):
    torch.save({"state_dict": WEIGHTS}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "damaged.pth"
    for content in (whole[: len(whole) // 2], whole[:100], b"PK\x03\x04", b"\x80", b"\x80\x02garbage", b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_teacher(path, "own")
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="not readable"):
        open_teacher(tmp_path / "gone.pth", "own")
