"""The promise of the order: any number of ranks, cuts and restarts sees the same global batches, each entry once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import ConfigError, CorruptError, FingerprintError
from cache.store import FrameStore
from tests.trainer.synthetic import write_frames
from trainer.balance import balanced_list
from trainer.cursor import OrderCursor
from trainer.epoch_order import EpochOrder, Frames, OrderConfig
from trainer.order import epoch_list, step_entries, steps_per_epoch
from trainer.order_state import OrderState
from trainer.run_order import RankStep, RunOrder

SEEDS = st.integers(0, 2**40)
WORLDS = st.integers(1, 9)
BATCHES = st.integers(1, 20)
CONFIGS = st.builds(
    OrderConfig,
    shuffle=st.sampled_from(["global", "blocks"]),
    block_frames=st.integers(0, 5),
    window=st.integers(1, 4),
    balance=st.sampled_from(["none", "cbgs"]),
    drop_last=st.booleans(),
)


@st.composite
def frames_of(draw: st.DrawFn, least: int = 1) -> Frames:
    """Labelled frames that show something, unlabelled ones mixed into the same shards."""
    labelled, unlabelled = draw(st.integers(least, 40)), draw(st.integers(0, 20))
    rng = np.random.default_rng(draw(SEEDS))
    kind = np.concatenate([np.ones(labelled, bool), np.zeros(unlabelled, bool)])
    shard = np.sort(rng.integers(0, 5, labelled + unlabelled))
    mixed = rng.permutation(kind)
    counts = rng.integers(0, 2, (labelled + unlabelled, 3)).astype(np.uint16)
    counts[0, 0], counts[labelled:] = 1, 0
    shards = np.concatenate([shard[mixed], shard[~mixed]])
    return Frames(labelled, draw(st.integers(0, unlabelled)), shards, counts, "d" * 64)


def run_order(frames: Frames, config: OrderConfig, seed: int, batch: int) -> RunOrder:
    return RunOrder(frames, config.model_copy(update={"drop_last": False}), seed, batch)


def taken(parts: list[RankStep]) -> list[tuple[int, int]]:
    """(entry, key) of a global batch, from its ranks' parts."""
    return [
        (entry, key)
        for part in parts
        for entry, key, weight in zip(part.entries.tolist(), part.keys.tolist(), part.weight.tolist(), strict=True)
        if weight
    ]


def global_batches(order: RunOrder, steps: range, world: int) -> list[list[tuple[int, int]]]:
    return [taken([order.rank_step(step, rank, world) for rank in range(world)]) for step in steps]


@given(frames_of(), SEEDS, st.integers(0, 1000), BATCHES)
def test_default_options_give_epoch_list_s_batches_bit_for_bit(
    frames: Frames, seed: int, epoch: int, batch: int
) -> None:
    order = RunOrder(frames, OrderConfig(), seed, batch)
    whole = epoch_list(seed, epoch, frames.labelled, len(frames) - frames.labelled, frames.drawn)
    assert order.steps_per_epoch == steps_per_epoch(len(whole), batch)
    for within in range(order.steps_per_epoch):
        step = order.step(epoch * order.steps_per_epoch + within)
        assert step.epoch == epoch
        assert step.entries.tolist() == step_entries(whole, within, batch).tolist()
        assert step.keys.tolist() == step.entries.tolist()


@given(frames_of(), CONFIGS, SEEDS, st.integers(0, 50), BATCHES, WORLDS)
def test_union_over_ranks_of_an_epoch_s_steps_is_exactly_its_list(
    frames: Frames, config: OrderConfig, seed: int, epoch: int, batch: int, world: int
) -> None:
    order = run_order(frames, config, seed, batch)
    first = epoch * order.steps_per_epoch
    batches = global_batches(order, range(first, first + order.steps_per_epoch), world)
    used = [pair for pairs in batches for pair in pairs]
    labelled = Counter(range(frames.labelled))
    if config.balance == "cbgs":
        labelled = Counter(balanced_list(frames.class_counts[: frames.labelled], seed, epoch).tolist())
    assert Counter(entry for entry, _ in used if entry < frames.labelled) == labelled
    others = [entry for entry, _ in used if entry >= frames.labelled]
    assert len(set(others)) == len(others) == frames.drawn
    assert len({key for _, key in used}) == len(used) == order.epoch_frames  # no two entries share an augmentation
    assert [len(pairs) for pairs in batches[:-1]] == [batch] * (len(batches) - 1)
    assert order.dropped == 0


@given(frames_of(), CONFIGS, SEEDS, BATCHES, WORLDS, WORLDS, st.data())
def test_a_run_cut_anywhere_and_resumed_by_other_ranks_takes_the_batches_of_the_undisturbed_one(
    frames: Frames, config: OrderConfig, seed: int, batch: int, few: int, many: int, data: st.DataObject
) -> None:
    steps = 3 * run_order(frames, config, seed, batch).steps_per_epoch
    undisturbed = global_batches(run_order(frames, config, seed, batch), range(steps), 1)
    state, seen = None, []
    for world in (few, many, few, many):  # N -> M -> N, each a new process that knows the state alone
        cursors = []
        for rank in range(world):
            cursor = OrderCursor(run_order(frames, config, seed, batch), steps, rank, world)
            cursor.reset(None if state is None else OrderState.from_dict(state, "test"))
            cursors.append(cursor)
        done = len(seen)
        until = steps if len(undisturbed) - done < 2 else data.draw(st.integers(done, steps))
        ahead: list[list[RankStep]] = []
        while done < until:
            while len(ahead) < 3 and (parts := [part for cursor in cursors if (part := next(cursor, None))]):
                ahead.append(parts)  # handed out, perhaps never reached
            seen.append(taken(ahead.pop(0)))
            for cursor in cursors:
                cursor.reached(done)
            done += 1
        states = [cursor.get_state().to_dict() for cursor in cursors]
        assert all(one == states[0] for one in states)
        state = states[0]
    assert seen == undisturbed[: len(seen)]
    assert state is not None
    assert state["step"] == len(seen)


@given(frames_of(), CONFIGS, SEEDS, BATCHES, WORLDS)
def test_every_rank_takes_the_same_number_of_steps_each_with_something_to_run_on(
    frames: Frames, config: OrderConfig, seed: int, batch: int, world: int
) -> None:
    order = run_order(frames, config, seed, batch)
    steps = 2 * order.steps_per_epoch
    ranks = [list(OrderCursor(order, steps, rank, world)) for rank in range(world)]
    assert {len(parts) for parts in ranks} == {steps}
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert all(len(part.entries) >= 1 and part.step == step for part in parts)
        assert sum(float(part.weight.sum()) for part in parts) == len(order.step(step).entries) == parts[0].batch
        for part in parts:
            assert len(part.entries) == len(part.keys) == len(part.weight)
            real = part.entries[part.weight > 0]
            assert real.tolist() == order.step(step).entries[part.first : part.first + len(real)].tolist()


@given(frames_of(), CONFIGS, SEEDS, BATCHES)
def test_the_shuffle_does_not_change_which_frame_meets_which_augmentation(
    frames: Frames, config: OrderConfig, seed: int, batch: int
) -> None:
    pairs = []
    for shuffle in ("global", "blocks"):
        epoch = EpochOrder(frames, config.model_copy(update={"shuffle": shuffle}), seed, 4)
        entries, keys = epoch.slice(0, len(epoch))
        pairs.append(sorted(zip(entries.tolist(), keys.tolist(), strict=True)))
    assert pairs[0] == pairs[1]


@given(frames_of(), st.integers(1, 4), SEEDS)
def test_blocks_of_whole_shards_open_so_many_shards_at_a_time(frames: Frames, window: int, seed: int) -> None:
    epoch = EpochOrder(frames, OrderConfig(shuffle="blocks", window=window), seed, 0)
    entries, _ = epoch.slice(0, len(epoch))
    shards = frames.shard[entries]
    last = {shard: at for at, shard in enumerate(shards.tolist())}
    begun: set[int] = set()
    for at, shard in enumerate(shards.tolist()):
        begun.add(shard)
        assert sum(last[one] >= at for one in begun) <= window  # begun, and needed again


@given(frames_of(), CONFIGS, SEEDS, BATCHES)
def test_drop_last_leaves_out_the_short_batch_and_says_how_many_entries(
    frames: Frames, config: OrderConfig, seed: int, batch: int
) -> None:
    full = run_order(frames, config, seed, batch)
    dropping = config.model_copy(update={"drop_last": True})
    if full.epoch_frames < batch:
        with pytest.raises(ConfigError, match=r"has no step of .*drop_last = false"):
            RunOrder(frames, dropping, seed, batch)
        return
    order = RunOrder(frames, dropping, seed, batch)
    used = [entry for step in range(order.steps_per_epoch) for entry in order.step(step).entries.tolist()]
    assert order.dropped == full.epoch_frames - len(used) == full.epoch_frames % batch
    assert (
        used
        == [entry for step in range(full.steps_per_epoch) for entry in full.step(step).entries.tolist()][: len(used)]
    )
    assert order.step(order.steps_per_epoch).epoch == 1


FRAMES = Frames(6, 0, np.array([0, 0, 0, 1, 1, 1]), np.ones((6, 2), np.uint16), "a" * 64)


@pytest.mark.parametrize(
    ("frames", "config", "seed", "batch", "said"),
    [
        (FRAMES, OrderConfig(), 1, 2, "seed of the order is 0, but now 1"),
        (FRAMES, OrderConfig(), 0, 3, "batch of the order is 2, but now 3"),
        (FRAMES, OrderConfig(shuffle="blocks"), 0, 2, "digest of the order is .* as they were when the run began"),
        (Frames(6, 0, FRAMES.shard, FRAMES.class_counts, "b" * 64), OrderConfig(), 0, 2, "digest of the order is"),
        (Frames(5, 0, FRAMES.shard, FRAMES.class_counts, "a" * 64), OrderConfig(), 0, 2, "frames of the order is 6"),
    ],
)
def test_a_state_of_another_order_is_refused_with_both_values(
    frames: Frames, config: OrderConfig, seed: int, batch: int, said: str
) -> None:
    state = RunOrder(FRAMES, OrderConfig(), 0, 2).state(4)
    OrderCursor(RunOrder(FRAMES, OrderConfig(), 0, 2), 9).reset(state)
    with pytest.raises(FingerprintError, match=said):
        OrderCursor(RunOrder(frames, config, seed, batch), 9).reset(state)


@pytest.mark.parametrize("change", [{"step": -1}, {"step": True}, {"seed": "0"}, {"digest": 5}, {"more": 1}])
def test_a_damaged_state_is_refused_in_one_line(change: dict[str, object]) -> None:
    values = RunOrder(FRAMES, OrderConfig(), 0, 2).state(4).to_dict()
    assert OrderState.from_dict(values, "x").to_dict() == values
    for bad in ({**values, **change}, {k: v for k, v in values.items() if k not in change} if change else None, None):
        if bad != values:
            with pytest.raises(CorruptError, match=r"^run/checkpoint: found .* resume from another$"):
                OrderState.from_dict(bad, "run/checkpoint")


def test_only_steps_that_training_reached_count_and_in_order() -> None:
    cursor = OrderCursor(RunOrder(FRAMES, OrderConfig(), 0, 2), 9)
    ahead = [next(cursor) for _ in range(4)]
    assert cursor.get_state().step == 0
    cursor.reached(ahead[0].step)
    assert cursor.get_state().step == 1
    for wrong in (0, 2):
        with pytest.raises(ValueError, match="expected step 1"):
            cursor.reached(wrong)
    for step in (1, 2, 3):
        cursor.reached(step)
    with pytest.raises(ValueError, match="of the 4 given"):
        cursor.reached(4)  # nobody was given it
    cursor.reset(cursor.get_state())
    assert [part.step for part in cursor] == list(range(4, 9))


@settings(max_examples=20)
@given(st.integers(0, 30))
def test_any_step_is_had_at_once_and_alone(step: int) -> None:
    config = OrderConfig(shuffle="blocks", balance="cbgs")
    steps = [RunOrder(FRAMES, config, 0, 4).step(step) for _ in range(2)]
    running = RunOrder(FRAMES, config, 0, 4)
    for before in range(step):
        running.step(before)
    assert steps[0].entries.tolist() == running.step(step).entries.tolist()
    assert steps[0].keys.tolist() == running.step(step).keys.tolist()


def test_frames_of_a_store_are_told_by_its_index_and_change_the_digest(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=4, points=False, size=(16, 9), unlabelled=(1,))
    store = FrameStore(tmp_path / "frames")
    frames = Frames.of(store, [0, 2, 3, 1], 3, 1, {"frames": store.manifest.digest})
    assert len(frames) == 4
    assert frames.shard.tolist() == [0, 1, 1, 0]
    others = [
        Frames.of(store, [0, 2, 3, 1], 3, 1, {"frames": "f" * 64}),
        Frames.of(store, [0, 2, 1, 3], 3, 1, {"frames": store.manifest.digest}),
        Frames.of(store, [0, 2, 3, 1], 2, 1, {"frames": store.manifest.digest}),
    ]
    assert len({frames.digest, *(other.digest for other in others)}) == 4
