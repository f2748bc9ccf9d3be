"""`plan --model`: what it prints, where its cloud comes from, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from invoke.context import Context
from invoke.exceptions import Exit

import tasks
from studies import model_cost


@pytest.fixture
def cloud(tmp_path):
    g = np.random.default_rng(0)
    points = g.uniform([-40, -40, -2, 0, 0], [40, 40, 1, 255, 0.5], (500, 5)).astype(np.float32)
    np.save(tmp_path / "cloud.npy", points)
    return tmp_path / "cloud.npy"


def test_a_student_is_told_beside_its_teacher(cloud, capsys):
    tasks.plan(
        Context(),
        model="cp-pillar-tiny-v0.8",
        against="demo-teacher",  # a recipe
        cloud=str(cloud),
        runs="1",
        score="0.4",
        against_score="0.5",
        score_power="1",
        json=True,
    )
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    mine, theirs = (told[key]["parts"]["all"] for key in ("model", "against"))
    assert mine["parameters"] == theirs["parameters"] == 675_796
    assert theirs["multiply_adds"] > 3 * mine["multiply_adds"] > 0
    assert told["cpr"] == pytest.approx((1 - mine["activations"] / theirs["activations"] + 0.8) / 2)
    assert "reconstruction" in printed and "share of it" in printed
    assert told["frame"] == "cloud.npy"


def test_a_preset_of_the_table_is_held_against_it(monkeypatch, capsys):
    """With small networks in place of the presets' own, which the table's rows do not need."""
    monkeypatch.setattr(model_cost, "config_of", lambda name: {"preset": "cp-pillar-tiny-v0.8"})
    monkeypatch.setattr(model_cost, "read_cloud", lambda source: (np.zeros((4, 5), np.float32), "four points"))
    tasks.plan(Context(), model="cp-voxel-s", against="cp-voxel", runs="1", json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["published"]["parameters"] == 4_038_203
    assert told["published"]["gflops"] == pytest.approx(47.8, rel=0.05)
    assert told["cpr"] == pytest.approx((62.23 / 64.29) ** 5 / 2)  # equal networks save nothing


def test_a_camera_needs_no_cloud(monkeypatch, capsys):
    monkeypatch.setattr(model_cost, "read_cloud", None)
    tasks.plan(Context(), model="lift-splat-tiny", runs="1", json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["model"]["parts"]["all"]["parameters"] == 991_484
    assert told["model"]["latency_ms"] > 0


def test_without_a_cloud_one_is_simulated():
    cloud, words = model_cost.read_cloud(model_cost.CloudSource(sweeps=0))
    assert "simulated" in words and "1 sweep," in words
    assert cloud.shape[1] == 5 and len(cloud) > 5000


def test_a_file_of_nuscenes_is_a_cloud_without_age(tmp_path):
    points = np.arange(10, dtype=np.float32).reshape(2, 5)
    points.tofile(tmp_path / "sweep.pcd.bin")
    cloud, _ = model_cost.read_cloud(model_cost.CloudSource(tmp_path / "sweep.pcd.bin"))
    assert cloud[:, :4].tolist() == points[:, :4].tolist()
    assert not cloud[:, 4].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "no-such"}, "'no-such': no preset, shipped recipe"),
        ({"model": "no-such.toml"}, "the presets are ablation-student"),
        ({"model": "lift-splat-tiny", "runs": "0"}, "--runs 0"),
        ({"model": "lift-splat-tiny", "score": "high"}, "--score 'high'"),
        ({"model": "cp-pillar-tiny-v0.8", "cloud": "wide.npy"}, "expected (P, 5)"),
        ({"model": "cp-pillar-tiny-v0.8", "cloud": "missing.bin"}, "missing.bin"),
    ],
)
def test_what_it_cannot_count_is_one_line(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.zeros((3, 4)))
    with pytest.raises(Exit):
        tasks.plan(Context(), **options)
    assert words in capsys.readouterr().err
