"""Training from the stores: order, augmentation, batches, distillation terms, the loop, checkpoints, predictions.

`trainer.recipe` fixes a run, `trainer.loop.train` does it, `trainer.predict` streams the finished model over frames;
each other file is one part and can be read alone.
"""
