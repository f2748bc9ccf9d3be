"""Reading a store needs numpy, numcodecs and google-crc32c, and nothing of training, Dask, Zarr or the devkit."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "dask", "distributed", "webdataset", "nuscenes", "cv2", "zarr", "fsspec", "matplotlib", "scipy"}
WRITERS = {"tar_writer", "zarr_metadata"}  # the modules that import a library which readers do without

READ_ALL = """
import json, sys
import cache
from cache.same_frames import require_same_frames
from cache.store import FrameStore, Store, TeacherStore
frames = FrameStore(sys.argv[1])
for place in sys.argv[1:]:
    store = Store(place)
    for row in range(len(store)):
        for spec in store.manifest.fields:
            if store.has(row, spec.name):
                store.read(row, spec.name)
for place in sys.argv[2:]:
    teacher = TeacherStore(place)
    teacher.cells(0), teacher.detections(0), teacher.grid, teacher.coverage
    require_same_frames(frames, teacher, [0])
frames.frame(0), frames.truth(0), frames.depth(0)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports when it is imported itself (not inside functions)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_opening_and_reading_stores_of_both_formats_imports_nothing_heavy(
    frames_root: Path, teacher_root: Path, zarr_root: Path
) -> None:
    loaded = modules_after(READ_ALL, str(frames_root), str(teacher_root), str(zarr_root))
    assert {"numpy", "numcodecs", "google_crc32c"} <= loaded and not loaded & HEAVY


def test_no_module_but_the_named_writers_imports_anything_heavy() -> None:
    """Itself or through another; shard_writer and commit reach a writer only once there is something to write."""
    modules = {path.stem for path in (REPOSITORY / "cache").glob("*.py")} - WRITERS - {"__init__"}
    heavy = {name for name in modules if {part.partition(".")[0] for part in reached(name)} & HEAVY}
    assert heavy == set(), heavy
    code = (
        "import importlib, json, sys\n"
        f"for name in {sorted(modules)!r}:\n"
        "    importlib.import_module(f'cache.{name}')\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    assert not modules_after(code) & HEAVY


def reached(name: str) -> set[str]:
    """All that a module of the cache imports, through its neighbours too."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        path = REPOSITORY / "cache" / f"{waiting.pop()}.py"
        new = imports_of(path) - found if path.exists() else set()
        found |= new
        waiting += [part.removeprefix("cache.") for part in new if part.startswith("cache.")]
    return found


@pytest.mark.parametrize("writer", sorted(WRITERS))
def test_the_writers_do_import_what_they_are_excused_for(writer: str) -> None:
    assert {part.partition(".")[0] for part in reached(writer)} & HEAVY


def test_the_package_never_unpickles() -> None:
    for path in (REPOSITORY / "cache").glob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text and "allow_pickle=True" not in text and "torch.load" not in text
