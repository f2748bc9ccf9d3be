"""What is declared is what is used: dependencies, exact constraints, files that a package carries."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cache", "models", "pipeline", "trainer", "evaluation", "studies")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line.split("==") for line in lines if line and not line.startswith("#")]
    return dict(entries)


def third_party_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(ROOMS) - {"tasks", "tests"}


def test_every_import_of_the_packages_is_a_declared_dependency() -> None:
    extras = [text for extra in ("cpu", "cuda", "bench", "slurm", "viewer") for text in EXTRAS[extra]]
    requirements = [*PROJECT["dependencies"], *extras]
    declared = {canonicalize_name(Requirement(text).name) for text in requirements}
    distributions = packages_distributions()
    # not installed everywhere
    elsewhere = {"streaming": "mosaicml-streaming", "litdata": "litdata", "rerun": "rerun-sdk"}
    # What is theirs to bring: pillow and pyquaternion are in the devkit's interface, psutil is how distributed looks at
    # processes; atheris is imported where someone installed it to fuzz, and nowhere else.
    brought = {"pillow", "pyquaternion", "psutil", "atheris"}
    # Claims are run by developers, as tests are.
    dev = {canonicalize_name(Requirement(text).name) for text in EXTRAS["dev"]}
    undeclared = set()
    for path in [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + [ROOT / "tasks.py"]:
        for module in third_party_imports(path):
            names = {canonicalize_name(name) for name in distributions.get(module, [elsewhere.get(module, module)])}
            if not names & (declared | brought | (dev if "claims" in path.parts else set())):
                undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    assert undeclared == set()


@pytest.mark.parametrize(
    "text", [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)], ids=lambda text: text
)
def test_every_requirement_is_pinned_within_its_bounds(text: str) -> None:
    requirement = Requirement(text)
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not in constraints.txt"
    assert requirement.specifier.contains(version)


def test_constraints_are_exact_public_versions_and_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in entries if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert list(pins()) == sorted(pins())
    assert "torch==2.13.0" in entries


def test_every_data_file_of_a_room_travels_with_its_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    carried = {pattern.removeprefix("*") for pattern in patterns} | {".py", ".pyc", ".md"}
    left_out = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in carried
    }
    assert left_out == set()
    # a data folder without __init__.py is a namespace package to setuptools, found by "<room>.*" in `include`
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"{room}.*" for room in ROOMS} <= set(included)
