"""`inspect --order` says what training reads: the same frames, the same bytes, the same digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cache.errors import ConfigError
from cache.frame import CAMERA_CHANNELS
from cache.roots import Root
from cache.store import FrameStore
from models.build import build_detector
from studies.order_view import OrderQuestion, order_tables, order_view
from tests.trainer.drives import write_drives
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from trainer.augment import frame_augment
from trainer.batches import BatchBuilder
from trainer.feed import Feed
from trainer.plan import make_plan, said_reader, training_needs
from trainer.recipe import Recipe, make_recipe
from trainer.step_digest import frame_digest, step_digest

FRAMES, BATCH = 10, 4


@pytest.fixture(scope="module", params=["webdataset", "zarr"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames in two shards, the last two without annotations, and a teacher in either format."""
    root = tmp_path_factory.mktemp("order")
    write_frames(root, frames=FRAMES, size=(32, 18), unlabelled=(8, 9))
    write_teacher(root, frames=FRAMES, unlabelled=(8, 9), store_format=request.param)
    return root


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    values: dict[str, Any] = {
        "model": TINY_STUDENT,
        "data": {
            "teacher": "demo",
            "unlabelled_per_labelled": 0.2,
            "bev_augmentation": {"flip_x": 0.5, "rotation_deg": 20.0},
        },
        "train": {"epochs": 2, "batch": BATCH, "lr": 1e-3, "seed": 3},
        "terms": [{"name": "bevdistill_dense"}],
    }
    return make_recipe(values, "test", "order")


def frames_of(view: dict[str, Any]) -> list[dict[str, Any]]:
    return [frame for rank in view["ranks"] for frame in rank["frames"] if frame["weight"]]


@pytest.mark.parametrize("world", [1, 3, 5])
def test_frames_of_all_ranks_are_the_batch_that_training_takes(cache: Path, recipe: Recipe, world: int) -> None:
    plan = make_plan(recipe, cache)
    for step in range(5):  # 10 entries an epoch, the last batch short: 5 ranks share 2 frames
        view = order_view(cache, OrderQuestion(recipe=recipe, world=world, workers=2, step=step))
        epoch, within = divmod(step, 3)
        entries = plan.order(epoch)[within * BATCH : (within + 1) * BATCH]
        wanted = [plan.frames.token(plan.rows[entry]) for entry in entries]
        assert [frame["token"] for frame in frames_of(view)] == wanted
        assert (view["epoch"], view["step_in_epoch"], view["steps_per_epoch"]) == (epoch, within, 3)
        assert [rank["worker"] for rank in view["ranks"]] == [step % 2] * world
        assert all(rank["frames"] for rank in view["ranks"])
        data = recipe.data
        augments = [
            frame_augment(data.bev_augmentation, data.image_augmentation, len(CAMERA_CHANNELS), 3, epoch, int(entry))
            for entry in entries
        ]
        assert view["digest"] == step_digest(map(frame_digest, wanted, augments))


def test_files_and_bytes_are_those_that_building_the_batch_reads(
    cache: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = order_view(cache, OrderQuestion(recipe=recipe))
    plan = make_plan(recipe, cache)
    builder = BatchBuilder(plan.frames, training_needs(build_detector(recipe.model), recipe), said_reader(plan))
    seen: list[tuple[str, int, int]] = []
    for root in (plan.frames.root, *(teacher.store.root for teacher in plan.teachers.values())):
        real = type(root).read_range

        def read_range(self: Root, name: str, start: int, length: int, real: Any = real) -> bytes:
            seen.append((f"{Path(str(self)).name}/{name}", start, start + length))
            return real(self, name, start, length)

        monkeypatch.setattr(root, "read_range", read_range.__get__(root))
    for frame in frames_of(view):
        row = plan.frames.row_of(frame["token"])
        augment = frame_augment(recipe.data.bev_augmentation, recipe.data.image_augmentation, 6, 0, 0, 0)
        seen.clear()
        builder.build([row], [augment])
        spans: dict[str, tuple[int, int]] = {}
        for file, start, stop in seen:
            low, high = spans.get(file, (start, stop))
            spans[file] = (min(low, start), max(high, stop))
        told = {f"{Path(read['store']).name}/{read['file']}": (read["from"], read["to"]) for read in frame["reads"]}
        assert told == spans
        assert all(0 < read["bytes"] <= read["to"] - read["from"] for read in frame["reads"])


def test_what_is_read_of_the_past_of_a_temporal_student_is_told(tmp_path: Path) -> None:
    write_drives(tmp_path, (3, 2))
    model = {"preset": "bevformer-demo", "image_size": [64, 32], "queue": 3}
    data = {"depth": False, "past": {"skipped": 0}}
    values = {"model": model, "data": data, "train": {"epochs": 1, "batch": 5, "lr": 1e-3}}
    recipe = make_recipe(values, "test", "windows")
    view = order_view(tmp_path, OrderQuestion(recipe=recipe))
    plan = make_plan(recipe, tmp_path)
    feed = Feed(plan, build_detector(recipe.model))
    assert view["digest"] == step_digest(feed.build(next(feed.steps())).digests)
    other = make_recipe({**values, "data": {"depth": False, "past": {"skipped": 1}}}, "test", "windows")
    assert order_view(tmp_path, OrderQuestion(recipe=other))["digest"] != view["digest"]
    past = {f["token"]: [r["past"] for r in f["reads"] if "past" in r] for f in frames_of(view)}
    tokens = {(s, m): f"{100 * s + m:032x}" for s in range(2) for m in range(3)}
    assert past == {
        tokens[0, 0]: [],
        tokens[0, 1]: [tokens[0, 0]],
        tokens[0, 2]: [tokens[0, 0], tokens[0, 1]],
        tokens[1, 0]: [],
        tokens[1, 1]: [tokens[1, 0]],
    }


def test_what_is_read_ahead_is_what_is_read_when_its_step_comes(cache: Path, recipe: Recipe) -> None:
    ahead = order_view(cache, OrderQuestion(recipe=recipe, world=2, workers=2, step=1))["ahead"]
    assert [(part["step"], part["rank"]) for part in ahead] == [(s, r) for s in (2, 3, 4, 5) for r in (0, 1)]
    last = order_view(cache, OrderQuestion(recipe=recipe, step=4))["ahead"]
    assert [part["step"] for part in last] == [5]  # two epochs of 3 steps, nothing is read beyond
    with pytest.raises(ConfigError, match="step 6: recipe order ends before step 6"):
        order_view(cache, OrderQuestion(recipe=recipe, step=6))
    for part in ahead:
        then = order_view(cache, OrderQuestion(recipe=recipe, world=2, workers=2, step=part["step"]))
        rank = then["ranks"][part["rank"]]
        reads = [read for frame in rank["frames"] for read in frame["reads"]]
        assert part["worker"] == rank["worker"]
        assert part["bytes"] == sum(read["bytes"] for read in reads)
        assert part["files"] == sorted({f"{read['store']}/{read['file']}" for read in reads})


def test_without_a_recipe_all_frames_and_fields_are_told(cache: Path) -> None:
    options = {"shuffle": "blocks", "window": 1, "drop_last": True}
    view = order_view(cache, OrderQuestion(batch=BATCH, epoch=1, step=1, options=options))
    assert (view["step"], view["epoch"], view["dropped_per_epoch"], view["digest"]) == (3, 1, 2, None)
    assert len(frames_of(view)) == BATCH
    store = FrameStore(cache / "frames")
    for frame in frames_of(view):
        row = store.row_of(frame["token"])
        (read,) = frame["reads"]
        assert read["bytes"] == int(store.index.length[row].sum())
        assert (cache / "frames" / read["file"]).stat().st_size >= read["to"]


def test_tables_name_ranks_frames_files_and_dummies(cache: Path, recipe: Recipe) -> None:
    view = order_view(cache, OrderQuestion(recipe=recipe, world=3, step=2))
    json.dumps(view)
    console = Console(record=True, width=240)
    for renderable in order_tables(view):
        console.print(renderable, markup=False)
    text = console.export_text()
    for rank in view["ranks"]:
        for frame in rank["frames"]:
            assert frame["token"] in text
            assert all(f"{read['from']}..{read['to']}" in text and read["file"] in text for read in frame["reads"])
    assert text.count("(weight 0)") == 1  # 2 frames, 3 ranks
    assert view["digest"] in text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"step": 3, "epoch": 0}, r"--step 3 --epoch 0: expected steps 0 \.\. 2"),
        ({"step": -1}, "--step -1"),
        ({"world": 0}, "--world 0: expected 1 or more"),
        ({"batch": None}, "--recipe or --batch is missing"),
        ({"options": {"shufle": "blocks"}}, "shufle"),
        ({"batch": 11, "options": {"drop_last": True}}, "has no step of 11"),
    ],
)
def test_a_question_without_an_answer_is_refused(cache: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        order_view(cache, OrderQuestion(**{"batch": BATCH, **asked}))
