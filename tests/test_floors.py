"""The floors: each import contract fails when it is broken, `import cache` stays light, nothing pickles."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cache", "models", "pipeline", "trainer", "evaluation", "studies")

# contract -> (module that breaks it, what it then says); each pair alone must be found
BREAKS = [
    ("cache-is-the-ground", "cache/errors.py", "import models"),
    ("cache-is-the-ground", "cache/errors.py", "import studies"),
    ("models-on-cache", "models/__init__.py", "import pipeline"),
    ("models-on-cache", "models/__init__.py", "import evaluation"),
    ("pipeline-on-models", "pipeline/__init__.py", "import trainer"),
    ("pipeline-on-models", "pipeline/__init__.py", "import evaluation"),
    ("evaluation-on-cache", "evaluation/__init__.py", "import models"),
    ("evaluation-on-cache", "evaluation/__init__.py", "import trainer"),
    ("trainer-on-evaluation", "trainer/__init__.py", "import pipeline"),
    ("trainer-on-evaluation", "trainer/__init__.py", "def later():\n    import studies"),
    ("nobody-imports-tasks", "studies/__init__.py", "from tasks import test"),
    ("cache-needs-only-numpy", "cache/errors.py", "import torch"),
    ("cache-needs-only-numpy", "cache/errors.py", "from dask.distributed import Client"),
    ("cache-needs-only-numpy", "cache/errors.py", "def later():\n    from nuscenes.nuscenes import NuScenes"),
    ("cache-needs-only-numpy", "cache/errors.py", "import webdataset"),
]


def contract_ids() -> set[str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {contract["id"] for contract in config["tool"]["importlinter"]["contracts"]}


def lint_imports(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    entry = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", entry, "--no-cache", *options], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the rooms' Python files and of pyproject.toml."""
    copy = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        for source in (ROOT / room).rglob("*.py"):
            target = copy / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
    return copy


@pytest.fixture
def broken(house: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The copy with one line too many, mended afterwards."""
    path, line = request.param
    before = (house / path).read_text()
    (house / path).write_text(f"{before}\n{line}\n")
    yield house
    (house / path).write_text(before)


def test_the_floors_hold(house: Path) -> None:
    result = lint_imports(house)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("contract", "broken"),
    [pytest.param(name, (path, line), id=f"{name}: {path}: {line}") for name, path, line in BREAKS],
    indirect=["broken"],
)
def test_a_broken_contract_is_found(contract: str, broken: Path) -> None:
    result = lint_imports(broken, "--contract", contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


def test_every_contract_has_its_break() -> None:
    assert contract_ids() == {contract for contract, _, _ in BREAKS}


# ---------------------------------------------------------------- what `import cache` costs

HEAVY = ("torch", "dask", "distributed", "nuscenes", "webdataset", "cv2", "matplotlib")
WRITERS = ("cache.tar_writer",)  # the modules that only a writer imports


def heavy_modules_after(code: str) -> set[str]:
    report = "import sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split()) & set(HEAVY)


def test_import_cache_needs_neither_torch_nor_dask_nor_the_devkit_nor_webdataset() -> None:
    assert heavy_modules_after("import cache") == set()


def test_every_module_of_cache_but_the_writers_is_as_light() -> None:
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "cache").rglob("*.py")
        if path.name != "__init__.py"
    )
    readers = [name for name in names if name not in WRITERS]
    assert heavy_modules_after("\n".join(f"import {name}" for name in readers)) == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert heavy_modules_after("import cache, cache.tar_writer") >= {"webdataset"}


# ---------------------------------------------------------------- no pickle

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}


def unsafe_lines(source: str) -> list[int]:
    """Lines that import a pickling module, pass allow_pickle as anything but False, or name torch.load/torch.save."""
    found: list[int] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            hit = any(alias.name.split(".")[0] in UNSAFE_MODULES for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            names = {alias.name for alias in node.names}
            hit = module in UNSAFE_MODULES or (module == "torch" and bool(names & {"load", "save"}))
        elif isinstance(node, ast.keyword):
            safe = isinstance(node.value, ast.Constant) and node.value.value is False
            hit = node.arg == "allow_pickle" and not safe
        elif isinstance(node, ast.Attribute):
            hit = node.attr in ("load", "save") and isinstance(node.value, ast.Name) and node.value.id == "torch"
        else:
            hit = False
        if hit:
            found.append(getattr(node, "lineno", 0))
    return found


# The one reader of what torch wrote, and the one form in which it may call torch.
FOREIGN_READER = "models/foreign_files.py"
RESTRICTED_LOAD = 'torch.load(path, map_location="cpu", weights_only=True)'


def test_nothing_in_the_packages_pickles_and_foreign_files_are_read_with_weights_only() -> None:
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + [ROOT / "tasks.py"]
    found = [
        (str(path.relative_to(ROOT)), ast.unparse(call))
        for path in sources
        for line in unsafe_lines(path.read_text())
        for call in calls_of(path.read_text(), line)
    ]
    assert found == [(FOREIGN_READER, ast.unparse(ast.parse(RESTRICTED_LOAD)))]


def calls_of(source: str, line: int) -> list[ast.AST]:
    """What stands on a line: its outermost call, or the module where there is none, so that nothing is left out."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.lineno == line]
    return calls[:1] or [ast.parse(source.splitlines()[line - 1].strip())]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import numpy, cloudpickle as cp",
        "from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path, weights_only=True)",
        "torch.save(state, path)",
        "from torch import load",
    ],
)
def test_a_pickling_line_would_be_seen(line: str) -> None:
    assert unsafe_lines(f"def body():\n    {line}\n") == [2]


def test_a_line_that_does_not_pickle_is_left_alone() -> None:
    assert unsafe_lines("np.load(path, allow_pickle=False)\njson.load(file)\n# import pickle\n") == []
