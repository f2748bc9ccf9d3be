"""The estimate: its counts are those of the run, its bytes near them, and nothing is left on disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from cache.errors import ConfigError, DataError
from cache.manifest import Manifest
from cache.roots import LocalRoot
from models.build import build_detector, save_weights
from pipeline.cost import CONTAINER, Cost, StoreCost, estimate
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher
from tests.models.synthetic import CAMERA

VERSION = "v1.0-mini"


def bytes_on_disk(folder: Path) -> int:
    manifest = Manifest.read(LocalRoot(folder))
    return sum(file.size for file in manifest.files if not file.name.endswith(".json"))


@pytest.mark.parametrize(
    ("options", "layout"),
    [(FrameOptions(0.1, True, 1), "webdataset"), (FrameOptions(0.1, False, 1), "zarr")],
    ids=["stored clouds", "clouds from files"],
)
def test_the_estimate_is_what_the_run_then_takes(
    simulated_root: Path, weights: Path, tmp_path: Path, options: FrameOptions, layout: str
) -> None:
    fields = "logits,level(name=canvas)" if layout == "zarr" else ""
    wanted = TeacherOptions("gaussian+footprint", format=layout, fields=fields)
    cost = estimate(simulated_root, VERSION, options=options, checkpoint=weights, teacher_options=wanted, workers=2)
    assert (cost.scenes, cost.frames, cost.probed, cost.workers) == (3, 6, 6, 2)
    manifest = cache_frames(simulated_root, VERSION, tmp_path, options=options, workers=1)
    assert cost.shards == len(manifest.shards)
    assert cost.bytes_of("frames") == pytest.approx(bytes_on_disk(tmp_path / "frames"), rel=0.1)
    cache_teacher(
        tmp_path,
        "t",
        teacher="own",
        checkpoint=weights,
        data_root=None if options.points else simulated_root,
        options=TeacherOptions("gaussian+footprint", format=layout, sweeps=1, fields=fields),
        workers=1,
    )
    assert cost.bytes_of("teacher") == pytest.approx(bytes_on_disk(tmp_path / "teachers" / "t"), rel=0.3)
    assert {"logits", "level_canvas_values"} <= set(cost.stores["teacher"].bytes_per_frame) or not fields
    assert ("points" in cost.stores["frames"].bytes_per_frame) == options.points
    assert all(store.seconds_per_frame > 0 for store in cost.stores.values())
    said = cost.to_dict()
    assert said["stores"]["frames"]["bytes"] == cost.bytes_of("frames")


def test_a_camera_teacher_reads_no_clouds(simulated_root: Path, tmp_path: Path) -> None:
    camera = tmp_path / "camera.safetensors"
    torch.manual_seed(0)
    save_weights(build_detector(CAMERA), camera)
    wanted = TeacherOptions(fields="depth")
    cost = estimate(
        simulated_root, VERSION, split="mini_val", options=FrameOptions(0.1), checkpoint=camera, teacher_options=wanted
    )
    assert cost.stores["teacher"].bytes_per_frame["depth_probs"] > 1000 and cost.frames == 2


def test_without_a_teacher_only_the_frame_store_is_estimated(simulated_root: Path) -> None:
    cost = estimate(simulated_root, VERSION, split="mini_val", options=FrameOptions(0.1))
    assert (cost.scenes, cost.frames, list(cost.stores)) == (1, 2, ["frames"])


def test_time_is_shared_by_workers_but_not_beyond_the_shards() -> None:
    store = StoreCost({"a": 10.0, CONTAINER: 2.0}, 0.5)
    cost = Cost(scenes=3, frames=100, shards=4, probed=8, workers=2, stores={"frames": store})
    assert (cost.bytes_of("frames"), cost.seconds_of("frames")) == (1200, 25.0)
    wide = Cost(scenes=3, frames=100, shards=4, probed=8, workers=64, stores={"frames": store})
    assert wide.seconds_of("frames") == 12.5


def test_the_probe_leaves_nothing_behind(simulated_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    estimate(simulated_root, VERSION, split="mini_val", options=FrameOptions(0.1))
    with pytest.raises(ConfigError, match="no such checkpoint"):
        estimate(simulated_root, VERSION, checkpoint=tmp_path / "gone.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_frames_that_cannot_be_read_do_not_spoil_the_estimate_unless_all_are(
    simulated_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(simulated_root, tmp_path / "data"))
    images = sorted((root / "samples" / "CAM_BACK").iterdir())
    images[0].unlink()
    assert estimate(root, VERSION, options=FrameOptions(0.1)).bytes_of("frames") > 0
    for image in images[1:]:
        image.unlink()
    with pytest.raises(DataError, match="not one of 6 probed frames could be read"):
        estimate(root, VERSION, options=FrameOptions(0.1))
