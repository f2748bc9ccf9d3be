"""What `compile = true` asks of torch: the student through torch.compile, and words for where that cannot be done.

Compiling waits for the first step, and for the first frame of a new shape: minutes of one core. Names of parameters,
checkpoints and exported weights are those of the plain model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from cache.errors import ConfigError


def compiled(model: nn.Module) -> None:
    """Asks for `model`'s forward pass to be compiled when it first runs."""
    model.compile()


@contextlib.contextmanager
def told_of_compiling(wanted: bool) -> Iterator[None]:
    """ConfigError where torch.compile fails inside, with its words: no C++ compiler, or a model that it cannot read."""
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # loads the compiler, which other runs have no use for

    try:
        yield
    except TorchDynamoException as error:
        words = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(
            f"[train] compile: torch.compile cannot make this model run here: {words:.300}; set compile = false, or, "
            "where a C++ compiler is missing, install one (g++)"
        ) from error
