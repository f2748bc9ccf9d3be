"""What can be said of a command without running it: its task exists and takes its options, and what it names exists."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from invoke.collection import Collection
from invoke.parser import Parser

import tasks
from cache.coverage import Coverage
from cache.field_list import FieldList
from cache.grid import BevGrid
from evaluation.subsets import parse_subset
from models.build import preset_names
from models.import_path import is_import_path
from pipeline.engine import KINDS
from pipeline.teacher import SHIPPED_TEACHERS
from studies.ablation.regimes import REGIMES
from studies.benches.registry import BENCHES, parse_options
from studies.prove import CLAIMS
from tests.documents import ROOT
from trainer.inherit import Scheme
from trainer.recipe import make_recipe, recipe_names
from trainer.terms import RELABELS, TERMS

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8)
_ROOMS = "cache|models|pipeline|trainer|evaluation|studies"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
CHOICES = {
    "format": ("webdataset", "zarr", "safetensors", "pt2"),
    "encoding": ("cells", "dense"),
    "dtype": ("float16", "float32", "u8"),
    "device": ("cpu", "cuda", "auto"),
    "weights": ("last", "best"),
    "tta": ("flips", "turns"),
    "cluster": KINDS,
    "regime": tuple(REGIMES),
    "init_scheme": get_args(Scheme),
    "suite": (*(path.stem for path in (ROOT / "studies/ablation/suites").glob("*.toml")), "all"),
}
NUMBERS = frozenset(
    "workers nproc nnodes threads loader_threads step world epoch ahead batch between sweeps sweeps_after scenes "
    "val_scenes frames seed seeds round budget live pictures draws runs part durations image_scale".split()
)


@functools.cache
def namespace() -> Collection:
    """Every task, as the command line has them."""
    return Collection.from_module(tasks)


@functools.cache
def _parser() -> Parser:
    return Parser(contexts=namespace().to_contexts())  # of which it parses into copies


def task_names() -> set[str]:
    return set(namespace().task_names)


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The task and the options given, by name, parsed by the task's own parser, which raises for what it has not."""
    found = [context for context in _parser().parse_argv(list(words)) if context.name]
    assert len(found) == 1, f"{words}: {[context.name for context in found]} are {len(found)} tasks, expected one"
    arguments = found[0].args
    given = {name: argument.value for name, argument in arguments.items() if argument.got_value}
    return str(found[0].name), {name.replace("-", "_"): value for name, value in given.items()}


def check(words: list[str]) -> None:
    """Raises, saying what is wrong with a command: task, option, or a name that there is not."""
    task, given = parse(words)
    for option, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            _check_value(task, option, str(one))
    if task == "bench" and (name := str(given.get("name", "NAME"))) in BENCHES:
        options = parse_options([text for text in given.get("option", []) if not _stands_for(text)])
        takes = list(inspect.signature(importlib.import_module(BENCHES[name]).run).parameters)[2:]
        assert set(options) <= set(takes), f"bench {name} takes {takes}, not {sorted(options)}"


def with_values(words: list[str]) -> list[str]:
    """A command named in the text, where options may stand without their values: `evaluate --run`."""
    contexts = _parser().contexts
    flags = contexts[words[0]].flags if words[0] in contexts else {}
    out = []
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        out.append(word)
        if word in flags and flags[word].takes_value and after.startswith("--"):
            out.append("VALUE")
    return out


def _stands_for(value: str) -> bool:
    """Whether a reader puts something else here: NAME, FILE, tcp://..., folder names in capitals."""
    return bool(re.fullmatch(r"[A-Z][A-Z0-9_]*(\.toml)?", value)) or "..." in value


def _check_value(task: str, option: str, value: str) -> None:
    if _stands_for(value):
        return
    known: Mapping[str, Callable[[str], bool]] = {
        "recipe": lambda name: name in recipe_names() or name.endswith((".toml", ".json")),
        "model": lambda name: name in preset_names() or name in recipe_names(),
        "against": lambda name: name in preset_names() or name in recipe_names(),
        "suite": lambda name: name in CHOICES["suite"] or name.endswith(".toml"),
        "callable": is_import_path,
        "claim": lambda name: name in {claim.name for claim in CLAIMS},
        "part": lambda number: int(number) in {claim.part for claim in CLAIMS},
        "scheduler": lambda place: place.startswith("tcp://"),
        "rdzv": lambda place: bool(re.fullmatch(r"[\w.$-]+:(\d+|\$\w+|PORT)", place)),
        "init_from": lambda name: name == "demo" or name.endswith(".safetensors"),
    }
    if task in ("cache-teacher", "plan") and option == "teacher":
        name = value.split("@")[0]
        good = name in SHIPPED_TEACHERS or name in preset_names() or is_import_path(name)
    elif task == "bench" and option == "name":
        good = value in BENCHES
    elif option in known:
        good = known[option](value)
    elif option in CHOICES:
        good = value in CHOICES[option]
    elif option in NUMBERS:
        good = value.startswith("$") or re.fullmatch(r"-?\d+(\.\d+)?", value) is not None
    else:
        good = True
        if option == "coverage":
            Coverage.parse(value, GRID)
        elif option == "fields":
            FieldList.parse(value)
        elif option == "subset":
            parse_subset([value])
    assert good, f"{task} --{option.replace('_', '-')} {value}: there is no such one"


def check_span(span: str) -> None:
    """Raises where a span of code names a file of ours, or a module's part, that there is not."""
    named = re.match(rf"({_ROOMS})(\.\w+)+", span)
    path = re.fullmatch(rf"((?:{_ROOMS}|tests|docs|\.ci)/[\w./*-]+\.(?:\w+))(?:::(\w+))?", span)
    test = re.fullmatch(r"(test_\w+\.py)(?:::(\w+))?", span)
    if path or test:
        pattern, inside = (path or test).groups()  # type: ignore[union-attr]
        found = list(ROOT.glob(pattern if path else f"tests/**/{pattern}"))
        assert found, f"{span}: there is no such file"
        assert inside is None or any(f"def {inside}(" in file.read_text() for file in found), f"{span}: no such test"
    elif named:
        resolve(named[0])


def check_recipe(values: dict[str, Any]) -> None:
    """Raises where a part of a recipe has a key, a term or an option that there is not; a term at a time, since pages
    show several that would not stand in one recipe."""
    under = {"model": {"preset": "lift-splat-tiny"}, "data": {"teacher": "t"}, "train": {"steps": 9, "lr": 1e-3}}
    base, terms = values.pop("extends", None), values.pop("terms", [])
    assert base is None or base in recipe_names(), f"extends = {base!r}: there is no such recipe"
    train = {**under["train"], **values.get("train", {})}
    whole = {**under, **values, "train": train, "data": {**under["data"], **values.get("data", {})}}
    make_recipe(whole, "the page", "page")
    for term in terms:
        if "callable" in term:  # the reader's own: your-own-loss.md's is run
            assert is_import_path(term["callable"]) and term["name"] not in {**TERMS, **RELABELS}, term
            continue
        make_recipe({**whole, "terms": [term]}, "the page", "page")


def check_pip(words: list[str]) -> None:
    """`pip install -c FILE -e '.[EXTRA]'`: the file and the extra exist."""
    assert words[:2] == ["install", "-c"] and (ROOT / words[2]).is_file() and words[3] == "-e", words
    extra = re.fullmatch(r"\.\[([a-z0-9,]+)\]", words[4])
    assert extra and set(extra[1].split(",")) <= set(EXTRAS), f"{words[4]}: the extras are {', '.join(EXTRAS)}"


def resolve(dotted: str) -> None:
    """Raises where a name such as `trainer.predict.predict` is no module, nor something in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = getattr(found, "__dataclass_fields__", {}) | getattr(found, "__annotations__", {})
            if part in fields:
                return
            found = getattr(found, part)
        return
    raise AssertionError(f"{dotted}: no such module")
