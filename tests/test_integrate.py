"""docs/integrate.md: every block of code runs, in order, in a folder outside the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    text = (ROOT / "docs" / "integrate.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_page_runs_from_outside_the_repository(blocks: list[str], tmp_path: Path) -> None:
    done = run("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    digest, frames = done.stdout.split("\n", 1)
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert re.match(r"3 \d{3,} \(1, 9\)", frames)
    again = run("\n".join(blocks), tmp_path)  # goes on where it stopped: nothing to do
    assert again.returncode == 0 and again.stdout == done.stdout


def test_a_term_trains_a_student_of_ones_own_in_a_loop_of_thirty_lines(blocks: list[str], tmp_path: Path) -> None:
    (loop,) = [block for block in blocks if "trainer.terms" in block]
    assert "Store" not in loop and "trainer.loop" not in loop
    assert len([line for line in loop.splitlines() if line.strip()]) <= 30 + 6  # and six imports
    done = run(loop, tmp_path)
    assert done.returncode == 0, done.stderr
    first, last = (float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines())
    assert 0 < last < 0.7 * first


def test_a_map_style_data_set_is_five_lines_and_a_data_loader_takes_it(blocks: list[str], tmp_path: Path) -> None:
    writing, reading = blocks[0], blocks[1]
    assert len([line for line in reading.splitlines() if line.strip()]) <= 6  # the import and five
    loading = (
        "import torch\n"
        "for method in ('fork', 'spawn'):\n"
        "    loader = torch.utils.data.DataLoader(\n"
        "        Frames('cache/frames'), batch_size=None, shuffle=True, num_workers=2,\n"
        "        multiprocessing_context=method)\n"
        "    print(method, len([boxes for jpeg, boxes in loader]))\n"
    )
    script = tmp_path / "loading.py"
    main = "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in loading.splitlines())
    script.write_text(reading + main)
    assert run(writing, tmp_path).returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fork", "3", "spawn", "3"]


def test_own_data_of_three_cameras_is_described_and_refused_by_students(blocks: list[str], tmp_path: Path) -> None:
    """What is not nuScenes is told so by name, not by a traceback."""
    assert run(blocks[0], tmp_path).returncode == 0
    command = [sys.executable, "-P", "-m", "invoke", "--search-root", str(ROOT)]
    shown = subprocess.run(
        [*command, "inspect", "--cache", str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0 and "forklift 3" in shown.stdout, shown.stderr
    refused = subprocess.run(
        [
            *command,
            "train",
            "--recipe",
            "demo-student",
            "--cache",
            str(tmp_path / "cache"),
            "--run",
            str(tmp_path / "r"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1 and "forklift" in refused.stderr and "Traceback" not in refused.stderr
