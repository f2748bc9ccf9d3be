"""The command line: every task of `studies.commands`, under its own name.

Run as `./bevcask TASK` anywhere, or `invoke TASK` inside an environment. A new task is a function under `@task` in one
of those modules; a new module is a line here.
"""

from __future__ import annotations

from invoke.tasks import Task

from studies.commands import ablation, benches, caching, checking, data, development, training, upkeep
from studies.commands.command_line import task

__all__ = ["task"]

for _group in (data, caching, checking, upkeep, training, ablation, benches, development):
    globals().update({name: value for name, value in vars(_group).items() if isinstance(value, Task)})
