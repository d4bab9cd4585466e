"""Learned weights of the losses: what they converge to, and that nothing changes without them."""

import logging

import pytest
import torch
from narrow_model import LOSSES, narrow, scene
from torch import nn

from deepdisc.detector.loss_weights import LossWeights
from deepdisc.errors import InputError
from deepdisc.training.optim import build_optimizer

GROUPS = {"proposals": ["loss_rpn_*"], "box": ["loss_cls", "loss_box_reg"], "mask": ["loss_mask"]}


def test_each_weight_becomes_the_inverse_of_its_loss():
    weights = LossWeights({"small": ["a*"], "large": ["b"]})
    losses = {"a1": torch.tensor(0.03), "a2": torch.tensor(0.02), "b": torch.tensor(4.0), "other": torch.tensor(7.0)}
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weights(losses).backward()
        optimizer.step()
    assert weights.weights() == pytest.approx({"small": 1 / 0.05, "large": 1 / 4}, rel=1e-3)


def test_two_tasks_of_unlike_noise_get_the_inverse_of_its_scale():
    """Mean absolute errors of two regressions: the likelihood's maximum is at Laplace's b = mean absolute residual."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4000, generator=generator)
    noise = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(2, 4000, generator=generator).clamp(1e-6, 1 - 1e-6))
    truth = torch.stack((2 * x, -x)) + torch.tensor([[0.02], [3.0]]) * noise
    model, weights = nn.Linear(1, 2), LossWeights({"sharp": ["loss_0"], "noisy": ["loss_1"]})
    optimizer = torch.optim.Adam([*model.parameters(), *weights.parameters()], lr=0.02)
    for _ in range(800):
        error = (model(x[:, None]).T - truth).abs().mean(1)
        losses = {"loss_0": error[0], "loss_1": error[1]}
        optimizer.zero_grad()
        (sum(losses.values()) + weights(losses)).backward()
        optimizer.step()
    assert weights.weights() == pytest.approx({"sharp": 1 / 0.02, "noisy": 1 / 3.0}, rel=0.05)


def test_the_gradient_of_a_group_is_scaled_by_its_weight_and_the_others_are_not():
    weights = LossWeights({"box": ["loss_cls", "loss_box_reg"]})
    nn.init.constant_(weights.log_scale["box"], 0.7)
    value = torch.tensor([2.0, 3.0, 5.0], requires_grad=True)
    losses = dict(zip(("loss_cls", "loss_box_reg", "loss_mask"), value, strict=True))
    (sum(losses.values()) + weights(losses)).backward()
    factor = weights.weights()["box"]
    assert 0.45 < factor < 0.55  # exp(-0.7), a little less for the limits
    assert value.grad.tolist() == pytest.approx([factor, factor, 1.0])


def test_a_batch_without_labels_leaves_the_weight_alone_and_costs_exactly_nothing():
    weights = LossWeights({"shear": ["loss_shear"], "mask": ["loss_mask"]})
    nn.init.constant_(weights.log_scale["shear"], -1.3)
    term = weights({"loss_shear": torch.zeros(()), "loss_mask": torch.ones(())})
    assert term == 0
    term.backward()
    assert weights.log_scale["shear"].grad == 0 and weights.log_scale["mask"].grad == 0  # exp(s) = 1 is its minimum


def test_a_negative_loss_is_told_once_and_its_weight_stays_within_the_limit(caplog):
    weights = LossWeights({"redshift": ["loss_redshift"]}, max_weight=20)
    optimizer = torch.optim.SGD(weights.parameters(), lr=1.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            optimizer.zero_grad()
            weights({"loss_redshift": torch.tensor(-2.0)}).backward()
            optimizer.step()
    assert 15 < weights.weights()["redshift"] <= 20.001
    assert [record.message.startswith("a loss in loss_weights.groups is negative") for record in caplog.records] == [
        True
    ]


def test_the_losses_stay_as_they_are_and_the_weighting_begins_at_zero():
    batch = [scene(seed=1), scene(seed=2)]
    torch.manual_seed(3)
    plain = narrow()(batch)
    torch.manual_seed(3)
    model = narrow(loss_weights=LossWeights(GROUPS))
    weighted = model(batch)
    assert set(plain) == LOSSES and set(weighted) == LOSSES | {"loss_weighting"}
    assert weighted["loss_weighting"] == 0
    for name, value in plain.items():
        assert torch.equal(value, weighted[name]), name
    with torch.no_grad():
        assert set(model.eval().losses(batch)) == LOSSES, "validation losses must be comparable between iterations"


def test_parameters_are_in_the_optimiser_undecayed_and_in_the_checkpoint():
    model = narrow(loss_weights=LossWeights(GROUPS))
    names = {f"loss_weights.log_scale.{group}" for group in GROUPS}
    assert set(model.state_dict()) - set(narrow().state_dict()) == names
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.5, lr_factors={"loss_weights": 10})
    [group] = [group for group in optimizer.param_groups if names & set(group["names"])]
    assert set(group["names"]) == names and group["weight_decay"] == 0 and group["lr"] == pytest.approx(1e-2)
    sum(model([scene()]).values()).backward()
    optimizer.step()
    assert all(weight != 1.0 for weight in model.loss_weights.weights().values())


@pytest.mark.parametrize(
    ("groups", "settings", "message"),
    [
        ({}, {}, "groups is empty"),
        ({"box": []}, {}, r"groups.box=\[\] must be a list of losses"),
        ({"box": "loss_cls"}, {}, "groups.box=loss_cls must be a list"),
        ({"box": ["loss_cls"]}, {"max_weight": 1.0}, "max_weight=1.0 must be finite and above 1"),
    ],
)
def test_wrong_settings_are_named(groups, settings, message):
    with pytest.raises(InputError, match=message):
        LossWeights(groups, **settings)


def test_groups_that_do_not_fit_the_losses_are_named():
    losses = {"loss_cls": torch.ones(()), "loss_mask": torch.ones(())}
    with pytest.raises(InputError, match=r"groups.shear=\['loss_shear'\] is none of the model's losses loss_cls, loss"):
        LossWeights({"shear": ["loss_shear"]})(losses)
    with pytest.raises(InputError, match="'loss_cls' is both in 'a' and in 'b'"):
        LossWeights({"a": ["loss_*"], "b": ["loss_cls"]})(losses)
