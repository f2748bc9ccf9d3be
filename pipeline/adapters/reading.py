"""Foreign checkpoint files, as `models.foreign_files` reads them: students begin from such files too."""

from models.foreign_files import Checkpoint, Inert, is_torch_file, read_checkpoint

__all__ = ["Checkpoint", "Inert", "is_torch_file", "read_checkpoint"]
