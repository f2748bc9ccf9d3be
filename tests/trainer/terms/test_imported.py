"""A term named by import path: the page's own one trains, equals its formula, and what is no term is refused."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import BevcaskError, ConfigError, FingerprintError, StoreError
from cache.store import FrameStore, TeacherStore
from models.build import build_detector
from models.detector import Batch, DetectorOutput
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from tests.trainer.test_loop import quiet
from trainer.loop import train
from trainer.metrics import STEP_KEYS, read_metrics
from trainer.recipe import Recipe, load_recipe, make_recipe
from trainer.said_reader import SaidReader, Wanted
from trainer.terms import TERMS, JoinedTeacher, build_terms

PAGE = (Path(__file__).parents[3] / "docs" / "your-own-loss.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]
RECIPE = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]
PATH = "my_term:CosineTerm"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes `my_term.py` into a folder on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> None:
        (tmp_path / "my_term.py").write_text(text)
        sys.modules.pop("my_term", None)

    yield write
    sys.modules.pop("my_term", None)


@pytest.fixture
def own(module: Callable[[str], None]) -> str:
    """The page's term."""
    module(CODE)
    return PATH


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own-term")
    write_frames(root, frames=4, size=(32, 18))
    write_teacher(root, frames=4)
    return root


def recipe(steps: int = 6, **term: Any) -> Recipe:
    values = {
        "model": TINY_STUDENT,
        "data": {"teacher": "demo", "depth": False, "bev_augmentation": {"flip_x": 0.5, "rotation_deg": 20.0}},
        "train": {"steps": steps, "batch": 2, "lr": 1e-2, "log_every": 1},
        "terms": [{"name": "cosine", "callable": PATH, **term}],
    }
    return make_recipe(values, "test", "own")


def test_the_page_s_term_has_at_most_thirty_lines_and_its_recipe_is_one(own: str, tmp_path: Path) -> None:
    assert len(CODE.splitlines()) <= 30
    (tmp_path / "mine.toml").write_text(RECIPE)
    (term,) = load_recipe(tmp_path / "mine.toml").terms
    said = tomllib.loads(RECIPE)["terms"][0]
    assert (term.name, term.callable, term.weight, term.options) == ("cosine", own, 2.0, {"margin": 0.1})
    assert said["callable"] == own


def test_it_trains_with_the_student_and_a_resumed_run_has_the_same_callable(
    module: Callable[[str], None], world: Path, tmp_path: Path
) -> None:
    module(CODE + "\n\nOther = CosineTerm\n")
    whole = recipe(12, weight=3.0)
    train(whole, world, tmp_path / "run", progress=quiet)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 < lines[-1]["cosine"] < 0.9 * lines[0]["cosine"] <= 2.0 * 3.0
    again = make_recipe(whole.to_dict(), "test", "own")
    assert again == whole and again.digest == whole.digest
    assert whole.terms[0].options == {"margin": 0.0}  # defaults are filled in
    with pytest.raises(FingerprintError, match=r"\.callable = my_term:CosineTerm, this call has my_term:Other"):
        train(recipe(12, weight=3.0, callable="my_term:Other"), world, tmp_path / "run", resume=True, progress=quiet)


def test_it_is_its_formula_summed_over_the_batch(own: str, world: Path) -> None:
    """By a loop over stored cells, without augmentation, on the teacher's grid."""
    student = build_detector(TINY_STUDENT)
    teacher, frames = TeacherStore(world / "teachers" / "demo"), FrameStore(world / "frames")
    specs = recipe(options={"margin": 0.2}).term_specs()
    torch.manual_seed(0)
    term = build_terms(specs, student, {"demo": JoinedTeacher(teacher, [0, 1])})["cosine"]
    reader = SaidReader(teacher, frames, Wanted.by([term.needs], teacher))
    said = reader.read([0, 1], [0, 1], [])
    bev = torch.randn(2, student.bev_channels, *student.grid.shape)
    batch = Batch(boxes=[torch.zeros(0, 9)] * 2, labels=[torch.zeros(0).long()] * 2)
    (part,) = term(DetectorOutput(bev=bev, heads=[]), batch, said).values()
    above = below = 0.0
    for frame in range(2):
        cells = teacher.cells(frame)
        column = said.cells.selectors.index("gaussian")
        for index, value, weight in zip(cells.index, cells.values, cells.weights[:, column], strict=True):
            row, col = divmod(int(index), student.grid.width)
            ours = term.module.adaptor(bev[frame, :, row, col])
            cosine = torch.cosine_similarity(ours, torch.tensor(value).float(), dim=0)
            above += float(weight) * max(0.0, 1 - cosine.item() - 0.2)
            below += float(weight)
    assert below > 0
    assert part.numerator.item() == pytest.approx(above, rel=1e-5)
    assert part.normaliser.item() == pytest.approx(below, rel=1e-6)


def test_parts_by_name_needs_of_options_and_functions_in_place_of_classes(
    module: Callable[[str], None], world: Path, tmp_path: Path
) -> None:
    module(
        CODE
        + """

class Two(CosineTerm):
    def forward(self, *arguments):
        above, below = super().forward(*arguments)
        return {"near": (above, below), "half": (above / 2, below)}


def make(student, teacher, *, selector: str = "gaussian"):
    return Two(student, teacher)


make.needs = lambda selector: TermNeeds(("bev_index", "bev_weights"), (selector,), ("bev",), any_grid=True)
"""
    )
    train(recipe(1, callable="my_term:make"), world, tmp_path / "run", progress=quiet)
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["cosine.near"] == pytest.approx(2 * line["cosine.half"]) and line["cosine.near"] > 0
    with pytest.raises(StoreError, match=r"term cosine: .*lidar.*--coverage"):
        train(recipe(1, callable="my_term:make", options={"selector": "lidar"}), world, tmp_path / "x", progress=quiet)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"callable": "my_term"}, r"key 'terms\.0\.callable': String should match pattern"),
        ({"callable": "gone.module:T"}, r"test: term cosine: callable gone\.module:T: no module 'gone'; install it"),
        ({"callable": "my_term:Gone"}, r"my_term has no 'Gone'; its callables are .*CosineTerm"),
        ({"options": {"margins": 1}}, r"term cosine, options: unknown key 'margins'; allowed there: margin"),
        ({"options": {"margin": "wide"}}, r"options: key 'margin': Input should be a valid number.*found 'wide'"),
        ({"name": "fitnet"}, r"term 'fitnet' is a shipped one: give that of callable my_term:CosineTerm another name"),
        ({"name": "loss"}, r"term loss: the log has a key of that name; give it another one"),
        ({"name": "a.b"}, r"key 'terms\.0\.name': String should match pattern"),
    ],
)
def test_what_a_recipe_says_wrong_is_one_line(own: str, term: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        recipe(**term)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("    needs = TermNeeds(", "    reads = TermNeeds("), r"its attribute `needs` is missing, expected a trainer"),
        (("    needs = TermNeeds(", "    needs = tuple("), r"importing my_term raised TypeError"),
        (("(self, student, teacher, margin", "(self, student, margin"), r"it raised NameError .*'teacher'"),
        (("(self, student, teacher, margin: float = 0.0)", "(self)"), r"must take the student and the teacher store"),
        (
            ("class CosineTerm(nn.Module):", "class CosineTerm:"),
            r"returned a CosineTerm, expected a torch\.nn",
        ),
        (
            ("teacher.bev.channels)", "teacher.bev.chanels)"),
            r"raised AttributeError \(.*my_term\.py:17\): .*chanels",
        ),
        (("apart = 1 -", "apart = 1 / 0 -"), r"it raised ZeroDivisionError \(.*my_term\.py:\d+\): division by zero"),
        ((".sum(), at.weights.sum()", ".sum()"), r"it gave a tensor of shape \(\), expected two scalar tensors"),
        ((".sum(), at.weights.sum()", ".sum(), at.weights"), r"it gave \(a tensor .*\), expected two scalar tensors"),
        (('selectors=("gaussian",)', 'selectors=("peaks",)'), r"selector 'peaks' is unknown"),
        (('student=("bev",)', 'student=("queries",)'), r"reads the student's queries, this one gives"),
    ],
)
def test_what_is_no_term_is_one_line(
    change: tuple[str, str], message: str, module: Callable[[str], None], world: Path, tmp_path: Path
) -> None:
    assert change[0] in CODE
    module(CODE.replace(*change))
    with pytest.raises(BevcaskError, match=message) as caught:
        train(recipe(1), world, tmp_path / "run", progress=quiet)
    assert "\n" not in str(caught.value) and "cosine" in str(caught.value)


def test_a_part_that_the_student_has_is_not_overwritten(own: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"term heatmap: the loss has a part 'heatmap' without it; rename the term"):
        train(recipe(1, name="heatmap"), world, tmp_path / "run", progress=quiet)


def test_reserved_names_are_the_keys_of_a_step_s_line(own: str, world: Path, tmp_path: Path) -> None:
    train(recipe(1), world, tmp_path / "run", progress=quiet)
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    of_loss = {"heatmap", "center", "height", "dim", "rot", "vel", "depth", "cosine"}
    assert set(line) - of_loss <= set(STEP_KEYS)
    assert set(STEP_KEYS) - set(line) == {"unlabelled_frames", "skipped"}  # of runs that have unlabelled frames
    assert not set(STEP_KEYS) & set(TERMS)
