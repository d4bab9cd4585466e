"""Calibrations start as identity, stay mixtures, and do to a PDF what their formulas say."""

import copy

import torch
from torch import nn

from deepdisc.heads.calibration import MixtureCalibration, ShearCalibration
from deepdisc.mixture import Mixture
from deepdisc.training.loading import load_weights
from deepdisc.training.weights import Weights


def mixtures(*shape, lower=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits, mean, sigma = (torch.randn((*shape, 3), generator=generator, dtype=torch.float64) for _ in range(3))
    return Mixture(logits, 2 + mean, sigma.exp(), lower)


def test_unfitted_calibrations_return_the_very_same_object():
    pdf = mixtures(4, 2)
    assert MixtureCalibration(2)(pdf) is pdf and MixtureCalibration(1)(pdf[:, 0]) is not None
    assert ShearCalibration()(pdf) is pdf


def test_pieces_add_up_to_their_component():
    pdf = mixtures(50)
    for num_pieces, error in ((5, 1.3e-3), (7, 1e-4)):
        module = MixtureCalibration(1, num_pieces=num_pieces).double()
        module.pit_terms[0, 0] = 1e-9
        x = pdf.quantile(torch.linspace(0.01, 0.99, 99, dtype=torch.float64)[:, None])
        assert (module(pdf).cdf(x) - pdf.cdf(x)).abs().max() < error


def test_quantities_without_a_fit_are_untouched_beside_one_that_has():
    pdf = mixtures(20, 2)
    module = MixtureCalibration(2).double()
    module.pit_terms[0] = 0.3
    module.log_sigma[0] = 0.2
    x = torch.linspace(-3, 6, 30, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(module(pdf).log_prob(x)[..., 1], pdf.log_prob(x)[..., 1])
    assert not torch.allclose(module(pdf).log_prob(x)[..., 0], pdf.log_prob(x)[..., 0])


def test_width_and_shift_of_a_single_gaussian_are_what_the_parameters_say():
    pdf = Mixture(torch.zeros(2, 1), torch.tensor([[10.0], [1000.0]]), torch.tensor([[2.0], [10.0]]))
    module = MixtureCalibration(1, num_knots=2)
    s = module.covariate(pdf)
    module.knots[0] = s
    module.log_sigma[0] = torch.tensor([1.5, 3.0]).log()
    module.shift[0] = torch.tensor([1.0, -1.0])
    new = module(pdf)
    torch.testing.assert_close(new.std(), torch.tensor([3.0, 30.0]))
    torch.testing.assert_close(new.mean(), torch.tensor([12.0, 990.0]))


class Measuring(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calibration = MixtureCalibration(2)


def test_weights_without_calibration_load_as_identity_and_quietly(tmp_path, capsys):
    old = {name: value for name, value in Measuring().state_dict().items() if "calibration" not in name}
    model = Measuring()
    model.calibration.shift += 1
    report = load_weights(model, Weights(old, tmp_path / "old.pth"), strict=True)
    assert report.is_complete and not report.notes
    assert "2 tensors match" in capsys.readouterr().err
    model.load_state_dict(old)
    assert model.calibration.is_identity


def test_calibrated_weights_load_with_theirs_and_fine_tuning_begins_without(tmp_path):
    calibrated = Measuring()
    calibrated.calibration.shift += 0.5
    file = Weights(copy.deepcopy(calibrated.state_dict()), tmp_path / "new.pth")
    predicting, learning = Measuring(), Measuring()
    assert load_weights(predicting, file, strict=True).is_complete
    assert torch.equal(predicting.calibration.shift, calibrated.calibration.shift)
    report = load_weights(learning, file, strict=False)
    assert learning.calibration.is_identity and "calibrat" in " ".join(report.notes)
    assert torch.equal(learning.layer.weight, calibrated.layer.weight)
