"""What every term of the registry needs reads, and is served by the store that docs/methods.md tells for it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cache.coverage import Coverage
from cache.errors import ConfigError, StoreError
from cache.field_list import Asked, FieldList
from cache.grid import BevGrid
from cache.index import KIND_LABELLED
from cache.serving import NeededSelector, StoreOffer, TermNeed, serves
from cache.store import FrameStore, TeacherStore
from models.build import build_detector, save_weights
from models.config import parse_config
from models.detector import Batch, DetectorOutput
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import TeacherOptions, cache_teacher
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, write_frames, write_teacher
from trainer.said_reader import SaidReader, Wanted
from trainer.terms import RELABELS, TERMS, TermKind, TermNeeds, require_served

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 6.4)
ARRAYS = ("bev_index", "bev_values", "bev_weights", "boxes", "scores", "labels")  # of every store
ALL: dict[str, Any] = {**TERMS, **RELABELS}
METHODS = Path(__file__).parents[3] / "docs" / "methods.md"
EVERY_CELL = [
    ("bevdistill_heat", {}),
    ("bevdistill_contrast", {"places": "queries"}),
    ("bevdistill_contrast", {"teacher": "cells"}),
    ("bevdistill_dense", {"mask": "none"}),
    ("fitnet", {"mask": "none"}),
    ("monodistill", {"over": "every_cell"}),
    ("uvtr", {"places": "queries"}),
]


def needs(name: str, **options: Any) -> TermNeeds:
    kind = ALL[name]
    return kind.needs(kind.options(**options))


def told() -> dict[str, tuple[str, str]]:
    """Of each term of the table of docs/methods.md the texts of --fields and --coverage, empty where it tells none."""
    out = {}
    for line in METHODS.read_text().splitlines():
        if match := re.match(r"\| `(\w+)` \|", line):
            flags = [re.search(rf"--{flag} '([^']*)'", line) for flag in ("fields", "coverage")]
            out.setdefault(match[1], tuple(found[1] if found else "" for found in flags))
    return {name: (fields, coverage) for name, (fields, coverage) in out.items() if name in ALL}


def a_store(coverage: str, fields: str = "", arrays: tuple[str, ...] = ARRAYS) -> Any:
    """As much of a teacher store as the check looks at."""
    return SimpleNamespace(
        root="cache/teachers/t",
        grid=GRID,
        coverage=Coverage.parse(coverage, GRID),
        manifest=SimpleNamespace(fields=[SimpleNamespace(name=name) for name in arrays]),
        index=SimpleNamespace(kind=np.array([KIND_LABELLED], np.uint8)),
        further=SimpleNamespace(asked=FieldList.parse(fields)),
    )


@pytest.mark.parametrize("name", ALL)
def test_what_a_term_needs_reads(name: str) -> None:
    wanted = needs(name)
    assert isinstance(ALL[name], TermKind) == (name in TERMS)
    for field in wanted.teacher_fields:
        if field not in ARRAYS:
            item = FieldList.parse(field).items[0]
            assert str(item) == field  # in the one form that stores have
    for text in wanted.selectors:
        NeededSelector.parse(text)
    assert set(wanted.student) <= set(DetectorOutput.__dataclass_fields__)
    assert set(wanted.batch) <= set(Batch.__dataclass_fields__)


def test_the_table_of_methods_has_every_term_and_no_other() -> None:
    assert sorted(told()) == sorted(ALL)
    for name in ALL:
        assert re.search(rf"\n### .*\b{name}\b", METHODS.read_text()), name


@pytest.mark.parametrize("name", ALL)
def test_the_store_that_the_docs_tell_serves_the_term_and_less_does_not(name: str) -> None:
    fields, coverage = told()[name]
    asked = FieldList.parse(fields)
    wanted = needs(name)
    model: Any = SimpleNamespace(grid=GRID)
    assert require_served(name, wanted, a_store(coverage or "lidar", fields), model)["labelled"].served
    for item in asked.items:
        fewer = ",".join(str(other) for other in asked.items if other != item)
        with pytest.raises(
            StoreError, match=rf"term {name}: .*reads the field '{item.kind}.*--fields '[^']*{item.kind}"
        ):
            require_served(name, wanted, a_store(coverage or "lidar", fewer), model)
    if coverage:
        with pytest.raises(StoreError, match=rf"term {name}: .*reads .*, the store covers .*--coverage"):
            require_served(name, wanted, a_store("topk(k=3)", fields), model)


@pytest.mark.parametrize("name", ALL)
def test_a_store_that_lacks_an_array_is_refused_by_its_name(name: str) -> None:
    fields, coverage = told()[name]
    wanted = needs(name)
    model: Any = SimpleNamespace(grid=GRID)
    for missing in set(ARRAYS) & set(wanted.teacher_fields):
        store = a_store(coverage or "lidar", fields, tuple(name for name in ARRAYS if name != missing))
        with pytest.raises(StoreError, match=rf"term {name}: .*reads the field '{missing}'"):
            require_served(name, wanted, store, model)


@pytest.mark.parametrize(("name", "options"), EVERY_CELL)
def test_terms_that_read_every_cell_are_refused_a_store_of_some_with_the_flag(name: str, options: Any) -> None:
    wanted = needs(name, **options)
    fields = ",".join(field for field in wanted.teacher_fields if field not in ARRAYS)
    model: Any = SimpleNamespace(grid=GRID)
    with pytest.raises(StoreError, match=rf"term {name}: .*reads every cell.*--coverage '[^']*dense"):
        require_served(name, wanted, a_store("gaussian+footprint", fields), model)
    assert require_served(name, wanted, a_store("gaussian+footprint+dense", fields), model)["labelled"].served


def test_options_are_checked_by_name() -> None:
    for name, kind in ALL.items():
        with pytest.raises(ConfigError, match=r"unknown key 'masks'; allowed there"):
            parse_config(kind.options, {"masks": 1}, f"term {name}")
    with pytest.raises(ConfigError, match="selector 'peaks' is unknown"):
        parse_config(TERMS["sparsekd_logits"].options, {"selectors": ["peaks"]}, "recipe")
    assert set(RELABELS) == {"sparsekd_label"}


def test_a_student_on_another_grid_is_served_where_the_term_says_so(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, grid=BevGrid(-51.2, 51.2, -51.2, 51.2, 3.2))
    teacher, student = TeacherStore(tmp_path / "teachers" / "demo"), build_detector(TINY_STUDENT)
    for name in ("fg", "fitnet", "gid_logits"):
        require_served(name, needs(name), teacher, student)
    with pytest.raises(ConfigError, match=r"reads the grid .*cell 6\.4 m.*cell 3\.2 m"):
        require_served("uvtr", needs("uvtr"), teacher, student)


@pytest.fixture(scope="module")
def stores(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FrameStore, list[TeacherStore]]:
    """Two frames, and what a tiny LiDAR teacher, a tiny camera teacher and a teacher of queries said of them: all that
    the terms of the table ask of the three together."""
    cache = tmp_path_factory.mktemp("registry")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(simulated_root, "v1.0-mini", cache, split="mini_val", options=options, workers=1)
    items = {str(item) for fields, _ in told().values() for item in FieldList.parse(fields).items}
    lidar = ",".join(sorted(item for item in items if item.partition("(")[0] not in ("queries", "depth")))
    torch.manual_seed(4)
    kinds = {
        # gaussian(overlap=0.7) serves who takes any gaussian, footprint(by_size=1) any footprint
        "lidar": (TINY_TEACHER, lidar, "gaussian(overlap=0.7)+gaussian*confident(threshold=0)+footprint(by_size=1)"
                  "+lidar+confident+random+dense"),
        "camera": (TINY_STUDENT, "depth", "lidar"),
    }  # fmt: skip
    for name, (config, fields, coverage) in kinds.items():
        save_weights(build_detector(config), cache / f"{name}.safetensors")
        wanted = TeacherOptions(fields=fields, coverage=coverage)
        cache_teacher(cache, name, teacher="own", checkpoint=cache / f"{name}.safetensors", options=wanted, workers=1)
    wanted = TeacherOptions(fields="queries", coverage="lidar")
    teacher = "tests.pipeline.query_teacher:build"
    cache_teacher(cache, "queries", teacher=teacher, checkpoint=cache / "lidar.safetensors", options=wanted, workers=1)
    return FrameStore(cache / "frames"), [TeacherStore(cache / "teachers" / n) for n in ("lidar", "camera", "queries")]


def offer_of(teacher: TeacherStore) -> StoreOffer:
    arrays = tuple(spec.name for spec in teacher.manifest.fields)
    return StoreOffer(arrays, teacher.grid, teacher.coverage, teacher.further.asked)


@pytest.mark.parametrize("name", ALL)
def test_all_that_a_term_needs_is_read_from_a_real_store(name: str, stores: Any) -> None:
    frames, teachers = stores
    wanted = needs(name)
    need = TermNeed(wanted.teacher_fields, tuple(map(NeededSelector.parse, wanted.selectors)), wanted.every_cell)
    teacher = next(teacher for teacher in teachers if serves(offer_of(teacher), need).served)
    reading = Wanted.by([wanted], teacher)
    rows = [0, 1]
    said = SaidReader(teacher, frames, reading).read(rows, rows, [np.zeros(0, bool)] * 2)
    for field in wanted.teacher_fields:
        if field in ("boxes", "scores", "labels"):
            assert len(getattr(said, field)) == 2
        elif field.startswith("bev_"):
            assert said.cells is not None and len(said.cells.index) > 0
            continue
        else:
            item: Asked = FieldList.parse(field).items[0]
            if item.kind == "queries":
                assert len(said.query_logits) == len(said.query_boxes) == 2
            elif item.kind == "samples":
                held = [key for key in said.samples if FieldList.parse(key).items[0].holds(item)]
                assert len(held) == 1 and len(said.samples[held[0]]) == 2
            elif item.kind == "adaptor":
                assert teacher.adaptor().weight.ndim == 4
            else:
                assert getattr(said, item.kind) is not None
    if wanted.selectors:
        assert said.cells is not None
        assert {NeededSelector.parse(text).name for text in wanted.selectors} <= set(said.cells.selectors)
    extra = {"adaptor"} | {item.kind for item in reading.items}
    assert {f.partition("(")[0] for f in wanted.teacher_fields if f not in ARRAYS} <= extra
