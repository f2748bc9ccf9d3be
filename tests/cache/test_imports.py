"""Reading a store needs numpy, numcodecs and google-crc32c, and nothing of training, Dask or the devkit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ["torch", "dask", "distributed", "webdataset", "nuscenes", "cv2", "zarr", "fsspec", "pickle"]

READ_ALL = """
import json, sys
from cache.store import FrameStore, Store, TeacherStore, require_same_frames
frames, teacher = FrameStore(sys.argv[1]), TeacherStore(sys.argv[2])
for store in (frames, teacher, Store(sys.argv[1])):
    for row in range(len(store)):
        for spec in store.manifest.fields:
            if store.has(row, spec.name):
                store.read(row, spec.name)
frames.frame(0), frames.truth(0), frames.depth(0), teacher.cells(0), teacher.detections(0)
require_same_frames(frames, teacher, [0])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_opening_and_reading_both_stores_imports_nothing_heavy(frames_root: Path, teacher_root: Path) -> None:
    loaded = modules_after(READ_ALL, str(frames_root), str(teacher_root))
    assert {"numpy", "numcodecs", "google_crc32c"} <= loaded
    assert not loaded & (set(HEAVY) - {"pickle"})  # numpy itself imports pickle


def test_no_module_but_the_writer_imports_webdataset() -> None:
    code = (
        "import importlib, json, pathlib, sys\n"
        "for path in sorted(pathlib.Path('cache').glob('*.py')):\n"
        "    if path.stem not in ('tar_writer', '__init__'):\n"
        "        importlib.import_module(f'cache.{path.stem}')\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not modules_after(code) & (set(HEAVY) - {"pickle"})


def test_the_package_never_unpickles() -> None:
    for path in (REPOSITORY / "cache").glob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text and "allow_pickle=True" not in text and "torch.load" not in text
