"""A small residual network with spatial attention that measures the shape of one object on its own pixels.

What it returns is a spin-2 statistic (two numbers that turn with the picture) and numbers that do not turn. Its last
layer is not a flattened map but second moments: each of K positive attention maps, made by the network from all bands,
weights the plane like the light of an object of its own, and has an ellipticity. So a shape is there from the start,
and the network learns where to look and how to undo the PSF.

Legend: R objects, C bands, S window side, P side of the PSF, K attention maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepdisc.errors import InputError
from deepdisc.heads.windows import Windows

PSF_INPUTS = ("image", "shape", None)
BRIGHTNESS = 5.0  # factor that gives a stamp of signal-to-noise 1 per unit a peak of about 1
_FAINT = 3.0  # fainter stamps are not brightened further: only noise would grow


class ShapeNetwork(nn.Module):
    """Windows and PSF -> statistic (R, 2) and invariants (R, `num_invariants`).

    Residual blocks carry spatial attention (Woo et al. 2018, CBAM, section 3.2) as in ShearResNet; there is no
    normalisation over the stamp, for that would remove the noise level, which says how much to trust a pixel.

    Args:
        num_bands: C.
        window: S, a multiple of 4 plus 1, so that strided maps keep a middle.
        width: channels of the maps at half resolution; twice as many at a quarter.
        num_maps: K.
        hidden: width of the layers behind the maps.
        psf: "image": the PSF's picture as channels beside the stamp; "shape": its size and ellipticity join the last
            layers; None: not used.

    Raises:
        InputError: another `psf`, a window without a middle.
    """

    def __init__(
        self,
        num_bands: int,
        window: int = 33,
        width: int = 32,
        num_maps: int = 12,
        hidden: int = 64,
        psf: str | None = "image",
    ):
        super().__init__()
        if psf not in PSF_INPUTS:
            raise InputError(f"psf={psf!r}: choose 'image', 'shape' or None")
        if window < 9 or window % 4 != 1:
            raise InputError(f"window={window} must be a multiple of 4 plus 1 (25, 29, 33, ...): maps need a middle")
        self.num_bands, self.window, self.psf = num_bands, window, psf
        self.mix = nn.Linear(num_bands * (2 if psf == "image" else 1) + 1, width)
        self.stem = nn.Conv2d(width, width, 3, padding=1)
        self.fine = ResidualBlock(width, width, stride=2)
        self.coarse = nn.Sequential(ResidualBlock(width, 2 * width, stride=2), ResidualBlock(2 * width, 2 * width))
        self.lateral = nn.Conv2d(2 * width, width, 1)
        self.maps = nn.Conv2d(width, num_maps, 1)
        self.scalars = nn.Linear(num_bands * (4 if psf == "shape" else 2) + 3, hidden)
        self.num_invariants = hidden + 2 * width + 2 * num_maps
        self.psf_shapes = nn.Linear(num_bands, num_maps, bias=False) if psf == "shape" else None
        spin2 = num_maps * (2 if psf == "shape" else 1)
        self.gates = nn.Sequential(nn.Linear(self.num_invariants, hidden), nn.GELU(), nn.Linear(hidden, spin2 + 2))
        with torch.no_grad():  # start as the mean ellipticity of the maps, not corrected for the PSF
            self.gates[-1].weight.mul_(0.1)
            self.gates[-1].bias.zero_()
            self.gates[-1].bias[:num_maps] = 1.0 / num_maps

    def band_weights(self, order: list[int]) -> dict[str, Tensor]:
        """What loading needs for bands in another order: see `deepdisc.training.loading.ReadsBands`."""
        place = sorted(range(self.num_bands), key=lambda band: order[band])
        bands = torch.eye(self.num_bands)[place]
        weights = {
            "mix.weight": torch.block_diag(*[bands] * (2 if self.psf == "image" else 1), torch.ones(1, 1)),
            "scalars.weight": torch.block_diag(*[bands] * (4 if self.psf == "shape" else 2), torch.eye(3)),
        }
        return weights | ({"psf_shapes.weight": bands} if self.psf == "shape" else {})

    def forward(self, windows: Windows, psf: Tensor) -> tuple[Tensor, Tensor]:
        """Measure R objects.

        Args:
            windows: of side S.
            psf: (R, C, P, P), unit sum, zero where unknown, turned as the windows are.
        """
        axes = windows.axes()
        stamp, measured = _stamps(windows, axes)
        channels, spin2 = [stamp, _gaussian(axes, _radius(windows, 0.5, 2.0))[:, None]], []
        if self.psf == "image":
            peak = psf.amax((-2, -1), keepdim=True).clamp(min=1e-6)
            channels.insert(1, binned_psf(psf, windows.binning, self.window) / peak)
        elif self.psf == "shape":
            size, known, ellipticity = psf_shapes(psf, windows.binning)
            measured = torch.cat((size, known, measured), dim=1)
            spin2.append(self.psf_shapes(ellipticity.transpose(1, 2)).transpose(1, 2))
        scalars = self.scalars(measured)
        x = F.conv2d(torch.cat(channels, dim=1), self.mix.weight[..., None, None], self.mix.bias)
        fine = self.fine(self.stem(F.relu(x)))
        coarse = self.coarse(fine)
        raised = F.interpolate(self.lateral(coarse), fine.shape[-2:], mode="bilinear", align_corners=True)
        maps = F.softplus(self.maps(F.relu(fine + raised)))
        # Light far outside of the box is a neighbour's, and its square distance would drown the object's.
        maps = maps * _gaussian(tuple(axis[:, ::2] for axis in axes), _radius(windows, 0.6, 3.0))[:, None]
        ellipticity, light, size = _moments(maps, axes, self.window)
        spin2.insert(0, ellipticity)
        invariants = torch.cat((scalars, coarse.mean((-2, -1)), light, size), dim=1)
        gates = self.gates(invariants)
        shapes = torch.cat(spin2, dim=1)
        statistic = (gates[:, :-2, None] * shapes).sum(1) + gates[:, -2:]
        return statistic, invariants


class ResidualBlock(nn.Module):
    """Two convolutions, weighted by a spatial attention map, added to their input (averaged down by the stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.attention = nn.Conv2d(2, 1, 5, padding=2)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(R, I, s, s) -> (R, O, ceil(s / stride), ceil(s / stride))."""
        y = self.conv2(F.relu(self.conv1(F.relu(x))))
        summary = torch.cat((y.mean(1, keepdim=True), y.amax(1, keepdim=True)), dim=1)
        return self.skip(x[..., :: self.stride, :: self.stride]) + y * torch.sigmoid(self.attention(summary))


# ------------------------------------------------------------------------------------------------------------- stamps
def _stamps(windows: Windows, axes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Pixels in units of the noise and of the object's brightness (R, C, S, S), and numbers about them (R, 2 C + 3).

    Each band is divided by one noise for the whole window: dividing every pixel by its own would change the shape of
    objects whose photon noise the variance includes. The numbers: asinh of the signal-to-noise in a Gaussian of the
    box's size and share of valid pixels, for each band; then logarithms of the total signal-to-noise, of the box's side
    and of the binning.
    """
    valid = windows.valid.float()
    share = valid.mean((-2, -1))
    noise = (windows.variance.sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)).sqrt()
    scale = torch.where(noise > 0, 1 / noise.clamp(min=1e-20), torch.zeros_like(noise))
    relative = windows.flux * scale[..., None, None]
    weight = _gaussian(axes, _radius(windows, 0.25, 1.2))[:, None] * valid
    snr = (weight * relative).sum((-2, -1)) / weight.square().sum((-2, -1)).clamp(min=1e-3).sqrt()
    total = snr.clamp(min=0).square().sum(1).sqrt()
    # Linear in the object's own light; asinh, so that a neighbour a thousand times brighter does not shout it down.
    stamp = torch.asinh(relative * (BRIGHTNESS / total.clamp(min=_FAINT))[:, None, None, None])
    numbers = torch.stack((total.clamp(min=0.1).log(), _radius(windows, 1.0, 1.0).log(), windows.binning.log2()), dim=1)
    return stamp, torch.cat((torch.asinh(snr) / 3, share, numbers / 3), dim=1)


def _radius(windows: Windows, factor: float, least: float) -> Tensor:
    """(R,) that part of the box's side (geometric mean: the same for the turned box), at least so many pixels."""
    return (windows.box.clamp(min=1).prod(1).sqrt() * factor).clamp(min=least)


def _gaussian(axes: tuple[Tensor, Tensor], sigma: Tensor) -> Tensor:
    """(R, s, s) round Gaussian of width (R,) around the box centre, 1 at its peak; `axes` (R, s) in pixels."""
    x, y = ((-0.5 * (axis / sigma[:, None]).square()).exp() for axis in axes)
    return y[:, :, None] * x[:, None, :]


def _moments(maps: Tensor, axes: tuple[Tensor, Tensor], window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ellipticity (R, K, 2), log of the sum (R, K) and log of the size (R, K) of positive maps, about their centres.

    With second moments Q about the centroid, e = (Qxx - Qyy, 2 Qxy) / (Qxx + Qyy).
    """
    x, y = (axis[:, None, ::2] / (window / 4) for axis in axes)  # (R, 1, s)
    along_x, along_y = maps.sum(-2), maps.sum(-1)
    total = along_x.sum(-1).clamp(min=1e-12)
    mean_x, mean_y = (along_x * x).sum(-1) / total, (along_y * y).sum(-1) / total
    x, y = x - mean_x[..., None], y - mean_y[..., None]  # (R, K, s)
    xx, yy = (along_x * x.square()).sum(-1) / total, (along_y * y.square()).sum(-1) / total
    xy = torch.einsum("rkyx,rkx,rky->rk", maps, x, y) / total
    size = (xx + yy).clamp(min=1e-6)
    return torch.stack((xx - yy, 2 * xy), dim=-1) / size[..., None], total.log() / 3, size.log() / 3


# ---------------------------------------------------------------------------------------------------------------- PSF
def binned_psf(psf: Tensor, binning: Tensor, size: int) -> Tensor:
    """PSFs (R, C, P, P) in the pixels of windows (R, C, size, size), their centre in the middle, cut or padded.

    An even number b of pixels has no middle pixel: there the sum is over b + 1, of which the outer two count half.
    """
    result = psf.new_zeros((*psf.shape[:2], size, size))
    for b in binning.unique().tolist():
        here = (binning == b).nonzero()[:, 0]
        reach = min(size // 2, -(-(psf.shape[-1] // 2) // b))
        pad = b * reach + b // 2 - psf.shape[-1] // 2
        kernel = psf.new_ones(b + (b > 1))
        if b > 1:
            kernel[[0, -1]] = 0.5
        picture = F.pad(psf[here].flatten(0, 1)[:, None], (pad,) * 4)
        summed = F.conv2d(picture, (kernel[:, None] * kernel)[None, None], stride=b)
        middle = slice(size // 2 - reach, size // 2 + reach + 1)
        result[here, :, middle, middle] = summed.reshape(len(here), psf.shape[1], *summed.shape[-2:])
    return result


def psf_shapes(psf: Tensor, binning: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the PSF's size in binned pixels (R, C), whether it is known (R, C), and its ellipticity (R, C, 2).

    The size is the sigma of the Gaussian of equal noise-equivalent area 1 / sum(p^2) (King 1983, PASP 95, 163); it is
    also the width of the weight under the moments, which keeps the wings out. Zeros where unknown.
    """
    known = (psf.sum((-2, -1)) > 0).float()
    area = 1 / psf.square().sum((-2, -1)).clamp(min=1e-9)
    sigma = (area / 12.566).sqrt().clamp(0.3, psf.shape[-1])
    place = torch.arange(psf.shape[-1], dtype=psf.dtype, device=psf.device) - psf.shape[-1] // 2
    falloff = (-0.5 * (place / sigma[..., None]).square()).exp()
    light = psf * falloff[..., :, None] * falloff[..., None, :]
    total = light.sum((-2, -1)).clamp(min=1e-9)
    xx, yy = ((light.sum(axis) * place.square()).sum(-1) / total for axis in (-2, -1))
    xy = torch.einsum("rcyx,y,x->rc", light, place, place) / total
    ellipticity = torch.stack((xx - yy, 2 * xy), dim=-1) / (xx + yy).clamp(min=1e-9)[..., None]
    size = (sigma / binning[:, None]).log() * known
    return size, known, ellipticity
