"""The place and the shape of the cloud of known objects in the space of their features.

Legend: N objects, D numbers that describe one.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUANTILE = 0.999


def fit_novelty(described: Tensor, half: Tensor) -> dict[str, Tensor]:
    """Values of a `deepdisc.heads.novelty.Distance`.

    Center and covariance are those of the first half. The covariance is drawn towards its diagonal by `D / (D + N)`, so
    that few objects do not make it singular. The threshold is the distance that 0.1 % of the second half exceed, which
    had no part in the covariance: a small N makes it larger, never too small.

    Args:
        described: (N, D).
        half: (N,) bool.
    """
    known, others = described[half].double(), described[~half].double()
    center = known.mean(0)
    spread = known - center
    covariance = spread.T @ spread / max(len(known) - 1, 1)
    share = described.shape[1] / (described.shape[1] + len(known))
    diagonal = covariance.diagonal()
    diagonal = diagonal.clamp(min=1e-6 * float(diagonal.mean()) + 1e-30)  # of a feature that never varies
    covariance = (1 - share) * covariance + torch.diag(share * diagonal)
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
    distance = torch.linalg.vector_norm((others - center) @ whitening.T, dim=1)
    values = {"center": center, "whitening": whitening, "threshold": distance.quantile(QUANTILE)}
    return {name: value.float() for name, value in values.items()}
