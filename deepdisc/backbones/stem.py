"""A pretrained first convolution for other bands than it was trained with.

Legend: M = bands of the file, N = bands of the model, O = output channels. A kernel (O, M, k, k) is the sum of a *grey*
part, its mean over the bands, and a *colour* part, the deviations of the bands from it, which add up to zero. The grey
part is spread evenly over the N bands and only the colour part depends on the method, so that the response to a grey
image (the same picture in every band) is kept by all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepdisc.errors import InputError

METHODS = ("mean", "repeat", "wavelength")
# Of the three channels of a photograph: where the sensitivities of the eye and of common cameras have their centres.
PHOTOGRAPH_UM = {"red": 0.64, "green": 0.55, "blue": 0.46}

LONGEST_UM = 100.0  # longer ones are nanometres or Angstrom


class BandAdapter:
    """Makes first convolutions for the model's bands out of those of a file.

    A band that the file knows by name keeps its colour, wherever it stands; a band that the model lacks is dropped; the
    others are made by the method:

    - "mean": no colour of their own, the mean over the file's bands.
    - "repeat": the file's bands in turn.
    - "wavelength": interpolated linearly between the file's bands; beyond the outermost ones, these.
    """

    def __init__(
        self,
        method: str = "mean",
        wavelengths_um: Mapping[str, float] | None = None,
        file_bands: Sequence[str] | None = None,
    ):
        """Choose how.

        Args:
            method: "mean", "repeat" or "wavelength".
            wavelengths_um: effective wavelength (micrometre) by band name, for "wavelength": of the model's bands, and
                of the file's unless these are red, green and blue.
            file_bands: names of the file's bands in its order; None for what the file says itself.

        Raises:
            InputError: another method, a wavelength that is not one in micrometres, or names that are none.
        """
        if method not in METHODS:
            raise InputError(f"method={method!r} is no way to adapt bands: choose one of {', '.join(METHODS)}")
        self.method = method
        self.wavelengths_um = PHOTOGRAPH_UM | _wavelengths_um(wavelengths_um or {})
        self.has_wavelengths = bool(wavelengths_um)
        self.file_bands = None if file_bands is None else _names(file_bands)

    def __call__(self, kernel: Tensor, file_bands: Sequence[str] | None, bands: Sequence[str] | int) -> Tensor:
        """Adapt a kernel.

        Args:
            kernel: (O, M, k, k).
            file_bands: the M names, or None where nobody knows them.
            bands: the model's N names; or only their number.

        Returns:
            (O, N, k, k) of the kernel's type. Its sum over the bands is that of `kernel`; bands that are only
            re-ordered are copied bit for bit.

        Raises:
            InputError: the number of names is not M, a wavelength is needed that nobody gave, or two bands of the file
                have the same one.
        """
        if file_bands is not None and len(file_bands) != kernel.shape[1]:
            raise InputError(
                f"{len(file_bands)} bands are named ({', '.join(file_bands)}), but the file's first convolution reads "
                f"{kernel.shape[1]}: name each in train.init_bands.file_bands, in the file's order"
            )
        names = [] if isinstance(bands, int) else list(bands)
        number = bands if isinstance(bands, int) else len(names)
        order = [file_bands.index(name) if file_bands and name in file_bands else None for name in names]
        if None not in order and sorted(order) == list(range(kernel.shape[1])):
            return kernel[:, order].clone()
        mixing = torch.zeros((number, kernel.shape[1]), dtype=torch.float64)
        known = [i for i, source in enumerate(order) if source is not None]
        absent = [i for i in range(number) if i not in known]
        mixing[known, [order[i] for i in known]] = 1
        if absent:
            mixing[absent] = self._mixing(kernel.shape[1], file_bands, names, absent)
        # N bands that repeat M colours would answer N / M times as strongly to a coloured source.
        return _recompose(kernel, mixing, 1.0 if known else kernel.shape[1] / number)

    def _mixing(self, given: int, file_bands: Sequence[str] | None, names: Sequence[str], absent: list[int]) -> Tensor:
        """(len(absent), M): how much of the colour of each band of the file those bands of the model get."""
        if self.method == "mean":
            return torch.zeros((len(absent), given), dtype=torch.float64)
        if self.method == "repeat":
            return torch.eye(given, dtype=torch.float64)[torch.tensor(absent) % given]
        if not names or file_bands is None:
            whose = "the model's bands (bands=[...])" if not names else "the file's (train.init_bands.file_bands=[...])"
            raise InputError(
                f"train.init_bands.method=wavelength needs the names of {whose}; a photograph has red, green, blue "
                "(RGB), or blue, green, red (BGR: detectron2's default)"
            )
        return _interpolation(self._wavelengths(file_bands), self._wavelengths([names[i] for i in absent]))

    def _wavelengths(self, bands: Sequence[str]) -> Tensor:
        absent = [band for band in bands if band not in self.wavelengths_um]
        if absent:
            raise InputError(
                f"train.init_bands.wavelengths_um lacks {', '.join(absent)}: give the effective wavelength of each "
                "band in micrometres, as in wavelengths_um={g: 0.48, r: 0.62}"
            )
        return torch.tensor([self.wavelengths_um[band] for band in bands], dtype=torch.float64)


def _wavelengths_um(given: Mapping[str, float]) -> dict[str, float]:
    """Check train.init_bands.wavelengths_um."""
    if not isinstance(given, Mapping):
        raise InputError(f"wavelengths_um={given!r}: give a mapping, as in {{g: 0.48, r: 0.62}}")
    found = {}
    for band, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"wavelengths_um: {band} is {value!r}, not a positive number of micrometres")
        if value > LONGEST_UM:
            raise InputError(
                f"wavelengths_um: {band} is {value}; wavelengths are in micrometres: 480 nm is 0.48, 4800 Angstrom too"
            )
        found[str(band)] = float(value)
    return found


def _names(bands: Sequence[str]) -> tuple[str, ...]:
    """Check train.init_bands.file_bands."""
    is_list = isinstance(bands, Sequence) and not isinstance(bands, str)
    if not is_list or not all(isinstance(band, str) for band in bands) or len(set(bands)) < len(bands):
        shown = list(bands) if is_list else bands
        raise InputError(f"file_bands={shown!r}: give a list of names, each another, as in [blue,green,red]")
    return tuple(bands)


def _interpolation(given: Tensor, wanted: Tensor) -> Tensor:
    """(N, M) weights of linear interpolation from the places `given` (M) to `wanted` (N), constant beyond the ends."""
    places, order = given.sort()
    if (places.diff() == 0).any():
        raise InputError("train.init_bands.wavelengths_um: two bands of the file have the same wavelength")
    mixing = torch.zeros((len(wanted), len(given)), dtype=torch.float64)
    for row, place in zip(mixing, wanted.clamp(places[0], places[-1]), strict=True):
        right = int(torch.searchsorted(places, place).clamp(min=min(1, len(places) - 1)))
        left = max(right - 1, 0)
        share = (place - places[left]) / (places[right] - places[left]) if right > left else 1.0
        row[order[left]] += 1 - share
        row[order[right]] += share
    return mixing


def _recompose(kernel: Tensor, mixing: Tensor, contrast: float) -> Tensor:
    """Grey part spread evenly; colour part mixed, scaled by `contrast`, and freed of its mean."""
    exact = kernel.double()
    color = exact - exact.mean(dim=1, keepdim=True)
    mixed = contrast * torch.einsum("nm,omyx->onyx", mixing.to(kernel.device), color)
    mixed -= mixed.mean(dim=1, keepdim=True)
    return (exact.sum(dim=1, keepdim=True) / len(mixing) + mixed).to(kernel.dtype)
