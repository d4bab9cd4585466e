"""PSFs reach the heads as records carry them."""

import pytest
import torch
from narrow_model import narrow, scene

from deepdisc.detector.stretch import NoiseStretch
from deepdisc.errors import InputError
from deepdisc.psf import PSF_SIDE


@pytest.fixture(scope="module")
def model():
    """A detector that measures in units of the noise, and so keeps the pixels for its heads."""
    return narrow(stretch=NoiseStretch()).eval()


def record(seed=0, **more):
    made = scene(seed=seed)
    return made | {"variance": torch.ones_like(made["image"]), **more}


@pytest.fixture
def seen(monkeypatch):
    """A function that gives the features that a model's heads are given."""

    def run(model, records):
        found, predict = {}, model.roi_heads.predict
        monkeypatch.setattr(
            model.roi_heads, "predict", lambda features, *rest: found.update(features) or predict(features, *rest)
        )
        model(records)
        return found

    return run


def test_psfs_are_given_to_the_heads_image_by_image(model, seen):
    psf = torch.rand(3, PSF_SIDE, PSF_SIDE)
    features = seen(model, [record(psf=psf), record(seed=1), record(seed=2, psf=2 * psf.double())])
    assert features["psf"].shape == (3, 3, PSF_SIDE, PSF_SIDE) and features["psf"].dtype == torch.float32
    assert torch.equal(features["psf"][0], psf) and torch.equal(features["psf"][2], 2 * psf)
    assert not features["psf"][1].any(), "unknown"
    assert features["flux"].shape[0] == 3 and features["psf"].shape[2] != features["flux"].shape[2]


def test_training_takes_them_too(model):
    losses = model.losses([record(psf=torch.rand(3, PSF_SIDE, PSF_SIDE))])
    assert all(loss.isfinite() for loss in losses.values())


def test_a_model_without_pixels_ignores_them(seen):
    assert "psf" not in seen(narrow().eval(), [scene() | {"psf": torch.zeros(1)}])


@pytest.mark.parametrize("shape", [(2, PSF_SIDE, PSF_SIDE), (3, 31, 31), (PSF_SIDE, PSF_SIDE)])
def test_psfs_of_another_form_are_refused(model, shape):
    with pytest.raises(
        InputError, match=r"psf is \(.*\), it must be \(3, 25, 25\); deepdisc.psf.recorded_psf makes it so"
    ):
        model([record(psf=torch.zeros(shape))])
