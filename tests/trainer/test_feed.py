"""The promise of the order, held on what a run trains on: batches as the loop's feed and loader give them, of fake
ranks in one process."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.build import build_detector
from models.detector import Detector
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from tests.trainer.test_loop import AUGMENTATION
from trainer.feed import FedStep, Feed
from trainer.loader import Loader
from trainer.order_state import OrderState
from trainer.plan import Plan, make_plan
from trainer.recipe import Recipe, make_recipe
from trainer.step_digest import step_digest

FRAMES = (1, 4, 7)  # of the stores


@dataclass(frozen=True)
class Cut:
    """A stretch of a run: so many ranks, loader threads and micro-batches, until it is killed after `steps` steps."""

    world: int
    workers: int
    micro: int
    steps: int


@dataclass(frozen=True)
class Seen:
    """A global step as the ranks held it."""

    digest: str
    tokens: tuple[str, ...]


CUTS = st.lists(
    st.builds(Cut, st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("feed")
    for frames in FRAMES:
        write_frames(root / str(frames), frames=frames, size=(32, 18), points=False)
        write_teacher(root / str(frames), frames=frames)
    return {frames: root / str(frames) for frames in FRAMES}


@pytest.fixture(scope="module")
def student() -> Detector:
    return build_detector(recipe_of(0, 1, 1, "global", False).model)


def plan_of(cache: Path, *order: Any) -> Plan:
    return make_plan(recipe_of(*order), cache)


def recipe_of(seed: int, batch: int, steps: int, shuffle: str, drop_last: bool) -> Recipe:
    values = {
        "model": TINY_STUDENT,
        "data": {**AUGMENTATION, "teacher": "demo", "order": {"shuffle": shuffle, "drop_last": drop_last}},
        "train": {"steps": steps, "batch": batch, "lr": 1e-3, "seed": seed, "digest": "inputs"},
        "terms": [{"name": "bevdistill_dense"}],
    }
    return make_recipe(values, "test", "feed")


def seen_of(parts: list[FedStep]) -> Seen:
    """What the log says of a step, and the frames that count in it; of a rank without any, none."""
    tokens = [token for fed in parts for piece in fed.pieces if piece.weight for token in piece.batch.tokens]
    assert len({len(fed.pieces) for fed in parts}) == 1  # as many micro-batches, and so exchanges, on every rank
    assert all(fed.frames == sum(len(piece.batch) for piece in fed.pieces if piece.weight) for fed in parts)
    return Seen(step_digest(itertools.chain.from_iterable(fed.digests for fed in parts)), tuple(tokens))


def stretch(plan: Plan, model: Detector, start: OrderState | None, cut: Cut) -> tuple[list[Seen], OrderState]:
    """The global steps of one stretch, and the state it leaves: that of a checkpoint, through its plain values."""
    train = plan.recipe.train.model_copy(update={"micro_batch": cut.micro})
    own = replace(plan, recipe=plan.recipe.model_copy(update={"train": train}))
    seen = []
    with contextlib.ExitStack() as stack:
        feeds = [Feed(own, model, rank, cut.world) for rank in range(cut.world)]
        cursors = [feed.steps(start) for feed in feeds]
        loaders = [
            stack.enter_context(Loader(cursor, feed.build, threads=cut.workers))
            for cursor, feed in zip(cursors, feeds, strict=True)
        ]
        for parts in itertools.islice(zip(*loaders, strict=True), cut.steps):
            for cursor, fed in zip(cursors, parts, strict=True):
                cursor.reached(fed.part.step)
            seen.append(seen_of(list(parts)))
    states = {tuple(cursor.get_state().to_dict().items()) for cursor in cursors}
    assert len(states) == 1  # every rank has taken as many steps
    return seen, OrderState.from_dict(dict(states.pop()), "a checkpoint")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.sampled_from(FRAMES),
    seed=st.integers(0, 2**40),
    batch=st.integers(1, 6),
    shuffle=st.sampled_from(["global", "blocks"]),
    drop_last=st.booleans(),
    cuts=CUTS,
)
def test_ranks_workers_cuts_and_micro_batches_leave_what_is_trained_on_as_it_is(
    stores: dict[int, Path],
    student: Detector,
    frames: int,
    seed: int,
    batch: int,
    shuffle: str,
    drop_last: bool,
    cuts: list[Cut],
) -> None:
    """Two epochs and a step: once as one rank builds it step by step, once cut into stretches of other numbers."""
    batch = min(batch, frames) if drop_last else batch
    an_epoch = frames // batch if drop_last else -(-frames // batch)
    steps = 2 * an_epoch + 1
    plan = plan_of(stores[frames], seed, batch, steps, shuffle, drop_last)
    alone = Feed(plan, student)
    expected = [seen_of([alone.build(plan.run_order.rank_step(step, 0, 1))]) for step in range(steps)]

    found, state = list[Seen](), None
    for cut in [*cuts, replace(cuts[0], steps=steps)]:
        more, state = stretch(plan, student, state, cut)
        found += more
    assert state is not None and state.step == steps
    assert found == expected

    for epoch in range(2):
        used = Counter(t for step in found[epoch * an_epoch : (epoch + 1) * an_epoch] for t in step.tokens)
        assert used <= Counter(plan.frames.tokens)  # none twice
        assert used.total() == (an_epoch * batch if drop_last else frames)


def test_the_digests_tell_seeds_and_steps_apart(stores: dict[int, Path], student: Detector) -> None:
    """What makes the test above able to fail."""
    steps = 4
    first = plan_of(stores[7], 0, 3, steps, "global", False)
    whole, _ = stretch(first, student, None, Cut(2, 1, 0, steps))
    other, _ = stretch(plan_of(stores[7], 1, 3, steps, "global", False), student, None, Cut(2, 1, 0, steps))
    assert not {seen.digest for seen in whole} & {seen.digest for seen in other}
    behind, _ = stretch(first, student, first.run_order.state(1), Cut(2, 1, 0, steps))
    assert behind == whole[1:] and len(set(whole)) == steps
