"""The ranks of a run: who they are, and the few things that they say to each other beside gradients.

`joined()` reads torchrun's environment; without one there is one rank and every call here returns at once. A rank that
fails tells the others: at the next exchange where it can still take part in one (`raise_together`), else through the
rendezvous store, where a rank that waited in vain for it finds the reason. Exchanges are of small tensors on the host,
through gloo, whatever moves the gradients: 0.1 ms on one machine. No shared memory, no file, no pickle.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from cache.errors import BevcaskError, ConfigError

TIMEOUT_S = 600  # longer than the loader's watchdog needs to name what is stuck on the rank that all others wait for
WORDS = 4096  # bytes of an error's message that travel
_REASON = "bevcask/error"
_REASON_WAIT_S = 3.0


class PeerError(BevcaskError):
    """Another rank failed; the message names it and says why. lost: it was gone without a word."""

    def __init__(self, message: str, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


@dataclass(frozen=True)
class Ranks:
    """This process's place among the run's: rank of `world`, local_rank of those on its machine. The default is a
    run of one process.

    device: what this rank computes on; words: the group for exchanges on the host; norms: for batch norms'
    statistics, a group of its own, since those come between gradients in an order that each rank's graph decides.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    words: Any = None
    norms: Any = None
    store: Any = None

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def gather(self, note: bytes, size: int) -> list[bytes]:
        """Every rank's note, by rank, each of at most `size` bytes and filled up with zeros. ValueError for a longer
        one."""
        if len(note) > size:
            raise ValueError(f"a note of {len(note)} bytes, expected at most {size}")
        padded = note.ljust(size, b"\0")
        if self.alone:
            return [padded]
        own = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.world)]
        with self.together("exchange"):
            dist.all_gather(every, own, group=self.words)
        return [each.numpy().tobytes() for each in every]

    def raise_together(self, error: BaseException | None) -> None:
        """Returns where no rank has an error. Else raises on all of them: one's own, or a PeerError with the others'
        words."""
        if self.alone:
            if error is not None:
                raise error
            return
        if any(note[0] for note in self.gather(bytes([error is not None]), 1)):
            self.raise_all(error)

    def raise_all(self, error: BaseException | None) -> None:
        """As `raise_together`, where every rank knows already that one has an error."""
        if self.alone:
            assert error is not None
            raise error
        said = [_unpacked(note) for note in self.gather(_packed(error), WORDS)]
        if error is not None:
            raise error
        raise PeerError("; ".join(f"rank {rank} of {self.world}: {words}" for rank, words in enumerate(said) if words))

    def sum_(self, values: Tensor) -> Tensor:
        """`values` summed over ranks, in place; on the device."""
        if not self.alone:
            with self.together("sum"):
                dist.all_reduce(values)
        return values

    def stack(self, values: Tensor, group: Any) -> Tensor:
        """(world, ...): every rank's values; on the device."""
        every = [torch.empty_like(values) for _ in range(self.world)]
        with self.together("gather"):
            dist.all_gather(every, values, group=group)
        return torch.stack(every)

    def broadcast(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank."""
        if self.alone:
            assert data is not None
            return data
        size = torch.tensor([len(data or b"")], dtype=torch.int64)
        with self.together("broadcast"):
            dist.broadcast(size, 0, group=self.words)
            body = torch.empty(int(size), dtype=torch.uint8)
            if data is not None and self.first and data:
                body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if int(size):
                dist.broadcast(body, 0, group=self.words)
        return body.numpy().tobytes()

    def barrier(self) -> None:
        """Returns when every rank is here."""
        self.gather(b"", 1)

    def leave_reason(self, error: BaseException) -> None:
        """Tells the others why this rank ends, where they may be waiting for it already. Never raises."""
        if self.store is not None and not isinstance(error, PeerError):
            with contextlib.suppress(Exception):
                self.store.set(_REASON, f"rank {self.rank} of {self.world}: ".encode() + _packed(error))

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Turns a collective call's failure into the reason that another rank left, or what is known without."""
        try:
            yield
        except (RuntimeError, dist.DistBackendError) as error:
            raise self.why_alone(what, error) from error

    def why_alone(self, what: str, error: BaseException) -> PeerError:
        """The reason that a rank left before a collective call failed here, else the call's own words."""
        if self.store is not None:
            with contextlib.suppress(Exception):
                self.store.wait([_REASON], datetime.timedelta(seconds=_REASON_WAIT_S))
                return PeerError(_unpacked(bytes(self.store.get(_REASON))))
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return PeerError(
            f"rank {self.rank} of {self.world} lost another rank while it waited for a {what} ({words:.200}): see that "
            "rank's own last words; a run that is begun again with --resume goes on from its last checkpoint",
            lost=True,
        )


ALONE = Ranks()


@contextlib.contextmanager
def joined(device: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """This process among the ranks that torchrun's environment names; one rank where there is none.

    device: `cpu`, `cuda` or one of its cards; default: the card of this rank's number where there are cards. Backend:
    nccl on cards, gloo on CPUs. A process group that the caller has made is used, with its own time limit, and left as
    it is. Raises ConfigError where the environment is not whole.
    """
    named = _environment()
    target = _device_of(device, named.get("LOCAL_RANK", 0))
    if target.type == "cuda":
        torch.cuda.set_device(target)
    if not named or named["WORLD_SIZE"] == 1:
        yield Ranks(device=target)
        return
    rank, world = named["RANK"], named["WORLD_SIZE"]
    limit = datetime.timedelta(seconds=timeout_s)
    ours, store = not dist.is_initialized(), None
    if ours:
        store, _, _ = next(rendezvous("env://", rank, world, timeout=limit))
        store.set_timeout(limit)
        backend = "nccl" if target.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore("bevcask", store),
            rank=rank,
            world_size=world,
            timeout=limit,
            device_id=target if backend == "nccl" else None,
        )
    words = dist.new_group(backend="gloo", timeout=limit)
    norms = dist.new_group(timeout=limit)
    ranks = Ranks(rank, world, named["LOCAL_RANK"], target, words, norms, store)
    try:
        yield ranks
    except BaseException as error:
        ranks.leave_reason(error)
        raise  # without taking the group down: that would wait for ranks that may be gone
    if ours:
        dist.destroy_process_group()


def _environment() -> dict[str, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK as numbers; nothing where this is no rank."""
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return {}
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = {name: os.environ.get(name, "0" if name == "LOCAL_RANK" else "") for name in names}
    if not all(value.isdecimal() for value in values.values()):
        raise ConfigError(f"found {values} in the environment, expected three numbers; start the run with torchrun")
    return {name: int(value) for name, value in values.items()}


def _device_of(asked: str | None, local_rank: int) -> torch.device:
    if asked is not None and asked != "cuda":
        return torch.device(asked)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not cards and asked is None:
        return torch.device("cpu")
    if local_rank >= cards:
        raise ConfigError(f"rank {local_rank} of this machine has no card: there are {cards}; lower --nproc")
    return torch.device("cuda", local_rank)


def _packed(error: BaseException | None) -> bytes:
    if error is None:
        return b""
    words = " ".join(str(error).split()) or type(error).__name__
    named = words if isinstance(error, BevcaskError) else f"{type(error).__name__}: {words}"
    return named.encode()[: WORDS - 64]


def _unpacked(note: bytes) -> str:
    return note.rstrip(b"\0").decode(errors="replace")


def mismatch(notes: Sequence[bytes]) -> int | None:
    """The first rank whose note is not rank 0's; None where all agree."""
    return next((rank for rank, note in enumerate(notes) if note != notes[0]), None)
