"""Shear head: a 2-D Gaussian for (g1, g2) of every galaxy, whose mean is unbiased although its shape hides the shear.

A galaxy's own shape is ten times its shear. So a network trained to predict the shear of single galaxies returns about
0 (its error is smallest there): the multiplicative bias m is near -1. Here a statistic s that turns with the picture is
separated from its response R, as in metacalibration (Sheldon & Huff 2017, ApJ 841, 24):

    s   trained with the absolute error to be close to the galaxy's lensed shape, or to the shear itself;
    R   trained with the likelihood p(s | g, x) = N(s; R(x) g, S(x)), s held fixed: a regression of the noisy quantity
        on the exact one, which the noise does not bias. x are numbers that do not turn with the picture.
    g   is reported as N(s / R, S / R^2), the likelihood of a shear given the galaxy, shape noise included.

Galaxies that look alike (equal x) but for their orientation then average to their shear, whatever their mixture, and
also with weights 1 / sigma^2, for these depend on x alone; but to order g^3, and as well as the training skies resemble
the sky and R has been learned, which takes longer than s: `deepdisc calibrate` measures what is left. Train with shears
of both signs in both components up to 0.1 or so, and with ring pairs (`sky.lensing.ring_pairs`, an even batch size):
their shapes cancel in the gradient of R. An unweighted mean is worse: it divides by the responses of the faintest.

Legend: R objects (R(x) the response), C bands, S window side, P side of the PSF. Components are along the pixel axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepdisc.errors import InputError
from deepdisc.heads.calibration import ShearCalibration
from deepdisc.heads.head import Head
from deepdisc.heads.shape_network import ShapeNetwork
from deepdisc.heads.symmetry import MIRRORS, exchanged, mirrored, mirrored_windows, spin2_signs, symmetric_windows
from deepdisc.heads.windows import Windows, cut_windows
from deepdisc.mixture_multivariate import MultivariateMixture
from deepdisc.structures import Instances, box_centers

TARGETS = ("ellipticity", "shear")
LOG_RESPONSE = (-4.6, 0.7)  # 0.01 to 2: a statistic that hardly responds says nothing, and must not divide by 0
LOG_SIGMA = (-6.0, 1.0)
GRADIENT_SCALE = 0.05  # of a tile's side: below this distance a difference of two objects says nothing of a gradient


class ShearHead(Head):
    """The object's own pixels in all bands, and the PSF -> shear.

    Args:
        network: see `ShapeNetwork`.
        target: what the statistic is trained to predict. "ellipticity": the label `ellipticity`, the galaxy's lensed
            shape (a - b) / (a + b) before the PSF, which simulations know: hardly noisy, so it is learned fast, and
            the response is near 1. "shear": the label `shear` itself, as published; for data without shapes.
        classes: classes that have a shape to learn from, others (stars) are left out; None: all.
        mean_weight: w1, of the absolute error of the statistic.
        gradient_weight: w2, of `gradient_loss`; only with target "shear".
        likelihood_weight: of the likelihood that response and covariance are trained with.
        response: R(x) before training.
        exclude_flags: see `Head`.
        loss_weight: see `Head`.

    Raises:
        InputError: a setting that has no meaning.
    """

    columns = ("g1", "g2", "g1_err", "g2_err", "g12_cov")
    calibrated = {"pred_shear": "shear"}

    def __init__(
        self,
        network: ShapeNetwork,
        target: str = "ellipticity",
        classes: Sequence[int] | None = (0,),
        mean_weight: float = 1.0,
        gradient_weight: float = 0.0,
        likelihood_weight: float = 0.1,
        response: float = 0.6,
        exclude_flags: Sequence[str] = (),
        loss_weight: float = 1.0,
    ):
        super().__init__(exclude_flags, loss_weight)
        if target not in TARGETS:
            raise InputError(f"target={target!r}: choose {' or '.join(map(repr, TARGETS))}")
        if gradient_weight and target != "shear":
            raise InputError(
                f"gradient_weight={gradient_weight} compares the statistic with the field of shear: set "
                "target='shear', or gradient_weight=0"
            )
        weights = {"mean": mean_weight, "gradient": gradient_weight, "likelihood": likelihood_weight}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise InputError(f"{name}_weight={weight} must be finite and not negative")
        if not 0.01 <= response <= 2:
            raise InputError(f"response={response} must be between 0.01 and 2")
        self.network, self.target, self.weights = network, target, weights
        self.classes = None if classes is None else tuple(classes)
        hidden = 64
        self.scales = nn.Sequential(nn.Linear(network.num_invariants, hidden), nn.GELU(), nn.Linear(hidden, 4))
        nn.init.normal_(self.scales[-1].weight, std=0.01)
        with torch.no_grad():
            self.scales[-1].bias.copy_(torch.tensor([response, 0.25, 0.25, 1.0]).log())  # L21 = 0
        self.calibration = ShearCalibration()

    # ------------------------------------------------------------------------------------------------------- measuring
    def _checked(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features with a PSF, unknown where there was none.

        Raises:
            InputError: the detector gives no measured pixels, or those of another number of bands.
        """
        if "flux" not in features:
            raise InputError(
                "the shear head reads the measured pixels and their variance, which a detector without a stretch does "
                "not keep: set model.stretch, for example to NoiseStretch"
            )
        images, bands = features["flux"].shape[:2]
        if bands != self.network.num_bands:
            raise InputError(
                f"the shear head has num_bands={self.network.num_bands}, the images {bands} bands: set the one "
                "num_bands (or bands) at the top of the config"
            )
        return {"psf": features["flux"].new_zeros(images, bands, 3, 3), **features}

    def measure(self, windows: Windows, psf: Tensor) -> tuple[Tensor, Tensor]:
        """Statistic (R, 2) and what scales it (R, 4): log R, log L11, log L22, L21 / L22, L the Cholesky factor of S.

        Response and covariance are functions of what the network sees, yet do not change what it looks at.
        """
        # A shear of 1e-3 does not survive the 8 bits of bfloat16.
        with torch.autocast(windows.flux.device.type, enabled=False):
            statistic, invariants = self.network(windows, psf.float())
            return statistic, self.scales(invariants.detach())

    def shear(self, features: dict[str, Tensor], instances: list[Instances], box_field: str) -> MultivariateMixture:
        """Gaussians (R,) of the shear, averaged over the eight symmetries of the picture: exactly of spin 2."""
        features = self._checked(features)
        measured = [
            self._symmetric(views, features["psf"])
            for views in symmetric_windows(features, instances, box_field, self.network.window)
        ]
        nothing = (features["psf"].new_zeros(0, 2), features["psf"].new_zeros(0, 4))
        statistic, scales = (torch.cat(part) for part in zip(nothing, *measured, strict=True))
        response = _response(scales)
        return _gaussian(statistic / response[:, None], _cholesky(scales) / response[:, None, None])

    def _symmetric(self, views: list[Windows], psf: Tensor) -> tuple[Tensor, Tensor]:
        statistics, scales = 0.0, 0.0
        for mirror, windows in zip(MIRRORS, views, strict=True):
            turned = mirrored(psf[windows.image], *mirror)
            for exchange in (False, True):
                if exchange:
                    windows, turned = exchanged(windows), turned.transpose(-2, -1)
                signs, both = _signs(turned, mirror, exchange)
                statistic, scale = self.measure(windows, turned)
                statistics, scales = statistics + statistic * signs / 8, scales + scale * both / 8
        return statistics, scales

    def _any_view(self, windows: Windows, psf: Tensor) -> tuple[Tensor, Tensor]:
        """Statistic and scales of each object in one of its eight views, drawn at random, turned back."""
        count = len(windows)
        statistic, scales = psf.new_zeros(count, 2), psf.new_zeros(count, 4)
        view = torch.randint(8, (count,), device=psf.device)
        for number in range(8):
            here = (view == number).nonzero()[:, 0]
            mirror, exchange = MIRRORS[number // 2], bool(number % 2)
            some, turned = mirrored_windows(windows[here], *mirror), mirrored(psf[here], *mirror)
            if exchange:
                some, turned = exchanged(some), turned.transpose(-2, -1)
            signs, both = _signs(psf, mirror, exchange)
            found = self.measure(some, turned)
            statistic = statistic.index_copy(0, here, found[0] * signs)
            scales = scales.index_copy(0, here, found[1] * both)
        return statistic, scales

    # -------------------------------------------------------------------------------------------------------- learning
    def losses(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
        """`loss_shear` (w1), `loss_shear_likelihood` and, where it has a weight, `loss_shear_gradient` (w2).

        Each is the mean over the foreground proposals (over the images for the gradient) that have the label; exactly
        0 without any.
        """
        features, chosen = self._checked(features), self._learned_from(instances)
        windows = cut_windows(features, chosen, "proposal_boxes", self.network.window)
        statistic, scales = self._any_view(windows, features["psf"][windows.image])
        label, has_label = _labels(chosen, self.target, statistic)
        shear, has_shear = _labels(chosen, "shear", statistic)
        error = (statistic - label)[has_label].abs().sum(1)
        losses = {
            "loss_shear": self.weights["mean"] * _mean(error),
            "loss_shear_likelihood": self.weights["likelihood"]
            * _mean(-_log_likelihood(statistic.detach(), shear, scales)[has_shear]),
        }
        if self.weights["gradient"]:
            losses["loss_shear_gradient"] = self.weights["gradient"] * _mean(
                self._gradient_errors(chosen, statistic, shear, has_shear)
            )
        # Without labels all are 0, but every parameter still has a gradient.
        return {name: loss * self.loss_weight + 0.0 * (statistic.sum() + scales.sum()) for name, loss in losses.items()}

    def _learned_from(self, instances: list[Instances]) -> list[Instances]:
        """Of each image the objects of the right classes and flags with at least one of the two labels."""
        marked = []
        for objects in instances:
            objects = objects[:]
            known = [name for name in {self.target, "shear"} if objects.has(f"gt_has_{name}")]
            if known:
                has = torch.stack([objects.get(f"gt_has_{name}") for name in known]).any(0)
                if self.classes is not None:
                    has = has & torch.isin(objects.gt_classes, objects.gt_classes.new_tensor(self.classes))
                objects.gt_has_shape = has
            marked.append(objects)
        return self.labelled(marked, "shape")

    def _gradient_errors(self, chosen: list[Instances], statistic: Tensor, shear: Tensor, has_shear: Tensor) -> Tensor:
        """`gradient_loss` of each image with two objects or more."""
        errors = []
        parts = (part.split([len(objects) for objects in chosen]) for part in (statistic, shear, has_shear))
        for objects, found, true, has in zip(chosen, *parts, strict=True):
            if int(has.sum()) >= 2:
                place = box_centers(objects.proposal_boxes)[has] / max(objects.image_size)
                errors.append(gradient_loss(place, found[has], true[has]))
        return torch.stack(errors) if errors else statistic.new_zeros(0)

    def predict(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Add to every image's objects, also where there are none, `pred_shear`: Gaussians of (g1, g2)."""
        mixture = self.shear(features, instances, "pred_boxes")
        start = 0
        for objects in instances:
            objects.pred_shear = mixture[start : start + len(objects)]
            start += len(objects)
        return instances


# ------------------------------------------------------------------------------------------------------------- losses
def gradient_loss(place: Tensor, found: Tensor, true: Tensor) -> Tensor:
    """| grad ||g_hat|| - grad ||g|| |, summed over x and y, of the field of shear of one tile.

    The field is known where objects are. Its gradient is the slope of the plane that fits ||g|| best over the tile
    (shear fields are smooth on that scale), by least squares with a ridge of `GRADIENT_SCALE` squared, so that a close
    pair of objects does not give any slope. 0 for constant fields and for fewer than 2 objects.

    Args:
        place: (n, 2) x, y in units of the tile's side.
        found: (n, 2) predicted components.
        true: (n, 2) true ones.
    """
    if len(place) < 2:
        return found.sum() * 0.0
    x = place - place.mean(0)
    difference = torch.linalg.vector_norm(found, dim=1) - torch.linalg.vector_norm(true, dim=1)
    matrix = x.t() @ x / len(x) + GRADIENT_SCALE**2 * torch.eye(2, dtype=x.dtype, device=x.device)
    slope = torch.linalg.solve(matrix, x.t() @ (difference - difference.mean()) / len(x))
    return slope.abs().sum()


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(len(values), 1)


def _log_likelihood(statistic: Tensor, shear: Tensor, scales: Tensor) -> Tensor:
    """log N(s; R g, S) (R,)."""
    center = _response(scales)[:, None] * shear
    return _gaussian(center, _cholesky(scales)).log_prob(statistic)


def _gaussian(mean: Tensor, scale_tril: Tensor) -> MultivariateMixture:
    """One component with mean (R, 2) and Cholesky factor (R, 2, 2)."""
    return MultivariateMixture(mean.new_zeros(len(mean), 1), mean[:, None], scale_tril[:, None])


def _response(scales: Tensor) -> Tensor:
    return scales[:, 0].clamp(*LOG_RESPONSE).exp()


def _cholesky(scales: Tensor) -> Tensor:
    """(R, 2, 2) lower triangular factor of the statistic's covariance."""
    first, second = (scales[:, i].clamp(*LOG_SIGMA).exp() for i in (1, 2))
    rows = (torch.stack((first, torch.zeros_like(first)), 1), torch.stack((scales[:, 3] * second, second), 1))
    return torch.stack(rows, dim=1)


def _signs(like: Tensor, mirror: tuple[bool, bool], exchange: bool) -> tuple[Tensor, Tensor]:
    """Factors that turn a statistic (2,) and scales (4,) back: a covariance has the sign of g1 g2."""
    first, second = spin2_signs(*mirror, exchange)
    return like.new_tensor([first, second]), like.new_tensor([1.0, 1.0, 1.0, first * second])


def _labels(chosen: list[Instances], name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (R, 2), 0 where unknown, and whether they are known (R,)."""
    values, known = [like.new_zeros(0, 2)], [torch.zeros(0, dtype=torch.bool, device=like.device)]
    for objects in chosen:
        if objects.has(f"gt_has_{name}"):
            known.append(objects.get(f"gt_has_{name}"))
            values.append(objects.get(f"gt_{name}").to(like).masked_fill(~known[-1][:, None], 0.0))
        else:
            known.append(torch.zeros(len(objects), dtype=torch.bool, device=like.device))
            values.append(like.new_zeros(len(objects), 2))
    return torch.cat(values), torch.cat(known)
