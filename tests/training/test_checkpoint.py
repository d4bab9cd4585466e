"""Training states on disk."""

import numpy as np
import pytest
import torch
from tiny_model import config

from deepdisc.errors import InputError
from deepdisc.training import train
from deepdisc.training.checkpoint import load_state, save_state


def test_the_state_of_a_training_can_be_read_without_executing_anything(blobs, tmp_path):
    best = train(config(blobs, tmp_path, "train.max_iter=2"))
    assert {"model", "ema", "optimizer", "iteration", "rng", "sampler", "hooks", "config"} == set(load_state(best))
    np.testing.assert_equal(load_state(best)["iteration"], 2)


def test_a_full_disk_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def full(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="cannot write .*model_final.pth: .*No space left"):
        save_state({"model": model.state_dict()}, tmp_path / "model_final.pth")
    assert not list(tmp_path.iterdir())
