from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from cache.coverage import Coverage
from cache.errors import ConfigError
from cache.field_list import FieldList, asked_by_field
from cache.serving import NeededSelector, StoreOffer, TermNeed, serves
from models.build import build_detector, load_preset
from tests.trainer.recipe_lines import cache_line
from trainer.recipe import Recipe, load_recipe, make_recipe, recipe_names
from trainer.terms import RELABELS, TERMS, needs_by_term

MINIMAL = '[model]\npreset = "lift-splat-tiny"\n[train]\nsteps = 5\nlr = 1e-3\n'
STORED = ("bev_index", "bev_values", "bev_weights", "boxes", "scores", "labels")
ARRAYS = ("logits", "regression", "query_logits", "query_boxes", "depth_probs")  # of `--fields`, by name


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@functools.cache
def built(config: str) -> Any:
    """The detector of a config in JSON; several recipes share one, and building costs a second."""
    return build_detector(json.loads(config)).eval()


def student_of(name: str) -> Any:
    return built(json.dumps(load_recipe(name).model, sort_keys=True))


def test_every_shipped_recipe_loads_and_its_model_builds() -> None:
    assert set(recipe_names()) >= {"demo-teacher", "demo-student", "demo-distilled"}
    for name in recipe_names():
        assert load_recipe(name).name == name
        student_of(name)


def test_the_store_that_a_recipes_comment_makes_serves_its_terms() -> None:
    """By what stores of that line offer, on the grid of that teacher; and the student has what is read of it."""
    tried: set[str] = set()
    for name in recipe_names():
        recipe, line = load_recipe(name), cache_line(name)
        if not recipe.terms or name.startswith("demo-"):
            continue
        assert line is not None and line.name == recipe.data.teacher, name
        student = student_of(name)
        shipped = {"demo": "demo-teacher", "own": name}
        teacher = (
            student_of(shipped[line.teacher])
            if line.teacher in shipped
            else built(json.dumps({"preset": line.teacher}))
        )
        asked = FieldList.parse(line.fields)
        further = {name for name in ARRAYS if (item := asked_by_field(name)) and asked.holds(item)}
        further |= {item.name for item in asked.of("samples")}
        offer = StoreOffer((*STORED, *further), teacher.grid, Coverage.parse(line.coverage, teacher.grid), asked)
        for term, needs in needs_by_term(recipe.term_specs()).items():
            wanted = tuple(NeededSelector.parse(text) for text in needs.selectors)
            on_grid = (bool(wanted) or needs.every_cell) and not needs.any_grid
            grid = student.grid if on_grid else None
            answer = serves(offer, TermNeed(needs.teacher_fields, wanted, needs.every_cell, grid))
            assert answer.served, f"{name}: {term} {answer.reason}; {answer.remedy}"
            assert set(needs.student) <= student.gives, f"{name}: {term}"
            tried.add(term)
    assert {*TERMS, *RELABELS} <= tried


def test_a_recipe_extends_another_table_by_table(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(f'{MINIMAL}batch = 7\n[data]\nteacher = "t"\n[[terms]]\nname = "fitnet"\n')
    path = written(tmp_path, 'extends = "base.toml"\n[train]\nsteps = 9\n[[terms]]\nname = "uvtr"\n')
    recipe = load_recipe(path, {"train": {"seed": 3}})
    assert (recipe.name, recipe.train.steps, recipe.train.batch, recipe.train.seed) == ("mine", 9, 7, 3)
    assert [term.name for term in recipe.terms] == ["uvtr"] and recipe.data.teacher == "t"
    plain = load_recipe(written(tmp_path, 'extends = "demo-student"\n')).to_dict()
    assert plain == {**load_recipe("demo-student").to_dict(), "name": "mine"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "mine.toml"\n', r"mine\.toml: it extends 'mine\.toml', which extends it"),
        ('extends = "gone.toml"\n', r"mine\.toml extends .*gone\.toml, but .*no such file.*demo-student"),
        ("extends = 3\n", r"mine\.toml: extends = 3, expected the name of a shipped recipe or a path"),
        (f'{MINIMAL}init_scheme = "ofa"\n', r"mine\.toml: key 'train': .*set init_from too"),
        (f'{MINIMAL}init_scheme = "best"\n', r"mine\.toml: key 'train\.init_scheme': .*'fnav1', 'fnav2'"),
    ],
)
def test_a_wrong_base_or_beginning_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ('name = "sparsekd_label"\nweight = 2.0', r"term sparsekd_label changes labels and adds no loss: leave out"),
        (
            'name = "sparsekd_regression"\noptions = { form = "released" }',
            r"term sparsekd_regression compares cell-relative values as they are: switch off \[data\.bev_aug.*moved",
        ),
    ],
)
def test_terms_that_the_recipe_contradicts_are_refused(tmp_path: Path, terms: str, message: str) -> None:
    augmented = '[data]\nteacher = "t"\n[data.bev_augmentation]\nflip_x = 0.5\n'
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(written(tmp_path, f"{MINIMAL}{augmented}[[terms]]\n{terms}\n"))
    assert "\n" not in str(caught.value)


def test_the_demo_students_differ_in_teacher_and_terms_only() -> None:
    plain, distilled = (load_recipe(name).to_dict() for name in ("demo-student", "demo-distilled"))
    assert distilled["terms"] and not plain["terms"]
    assert distilled["data"].pop("teacher") == "demo"
    assert plain["data"].pop("teacher") == ""
    for values in (plain, distilled):
        del values["terms"], values["name"]
    assert plain == distilled
    assert plain["data"]["depth"] is True


def test_the_demo_teacher_and_students_share_a_grid() -> None:
    grids = {str(build_detector(load_recipe(name).model).grid) for name in ("demo-teacher", "demo-student")}
    assert len(grids) == 1


def test_a_recipe_is_resolved_in_full_and_survives_json(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, MINIMAL))
    assert recipe.name == "mine"
    assert recipe.model["kind"] == "lift-splat"
    assert recipe.model["fpn_channels"] == load_preset("lift-splat-tiny")["fpn_channels"]
    again = Recipe.model_validate(recipe.to_dict())
    assert again == recipe
    assert again.digest == recipe.digest


def test_overrides_are_laid_over_table_by_table() -> None:
    recipe = load_recipe("demo-student", {"train": {"steps": 7}, "model": {"fpn_channels": 32}})
    assert recipe.train.steps == 7
    assert recipe.train.lr == load_recipe("demo-student").train.lr
    assert recipe.model["fpn_channels"] == 32
    assert recipe.digest != load_recipe("demo-student").digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("lr = 1e-3", "lr = 1e-3\nlearning_rate = 2"),
            r"mine\.toml: unknown key 'train\.learning_rate'; allowed there: .*lr",
        ),
        (
            ("[train]", "[trian]\n[train]"),
            r"mine\.toml: unknown key 'trian'; allowed there: data, model, name, terms, train",
        ),
        (("steps = 5", "steps = 5\n[data.bev_augmentation]\nflip = 1\n[train]"), r"mine\.toml: not TOML"),
        (
            ("[train]", "[data.bev_augmentation]\nflip = 1\n[train]"),
            r"'data\.bev_augmentation\.flip'; allowed there: flip_x",
        ),
        (("[train]", "context_chanels = 3\n[train]"), r"mine\.toml: \[model\]: .*'context_chanels'"),
        (('"lift-splat-tiny"', '"lift-splat-huge"'), r"mine\.toml: \[model\]: .*'lift-splat-huge' is unknown"),
        (("steps = 5", ""), r"exactly one of epochs and steps"),
        (("steps = 5", "steps = 5\nepochs = 1"), r"exactly one of epochs and steps"),
        (("steps = 5", "steps = 0"), r"'train\.steps'.*found 0"),
        (("lr = 1e-3", ""), r"'train\.lr': Field required"),
        (("steps = 5", 'steps = 5\nprecision = "fp8"'), r"'train\.precision'.*'fp8'"),
        (("[model]", '[[terms]]\nname = "bevdistill_dense"\n[model]'), r"needs a teacher store; set \[data\] teacher"),
        (("[model]", '[[terms]]\nname = "magic"\n[model]'), r"term 'magic' is unknown; the terms are bevdistill_dense"),
        (
            ("[model]", '[[terms]]\nname = "bevdistill_dense"\noptions = { tau = 1 }\n[model]'),
            r"mine\.toml: term bevdistill_dense, options: unknown key 'tau'; allowed there: adaptor",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line_naming_file_and_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = written(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"'demo-studnet': no such file.*demo-distilled, demo-student, demo-teacher"):
        load_recipe("demo-studnet")


def recipe_of_terms(*terms: dict[str, Any], teacher: str = "t") -> Recipe:
    values = {
        "model": {"preset": "lift-splat-tiny"},
        "train": {"steps": 1, "lr": 1},
        "data": {"teacher": teacher},
        "terms": terms,
    }
    return make_recipe(values, "here", "x")


def test_a_term_stands_once_unless_it_has_keys() -> None:
    term: dict[str, Any] = {"name": "fitnet"}
    with pytest.raises(ConfigError, match=r"term fitnet stands 2 times in fitnet, fitnet; give all but one a key"):
        recipe_of_terms(term, term)
    with pytest.raises(ConfigError, match=r"term fitnet_far stands 2 times in fitnet_far, uvtr, fitnet_far"):
        recipe_of_terms({**term, "key": "far"}, {"name": "uvtr"}, {**term, "key": "far"})
    specs = recipe_of_terms(term, {**term, "key": "far", "teacher": "b"}).term_specs()
    assert [(spec.name, spec.known_as, spec.teacher) for spec in specs] == [
        ("fitnet", "fitnet", "t"),
        ("fitnet", "fitnet_far", "b"),
    ]


@pytest.mark.parametrize("key", ["Far", "a.b", "a/b", "-", "x" * 33])
def test_a_key_that_is_no_plain_word_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"key 'terms\.0\.key': String should match pattern.*found"):
        recipe_of_terms({"name": "fitnet", "key": key})


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number_from_0_on(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"key 'terms\.0\.weight': Input should be .*found"):
        recipe_of_terms({"name": "fitnet", "weight": weight})


def test_every_term_has_a_teacher_of_its_own_or_that_of_the_data() -> None:
    both = recipe_of_terms({"name": "fitnet", "teacher": "b"}, {"name": "uvtr"}, {"name": "fg", "teacher": "b"})
    assert both.teachers() == ["t", "b"]
    assert recipe_of_terms({"name": "fitnet", "teacher": "b"}, teacher="").teachers() == ["b"]
    with pytest.raises(
        ConfigError, match=r"here: term uvtr needs a teacher store; set \[data\] teacher, or the term's own"
    ):
        recipe_of_terms({"name": "fitnet", "teacher": "b"}, {"name": "uvtr"}, teacher="")


def test_terms_without_key_and_teacher_are_saved_as_before_there_were_any() -> None:
    plain, keyed = recipe_of_terms({"name": "fitnet"}, {"name": "fitnet", "key": "far", "teacher": "b"}).to_dict()[
        "terms"
    ]
    assert set(plain) == {"name", "weight", "schedule", "options"}
    assert (keyed["key"], keyed["teacher"]) == ("far", "b")
    again = Recipe.model_validate(recipe_of_terms({"name": "fitnet", "key": "far"}).to_dict())
    assert [term.known_as for term in again.terms] == ["fitnet_far"]
