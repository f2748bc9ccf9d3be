"""docs/benchmarks.md against the registry: a section and a line for every benchmark, with figures that it gives.

A figure of the list has a key: where it stands in the JSON of `./bevcask bench NAME --json`. Where that JSON is in
docs/benchmarks/ the figure must be its value; elsewhere the key must be a text in the benchmark's code.
"""

from __future__ import annotations

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from studies.benches.registry import BENCHES

DOCS = Path(__file__).resolve().parents[2] / "docs"
MEASURED = sorted((DOCS / "benchmarks").glob("*.json"))
TEXT = (DOCS / "benchmarks.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"(?m)^## ", TEXT)[1:]}
LIST = "All of them"
NOT_RUN = "not run"


class Listed(NamedTuple):
    """A line of the list: figures {key: (text, number)}."""

    name: str
    anchor: str
    figures: dict[str, tuple[str, float]]
    measured: str


def listed() -> list[Listed]:
    found = []
    for line in SECTIONS[LIST].splitlines():
        if row := re.match(r"\| \[`(\S+)`\]\(#(\S+)\) \|(.*)\|$", line):
            _, figures, measured = (cell.strip() for cell in row[3].split("|"))
            pairs = re.findall(r"`([^`]+)` ([-+\d.,]+\d|\d)( %)?", figures)
            values = {k: (n + per, float(n.replace(",", "")) * (0.01 if per else 1)) for k, n, per in pairs}
            found.append(Listed(row[1], row[2], values, measured))
    return found


LINES = {line.name: line for line in listed()}


def sections_of(name: str) -> list[str]:
    """Headings that name the benchmark."""
    return [title for title in SECTIONS if f"`bench {name}`" in title]


def anchor_of(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_benchmark_has_a_line_and_a_section_and_every_section_a_benchmark() -> None:
    assert list(LINES) == sorted(BENCHES)
    for name in BENCHES:
        assert sections_of(name), name
    named = {found for title in SECTIONS for found in re.findall(r"`bench ([\w-]+)", title)}
    assert named == set(BENCHES)


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_a_line_leads_to_its_section_which_has_its_figures_and_date(name: str) -> None:
    line = LINES[name]
    titles = sections_of(name)
    assert line.anchor in [anchor_of(title) for title in titles]
    body = "".join(SECTIONS[title].split("\n", 1)[1] for title in titles)
    assert f"`./bevcask bench {name}" in body, "the section says no command"
    if line.measured.startswith(NOT_RUN):
        assert not line.figures and NOT_RUN in body
        return
    assert line.figures and re.match(r"\d{4}-\d\d-\d\d, \w", line.measured), line
    assert line.measured[:10] in body
    for text, _ in line.figures.values():
        assert re.search(rf"(?<![\d.,]){re.escape(text)}(?![\d])", body), f"{text} is not in the section"


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_the_keys_of_a_line_are_those_that_the_benchmark_gives(name: str) -> None:
    known = strings_of(BENCHES[name])
    path = DOCS / "benchmarks" / f"{name}.json"
    for key, (text, value) in LINES[name].figures.items():
        if path.is_file():
            digits = len(text.removesuffix(" %").partition(".")[2]) + (2 if text.endswith("%") else 0)
            assert round(float(at(json.loads(path.read_text()), key)), digits) == pytest.approx(value), key
        else:
            assert set(key.split(" > ")) <= known, f"{key}: not a text of {BENCHES[name]}"


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.name)
def test_measured_files_are_what_benchmarks_wrote_and_name_no_place(path: Path) -> None:
    found = json.loads(path.read_text())
    assert path.stem == found["bench"] or path.stem.startswith(f"{found['bench']}-")  # of a part, with options
    if path.stem in LINES:
        assert found["date"] == LINES[path.stem].measured[:10]
    assert found["machine"]["cpu"] and "options" in found
    assert not re.search(r'"(/|[A-Za-z]:\\)', path.read_text())


def at(values: Any, key: str) -> Any:
    """What stands at `a > b > c`."""
    for part in key.split(" > "):
        values = values[part]
    return values


def strings_of(module: str) -> set[str]:
    """Every text, and every beginning of a text that is put together, of a module and those of studies.benches that it
    imports."""
    out: set[str] = set()
    todo, seen = [module], set[str]()
    while todo:
        name = todo.pop()
        spec = find_spec(name)
        if name in seen or spec is None or not str(spec.origin).endswith(".py"):
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(Path(str(spec.origin)).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                out.add(node.value)
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("studies.benches."):
                todo.append(str(node.module))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                out.add(node.target.id)  # a field of a data class that is told as a dict
    return out


def test_a_key_that_is_gone_is_noticed() -> None:
    known = strings_of(BENCHES["step"])
    assert {"online_step_s", "cached_step_s"} <= known and "onlin_step_s" not in known
    assert at({"a": {"b": 3}}, "a > b") == 3
