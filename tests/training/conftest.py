"""One small data set and one small model for all trainings here, and a finger on Ctrl-C."""

import signal
from pathlib import Path

import blob_sky
import pytest
import torch
from tiny_model import TinyDetector, config
from weight_files import detector

from deepdisc import model_zoo
from deepdisc.data.prepare import prepare
from deepdisc.training.trainer import Trainer
from deepdisc.training.weights import Weights


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """A data set of three fields of blobs, one per split."""
    folder = tmp_path_factory.mktemp("blobs")
    entries = [blob_sky.write_field(folder / f"field_{i}", shape=(128, 128), count=30, seed=i) for i in range(3)]
    for entry, split in zip(entries, ("train", "val", "test"), strict=True):
        entry["split"] = split
    return prepare(blob_sky.write_recipe(folder, entries), folder / "dataset", tile_size=64)


@pytest.fixture
def model():
    """The tests' own detector, always with the same weights."""
    torch.manual_seed(1)
    return TinyDetector()


@pytest.fixture(scope="module")
def trained():
    """Weights of a narrow detector of three bands and two classes."""
    torch.manual_seed(3)
    return Weights(detector().state_dict(), Path("trained.pth"))


@pytest.fixture
def cfg(tmp_path):
    """A complete config around it."""
    return config(tmp_path / "data", tmp_path / "run")


@pytest.fixture(autouse=True)
def trusted_tiny_model(monkeypatch):
    """Checkpoints of the tests may name the tests' own detector."""
    monkeypatch.setattr(model_zoo, "TRUSTED", (*model_zoo.TRUSTED, "tiny_model."))


@pytest.fixture
def stop_in(monkeypatch):
    """Press Ctrl-C `times` times in the middle of the step with this number: losses computed, weights still old."""
    limit = {"step": -1, "times": 1}
    original = Trainer._losses

    def losses(self, batch):
        found = original(self, batch)
        if self.iteration + 1 == limit["step"]:
            for _ in range(limit["times"]):
                signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(Trainer, "_losses", losses)
    return lambda step, times=1: limit.update(step=step, times=times)
