"""One optimiser step: the loss of a global batch, its gradient, clipping, the update, and what the log says of it.

On one rank and without micro-batches the loss is the plain sum of its parts. Else numerators and normalisers are added
up over pieces and ranks first (`trainer.global_loss`), so that the gradient is the same to rounding: among ranks that
costs two exchanges, among a rank's micro-batches one forward pass without gradient of all but the last.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cache.errors import BevcaskError
from models.detector import Batch, LossPart, total_of
from trainer.checkpoint import Training
from trainer.distributed import Ranks, mismatch
from trainer.feed import Piece
from trainer.global_loss import GlobalParts, layout_of, packed
from trainer.norms import NormSync, average_statistics
from trainer.plan import Plan
from trainer.said import TeachersSaid

Parts = dict[str, LossPart]
Counts = dict[str, int]
OneByOne = Callable[[], Iterable[Piece]]


class DivergedError(BevcaskError):
    """A loss or gradient is no longer finite."""


def train_step(training: Training, batch: Batch, said: TeachersSaid | None, plan: Plan, step: int) -> dict[str, float]:
    """One optimiser step of one process on a whole batch, see `Stepper.take`."""
    return Stepper(training, plan).take([Piece(batch, said)], step)


class Stepper:
    """Takes the steps of a run on this rank; with several ranks through torch's DistributedDataParallel."""

    def __init__(
        self, training: Training, plan: Plan, ranks: Ranks | None = None, sync: NormSync | None = None
    ) -> None:
        self.training, self.plan, self.ranks, self._sync = training, plan, ranks or Ranks(), sync
        self._one_by_one: OneByOne = tuple
        self._parallel: nn.Module = training.objective
        if not self.ranks.alone:
            self._parallel = _data_parallel(training.objective)

    def take(self, pieces: Sequence[Piece], step: int, one_by_one: OneByOne = tuple) -> dict[str, float]:
        """One optimiser step on this rank's pieces of the global batch. Returns that batch's total loss, every weighted
        part, the gradient's norm before clipping, and what changes of labels counted: the same on every rank.

        one_by_one: gives the frames of the pieces as pieces of their own, among which the one to blame for a loss that
        is not finite is looked for. Raises on every rank, before the weights are touched: DivergedError or PeerError
        where loss or gradient is not finite, PeerError where another rank failed.
        """
        training, config, self._one_by_one = self.training, self.plan.recipe.train, one_by_one
        training.objective.hold()
        training.optimiser.zero_grad(set_to_none=True)
        if self.ranks.alone and len(pieces) == 1:
            values, counts = self._plain(pieces[0], step)
        else:
            values, counts = self._summed(pieces, step)
        scalars = {"loss": float(values["loss"]), **{name: float(value) for name, value in values.items()}}
        norm = _clip(training, config.clip)
        if not bool(torch.isfinite(norm)):
            self._diverged(step, "the gradient", pieces)
        training.optimiser.step()
        if not self.ranks.alone:
            frames = sum(len(piece.batch) for piece in pieces if piece.weight)
            whole = len(self.plan.run_order.step(step).entries)
            average_statistics(training.objective, self.ranks, frames / whole)
        if training.average is not None:
            training.average.update(training.model, step)
        return {**scalars, "gradient_norm": float(norm), **counts}

    def _plain(self, piece: Piece, step: int) -> tuple[dict[str, Tensor], Counts]:
        """The step of one process that holds the whole batch."""
        self._seed(step, 0)
        parts, counts = self.training.objective(piece.batch, piece.said, step)
        values = total_of(parts)
        loss = torch.stack(list(values.values())).sum()
        self._require_finite(step, {"loss": loss, **values}, [piece], bad_here=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), **{name: value.detach() for name, value in values.items()}}, counts

    def _summed(self, pieces: Sequence[Piece], step: int) -> tuple[dict[str, Tensor], Counts]:
        """The step of several pieces or ranks: sums of both sides of every part first, then the gradient.

        All but the last run without gradient first; the last one's graph is kept, so that it runs only once.
        """
        last, earlier = len(pieces) - 1, range(len(pieces) - 1)
        error: Exception | None = None
        parts, counts, own = dict[str, LossPart](), dict[str, int](), torch.zeros(0)
        try:
            before = self._without_gradient(pieces, earlier, step)
            with self._unsynced(last > 0):
                parts, counts = self._forward(self._parallel, pieces[last], step, last)
            own = packed(parts, counts, pieces[last].weight) + before
        except Exception as found:
            error = found
        self._require_same_layout(parts, counts, error)
        whole = GlobalParts.of(self.ranks.sum_(own.clone()), parts, counts)
        values = whole.values(parts)
        loss = torch.stack(list(values.values())).sum()
        self._require_finite(step, {"loss": loss, **values}, pieces, bad_here=not bool(torch.isfinite(own).all()))
        with self._unsynced(last > 0):
            self._share(whole, parts, pieces[last]).backward()  # type: ignore[no-untyped-call]
        for place in earlier:
            with self._unsynced(place + 1 < last):
                again, _ = self._forward(self._parallel, pieces[place], step, place)
                self._share(whole, again, pieces[place]).backward()  # type: ignore[no-untyped-call]
        return {"loss": loss, **values}, dict(whole.counts)

    def _share(self, whole: GlobalParts, parts: Parts, piece: Piece) -> Tensor:
        """The piece's share of the loss, times the ranks, by which DistributedDataParallel divides the gradients."""
        return whole.share(parts, piece.weight) * self.ranks.world

    def _forward(self, module: nn.Module, piece: Piece, step: int, place: int) -> tuple[Parts, Counts]:
        self._seed(step, place)
        if self._sync is not None:
            self._sync.weight = piece.weight
        parts, counts = module(piece.batch, piece.said, step)
        return parts, counts

    @torch.no_grad()
    def _without_gradient(self, pieces: Sequence[Piece], places: Sequence[int], step: int) -> Tensor:
        """Sums of both sides over the pieces at `places`; running statistics stay as they were."""
        objective, total = self.training.objective, torch.zeros((), device=self.ranks.device)
        if not places:
            return total
        kept = {name: buffer.clone() for name, buffer in objective.named_buffers()}
        for place in places:
            parts, counts = self._forward(objective, pieces[place], step, place)
            total = packed(parts, counts, pieces[place].weight) + total
        for name, buffer in objective.named_buffers():
            buffer.copy_(kept[name])
        return total

    def _unsynced(self, wanted: bool) -> Any:
        """Gradients add up on this rank alone for now."""
        if wanted and isinstance(self._parallel, DistributedDataParallel):
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _seed(self, step: int, place: int) -> None:
        """Randomness inside the model is a function of the step, rank and piece, so no generator state is kept."""
        offset = self.ranks.rank * 2_654_435_761 + place * 40_503
        torch.manual_seed((self.plan.recipe.train.seed * 1_000_003 + step + offset) % 2**63)

    def _require_same_layout(self, parts: Parts, counts: Counts, error: Exception | None) -> None:
        """Ranks add up only what is the same on all of them; an error of a forward pass ends them all."""
        if self.ranks.alone:
            if error is not None:
                raise error
            return
        note = bytes([error is not None]) + (b"" if error is not None else layout_of(parts, counts))
        notes = self.ranks.gather(note, 9)
        if any(each[0] for each in notes):
            self.ranks.raise_all(error)
        if mismatch(notes) is not None:
            self.ranks.raise_all(
                BevcaskError(
                    f"its loss has the parts {', '.join(parts)}, which are not the same on every rank: which ones a "
                    "term gives must not depend on the data"
                )
            )

    def _require_finite(self, step: int, values: dict[str, Tensor], pieces: Sequence[Piece], bad_here: bool) -> None:
        if bool(torch.isfinite(values["loss"])):
            return
        bad = {name: float(value.detach()) for name, value in values.items() if not bool(torch.isfinite(value))}
        self._diverged(step, str(bad), pieces, bad_here)

    def _diverged(self, step: int, what: str, pieces: Sequence[Piece], bad_here: bool = True) -> None:
        """Ends all ranks; those with frames whose loss is not finite name them."""
        tokens = [token for piece in pieces if piece.weight for token in piece.batch.tokens]
        if bad_here and len(tokens) > 1:
            tokens = self._to_blame(step) or tokens
        error = DivergedError(
            f'step {step + 1}: not finite: {what}; frames {", ".join(tokens)}; lower [train] lr, or precision = "fp32"'
        )
        own = error if bad_here and tokens else None
        if any(note[0] for note in self.ranks.gather(bytes([own is not None]), 1)):
            self.ranks.raise_all(own)
        self.ranks.raise_all(error)  # each part is finite, their sum is not

    @torch.no_grad()
    def _to_blame(self, step: int) -> list[str]:
        """Frames whose loss is not finite by themselves; none where that cannot be told, or is so of none."""
        if self._sync is not None:  # whose norms wait for the other ranks
            return []
        found = list[str]()
        for piece in self._one_by_one():
            with contextlib.suppress(Exception):  # one frame may be too few for a batch norm
                parts, counts = self._forward(self.training.objective, piece.to(self.ranks.device), step, 0)
                if not bool(torch.isfinite(packed(parts, counts, 1.0)).all()):
                    found += piece.batch.tokens
        return found


def require_finite_weights(training: Training, done: int) -> None:
    """DivergedError where a weight of the run is not finite after `done` steps: a step whose own loss was finite may
    have been too large. Such a state is no checkpoint, and no student. Buffers may hold infinities on purpose."""
    bad = [name for name, values in training.named_parameters().items() if not bool(torch.isfinite(values).all())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DivergedError(
            f"after step {done}: not finite: {', '.join(bad[:3])}{more}; nothing is saved of it; lower [train] lr or "
            "weight_decay"
        )


def _clip(training: Training, limit: float) -> Tensor:
    """Gradient norm over all parameters, clipped to `limit` where that is above 0."""
    parameters = [p for group in training.optimiser.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))


def _data_parallel(objective: nn.Module) -> DistributedDataParallel:
    """The objective with gradients averaged over ranks. Buffers are ours to sync (`trainer.norms`)."""
    # the name of the option that leaves buffers alone has changed within torch 2
    names = inspect.signature(DistributedDataParallel).parameters
    untouched = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    # find_unused_parameters: which parameters a step reaches depends on its frames and its terms' schedules. It also
    # keeps the buckets as they are at first, so that sums are added in one order before and after a resumption.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1 x 1 convolutions: no copy
    return DistributedDataParallel(objective, find_unused_parameters=True, **{untouched: False})  # type: ignore[arg-type]
