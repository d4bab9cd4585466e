"""The average of the weights against the recursion written out."""

import numpy as np
import pytest
import torch
from runs import records, trainer_of, weights_of
from tiny_model import TinyDetector, config

from deepdisc.config import instantiate
from deepdisc.training import evaluate_losses, train
from deepdisc.training.checkpoint import load_state


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_the_one_of_its_definition(blobs, tmp_path, decay):
    """Each step keeps min(decay, (1 + n) / (10 + n)) of the average, where n is the number of steps before."""
    trainer = trainer_of(config(blobs, tmp_path, f"train.ema_decay={decay}"))
    batches = iter(trainer.loader)
    expected = None
    for n in range(12):
        trainer.step(batches)
        now = {name: value.double().numpy() for name, value in weights_of(trainer).items() if value.is_floating_point()}
        kept = 0.0 if expected is None else min(decay, (1 + n) / (10 + n))
        expected = now if expected is None else {k: kept * expected[k] + (1 - kept) * now[k] for k in now}
    averaged = trainer.best_model.state_dict()
    assert "norm.running_var" in expected
    for name, value in expected.items():
        np.testing.assert_allclose(averaged[name].numpy(), value, rtol=1e-5, atol=1e-7)


def test_averaged_weights_lag_behind_and_are_what_is_validated(blobs, tmp_path):
    cfg = config(blobs, tmp_path, "train.max_iter=6", "train.eval_period=6")
    train(cfg)
    state = load_state(tmp_path / "model_final.pth")
    averaged = {name.removeprefix("module."): value for name, value in state["ema"].items() if name != "n_averaged"}
    assert averaged.keys() == state["model"].keys()
    assert not torch.equal(averaged["first.weight"], state["model"]["first.weight"])
    model = TinyDetector()
    model.load_state_dict(averaged)
    loader = instantiate(cfg.data.val, rank=0, world_size=1)
    assert evaluate_losses(model, loader)["val_loss"] == records(tmp_path)[-1]["val_loss"]


def test_what_does_not_learn_is_the_same_in_the_average_to_the_last_bit(blobs, tmp_path):
    trainer = trainer_of(config(blobs, tmp_path, "optim.optimizer.lr_factors={first: 0, norm: 0}"))
    before, batches = weights_of(trainer), iter(trainer.loader)
    for _ in range(5):
        trainer.step(batches)
    averaged = trainer.best_model.state_dict()
    same = {name for name in before if torch.equal(before[name], averaged[name])}
    assert same == set(before) - {"last.weight", "last.bias"}


def test_without_an_average_the_weights_themselves_are_validated_and_saved(blobs, tmp_path):
    train(config(blobs, tmp_path, "train.ema_decay=0", "train.max_iter=2"))
    assert "ema" not in load_state(tmp_path / "model_final.pth")
