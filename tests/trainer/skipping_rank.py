"""A module for torchrun: rank 1 skips the first of two synchronised norms, the wider one, as an empty cloud does."""

from __future__ import annotations

import torch
from torch import nn

from trainer.distributed import PeerError, joined
from trainer.norms import sync_norms


def main() -> None:
    with joined("cpu", timeout_s=30) as ranks:
        model = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 3), nn.BatchNorm1d(3))
        sync_norms(model, ranks)
        x = torch.randn(4, 64)
        try:
            (model if ranks.first else model[1:])(x)
        except PeerError as error:
            print(f"{ranks.rank} says {error}", flush=True)
        ranks.barrier()


if __name__ == "__main__":
    main()
