"""Units and zero points against numbers from the definition of the AB system and from real headers."""

import numpy as np
import pytest

from deepdisc.errors import InputError
from deepdisc.photometry import (
    asinh_mag,
    mag_from_njy,
    njy_from_mag,
    njy_per_count,
    zero_point_from_header,
    zero_point_of_unit,
)


def test_ab_magnitude_of_3631_jansky_is_zero():
    assert mag_from_njy(3631e9) == pytest.approx(0, abs=1e-3)
    assert njy_from_mag(31.4) == pytest.approx(1.0)
    assert mag_from_njy(njy_from_mag(np.array([18.0, 27.5]))) == pytest.approx([18.0, 27.5])


def test_magnitude_of_a_negative_flux_is_nan_but_its_asinh_magnitude_is_finite():
    assert np.isnan(mag_from_njy([-1.0, 0.0])).all()
    assert np.isfinite(asinh_mag([-50.0, 0.0], 10.0)).all()
    assert asinh_mag(1e6, 10.0) == pytest.approx(float(mag_from_njy(1e6)), abs=1e-4)


def test_counts_at_the_zero_point():
    assert njy_per_count(31.4) == pytest.approx(1.0)
    assert njy_per_count(22.5) == pytest.approx(3630.78, rel=1e-5)  # nanomaggy = 3.631 uJy


@pytest.mark.parametrize(
    "header, expected",
    [
        ({"BUNIT": "nanomaggy"}, 22.5),
        ({"BUNIT": "nJy"}, 31.4),
        ({"BUNIT": "uJy"}, 23.9),
        ({"BUNIT": "Jy"}, 8.9),
        # grizli mosaic: ZP and PHOTMJSR still describe the detector's native pixel.
        ({"BUNIT": "10.0*nanoJansky", "PHOTFNU": 1e-8, "ZP": 27.98, "PHOTMJSR": 3.23, "PIXAR_SR": 2.24e-14}, 28.9),
        ({"PHOTFNU": 1e-8, "ZP": 27.98}, 28.9),
        ({"BUNIT": "ADU", "MAGZERO": 30.0}, 30.0),
        ({"BUNIT": "electron/s", "ZEROPNT": 27}, 27.0),
        ({"MAGZPT": 0.0}, 0.0),
        # 1 MJy/sr on a 0.04 arcsec pixel is 1e15 nJy/sr * 3.7607e-14 sr = 37.607 nJy.
        ({"BUNIT": "MJy/sr", "PIXAR_A2": 0.0016}, 31.4 - 2.5 * np.log10(37.607)),
        ({"BUNIT": "MJY/SR", "PIXAR_A2": 0.0016}, 31.4 - 2.5 * np.log10(37.607)),
        ({"BUNIT": "mJy/sr", "PIXAR_A2": 0.0016}, 31.4 - 2.5 * np.log10(37.607e-9)),
        ({"BUNIT": "NANOMAGGY"}, 22.5),
        # HST ACS F814W: PHOTFLAM 7.072e-20, PHOTPLAM 8045 A -> AB 25.94 (STScI calculator).
        ({"BUNIT": "ELECTRONS/S", "PHOTFLAM": 7.072e-20, "PHOTPLAM": 8045.0}, 25.94),
    ],
)
def test_zero_point_of_real_headers(header, expected):
    assert zero_point_from_header(header, "image.fits") == pytest.approx(expected, abs=0.005)


def test_case_distinguishes_mega_from_milli():
    assert zero_point_of_unit("mJy", "f") == pytest.approx(16.4)
    for unit in ("MJy", "MJY", "1.0 * MJY", "MegaJansky"):
        assert zero_point_of_unit(unit, "f") == pytest.approx(31.4 - 37.5)
    assert zero_point_of_unit("milliJansky", "f") == pytest.approx(16.4)


def test_no_zero_point_names_file_keyword_and_remedy():
    with pytest.raises(InputError, match=r"r\.fits: no zero point.*BUNIT.*--zero-point"):
        zero_point_from_header({"BUNIT": "ADU"}, "r.fits")
    with pytest.raises(InputError, match=r"MJy/sr.*PIXAR_SR"):
        zero_point_from_header({"BUNIT": "MJy/sr"}, "r.fits")
