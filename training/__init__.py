"""The machinery of train.py: options, ranks, optimizers, checkpoints, evaluation, reports."""
