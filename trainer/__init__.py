"""Training: streaming order and loader, distillation terms, the loop, checkpoints, predictions."""
