from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cache.errors import ConfigError
from models.build import build_detector, load_preset
from trainer.recipe import Recipe, load_recipe, make_recipe, recipe_names

MINIMAL = '[model]\npreset = "lift-splat-tiny"\n[train]\nsteps = 5\nlr = 1e-3\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_every_shipped_recipe_loads_and_its_model_builds() -> None:
    assert set(recipe_names()) >= {"demo-teacher", "demo-student", "demo-distilled"}
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        build_detector(recipe.model)


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


def test_a_term_may_stand_once() -> None:
    term: dict[str, Any] = {"name": "bevdistill_dense"}
    with pytest.raises(ConfigError, match="each term may stand once"):
        make_recipe(
            {
                "model": {"preset": "lift-splat-tiny"},
                "train": {"steps": 1, "lr": 1},
                "data": {"teacher": "t"},
                "terms": [term, term],
            },
            "here",
            "x",
        )
