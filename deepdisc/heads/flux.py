"""Flux head: for every object and band a PDF of the total flux in nJy (Cabayol et al. 2021, arXiv:2104.02778).

A network alone knows absolute fluxes poorly: they span six decades. So it does not predict them. It draws the object's
profile and its neighbours' light in every band (`ProfileNetwork`), whose amplitudes in the measured pixels are a linear
least-squares solution (`fit_templates`): with the true profile, the unbiased linear estimate of highest
signal-to-noise. Then it corrects this flux and its error by factors that have no unit. An image of other units, 1000
times as bright and noisy, gives exactly the same PDF in those units.

Legend: R objects of all images one after the other, C bands, K components, S window side in (binned) pixels. F0 is the
fitted flux, sigma0 its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError
from deepdisc.heads.calibration import MixtureCalibration
from deepdisc.heads.flux_inputs import (
    BAND_NUMBERS,
    PIXEL_MAPS,
    ROUGH_NUMBERS,
    SHAPE_NUMBERS,
    SHARED_MAPS,
    SHARED_NUMBERS,
    FluxInputs,
)
from deepdisc.heads.head import Head
from deepdisc.heads.profiles import BandInput, BandOutput, ProfileNetwork, moffat_logits
from deepdisc.heads.template_fit import Fit, fit_templates
from deepdisc.heads.windows import iterate_windows
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances

RELATIVE_UNIT = 0.05  # share of the flux that a loss takes for its unit, beside the noise
OUTLIER = 1e-3  # share of labels that may be anywhere; bounds what a wrong one costs


class FluxHead(Head):
    """Profiles from a network, fluxes by least squares, corrections from a network.

    Component k of a band has the mean `F0 (1 + 0.3 r_k) + d_k sigma0` and the variance
    `(sigma0 e^s_k)^2 + (F0 e^t_k)^2`, with corrections r, d, s, t and weights from the network.

    Args:
        num_bands: C.
        num_components: K.
        window: S, 4 n + 1. Objects whose box is longer than half of it are seen in summed pixels, see `cut_windows`.
        widths: channels of the profile network at full, half and quarter resolution.
        hidden: width of the two layers that make the corrections.
        pooler: also use the backbone's features, pooled by this; None for the measured pixels alone.
        in_channels: channels of these features.
        truncated: the PDFs have no probability below 0, as true fluxes have none (it matters for faint objects only),
            and labels below 0 count as none.
        exclude_flags: see `Head`.
        loss_weight: see `Head`.
    """

    columns = ()
    adds = ("pred_flux", "pred_flux_measured")
    calibrated: ClassVar[dict[str, str]] = {"pred_flux": "flux"}

    def __init__(
        self,
        num_bands: int,
        num_components: int = 4,
        window: int = 33,
        widths: tuple[int, int, int] = (16, 32, 64),
        hidden: int = 128,
        pooler: ROIPooler | None = None,
        in_channels: int = 0,
        truncated: bool = False,
        exclude_flags: tuple[str, ...] = (),
        loss_weight: float = 1.0,
    ):
        super().__init__(exclude_flags, loss_weight)
        if window % 4 != 1:
            raise InputError(f"window={window}: the flux head needs 4 n + 1 pixels, for example 33")
        self.num_bands, self.num_components, self.window = num_bands, num_components, window
        self.pooler, self.truncated = pooler, truncated
        context = widths[2] if pooler is not None else 0
        self.pooled = nn.Linear(in_channels * pooler.output_size**2, context) if pooler is not None else None
        self.profiles = ProfileNetwork(num_bands, PIXEL_MAPS, SHARED_MAPS, 2, widths, context)
        self.describe = BandInput(num_bands, ROUGH_NUMBERS, SHAPE_NUMBERS + widths[2], widths[2])
        self.parameters_of_profiles = BandOutput(num_bands, 8, widths[2], own=ROUGH_NUMBERS)
        self.first = BandInput(num_bands, BAND_NUMBERS, SHARED_NUMBERS + widths[2], hidden)
        self.second = nn.Linear(hidden, hidden)
        self.corrections = BandOutput(num_bands, 4 + 5 * num_components, hidden, own=BAND_NUMBERS)
        self.calibration = MixtureCalibration(num_bands)
        self._start()

    def _start(self) -> None:
        """Begin with components that differ in width, so that bright objects are no outliers."""
        k = self.num_components
        spread = torch.linspace(-1, 1, k)
        own = torch.stack([-spread, 0 * spread, 0 * spread, 0.2 * spread, 1.5 * spread]).flatten()
        with torch.no_grad():
            self.corrections.bias.copy_(torch.cat((torch.tensor([0.0, 0, 0, -3]), own)).repeat(self.num_bands)[None])

    # -------------------------------------------------------------------------------------------------------- one pass
    def forward(self, features: dict[str, Tensor], instances: list[Instances], box_field: str) -> _Measured:
        """Measure all objects of a batch.

        Args:
            features: "flux", "variance", "valid" and, where known, "psf"; see `Head`.
            instances: one per image.
            box_field: "proposal_boxes" or "pred_boxes".

        Raises:
            InputError: the detector gives no measured pixels, or those of another number of bands.
        """
        if "flux" not in features:
            raise InputError(
                "the flux head reads the measured pixels and their variance, which a detector without a stretch does "
                "not keep: set model.stretch, for example to NoiseStretch"
            )
        if features["flux"].shape[1] != self.num_bands:
            raise InputError(
                f"the flux head has num_bands={self.num_bands}, the images {features['flux'].shape[1]} bands: set the "
                "one num_bands (or bands) at the top of the config"
            )
        context = None
        if self.pooler is not None:
            boxes = [getattr(objects, box_field) for objects in instances]
            context = self.pooled(self.pooler(features, boxes).flatten(1)).relu()
        parts, start = [], 0
        for windows in iterate_windows(features, instances, box_field, self.window):
            chosen = None if context is None else context[start : start + len(windows)]
            parts.append(self._measure(FluxInputs(windows, features.get("psf")), chosen))
            start += len(windows)
        return _Measured.cat(parts) if parts else self._nothing(features["flux"])

    def _nothing(self, flux: Tensor) -> _Measured:
        """PDFs of no objects."""
        empty = flux.new_zeros((0, self.num_bands, self.num_components), dtype=torch.float32)
        pdf = Mixture(empty, empty, empty + 1, self._lower)
        return _Measured(pdf, empty[..., 0] > 0, empty[..., 0])

    @property
    def _lower(self) -> float | None:
        return 0.0 if self.truncated else None

    def _measure(self, seen: FluxInputs, context: Tensor | None) -> _Measured:
        maps, summary = self.profiles(seen.maps(), context)
        # A flux needs more than the 8 bits of bfloat16.
        with torch.autocast(maps.device.type, enabled=False):
            templates, ridge = self._templates(maps.float(), summary.float(), seen)
            fit = fit_templates(templates, seen.pixels, seen.weight, ridge)
            model = (templates * fit.amplitude[..., None, None]).sum(2)
            residual = (seen.pixels - model) * seen.weight.sqrt()
            numbers, shared = seen.numbers(fit, templates[:, :, 0], residual)
            hidden = self.first(torch.cat((numbers.flatten(1), shared, summary), dim=1)).relu()
            hidden = hidden + self.second(hidden).relu()
            pdf = self._pdf(self.corrections(hidden, numbers), fit, seen.scale)
            return _Measured(pdf, seen.measured, seen.rough[..., 1] * seen.scale)

    def _templates(self, maps: Tensor, summary: Tensor, seen: FluxInputs) -> tuple[Tensor, Tensor]:
        """Templates (R, C, 3, S, S) of the object, its neighbours and the sky, each of sum 1; ridges (R, C, 3)."""
        numbers, shape = seen.rough_numbers()
        described = self.describe(torch.cat((numbers.flatten(1), shape, summary), dim=1)).relu()
        parameters = self.parameters_of_profiles(described, numbers)
        own = moffat_logits(parameters[..., :6], seen.center, seen.shape, seen.axes)
        start = torch.stack((own, seen.surroundings[:, None].expand_as(own)), dim=2)
        light = (maps + start).flatten(-2).softmax(-1).unflatten(-1, maps.shape[-2:])
        sky = torch.full_like(light[:, :, :1], 1 / self.window**2)
        # The neighbours' light and the sky are held near 0 until the network has learned to see them.
        ridge = (parameters[..., 6:] + 1).clamp(-12, 12).exp()
        return torch.cat((light, sky), dim=2), torch.cat((torch.zeros_like(ridge[..., :1]), ridge), dim=-1)

    def _pdf(self, raw: Tensor, fit: Fit, scale: Tensor) -> Mixture:
        """PDFs (R, C), nJy.

        Args:
            raw: (R, C, 4 + 5 K): r, d, s, t of all components, then of each one its log-weight and r, d, s, t on top.
            fit: in units of `scale`.
            scale: (R, C) nJy.
        """
        logits, *own = raw[..., 4:].unflatten(-1, (5, self.num_components)).unbind(-2)
        r, d, s, t = (shared[..., None] + one for shared, one in zip(raw[..., :4].unbind(-1), own, strict=True))
        flux, sigma = fit.amplitude[..., :1], fit.sigma[..., None]
        mean = flux * (1 + 0.3 * r) + d * sigma
        spread = ((sigma * s.clamp(-2, 6).exp()).square() + (flux * t.clamp(-9, 2).exp()).square()).sqrt()
        return Mixture(logits, mean * scale[..., None], spread * scale[..., None], self._lower)

    # -------------------------------------------------------------------------------------------------- the head's duty
    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """`loss_flux`, the mean negative log-likelihood of the labelled, measured bands; see `Head.losses`."""
        found = self.forward(features, instances, "proposal_boxes")
        self._add(instances, found.pdf.detach(), found.measured)
        rows, truth, known = self._labels(instances, found)
        if known.any():
            loss = _robust_nll(found.pdf[rows][known], truth[known], found.noise[rows][known]).mean()
        else:
            loss = sum(parameter.sum() for parameter in self.parameters()) * 0.0
        return {"loss_flux": loss * self.loss_weight}

    def _labels(self, instances: list[Instances], found: _Measured) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (L,) of the labelled objects, their fluxes (L, C) nJy, and which of these count (L, C)."""
        numbered, start = [], 0
        for objects in instances:
            row = torch.arange(start, start + len(objects), device=found.measured.device)
            numbered.append(Instances(objects.image_size, **objects.fields(), row=row))
            start += len(objects)
        labelled = [objects for objects in self.labelled(numbered, "flux") if len(objects)]
        if not labelled:
            none = found.measured[:0]
            return torch.zeros(0, dtype=torch.int64, device=none.device), none.float(), none
        rows = torch.cat([objects.row for objects in labelled])
        truth = torch.cat([objects.gt_flux for objects in labelled]).to(found.noise)
        known = torch.cat([objects.gt_has_flux for objects in labelled]).to(rows.device) & found.measured[rows]
        if self.truncated:
            known = known & (truth >= 0)
        return rows, truth, known

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add `pred_flux` (Mixture of batch shape (n, C), nJy) and `pred_flux_measured` (n, C)."""
        found = self.forward(features, instances, "pred_boxes")
        self._add(instances, found.pdf, found.measured)
        return instances

    @staticmethod
    def _add(instances: list[Instances], pdf: Mixture, measured: Tensor) -> None:
        start = 0
        for objects in instances:
            stop = start + len(objects)
            objects.pred_flux, objects.pred_flux_measured = pdf[start:stop], measured[start:stop]
            start = stop


@dataclass
class _Measured:
    """What one pass gives.

    Attributes:
        pdf: batch shape (R, C), nJy.
        measured: (R, C) bool; a band that is not has a PDF without meaning, but no NaN.
        noise: (R, C) nJy, error of an ordinary flux in the box.
    """

    pdf: Mixture
    measured: Tensor
    noise: Tensor

    @staticmethod
    def cat(items: list[_Measured]) -> _Measured:
        parts = ((getattr(item, name) for item in items) for name in ("measured", "noise"))
        return _Measured(Mixture.cat([item.pdf for item in items]), *(torch.cat(list(part)) for part in parts))


def _robust_nll(pdf: Mixture, truth: Tensor, noise: Tensor) -> Tensor:
    """-log density (M,) at the true fluxes (M,), with a small share of labels that are Cauchy-distributed about it.

    The density is per unit of flux that makes it a number of order 1: the noise (M,), or 5 % of the flux.
    """
    unit = torch.hypot(noise, RELATIVE_UNIT * truth)
    center = (pdf.weights * pdf.component_mean).sum(-1)
    anywhere = -torch.log1p(((truth - center) / unit).square()) - math.log(math.pi / OUTLIER)
    return -torch.logaddexp(pdf.log_prob(truth) + unit.log(), anywhere)
