"""Bad input through the command line: one clear line on stderr, exit status not 0, nothing half-written left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cache.store import FrameStore

ROOT = Path(__file__).parents[1]
VERSION = "v1.0-mini"


def bevcask(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line as the launcher calls it."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "invoke", "--search-root", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], pattern: str) -> None:
    """Status not 0, no traceback, and an error line that says `pattern`; progress lines may stand before it."""
    said = done.stderr.strip().splitlines()
    assert done.returncode not in (0, 2), (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert said, done.stdout
    assert re.search(pattern, said[-1]), said[-1]


def nothing_half_written(folder: Path) -> None:
    """No partial file, and no manifest that a reader would take for a store."""
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("manifest.json"))


@pytest.fixture(scope="module")
def cached(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cached")
    done = bevcask(
        *("cache-frames", "--data-root", str(simulated_root), "--version", VERSION, "--cache", str(cache)),
        *("--image-scale", "0.1", "--workers", "1"),
    )
    assert done.returncode == 0, done.stderr
    return cache


@pytest.fixture
def copy(simulated_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(simulated_root, tmp_path / "data"))


def caching(root: Path, cache: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return bevcask(
        *("cache-frames", "--data-root", str(root), "--version", VERSION, "--cache", str(cache)),
        *("--image-scale", "0.1", "--workers", "1", *more),
    )


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["cache-frames"], r"--cache is missing, expected a folder"),
        (["cache-frames", "--cache", "{new}", "--version", VERSION], r"--data-root is missing"),
        (
            ["cache-frames", "--cache", "{new}", "--version", VERSION, "--data-root", "{new}"],
            r"data root .* does not exist",
        ),
        (
            ["cache-frames", "--cache", "{new}", "--version", "v9", "--data-root", "{root}"],
            r"no version 'v9', found .*mini",
        ),
        (
            ["cache-frames", "--cache", "{new}", "--version", VERSION, "--data-root", "{root}", "--split", "val"],
            r"split 'val' is not in v1\.0-mini .*mini_train",
        ),
        (["cache-teacher", "--cache", "{new}", "--name", "t"], r"no store \(no manifest\.json\); run cache-frames"),
        (["cache-teacher", "--cache", "{cache}", "--name", "t", "--checkpoint", "{new}"], r"no such checkpoint"),
        (["train", "--recipe", "nonesuch", "--cache", "{cache}", "--run", "{new}"], r"recipe 'nonesuch'.*demo-student"),
        (["inspect", "--cache", "{cache}", "--token", "abc"], r"no frame 'abc'"),
        (["inspect", "--cache", "{cache}", "--order"], r"--recipe or --batch is missing"),
        (["evaluate", "--cache", "{cache}", "--teacher", "gone"], r"gone.*no store"),
        (["evaluate", "--cache", "{cache}"], r"exactly one of --run, --teacher and --submission"),
        (["simulate", "--out", "{root}"], r"exists and is not empty"),
        (["prove", "--part", "99"], r"no claims for part 99"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    arguments: list[str], pattern: str, cached: Path, simulated_root: Path, tmp_path: Path
) -> None:
    places = {"new": tmp_path / "new", "root": simulated_root, "cache": cached}
    refused(bevcask(*(argument.format(**places) for argument in arguments)), pattern)
    assert not (tmp_path / "new").exists()


def test_a_cache_that_is_a_file_or_cannot_be_made_is_one_clear_line(simulated_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for cache in (tmp_path / "file", Path("/proc/nowhere")):
        refused(caching(simulated_root, cache), r"(file|nowhere).*(check the (path|folder)|not readable as)")


def test_an_unknown_key_in_a_recipe_is_named_with_the_allowed_ones(cached: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\npreset = "lift-splat-tiny"\n[train]\nsteps = 1\nlr = 1e-3\nlerning_rate = 1\n')
    done = bevcask("train", "--recipe", str(recipe), "--cache", str(cached), "--run", str(tmp_path / "run"))
    refused(done, r"mine\.toml: unknown key 'train\.lerning_rate'; allowed there: .*lr")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "nan", "jpeg"])
def test_a_bad_file_is_named_and_the_other_frames_are_kept(copy: Path, tmp_path: Path, damage: str) -> None:
    folder = "CAM_FRONT" if damage == "jpeg" else "LIDAR_TOP"
    victim = sorted((copy / "samples" / folder).iterdir())[0]
    data = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    elif damage == "nan":
        points = np.frombuffer(data, np.float32).copy()
        points[3] = np.nan
        victim.write_bytes(points.tobytes())
    else:
        victim.write_bytes(data[: len(data) // 2])
    done = caching(copy, tmp_path / "c")
    refused(done, r"1 frames could not be read and are not in the store.*run the same command again")
    assert victim.name in done.stdout
    store = FrameStore(tmp_path / "c" / "frames")
    assert len(store) == 5 and len(store.manifest.quarantined) == 1
    assert not list((tmp_path / "c").rglob("*.partial"))


def test_a_cache_begun_with_other_settings_is_refused(cached: Path, simulated_root: Path) -> None:
    done = caching(simulated_root, cached, "--points")
    refused(done, r"was begun with .* this run asks for")


@contextlib.contextmanager
def tiny_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A tmpfs of that size; skips where this process may not mount."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(simulated_root: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 300) as disk:
        done = caching(simulated_root, disk / "c")
        refused(done, r"No space left on device.*free space.*run the same command again")
        nothing_half_written(disk)
