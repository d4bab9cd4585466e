"""Weights by redshift: the table, how it follows from a sample, and the prior that it makes."""

import numpy as np
import pytest
import torch

from deepdisc.config import L, from_yaml, instantiate, to_yaml
from deepdisc.errors import InputError
from deepdisc.heads.label_weights import LabelWeights, inverse_density


def test_the_table_is_linear_between_its_values_and_constant_beyond():
    weights = LabelWeights([0.0, 1.0, 3.0], [1.0, 3.0, 2.0])
    found = weights(torch.tensor([-1.0, 0.0, 0.25, 1.0, 2.0, 9.0]))
    assert found.tolist() == pytest.approx([1.0, 1.0, 1.5, 3.0, 2.5, 2.0])
    assert len(weights(torch.zeros(0))) == 0


def test_the_weighted_sample_is_flat_where_the_weights_are_not_capped():
    labels = np.random.default_rng(0).beta(2, 4, 200_000) * 2
    weights = LabelWeights(**inverse_density(labels, smoothing=0.03, max_ratio=1000))
    found = weights(torch.tensor(labels)).numpy()
    assert found.mean() == pytest.approx(1, abs=2e-3)
    counts, _ = np.histogram(labels, bins=12, range=(0.2, 1.4), weights=found)
    assert counts.std() / counts.mean() < 0.02
    unweighted, _ = np.histogram(labels, bins=12, range=(0.2, 1.4))
    assert unweighted.std() / unweighted.mean() > 0.3


def test_rare_labels_are_capped():
    labels = np.concatenate([np.linspace(0, 1, 10_000), [5.0]])
    table = inverse_density(labels, max_ratio=4.0)
    assert max(table["weights"]) / min(table["weights"]) == pytest.approx(4, rel=0.01)
    assert table["weights"][-1] == max(table["weights"]) and table["values"][-1] == 5
    assert min(table["weights"]) == pytest.approx(1, rel=0.1), "nearly all labels lie where it is flat"


def test_the_ends_of_a_flat_sample_are_not_taken_for_rare():
    table = inverse_density(np.linspace(0, 2, 5000), smoothing=0.2)
    assert max(table["weights"]) / min(table["weights"]) < 1.05


def test_missing_labels_do_not_count_and_the_table_survives_a_config_file():
    labels = np.array([0.1, 0.2, np.nan, 0.9, 1.0])
    table = inverse_density(labels)
    assert table == inverse_density(labels[np.isfinite(labels)])
    built = instantiate(from_yaml(to_yaml(from_yaml(to_yaml(L(LabelWeights)(**table))))))
    assert torch.equal(built.weights, LabelWeights(**table).weights)


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([0.0, 1.0], [1.0], "2 values and 1 weights"),
        ([], [], "0 values"),
        ([0.0, 0.0], [1.0, 1.0], "must be finite and increase"),
        ([0.0, 1.0], [1.0, -1.0], "must be finite and not negative"),
    ],
)
def test_tables_that_cannot_be_are_named(values, weights, message):
    with pytest.raises(InputError, match=message):
        LabelWeights(values, weights)


def test_labels_without_a_density_are_named():
    with pytest.raises(InputError, match="2 finite labels with fewer than two values"):
        inverse_density([0.5, 0.5, float("nan")])
    with pytest.raises(InputError, match="smoothing must be positive"):
        inverse_density([0.0, 1.0], smoothing=0)
