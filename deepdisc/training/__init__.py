"""Training: the loop, its hooks, optimisers, checkpoints and several processes. Models and data come from configs."""

from deepdisc.training.run import train
from deepdisc.training.trainer import Trainer
from deepdisc.training.validation import evaluate_losses

__all__ = ["Trainer", "evaluate_losses", "train"]
