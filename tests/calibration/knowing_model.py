"""A detector that is told the truth with each tile, and heads whose probabilities are dishonest in a known way."""

from __future__ import annotations

import torch
from torch import nn

from deepdisc.heads.calibration import MixtureCalibration, ShearCalibration
from deepdisc.heads.head import Head
from deepdisc.heads.novelty import Distance
from deepdisc.mixture import Mixture
from deepdisc.mixture_multivariate import MultivariateMixture

TOO_NARROW = 2.0  # true scatter of fluxes over what their PDFs say
RESPONSE = 0.7


class Flux(Head):
    calibrated = {"pred_flux": "flux"}

    def __init__(self, num_bands):
        super().__init__()
        self.calibration = MixtureCalibration(num_bands)


class Redshift(Head):
    calibrated = {"pred_redshift": "redshift"}

    def __init__(self):
        super().__init__()
        self.calibration = MixtureCalibration()


class Shear(Head):
    calibrated = {"pred_shear": "shear"}

    def __init__(self):
        super().__init__()
        self.calibration = ShearCalibration()


class Novelty(Head):
    def __init__(self):
        super().__init__()
        self.description = nn.Identity()
        self.distance = Distance(2)


class Heads(nn.Module):
    def __init__(self, num_bands):
        super().__init__()
        self.heads = nn.ModuleDict(
            {"flux": Flux(num_bands), "redshift": Redshift(), "shear": Shear(), "novelty": Novelty()}
        )

    def all_heads(self):
        return dict(self.heads.items())


class KnowingDetector(nn.Module):
    def __init__(self, num_bands=2):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.roi_heads = Heads(num_bands)

    def forward(self, records):
        return [{"instances": self.detect(record)} for record in records]

    def detect(self, record):
        truth = record["instances"]
        noise = torch.Generator().manual_seed(int(record["tile"]))

        def normal(*shape):
            return torch.randn(shape, generator=noise)

        found = type(truth)(truth.image_size, pred_boxes=truth.gt_boxes, scores=torch.ones(len(truth)))
        if truth.has("gt_flux"):
            flux = truth.gt_flux
            mean = flux + TOO_NARROW * 20.0 * normal(*flux.shape)
            found.pred_flux = Mixture(flux[..., None] * 0, mean[..., None], torch.full_like(flux, 20.0)[..., None])
            found.pred_flux_measured = torch.ones(flux.shape, dtype=torch.bool)
        if truth.has("gt_redshift"):
            z = truth.gt_redshift.nan_to_num(0.5)[:, None]
            found.pred_redshift = Mixture(z * 0, z + 0.05 * normal(*z.shape), z * 0 + 0.05, 0.0)
        if truth.has("gt_shear"):
            g = RESPONSE * truth.gt_shear + 0.02 * normal(len(truth), 2)
            tril = (0.02 * torch.eye(2)).expand(len(truth), 1, 2, 2)
            found.pred_shear = MultivariateMixture(torch.zeros(len(truth), 1), g[:, None], tril)
        described = self.roi_heads.heads["novelty"].description(normal(len(truth), 2) * torch.tensor([1.0, 30.0]) + 5)
        found.pred_novelty = self.roi_heads.heads["novelty"].distance(described)
        for head in self.roi_heads.all_heads().values():
            if all(found.has(name) for name in head.calibrated):
                head.calibrate([found])
        return found
