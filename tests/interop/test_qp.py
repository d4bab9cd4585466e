"""PDFs to qp and back, as mixtures and on grids."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from deepdisc.errors import InputError
from deepdisc.evaluation.pdf_columns import add_pdfs, read_pdfs
from deepdisc.interop.qp import from_qp, to_qp
from deepdisc.mixture import Mixture


def mixtures(lower, n=40):
    g = torch.Generator().manual_seed(3)
    mean, sigma = torch.rand(n, 3, generator=g) * 2, 0.02 + torch.rand(n, 3, generator=g) * 0.3
    return Mixture(torch.randn(n, 3, generator=g), mean, sigma, lower).to(torch.float64)


def test_mixtures_without_bound_pass_through_files_of_qp(tmp_path):
    qp = pytest.importorskip("qp", reason="needs the extra `pz`")
    mixture, x = mixtures(None), np.linspace(-0.5, 3, 50)
    ensemble = to_qp(mixture, ids=range(100, 140))
    np.testing.assert_allclose(ensemble.pdf(x), mixture[:, None].prob(torch.as_tensor(x)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ensemble.cdf(x), mixture[:, None].cdf(torch.as_tensor(x)), atol=1e-12)
    ensemble.write_to(str(tmp_path / "pdfs.hdf5"))
    assert list(qp.read(str(tmp_path / "pdfs.hdf5")).ancil["id"]) == list(range(100, 140))
    back = from_qp(tmp_path / "pdfs.hdf5")
    assert back.lower is None
    at = torch.as_tensor(x)
    assert torch.allclose(back[:, None].log_prob(at), mixture[:, None].log_prob(at), rtol=1e-10)


@pytest.mark.parametrize("n", [1, 40])
def test_truncated_densities_keep_their_probability_on_a_grid(n):
    pytest.importorskip("qp", reason="needs the extra `pz`")
    mixture, x = mixtures(0.0, n), np.linspace(0.01, 3, 300)
    ensemble = to_qp(mixture)
    assert np.abs(ensemble.cdf(x) - mixture[:, None].cdf(torch.as_tensor(x)).numpy()).max() < 1e-3
    assert np.all(ensemble.pdf(np.array([-0.01, -1.0])) == 0)
    # What evaluation makes of the ensemble is the same density.
    pdfs = read_pdfs(add_pdfs(pd.DataFrame({"id": np.arange(n)}), ensemble)).pdfs
    truth = mixture.sample(1, torch.Generator().manual_seed(1))[0]
    assert np.abs(pdfs.cdf(truth.numpy()) - mixture.cdf(truth).numpy()).max() < 1e-3
    np.testing.assert_allclose(pdfs.mean(), mixture.mean(), atol=1e-3)


def test_a_grid_of_the_users_is_kept_and_checked():
    pytest.importorskip("qp", reason="needs the extra `pz`")
    grid = np.linspace(0, 6, 3001)
    ensemble = to_qp(mixtures(0.0), grid=grid)
    assert np.array_equal(np.ravel(ensemble.metadata["xvals"]), grid)
    for bad in (grid[1:], grid[::-1], grid[:1]):
        with pytest.raises(InputError, match="begin at the bound 0"):
            to_qp(mixtures(0.0), grid=bad)


def test_what_cannot_be_converted_is_said():
    qp = pytest.importorskip("qp", reason="needs the extra `pz`")
    with pytest.raises(InputError, match="not Gaussian mixtures"):
        from_qp(to_qp(mixtures(0.0)))
    with pytest.raises(InputError, match="take one band at a time"):
        to_qp(mixtures(None).reshape(20, 2))
    with pytest.raises(InputError, match="3 ids for 40 PDFs"):
        to_qp(mixtures(None), ids=[1, 2, 3])
    bad = {"weights": [[0.5, 0.5]], "means": [[0.0, 1.0]], "stds": [[0.1, 0.0]]}
    with pytest.raises(InputError, match="1 of 1 PDFs: impossible PDF"):
        from_qp(qp.Ensemble(qp.mixmod, data={key: np.array(value) for key, value in bad.items()}))


def test_without_qp_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qp", None)
    with pytest.raises(InputError, match=r"deepdisc\[pz\]"):
        to_qp(mixtures(None))
