"""Redshift head: a mixture density per object (Merz et al. 2026, Open J. Astrophysics 9, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError, nearest
from deepdisc.heads.calibration import MixtureCalibration
from deepdisc.heads.head import Head
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances

LOSSES = ("nll", "crps", "point")
POINT_DELTA = 0.05  # of (z_mean - z) / (1 + z): where the point loss goes over from the square to the absolute value


class RedshiftHead(Head):
    """ROI features, E(B-V) and (optionally) measured fluxes and colours -> a redshift PDF, truncated at z = 0.

    With `photometry=None` this is the published head: pooled features, flattened, E(B-V) appended, then
    `hidden[0] -> ... -> 3K` with tanh between. Otherwise photometric inputs pass through two small layers of their own
    and join before the last hidden layer, so that a handful of colours is not drowned by thousands of pooled features.

    The loss is one of

    - "nll": the negative log-likelihood of the true redshift; the PDF's shape is learned sharply.
    - "crps": the continuous ranked probability score (Gneiting & Raftery 2007, J. Am. Stat. Assoc. 102, 359), in units
      of redshift. It is proper, too, and grows linearly with the error, not with its square over sigma^2: a few wrong
      redshifts among the labels do less harm.
    - "point": Huber's loss of (mean of the PDF - z) / (1 + z). **Only the mean is then learned**: widths and modes mean
      nothing, unless `deepdisc calibrate` fits them afterwards.

    Args:
        pooler: ROIPooler of the feature maps.
        in_channels: channels of those maps.
        hidden: widths of the hidden layers.
        num_components: K.
        photometry: `AperturePhotometry`, which measures the objects on the pixels, `FluxColours`, which reads what the
            flux head has measured, or another module with `num_outputs`, `band_mixing(order)` and
            `forward(features, instances, box_field)`; or None.
        photometry_width: width of the photometric branch.
        sigma_min: floor of every component's sigma, keeps the likelihood bounded.
        loss_weight: factor of the loss.
        loss: "nll", "crps" or "point".
        label_weights: true redshifts (n,) -> weights (n,) of the objects in the loss, see `LabelWeights`; they change
            the prior. None = all alike.
        start_range: lowest and highest mean of the components when training begins.
        exclude_flags: see `Head`.

    Raises:
        InputError: an unknown loss, no component, or a start_range that is none.
    """

    columns = (
        "z_mode", "z_mean", "z_median", "z_q025", "z_q160", "z_q840", "z_q975", "z_odds",
        "z_weights", "z_means", "z_sigmas", "z_lower",
    )  # fmt: skip
    calibrated: ClassVar[dict[str, str]] = {"pred_redshift": "redshift"}
    lower = 0.0

    def __init__(
        self,
        pooler: ROIPooler,
        in_channels: int,
        hidden: Sequence[int] = (1024, 64),
        num_components: int = 5,
        photometry: nn.Module | None = None,
        photometry_width: int = 128,
        sigma_min: float = 0.003,
        loss_weight: float = 1.0,
        loss: str = "nll",
        label_weights: Callable[[Tensor], Tensor] | None = None,
        start_range: Sequence[float] = (0.1, 1.5),
        exclude_flags: Sequence[str] = (),
    ):
        super().__init__(exclude_flags, loss_weight)
        _check_settings(loss, num_components, start_range)
        self.pooler = pooler
        self.photometry = photometry
        self.needs = tuple(getattr(photometry, "needs", ()))
        self.sigma_min = sigma_min
        self.loss = loss
        self.label_weights = label_weights
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
        self.calibration = MixtureCalibration()
        self._start_broad(num_components, *start_range)

    def _start_broad(self, k: int, low: float, high: float) -> None:
        """Begin with components spread over a range, so that none has to travel far or dies early."""
        last = self.rest[-1]
        nn.init.normal_(last.weight, std=0.01)
        with torch.no_grad():
            last.bias.zero_()
            last.bias[k : 2 * k] = torch.linspace(low, high, k) if k > 1 else (low + high) / 2
            last.bias[2 * k :] = -1.2 + math.log((high - low) / 1.4)

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
        """Mean loss over the foreground proposals that have a redshift; exactly 0 without any.

        A redshift below `lower` (blueshifted neighbours of the Milky Way) has no likelihood and counts as no label.
        """
        labelled = [
            objects[objects.gt_redshift >= self.lower] if len(objects) else objects
            for objects in self.labelled(instances, "redshift")
        ]
        mixture = self.forward(features, labelled, "proposal_boxes")
        if len(mixture) == 0:
            return {"loss_redshift": mixture.logits.sum() * 0.0}
        truth = torch.cat([objects.gt_redshift for objects in labelled if len(objects)]).to(mixture.logits)
        losses = self._score(mixture, truth)
        if self.label_weights is not None:
            losses = losses * self.label_weights(truth)
        return {"loss_redshift": losses.mean() * self.loss_weight}

    def _score(self, mixture: Mixture, truth: Tensor) -> Tensor:
        """The loss (R,) of each object."""
        if self.loss == "nll":
            return -mixture.log_prob(truth)
        if self.loss == "crps":
            return mixture.crps(truth)
        error = (mixture.mean() - truth) / (1 + truth)
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=POINT_DELTA) / POINT_DELTA

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add `pred_redshift` (Mixture) to every image's objects, also where there are none."""
        mixture = self.forward(features, instances, "pred_boxes")
        start = 0
        for objects in instances:
            objects.pred_redshift = mixture[start : start + len(objects)]
            start += len(objects)
        return instances


def _check_settings(loss: str, num_components: int, start_range: Sequence[float]) -> None:
    if loss not in LOSSES:
        close = nearest(str(loss), LOSSES)
        hint = f"; did you mean {close!r}?" if close else ""
        raise InputError(f"the redshift head's loss={loss!r} is not one of {', '.join(LOSSES)}{hint}")
    if type(num_components) is not int or num_components < 1:
        raise InputError(f"num_components={num_components}: a redshift PDF has at least one component")
    if len(start_range) != 2 or not 0 <= start_range[0] < start_range[1] < math.inf:
        raise InputError(f"start_range={list(start_range)} must be two redshifts, the lower one first: [0.1, 1.5]")
