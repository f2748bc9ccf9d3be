"""Callables of one's own, named by import path, `package.module:callable`: teachers, students and distillation terms.

Code is run only because a person's recipe or command names it; what a file says of itself imports nothing.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from cache.errors import ConfigError

IMPORT_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


def is_import_path(text: str) -> bool:
    """Whether a text has the form package.module:callable."""
    return re.fullmatch(IMPORT_PATH, text) is not None


def import_callable(path: str, where: str) -> Callable[..., Any]:
    """The callable that `path`, an import path, names.

    Raises ConfigError, one line that begins with `where`: no such module, a module that it needs, an error while it is
    imported, or no such callable, with those there are.
    """
    module_name, name = path.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"{where}: no module {missing!r}; install it, or add its folder to PYTHONPATH everywhere"
            ) from None
        raise ConfigError(f"{where}: {module_name} needs the module {missing!r}; install it") from error
    except Exception as error:
        raise ConfigError(
            f"{where}: importing {module_name} raised {type(error).__name__}: {one_line(error)}"
        ) from error
    found: Any = getattr(module, name, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        problem = f"{name!r} is no callable" if hasattr(module, name) else f"has no {name!r}"
        raise ConfigError(f"{where}: {module_name} {problem}; its callables are {', '.join(public) or 'none'}")
    return found


def one_line(error: Exception) -> str:
    """An error's words as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
