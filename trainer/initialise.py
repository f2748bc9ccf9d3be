"""A student that begins from its teacher's weights: the file found and opened, the student given what fits, and the
report of every tensor.

`trainer.inherit` says which channels; this is what a run makes of it. Costs one reading of the file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console
from torch import nn

from cache.errors import ConfigError
from cache.files import file_sha256, write_bytes
from models import build
from models.build import load_weights
from models.detector import Detector
from trainer.inherit import Inheritance, Scheme, inherit

REPORT = "init.txt"
SHIPPED = Path(build.__file__).parent / "checkpoints"


@dataclass(frozen=True)
class Initialisation:
    """What a run's student began from: `source` as the recipe names it, the file's digest, and what was inherited."""

    source: str
    sha256: str
    scheme: Scheme
    found: Inheritance

    def line(self) -> str:
        """For the terminal."""
        return f"began from {self.source} by {self.scheme}: {self.found.summary()}"

    def identity(self) -> dict[str, str]:
        """What a resumed run must agree in."""
        return {"weights_sha256": self.sha256, "scheme": self.scheme}

    def write(self, path: Path) -> None:
        """The whole report, a line a tensor, as text."""
        text = io.StringIO()
        Console(width=200, file=text).print(self.found.table())
        write_bytes(path, f"{self.line()}\n\n{text.getvalue()}".encode())


def teacher_weights(source: str) -> Path:
    """The file that `init_from` names: a shipped detector's name, such as demo, or a path. ConfigError where there is
    none."""
    shipped = SHIPPED / f"{source}-teacher.safetensors"
    path = shipped if shipped.is_file() else Path(source)
    if not path.is_file():
        names = ", ".join(sorted(file.name.removesuffix("-teacher.safetensors") for file in SHIPPED.iterdir()))
        raise ConfigError(
            f"init_from {source!r}: no such file, and not a shipped teacher ({names}); give the model.safetensors of "
            "the run that trained the teacher"
        )
    return path


def begin_from(model: Detector, source: str, scheme: Scheme) -> Initialisation:
    """Gives `model` what fits it of the detector that `source` names, in place; all else stays as it is.

    Raises ConfigError or DataError, naming `init_from`, where the file is not one of `train`'s or nothing fits.
    """
    path = teacher_weights(source)
    teacher = load_weights(path)
    try:
        found = inherit(cast(nn.Module, model), cast(nn.Module, teacher), scheme)
    except ConfigError as error:
        raise ConfigError(f"init_from {source!r}: {error}") from None
    model.load_state_dict(found.state)
    return Initialisation(source, file_sha256(path), scheme, found)
