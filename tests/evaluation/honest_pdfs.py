"""Redshift PDFs whose true redshifts are known to be drawn from them."""

import numpy as np
import pandas as pd

from deepdisc.mixture import Mixture


def catalogue(weights, means, sigmas, lower=0.0):
    """Rows with PDF columns and the mode."""
    mixture = Mixture.from_columns(weights, means, sigmas, None if np.isnan(lower) else lower)
    return pd.DataFrame(
        {
            "z_mode": mixture.mode().numpy(), "z_weights": list(weights), "z_means": list(means),
            "z_sigmas": list(sigmas), "z_lower": lower, "flags": 0,
        }
    )  # fmt: skip


def honest(n, seed=0, k=3):
    """Mixtures near the bound, and true redshifts drawn from them by rejection (not by the class under test)."""
    rng = np.random.default_rng(seed)
    weights, means, sigmas = (
        rng.dirichlet(np.ones(k), n),
        rng.uniform(-0.1, 1.5, (n, k)),
        rng.uniform(0.03, 0.4, (n, k)),
    )
    z = np.empty(n)
    for i in range(n):
        j = rng.choice(k, p=weights[i])
        z[i] = -1.0
        while z[i] < 0:
            z[i] = rng.normal(means[i, j], sigmas[i, j])
    return weights, means, sigmas, z
