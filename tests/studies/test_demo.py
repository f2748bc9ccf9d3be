"""The demo end to end in a tiny world: every stage is the real one, only the world and the trainings are short."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cache.store import TeacherStore
from pipeline import teacher as teacher_pass
from studies import demo
from studies.demo import DemoWorld, run_demo

WORLD = DemoWorld(train_scenes=2, val_scenes=2, frames=1, sweeps=1, seed=5, image_scale=0.2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo's folder and what it printed; the shipped checkpoint is gone, so it trains its own teacher."""
    root = tmp_path_factory.mktemp("demo")
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        gone = {"demo": root / "gone.safetensors"}
        patch.setattr(teacher_pass, "SHIPPED_TEACHERS", gone)
        patch.setattr(demo, "SHIPPED_TEACHERS", gone)
        result = run_demo(root, Console(file=text, width=120), WORLD, steps=3)
    assert set(result.table()) == {"teacher", "student", "distilled"}
    for row in result.table().values():
        assert set(row) == {"mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"}
        assert all(0 <= value <= 1 for value in row.values())
    return root, text.getvalue()


def test_a_deleted_checkpoint_makes_the_demo_train_its_teacher(finished: tuple[Path, str]) -> None:
    root, said = finished
    assert "training the teacher first" in said
    assert (root / "teacher" / "model.safetensors").is_file()
    assert len(TeacherStore(root / "cache" / "teachers" / "trained")) == 4


def test_the_two_students_differ_in_nothing_but_the_terms(finished: tuple[Path, str]) -> None:
    root, _ = finished
    recipes = [json.loads((root / name / "recipe.json").read_text()) for name in ("student", "distilled")]
    for recipe in recipes:
        recipe.pop("name")
        recipe["data"].pop("teacher")
    plain, distilled = recipes
    assert plain.pop("terms") == [] and [t["name"] for t in distilled.pop("terms")] == ["bevdistill_dense"]
    assert plain == distilled


def test_it_says_what_it_claims_and_what_not(finished: tuple[Path, str]) -> None:
    root, said = finished
    assert "one seed, no claim" in said
    report = (root / "report.html").read_text()
    assert "one seed, no claim" in report and report.count("<img") >= 4 and "http://" not in report
    figures = json.loads((root / "result.json").read_text())
    assert 0 <= figures["student_shuffled"]["mAP"] <= 1 and figures["seconds"]["simulate"] > 0


def test_a_second_demo_does_nothing_again(finished: tuple[Path, str]) -> None:
    root, _ = finished
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.tar")} | {
        p: p.stat().st_mtime_ns for p in root.rglob("model.safetensors")
    }
    with pytest.MonkeyPatch.context() as patch:
        gone = {"demo": root / "gone.safetensors"}
        patch.setattr(teacher_pass, "SHIPPED_TEACHERS", gone)
        patch.setattr(demo, "SHIPPED_TEACHERS", gone)
        run_demo(root, Console(file=io.StringIO()), WORLD, steps=3)
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_another_teacher_or_recipe_makes_only_what_stands_on_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "teacher.safetensors"
    monkeypatch.setattr(demo, "SHIPPED_TEACHERS", {"demo": shipped})
    root, console = tmp_path / "demo", Console(file=io.StringIO())

    def folders() -> set[str]:
        return {
            name
            for name in ("data", "cache/frames", "cache/teachers", "student", "distilled")
            if (root / name).is_dir()
        }

    def make_all() -> set[str]:
        for name in ("data", "cache/frames", "cache/teachers", "student", "distilled"):
            (root / name).mkdir(parents=True, exist_ok=True)
        return folders()

    def forget(world: DemoWorld, steps: int) -> set[str]:
        demo._forget_what_changed(root, world, {"train": {"steps": steps}}, console)
        return folders()

    everything = make_all()
    assert forget(WORLD, 3) == everything
    shipped.write_bytes(b"weights")
    assert forget(WORLD, 3) == everything - {"cache/teachers", "distilled"}
    make_all()
    assert forget(WORLD, 3) == everything
    shipped.unlink()
    assert forget(WORLD, 3) == everything - {"cache/teachers", "distilled"}
    make_all()
    assert forget(WORLD, 4) == {"data", "cache/frames"}
    make_all()
    assert forget(DemoWorld(seed=9), 4) == set()
