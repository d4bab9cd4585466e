"""Training: the loop, its hooks, optimisers, checkpoints and several processes. Models and data come from configs."""

from deepdisc.training.trainer import Trainer, evaluate_losses, train

__all__ = ["Trainer", "evaluate_losses", "train"]
