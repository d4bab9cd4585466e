"""Profiles and layers with inputs or outputs for single bands."""

import numpy as np
import pytest
import torch

from deepdisc.heads.profiles import BandInput, BandOutput, ProfileNetwork, moffat_logits


def test_a_profile_that_nothing_was_learned_of_is_the_moffat_ellipse_of_the_start():
    axis = torch.arange(11.0)[None] - 5
    center, shape = torch.tensor([[0.4, -1.1]]), torch.tensor([[1.5, 2.5, 0.4]])
    logits = moffat_logits(torch.zeros(1, 2, 6), center, shape, (axis, axis + 0.25))
    x, y = np.meshgrid(np.arange(11) - 5 - 0.4, np.arange(11) - 5 + 0.25 + 1.1)
    covariance = np.array([[1.5**2, 0.4 * 1.5 * 2.5], [0.4 * 1.5 * 2.5, 2.5**2]])
    square = np.einsum("iyx,ij,jyx->yx", np.stack((x, y)), np.linalg.inv(covariance), np.stack((x, y)))
    expected = -10 * np.log1p(square / 20)
    assert logits[0, 0].numpy() == pytest.approx(expected, abs=1e-4) and logits[0, 1].equal(logits[0, 0])


def test_learned_parameters_move_and_widen_a_profile():
    axis = torch.arange(41.0)[None] / 2 - 10
    parameters = torch.tensor([0.5, -0.25, 0.3, 0.0, 0.0, 2.0]).expand(1, 1, 6)
    logits = moffat_logits(parameters, torch.zeros(1, 2), torch.tensor([[2.0, 2.0, 0.0]]), (axis, axis))
    light = logits[0, 0].exp() / logits[0, 0].exp().sum()
    mean_x, mean_y = (light.sum(0) * axis[0]).sum(), (light.sum(1) * axis[0]).sum()
    assert mean_x.item() == pytest.approx(1.0, abs=0.01) and mean_y.item() == pytest.approx(-0.5, abs=0.01)
    width = (light.sum(0) * (axis[0] - mean_x).square()).sum().sqrt()
    assert width.item() == pytest.approx(2 * np.exp(0.3), rel=0.03)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_layers_of_bands_in_another_order_agree_after_their_weights_are_moved(order):
    torch.manual_seed(0)
    x, own, others = torch.randn(4, 3, 2), torch.randn(4, 3, 2), torch.randn(4, 5)
    layer, out = BandInput(3, 2, 5, 6), BandOutput(3, 4, 6, own=2)
    for parameter in out.parameters():
        torch.nn.init.normal_(parameter)

    def run(places: list[int]) -> torch.Tensor:
        return out(layer(torch.cat((x[:, places].flatten(1), others), 1)), own[:, places])

    before = run([0, 1, 2])
    for part in (layer, out):
        state = part.state_dict()
        for name, mixing in part.band_weights(order).items():
            state[name] = state[name] @ mixing
        part.load_state_dict(state)
    torch.testing.assert_close(run(order), before[:, order])


def test_the_profile_network_starts_at_zero_and_has_the_windows_size():
    network = ProfileNetwork(3, 2, 1, 2, (4, 8, 8))
    maps, summary = network(torch.randn(5, 7, 17, 17))
    assert maps.shape == (5, 3, 2, 17, 17) and summary.shape == (5, 8) and not maps.any()
