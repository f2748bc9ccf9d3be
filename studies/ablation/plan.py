"""Suites x students x rows x seeds as a list of jobs in the order in which they are worth running, each once.

What two suites have in common, such as the row `none`, is one job and one result. Listing jobs reads recipes and
presets alone; `make_ready` makes what a job stands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from cache.files import file_sha256, read_json, write_json
from models.build import load_weights
from models.detector import Detector
from pipeline.averaging import Averaged
from studies.ablation.job import Job, Label, key_of, score_of
from studies.ablation.prepare import (
    CAMERA_TEACHERS,
    TEACHER_SEED,
    Settings,
    describes,
    make_store,
    make_teacher,
    make_world,
    recipe_of,
    store_name,
    teacher_file,
    teacher_over,
    world_cache,
)
from studies.ablation.regimes import Place, Regime, Scale, place_of
from studies.ablation.suite import RowSpec, Speaker, StoreSpec, Suite, laid_over
from studies.claims.claim import commit

TEACHER_ROW = "teacher"


@dataclass(frozen=True)
class Sweep:
    """What is asked for. seeds: how many of every row; results: where result files lie; over: laid over every student
    and scale of the worlds, for tests."""

    suites: Sequence[Suite]
    regime: Regime
    round: int
    seeds: int
    settings: Settings
    results: Path
    over: Mapping[str, Any] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    rows: Sequence[str] = ()

    @property
    def place(self) -> Place:
        return place_of(self.regime, self.round, self.scale)


@dataclass(frozen=True)
class Cell:
    """One row with one student of one suite."""

    suite: Suite
    row: RowSpec
    student: str

    def is_of(self, regime: str) -> bool:
        """Whether its student is trained in that regime."""
        return not (regimes := self.suite.students[self.student].regimes) or regime in regimes

    @property
    def rank(self) -> int:
        return self.row.rank + self.suite.students[self.student].later

    @property
    def store(self) -> StoreSpec | None:
        return self.suite.stores[self.row.store] if self.row.store else None


def cells_of(sweep: Sweep) -> list[Cell]:
    """All cells, lowest rank first."""
    cells = [Cell(suite, row, student) for suite in sweep.suites for row, student in suite.cells()]
    cells = [cell for cell in cells if cell.is_of(sweep.regime.name)]
    kept = [cell for cell in cells if not sweep.rows or cell.row.name in sweep.rows]
    return sorted(kept, key=lambda cell: cell.rank)


def overrides_of(sweep: Sweep, cell: Cell, seed: int) -> dict[str, Any]:
    """What is laid over the student's base recipe, `init_from` left out."""
    regime, student = sweep.regime, cell.suite.students[cell.student]
    over = laid_over(student.recipe, cell.row.recipe)
    over = laid_over(over, {"data": {"split": "train", **dict(regime.recipe)}})
    over = laid_over(over, {"train": {"steps": round(regime.steps * cell.row.length), "seed": seed}})
    if cell.store is not None:
        over["data"]["teacher"] = store_name(sweep.settings, regime, cell.store)
    return laid_over(over, sweep.over)


def job_of(sweep: Sweep, cell: Cell, seed: int) -> Job:
    """The job of one cell and seed; its stores need not be there yet."""
    place, settings = sweep.place, sweep.settings
    base, over = cell.suite.students[cell.student].base, overrides_of(sweep, cell, seed)
    if sweep.over.get("train", {}).get("steps"):  # a test's length, too, is in proportion
        over["train"]["steps"] = round(sweep.over["train"]["steps"] * cell.row.length)
    stands_on = {
        **describes(settings, sweep.regime, place.train, cell.store, cell.row.init),
        "scored": [describes(settings, sweep.regime, place.score, None, "")["world"], place.split],
    }
    key = key_of(base, over, stands_on)
    label = Label(cell.suite.name, cell.row.name, cell.student, sweep.regime.name, sweep.round, seed)
    if cell.row.init:
        weights = teacher_file(settings, sweep.regime, place.train, cell.row.init)
        over = laid_over(over, {"train": {"init_from": str(weights)}})
    run = settings.folder / "runs" / key
    return Job(
        label,
        key,
        base,
        over,
        str(world_cache(settings, place.train)),
        str(world_cache(settings, place.score)),
        place.split,
        str(run),
        str(sweep.results / f"{key}.json"),
        {},
    )


def jobs_of(sweep: Sweep) -> Iterator[tuple[Cell, Job]]:
    """Every job once: rank by rank, within a row seed by seed."""
    seen: set[str] = set()
    for cell in cells_of(sweep):
        for number in range(sweep.seeds):
            job = job_of(sweep, cell, sweep.place.first_seed + number)
            if job.key not in seen:
                seen.add(job.key)
                yield cell, job


def make_ready(sweep: Sweep, cell: Cell) -> dict[str, str]:
    """Makes what the jobs of a cell stand on, where it is not there; digests of it."""
    settings, place = sweep.settings, sweep.place
    make_world(settings, place.train)
    make_world(settings, place.score)
    origin: dict[str, str] = {}
    if cell.store is not None:
        origin |= make_store(settings, sweep.regime, place.train, cell.store)
        for teacher in teachers_behind(cell.store):
            score_teacher(sweep, teacher)
    if cell.row.init:
        weights = make_teacher(settings, sweep.regime, place.train, cell.row.init)
        origin["init_sha256"] = file_sha256(weights)[:16]
    return origin


@dataclass(frozen=True)
class TeacherOf:
    """A network whose answers rows learn from, under the views over which it is averaged ("": plain)."""

    says: Speaker
    tta: str = ""

    @property
    def label(self) -> str:
        """In the place of a student's name in its result."""
        recipe = recipe_of(self.says)
        return f"{recipe}, {self.tta}" if self.tta else recipe


def teachers_behind(store: StoreSpec) -> list[TeacherOf]:
    """Whose scores belong beside rows that learn from a store: those of controls beside the trained one's."""
    plain = TeacherOf(store.says if store.says in CAMERA_TEACHERS else "trained")
    return [plain, TeacherOf("trained", store.tta)] if store.tta and store.says == "trained" else [plain]


def teacher_keys(sweep: Sweep) -> dict[TeacherOf, str]:
    """Keys of the results of all teachers of a sweep's suites."""
    stores = [store for suite in sweep.suites for store in suite.stores.values()]
    return {teacher: _teacher_key(sweep, teacher) for store in stores for teacher in teachers_behind(store)}


def _teacher_key(sweep: Sweep, teacher: TeacherOf) -> str:
    place = sweep.place
    scored = [describes(sweep.settings, sweep.regime, place.score, None, "")["world"], place.split]
    views = {"tta": teacher.tta} if teacher.tta else {}
    stands_on = {"world": place.train.written(), "scored": scored, **views}
    return key_of(*teacher_over(sweep.settings, sweep.regime, teacher.says), stands_on)


def score_teacher(sweep: Sweep, teacher: TeacherOf) -> None:
    """A result file for a teacher itself, scored as its students are; row and student say that it is none of them."""
    settings, place, key = sweep.settings, sweep.place, _teacher_key(sweep, teacher)
    path = sweep.results / f"{key}.json"
    if path.is_file():
        return
    weights = make_teacher(settings, sweep.regime, place.train, teacher.says)
    label = Label("", TEACHER_ROW, teacher.label, sweep.regime.name, sweep.round, TEACHER_SEED)
    model = load_weights(weights)
    if teacher.tta:
        model = cast(Detector, Averaged([model], teacher.tta).eval())
    figures = score_of(model, world_cache(settings, place.score), place.split)
    trained = read_json(weights.parent / "run.json", "the record of a run")
    minutes = {"train_minutes": round(trained["seconds"] / 60, 3), "steps": trained["steps"]}
    write_json(path, {"key": key, **asdict(label), **figures, **minutes, "commit": commit(tell_dirty=True)})
