"""What a training left in its folder, and whether two trainings are the same."""

import json

import torch

from deepdisc.config import instantiate
from deepdisc.training.checkpoint import load_state
from deepdisc.training.randomness import seed_everything
from deepdisc.training.run import build_trainer


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def states_equal(a, b):
    """Deep equality, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(states_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_run(first, second):
    first, second = load_state(first), load_state(second)
    assert first.keys() == second.keys() and {"model", "ema", "optimizer", "rng", "sampler", "hooks"} < first.keys()
    for part in first.keys() - {"config"}:
        assert states_equal(first[part], second[part]), part


def trainer_of(cfg):
    """The trainer of a config in this process, not started, from its first weights."""
    seed_everything(cfg.train.seed)
    model = instantiate(cfg.model)
    return build_trainer(cfg, model, instantiate(cfg.data.train, rank=0, world_size=1), None, torch.device("cpu"))


def weights_of(trainer):
    """A copy of the parameters and buffers."""
    return {name: value.clone() for name, value in trainer.plain_model.state_dict().items()}
