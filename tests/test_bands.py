"""What the names of bands say."""

import pytest

from deepdisc.bands import by_wavelength, rgb_bands, wavelength_um
from deepdisc.errors import InputError


@pytest.mark.parametrize(
    ("band", "expected"),
    [("F090W", 0.9), ("F444W", 4.44), ("f335m", 3.35), ("F814W", 0.814), ("HST_F606W", 0.606), ("F850LP", 0.85),
     ("F160W", 1.6), ("F770W", 7.7), ("F1000W", 10.0), ("g", 0.48), ("r_hsc", 0.62), ("Ks", 2.15), ("detection", None),
     ("", None)],
)  # fmt: skip
def test_a_name_says_its_wavelength(band, expected):
    assert wavelength_um(band) == expected


def test_bands_are_ordered_from_blue_to_red_unless_a_name_says_nothing():
    assert by_wavelength(["F444W", "F090W", "F606W"]) == ["F606W", "F090W", "F444W"]
    assert by_wavelength(["Ks", "u", "mine"]) == ["Ks", "u", "mine"]


def test_any_number_of_bands_makes_a_picture():
    assert rgb_bands(["a"]) == ["a", "a", "a"]
    assert rgb_bands(["a", "b", "c"]) == ["c", "b", "a"]
    assert rgb_bands(["z", "i", "r", "g", "u"]) == ["i", "r", "g"]
    assert rgb_bands(["NUV", *"ugrizy"]) == ["z", "r", "g"], "hardly anything shines in u"
    assert rgb_bands(["b1", "b2", "b3", "b4", "b5"]) == ["b4", "b3", "b2"]
    with pytest.raises(InputError, match="no bands"):
        rgb_bands([])
