"""The names of a run folder's files: what one call writes and another, often in another room, looks for."""

from __future__ import annotations

WEIGHTS = "model.safetensors"  # of a finished run
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"  # of the best validation so far
METRICS = "metrics.jsonl"
EVENTS = "tensorboard"  # a folder
