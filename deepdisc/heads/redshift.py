"""Redshift head: a mixture density per object (Merz et al. 2026, Open J. Astrophysics 9, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from deepdisc.detector.pooling import ROIPooler
from deepdisc.heads.head import Head
from deepdisc.heads.photometry import AperturePhotometry
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances


class RedshiftHead(Head):
    """ROI features, E(B-V) and (optionally) aperture photometry -> a redshift PDF, truncated at z = 0.

    With `photometry=None` this is the published head: pooled features, flattened, E(B-V) appended, then
    `hidden[0] -> ... -> 3K` with tanh between. Otherwise photometric inputs pass through two small layers of their own
    and join before the last hidden layer, so that a handful of colours is not drowned by thousands of pooled features.

    Args:
        pooler: ROIPooler of the feature maps.
        in_channels: channels of those maps.
        hidden: widths of the hidden layers.
        num_components: K.
        photometry: measures the objects on the pixels themselves, or None.
        photometry_width: width of the photometric branch.
        sigma_min: floor of every component's sigma, keeps the likelihood bounded.
        loss_weight: factor of the loss.
    """

    columns = (
        "z_mode", "z_mean", "z_median", "z_q025", "z_q160", "z_q840", "z_q975", "z_odds",
        "z_weights", "z_means", "z_sigmas", "z_lower",
    )  # fmt: skip
    lower = 0.0

    def __init__(
        self,
        pooler: ROIPooler,
        in_channels: int,
        hidden: Sequence[int] = (1024, 64),
        num_components: int = 5,
        photometry: AperturePhotometry | None = None,
        photometry_width: int = 128,
        sigma_min: float = 0.003,
        loss_weight: float = 1.0,
    ):
        super().__init__()
        self.pooler = pooler
        self.photometry = photometry
        self.sigma_min = sigma_min
        self.loss_weight = loss_weight
        widths = [in_channels * pooler.output_size**2 + 1, *hidden]
        self.first = nn.Sequential(nn.Linear(widths[0], widths[1]), nn.Tanh())
        joined = widths[1]
        if photometry is not None:
            self.colors = nn.Sequential(
                nn.Linear(photometry.num_outputs + 1, photometry_width),
                nn.GELU(),
                nn.Linear(photometry_width, photometry_width),
                nn.GELU(),
            )
            joined += photometry_width
        layers: list[nn.Module] = []
        later = [joined, *widths[2:]]
        for before, after in pairwise(later):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.rest = nn.Sequential(*layers, nn.Linear(later[-1], 3 * num_components))
        self._start_broad(num_components)

    def _start_broad(self, k: int) -> None:
        """Begin with components spread over 0.1 < z < 1.5, so that none has to travel far or dies early."""
        last = self.rest[-1]
        nn.init.normal_(last.weight, std=0.01)
        with torch.no_grad():
            last.bias.zero_()
            last.bias[k : 2 * k] = torch.linspace(0.1, 1.5, k)
            last.bias[2 * k :] = -1.2

    def band_weights(self, order: Sequence[int]) -> dict[str, Tensor]:
        """What loading needs for bands in another order: see `deepdisc.training.loading.ReadsBands`."""
        if self.photometry is None:
            return {}
        ebv = torch.ones(1, 1)
        return {"colors.0.weight": torch.block_diag(self.photometry.band_mixing(order), ebv)}

    def forward(self, features: dict[str, Tensor], instances: list[Instances], box_field: str) -> Mixture:
        """PDFs of all objects of a batch, image after image.

        Args:
            features: feature maps by name; with photometry also the pixels "flux", "variance", "valid".
            instances: one per image, with the boxes and `ebv`.
            box_field: "proposal_boxes" or "pred_boxes".
        """
        boxes = [getattr(objects, box_field) for objects in instances]
        pooled = self.pooler(features, boxes).float()
        ebv = torch.cat([objects.ebv for objects in instances]).to(pooled)[:, None]
        # A colour needs more than the 8 bits of bfloat16, and these few layers cost nothing.
        with torch.autocast(pooled.device.type, enabled=False):
            hidden = self.first(torch.cat((pooled.flatten(1), ebv), dim=1))
            if self.photometry is not None:
                measured = self.photometry(features, instances, box_field).to(pooled)
                hidden = torch.cat((hidden, self.colors(torch.cat((measured, ebv), dim=1))), dim=1)
            raw = self.rest(hidden)
        return Mixture.from_raw(raw, lower=self.lower, sigma_min=self.sigma_min)

    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """Negative log-likelihood, mean over the foreground proposals that have a redshift; exactly 0 without any.

        A redshift below `lower` (blueshifted neighbours of the Milky Way) has no likelihood and counts as no label.
        """
        labelled = [
            objects[objects.gt_has_redshift & (objects.gt_redshift >= self.lower)]
            if objects.has("gt_has_redshift")
            else objects[:0]
            for objects in instances
        ]
        mixture = self.forward(features, labelled, "proposal_boxes")
        if len(mixture) == 0:
            return {"loss_redshift": mixture.logits.sum() * 0.0}
        truth = torch.cat([objects.gt_redshift for objects in labelled if len(objects)]).to(mixture.logits)
        return {"loss_redshift": -mixture.log_prob(truth).mean() * self.loss_weight}

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add `pred_redshift` (Mixture) to every image's objects, also where there are none."""
        mixture = self.forward(features, instances, "pred_boxes")
        start = 0
        for objects in instances:
            objects.pred_redshift = mixture[start : start + len(objects)]
            start += len(objects)
        return instances
