"""The names of a run folder's files: what one call writes and another, often in another room, looks for."""

from __future__ import annotations

WEIGHTS = "model.safetensors"  # of a finished run
CHECKPOINTS = "checkpoints"  # a folder
RECORD = "run.json"  # of a finished run
BEST = "best.safetensors"  # of the best validation so far
METRICS = "metrics.jsonl"
RECIPE = "recipe.json"  # as the run was last started with
EVENTS = "tensorboard"  # a folder
OWN = (WEIGHTS, RECORD, BEST, METRICS, RECIPE)  # files that nothing but the run writes
