"""A rank's part of every step, read and built: from the run's order to batches on the host.

A step is built from its number alone, in any thread, ahead of training; its digests say what it really holds. With
`micro_batch` the part comes in pieces of at most so many frames, as many on every rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cache.frame import CAMERA_CHANNELS
from cache.read_through import ReadThrough
from models.detector import Batch, Detector
from trainer.augment import FrameAugment, frame_augment
from trainer.batch_bytes import frame_buffers
from trainer.batches import PICTURES, BatchBuilder
from trainer.cursor import OrderCursor
from trainer.order_state import OrderState
from trainer.partition import micro_parts
from trainer.plan import Plan, pasts_of, said_reader, training_needs
from trainer.prefetch import Prefetcher, ShardFile, files_through_cache
from trainer.run_order import RankStep
from trainer.said import TeachersSaid
from trainer.scene_windows import ABSENT
from trainer.step_digest import frame_digest
from trainer.transfer import Packed, pack
from trainer.watch import stage


@dataclass(frozen=True)
class Piece:
    """A micro-batch: what the objective reads, and its weight, 1, or 0 where it only keeps a rank in step."""

    batch: Batch
    said: TeachersSaid | None
    weight: float = 1.0

    def to(self, device: torch.device) -> Piece:
        return Piece(self.batch.to(device), self.said.to(device) if self.said else None, self.weight)


@dataclass(frozen=True)
class FedStep:
    """A rank's part of a step. pieces: at least one; digests: of its own frames, in order, none of weight 0; packed:
    the pieces in one buffer, where they go to a GPU."""

    part: RankStep
    pieces: tuple[Piece, ...]
    digests: tuple[bytes, ...]
    packed: Packed[tuple[Piece, ...]] | None = None

    def on(self, device: torch.device) -> tuple[Piece, ...]:
        """The pieces on `device`, by one copy where they are packed."""
        if self.packed is not None:
            return self.packed.to(device)
        return tuple(piece.to(device) for piece in self.pieces)

    @property
    def frames(self) -> int:
        """How many frames of weight 1 it holds."""
        return len(self.digests)


class Feed:
    """Builds a rank's part of any step. Safe to share between threads. packed: for a device that is not the host's
    memory, in pinned memory.

    Raises StoreError where a frame lacks what the run reads.
    """

    def __init__(self, plan: Plan, model: Detector, rank: int = 0, world: int = 1, packed: bool = False) -> None:
        self._plan, self._rank, self._world, self._packed = plan, rank, world, packed
        self._builder = BatchBuilder(plan.frames, training_needs(model, plan.recipe), said_reader(plan))
        self._pasts = pasts_of(plan, model)
        past = self._pasts.rows() if self._pasts else ()
        self._builder.require(plan.rows[: plan.labelled], plan.rows[plan.labelled :], past)

    def steps(self, state: OrderState | None = None) -> OrderCursor:
        """The rank's steps, from the state on where one is given."""
        cursor = OrderCursor(self._plan.run_order, self._plan.steps, self._rank, self._world)
        cursor.reset(state)
        return cursor

    def tokens(self, step: int) -> list[str]:
        """Frame tokens of the whole global batch of `step`, in order."""
        plan = self._plan
        return [plan.frames.tokens[plan.rows[entry]] for entry in plan.run_order.step(step).entries.tolist()]

    def build(self, part: RankStep) -> FedStep:
        """The part's batches: what the loader's threads do."""
        entries, keys = part.entries.tolist(), part.keys.tolist()
        real = bool(part.weight.any())
        pieces, digests = [], []
        for chosen, weight in self._pieces(part, len(entries), real):
            augments = [self._augment(part.epoch, keys[at]) for at in chosen]
            batch, said = self._build(part.epoch, [(entries[at], keys[at]) for at in chosen], augments)
            pieces.append(Piece(batch, said, weight))
            if weight:
                digests += self._digests(batch, augments)
        if not self._packed:
            return FedStep(part, tuple(pieces), tuple(digests))
        with stage("collate"):
            packed = pack(tuple(pieces), pin=torch.cuda.is_available())
        return FedStep(part, packed.tree, tuple(digests), packed)

    def one_by_one(self, part: RankStep) -> Iterator[Piece]:
        """The part's frames again, each as a batch of its own: to find the one that something is wrong with."""
        for entry, key, weight in zip(part.entries.tolist(), part.keys.tolist(), part.weight.tolist(), strict=True):
            if weight:
                yield Piece(*self._build(part.epoch, [(entry, key)], [self._augment(part.epoch, key)]))

    def prefetch(self, state: OrderState | None = None) -> contextlib.AbstractContextManager[Prefetcher | None]:
        """Fetches the shards of the coming steps into the local cache; None where no store is read through one."""
        stores = [self._plan.frames, *(teacher.store for teacher in self._plan.teachers.values())]
        limits = [store.root.files.limit_bytes for store in stores if isinstance(store.root, ReadThrough)]
        if not limits:
            return contextlib.nullcontext()
        return Prefetcher(((part.step, self._files(part)) for part in self.steps(state)), min(limits))

    def _files(self, part: RankStep) -> list[ShardFile]:
        """What the local cache must hold to build the part."""
        plan, builder = self._plan, self._builder
        pairs = list(zip(part.entries.tolist(), part.keys.tolist(), strict=True))
        files = files_through_cache(plan.frames, [plan.rows[entry] for entry, _ in pairs], builder.needs.fields())
        if self._pasts is not None:
            past = {row for entry, key in pairs for row in self._pasts.of(entry, part.epoch, key)} - {ABSENT}
            files += files_through_cache(plan.frames, past, PICTURES)
        if builder.said is not None:
            for name, teacher in plan.teachers.items():
                rows = [teacher.rows[entry] for entry, _ in pairs]
                files += files_through_cache(teacher.store, rows, builder.said.fields(name))
        return files

    def _pieces(self, part: RankStep, size: int, real: bool) -> Iterator[tuple[list[int], float]]:
        """(places in the rank's part, weight) of each micro-batch; one without frames of its own runs on the first."""
        micro = self._plan.recipe.train.micro_batch
        if not micro:
            yield list(range(size)), float(real)
            return
        for piece in micro_parts(part.batch, self._rank, self._world, micro):
            start = piece.first - part.first
            yield (list(range(start, start + piece.size)), 1.0) if piece.size else ([0], 0.0)

    def _build(
        self, epoch: int, entries: list[tuple[int, int]], augments: list[FrameAugment]
    ) -> tuple[Batch, TeachersSaid | None]:
        """The batch of (entry, key) pairs."""
        plan, pasts = self._plan, self._pasts
        past = [pasts.of(entry, epoch, key) for entry, key in entries] if pasts else []
        return self._builder.build([plan.rows[entry] for entry, _ in entries], augments, past)

    def _augment(self, epoch: int, key: int) -> FrameAugment:
        data, seed = self._plan.recipe.data, self._plan.recipe.train.seed
        return frame_augment(data.bev_augmentation, data.image_augmentation, len(CAMERA_CHANNELS), seed, epoch, key)

    def _digests(self, batch: Batch, augments: list[FrameAugment]) -> list[bytes]:
        inputs = self._plan.recipe.train.digest == "inputs"
        return [
            frame_digest(token, augment, [*past_tokens(batch, at), *(frame_buffers(batch, at) if inputs else ())])
            for at, (token, augment) in enumerate(zip(batch.tokens, augments, strict=True))
        ]


def past_tokens(batch: Batch, frame: int) -> list[bytes]:
    """The tokens of the earlier moments that frame `frame` is shown, oldest first."""
    tokens = [past.frames.tokens[frame] for past in batch.history]
    return [token.encode() for token in tokens if token]
