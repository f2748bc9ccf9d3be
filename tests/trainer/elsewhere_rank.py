"""`trainer.main` whose rank 1 is of a machine that does not see the run's folder: under its path there is none."""

from __future__ import annotations

import os
import sys

from trainer.main import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if os.environ["RANK"] == "1":
        arguments[arguments.index("--run-dir") + 1] += "-elsewhere"
    sys.exit(main(arguments))
