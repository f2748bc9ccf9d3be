"""The stream benchmark on a tiny world: the figures it promises, their consistency, and what it compares."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cache.errors import BevcaskError, ConfigError
from cache.store import FrameStore, TeacherStore
from studies.benches import stream
from studies.benches.peers import PEERS, install
from studies.benches.stream_batch import CELLS, Batch, Setting, collate, contents
from studies.benches.stream_contender import Turn, delivered, run_epoch
from studies.benches.stream_data import GRID, World, prepare, teacher_values

WORLD = World(scenes=1, frames=2, copies=4, fields=24)
OPTIONS = {"scenes": 1, "frames": 2, "copies": 4, "fields": 24, "workers": 1}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream")


@pytest.fixture(scope="module")
def result(work: Path) -> dict[str, Any]:
    """One round with the two peers that need no further package."""
    return stream.run(work, Console(quiet=True), rounds=1, peers="npz,webdataset", **OPTIONS)


@pytest.mark.parametrize("name", ["fields_only", "whole_frames"])
def test_each_setting_reports_ours_the_peers_and_two_ratios_that_agree_with_them(
    result: dict[str, Any], name: str
) -> None:
    found = result[name]
    assert set(found["peers"]) == {"npz", "webdataset"}
    best = max(found["peers"].values())
    assert found["peers"][found["best_peer"]] == best
    assert found["ratio_to_best_peer"] == pytest.approx(found["ours_frames_per_s"] / best, rel=1e-2)
    assert found["ratio_to_floor"] == pytest.approx(found["ours_frames_per_s"] / found["floor_frames_per_s"], rel=1e-2)
    assert min(value for values in found["rounds"].values() for value in values) > 0
    assert set(found["cpu_us_per_frame"]) == {"floor", "ours", "npz", "webdataset"}
    assert found["ours_frames_per_s"] == statistics.median(found["rounds"]["ours"])


def test_scaled_pictures_are_a_line_of_their_own_without_peers(result: dict[str, Any]) -> None:
    assert result["image_scale"]["peers"] == {}
    assert result["image_scale"]["ratio_to_best_peer"] is None
    assert result["content"]["pictures"] | {"jpeg_bytes": 0} == {"width": 1600, "height": 900, "jpeg_bytes": 0}
    assert result["content"]["scaled_pictures"]["width"] == stream.STUDENT[0]
    assert result["content"]["pictures"]["jpeg_bytes"] > 2 * result["content"]["scaled_pictures"]["jpeg_bytes"]


def test_copied_scenes_are_genuine_frames_under_new_tokens(work: Path, result: dict[str, Any]) -> None:
    data = prepare(work, WORLD, Console(quiet=True), 1)
    frames, teacher = FrameStore(data.frames), TeacherStore(data.teacher)
    assert len(set(frames.tokens)) == 8 and len({frames.scene_of(row) for row in range(8)}) == 4
    assert frames.tokens == teacher.tokens
    first = next(row for row in range(2, 8) if frames.image(row, "CAM_BACK") == frames.image(0, "CAM_BACK"))
    assert np.array_equal(frames.boxes_lidar(first), frames.boxes_lidar(0))
    cells = teacher.cells(0)
    assert cells.values.shape == (len(cells), 256) and teacher.grid == GRID
    assert GRID.shape == (128, 128)


def test_fabricated_values_are_half_zero_positive_and_finite_in_float16() -> None:
    values = teacher_values(2000, np.random.default_rng(0))
    assert values.dtype == np.float16 and np.isfinite(values).all() and (values >= 0).all()
    assert 0.45 < (values == 0).mean() < 0.6


def test_a_peer_that_delivers_something_else_is_refused(work: Path, result: dict[str, Any]) -> None:
    class Wrong(PEERS["npz"]):  # type: ignore[misc]
        name = "wrong"

        def write(self, folder: Path, samples: Any, setting: Setting) -> None:
            def bent() -> Iterator[dict[str, Any]]:
                for sample in samples:
                    yield {**sample, "bev_values": sample["bev_values"] + np.float16(1)}

            super().write(folder, bent(), setting)

    data = prepare(work, WORLD, Console(quiet=True), 1)
    setting = Setting("fields_only", WORLD.fields, 8, 1)
    with pytest.raises(BevcaskError, match="wrong: 24 of 24 frames differ from ours"):
        stream._measure(data, setting, [Wrong()], 1, Console(quiet=True))


def test_an_epoch_with_a_frame_missing_is_refused() -> None:
    setting = Setting("fields_only", 3, 2, 1)
    batch = {"frame": np.zeros(2)}
    with pytest.raises(BevcaskError, match="gave 2 frames, expected 3"):
        run_epoch(iter([batch]), setting, "some")  # type: ignore[list-item]


def test_contents_tell_frames_apart_and_do_not_depend_on_their_batch() -> None:
    setting = Setting("fields_only", 2, 2, 1)
    rng = np.random.default_rng(0)
    names = [name for group in setting.groups.values() for name in group]

    def sample(frame: int) -> dict[str, np.ndarray]:
        return {"frame": np.array([frame]), **{name: rng.normal(size=(3, 2)).astype(np.float32) for name in names}}

    one, two = sample(0), sample(1)
    both = contents(collate([one, two], setting), setting)
    assert both == contents(collate([two, one], setting), setting)
    assert both == contents(collate([one], setting), setting) | contents(collate([two], setting), setting)
    assert both[0] != both[1]
    one[CELLS[1]] = one[CELLS[1]] + 1e-6
    assert contents(collate([one], setting), setting)[0] != both[0]


def test_a_peer_that_is_not_installed_is_null_and_says_how_to_install_it(
    work: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "installed", lambda peer: peer.name != "litdata")
    monkeypatch.setattr(install, "command", lambda folder, package: ["false", package])
    figures = {"floor": [Turn(4.0, 1.0)], "ours": [Turn(3.0, 2.0)], "npz": [Turn(2.0, None)]}
    monkeypatch.setattr(stream, "_measure", lambda *arguments: figures)
    found = stream.run(work, Console(quiet=True), rounds=1, peers="npz,litdata", **OPTIONS)
    assert found["fields_only"]["peers"]["litdata"] is None
    assert found["fields_only"]["best_peer"] == "npz"
    assert found["fields_only"]["cpu_us_per_frame"] == {"floor": 1, "ours": 2}
    assert "install it with: false litdata" in found["missing"]["litdata"]
    with pytest.raises(BevcaskError, match="peers missing: litdata"):
        stream.run(work, Console(quiet=True), rounds=1, peers="litdata", require_peers=True, **OPTIONS)


def test_unknown_peers_are_named(work: Path) -> None:
    with pytest.raises(ConfigError, match=r"peers \['parquet'\]"):
        stream.run(work, Console(quiet=True), peers="parquet")


def test_delivered_gives_the_order_in_which_frames_came() -> None:
    import contextlib

    import torch

    def epoch(number: int) -> Iterator[Batch]:
        setting = Setting("fields_only", 4, 2, 1)
        for frames in ([2, 0], [3, 1]):
            empty = {name: torch.zeros(0, 2) for group in setting.groups.values() for name in group}
            offsets = {name: torch.zeros(3, dtype=torch.int64) for name in setting.groups}
            yield {"frame": torch.tensor(frames), **empty, **offsets}

    _, order = delivered(contextlib.nullcontext(epoch), Setting("fields_only", 4, 2, 1))
    assert order == [2, 0, 3, 1]
