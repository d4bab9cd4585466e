"""Regridding: positions, fluxes, noise and masks survive; what cannot be regridded is refused."""

import builtins

import fitsio
import numpy as np
import pytest
from fits_files import PIXEL_SCALE_ARCSEC, wcs_header, write

from deepdisc.data.mosaic import Mosaic
from deepdisc.data.regrid import regrid
from deepdisc.errors import InputError
from deepdisc.sky import PixelGrid

pytest.importorskip("reproject", reason='needs the extra: pip install "deepdisc[regrid]"')

SHAPE = (120, 100)


def gaussian(shape, x, y, fwhm_pix, flux):
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    sigma = fwhm_pix / 2.354820
    return flux / (2 * np.pi * sigma**2) * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))


def moment(image, box):
    """Flux and centroid inside y0, x0, y1, x1."""
    y0, x0, y1, x1 = box
    part = image[y0:y1, x0:x1].astype(float)
    yy, xx = np.mgrid[y0:y1, x0:x1]
    return part.sum(), (part * xx).sum() / part.sum(), (part * yy).sum() / part.sum()


@pytest.mark.parametrize(
    ("scale", "shift", "method"),
    [
        (1.0, (3.3, -2.6), "auto"),
        (1.0, (0.5, 0.5), "exact"),
        (2.0, (0.2, 0.4), "auto"),  # coarser than the reference: interpolated
        (0.5, (0.3, 0.1), "auto"),  # finer than the reference: averaged
    ],
)
def test_flux_and_position_of_a_star_survive(tmp_path, scale, shift, method):
    write(tmp_path / "r.fits", gaussian(SHAPE, 50.0, 60.0, 8, 1000.0).astype(np.float32))
    scale_arcsec = scale * PIXEL_SCALE_ARCSEC
    shape = tuple(int(side / scale) + 20 for side in SHAPE)
    header = wcs_header(shape, shift, scale_arcsec)
    # The same star, at its sky position, drawn in the other band's pixels.
    from astropy.wcs import WCS

    ra, dec = Mosaic.open({"r": {"image": f"{tmp_path}/r.fits", "variance": 1.0}}).grid.to_sky(50.0, 60.0)
    x, y = PixelGrid.from_wcs(WCS(header), shape).to_pixel(ra, dec)
    write(tmp_path / "g.fits", gaussian(shape, x, y, 8 / scale, 1000.0).astype(np.float32), header=header)
    source = {band: {"image": f"{tmp_path}/{band}.fits", "variance": 4.0} for band in "gr"}
    mosaic = Mosaic.open(regrid(source, tmp_path / "out", "r", method=method))
    assert mosaic.shape == SHAPE and mosaic.bands == ["g", "r"]
    cutout = mosaic.read(0, 0, *SHAPE)
    for channel in range(2):
        flux, x, y = moment(cutout.image[channel], (35, 25, 86, 76))
        assert flux == pytest.approx(1000, rel=2e-3)
        assert (x, y) == (pytest.approx(50, abs=0.01), pytest.approx(60, abs=0.01))
    inner = cutout.variance[0, 35:86, 25:76]
    # Noise adds over pixels: a new pixel that holds k old ones has k times their variance.
    np.testing.assert_allclose(inner, 4.0 / scale**2, rtol=1e-3)


def test_summed_noise_is_what_the_variance_says(tmp_path, rng):
    """The scatter of sums over 15 x 15 pixels agrees with the variance plane, although single pixels scatter less."""
    big = (600, 600)
    write(tmp_path / "r.fits", rng.normal(size=big).astype(np.float32))
    write(tmp_path / "g.fits", rng.normal(0, 2, big).astype(np.float32), shift=(0.5, 0.5))
    mosaic = Mosaic.open(regrid({band: tmp_path / f"{band}.fits" for band in "gr"}, tmp_path / "out", "r"))
    cutout = mosaic.read(10, 10, 580, 580)
    significance = cutout.image[0] / np.sqrt(cutout.variance[0])
    assert significance.std() < 0.9
    sums = significance.reshape(38, 15, 38, 15).sum(axis=(1, 3)) / 15
    assert sums.std() == pytest.approx(1, abs=0.08)  # 1444 sums: 2 % by themselves


def test_no_data_stays_masked_and_never_becomes_zero(tmp_path, rng):
    image = rng.normal(5, 0.1, SHAPE).astype(np.float32)
    image[40:50, 30:45] = np.nan
    write(tmp_path / "r.fits", rng.normal(size=SHAPE).astype(np.float32))
    write(tmp_path / "g.fits", image, shift=(-20.4, 0))
    cutout = Mosaic.open(regrid({b: tmp_path / f"{b}.fits" for b in "gr"}, tmp_path / "out", "r")).read(0, 0, *SHAPE)
    assert not cutout.mask[1].any()
    # g's column c lies in r's column c + 20.4: nothing before 20, the hole from 50 to 66.
    assert cutout.mask[0, :, :20].all()
    assert cutout.mask[0, 40:50, 51:65].all()
    good = ~cutout.mask[0]
    assert good[60:, 22:].all()
    assert (np.abs(cutout.image[0][good] - 5) < 1).all()


def test_the_reference_band_is_copied_and_blocks_leave_no_seams(tmp_path, rng):
    shape = (40, 1300)  # more than two blocks wide
    write(tmp_path / "r.fits", rng.normal(size=shape).astype(np.float32))
    x = np.arange(shape[1])
    smooth = np.tile(100 + np.sin(x / 40), (shape[0], 1))
    write(tmp_path / "g.fits", smooth.astype(np.float32), shift=(0.25, 0))
    source = {"g": {"image": f"{tmp_path}/g.fits", "variance": 1.0}, "r": str(tmp_path / "r.fits")}
    regrid(source, tmp_path / "out", "r")
    np.testing.assert_array_equal(fitsio.read(tmp_path / "out/r.fits"), fitsio.read(tmp_path / "r.fits"))
    got = fitsio.read(tmp_path / "out/g.fits")[20]
    inner = slice(5, -5)
    np.testing.assert_allclose(got[inner], (100 + np.sin((x + 0.25) / 40))[inner], atol=2e-4)


def test_written_files_carry_wcs_units_and_what_was_known(tmp_path, rng):
    for band, shift in (("g", 0.0), ("r", 3.0)):
        write(tmp_path / f"{band}.fits", rng.normal(size=SHAPE).astype(np.float32), shift=(shift, 0), zero_point=28.9)
    bands = {"g": {"image": "g.fits", "psf_fwhm_arcsec": 0.8}, "r": "r.fits"}
    (tmp_path / "mosaic.yaml").write_text(f"{{name: field, ebv: 0.07, bands: {bands}}}".replace("'", ""))
    written = regrid(tmp_path / "mosaic.yaml", tmp_path / "out", "r")
    mosaic = Mosaic.open(written)
    assert mosaic.name == "field" and mosaic.ebv == 0.07
    assert mosaic.metadata["bands"]["g"]["psf_fwhm_arcsec"] == 0.8
    reference = Mosaic.open({"r": tmp_path / "r.fits"})
    assert mosaic.grid.same_grid(reference.grid, tolerance_pix=1e-6)
    header = fitsio.read_header(tmp_path / "out/g.fits")
    assert header["BUNIT"] == "nJy" and header["FILTER"] == "g"
    assert fitsio.read(tmp_path / "out/r.fits").std() == pytest.approx(10, rel=0.05)  # 28.9: 10 nJy per unit


def test_bad_requests_are_refused_and_leave_nothing(pair, tmp_path, monkeypatch):
    files, _ = pair
    out = tmp_path / "out"
    with pytest.raises(InputError, match="the reference band 'i' is not among g, r"):
        regrid(files, out, "i")
    with pytest.raises(InputError, match="method is 'magic'; it is one of auto, interp, exact"):
        regrid(files, out, method="magic")
    write(tmp_path / "n.fits", np.ones((9, 9), np.float32), header=None)
    with pytest.raises(InputError, match="band n: .*n.fits has no WCS, .* regrid needs one in every band"):
        regrid(files | {"n": tmp_path / "n.fits"}, out, zero_points=25, pixel_scale=0.2)
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "reproject":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", lambda name: without(name))
    with pytest.raises(InputError, match=r'needs the package \'reproject\'.*pip install "deepdisc\[regrid\]"'):
        regrid(files, out)
    assert not out.exists()


def test_a_failure_half_way_removes_the_bands_already_written(pair, tmp_path):
    files, _ = pair
    damaged = tmp_path / "bad.fits"
    with fitsio.FITS(damaged, "rw") as file:
        file.write(np.random.default_rng(0).normal(size=(400, 300)).astype("f4"), compress="RICE")
        file[-1].write_keys([{"name": key, "value": value} for key, value in dict(wcs_header((400, 300))).items()])
    content = bytearray(damaged.read_bytes())
    content[-9000:-5000] = b"\xff" * 4000  # the middle, which is looked at when opening, stays whole
    damaged.write_bytes(content)
    source = {"g": str(files["g"]), "bad": {"image": str(damaged), "variance": 1.0}}
    with pytest.raises(InputError, match="band bad: .* cannot read rows"):
        regrid(source, tmp_path / "out", "bad")
    assert not (tmp_path / "out").exists()


def test_input_images_are_never_overwritten(pair, tmp_path):
    files, _ = pair
    before = {path: path.read_bytes() for path in files.values()}
    with pytest.raises(InputError, match=r"g\.fits exists already .*choose another --output"):
        regrid(files, tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mosaic.yaml").write_text("bands: {}")
    with pytest.raises(InputError, match=r"mosaic\.yaml exists already"):
        regrid(files, tmp_path / "out")
    assert {path: path.read_bytes() for path in files.values()} == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mosaic.yaml"]


def rotated_header(shape, angle_deg, scale_arcsec):
    header = wcs_header(shape, scale_arcsec=scale_arcsec)
    angle, step = np.radians(angle_deg), scale_arcsec / 3600
    for key in ("CDELT1", "CDELT2"):
        del header[key]
    header["CD1_1"], header["CD1_2"] = -step * np.cos(angle), step * np.sin(angle)
    header["CD2_1"], header["CD2_2"] = step * np.sin(angle), step * np.cos(angle)
    return header


@pytest.mark.parametrize(("scale", "angle"), [(0.2, 30), (0.3, 30), (0.15, -70), (0.4, 0)])
def test_flux_and_variance_of_a_region_survive_rotation_and_other_pixels(tmp_path, rng, scale, angle):
    """Sums over a disc of 10 arcsec, in a field of blobs whose noise grows from left to right."""
    shape, target = (200, 200), (int(44 / scale), int(44 / scale))
    image = sum(gaussian(shape, *rng.uniform(40, 160, 2), 5, 500.0) for _ in range(60))
    variance = np.tile(np.linspace(1, 5, 200), (200, 1))
    write(tmp_path / "g.fits", image.astype(np.float32))
    fitsio.write(tmp_path / "v.fits", variance.astype(np.float32))
    write(tmp_path / "r.fits", np.ones(target, np.float32), header=rotated_header(target, angle, scale))
    bands = {"g": {"image": f"{tmp_path}/g.fits", "variance": f"{tmp_path}/v.fits"},
             "r": {"image": f"{tmp_path}/r.fits", "zero_point": 31.4, "variance": 1.0}}  # fmt: skip
    cutout = Mosaic.open(regrid(bands, tmp_path / "out", "r")).read(0, 0, *target)
    sums = []
    for values, pixel in ((np.stack([image, variance]), 0.2), (np.stack([cutout.image[0], cutout.variance[0]]), scale)):
        y, x = np.mgrid[: values.shape[1], : values.shape[2]]
        radius = np.hypot(y - (values.shape[1] - 1) / 2, x - (values.shape[2] - 1) / 2) * pixel
        # A soft edge, so that it does not matter which pixels it cuts.
        sums.append((values * np.exp(-((radius / 10) ** 8))).sum(axis=(1, 2)))
    np.testing.assert_allclose(sums[1], sums[0], rtol=5e-3)


@pytest.mark.parametrize("method", ["interp", "exact"])
def test_masks_of_files_come_along(tmp_path, rng, method):
    shape = (120, 120)
    bits = np.zeros(shape, np.int32)
    bits[50:56, 60:70], bits[20:30, 20:30] = 2, 4  # only bit 1 is bad
    write(tmp_path / "g.fits", rng.normal(size=shape).astype(np.float32))
    fitsio.write(tmp_path / "m.fits", bits)
    write(tmp_path / "r.fits", np.ones(shape, np.float32), header=rotated_header(shape, 20, 0.2))
    bands = {"g": {"image": f"{tmp_path}/g.fits", "variance": 1.0, "mask": f"{tmp_path}/m.fits", "mask_bits": [1]},
             "r": {"image": f"{tmp_path}/r.fits", "variance": 1.0, "zero_point": 31.4}}  # fmt: skip
    mosaic = Mosaic.open(regrid(bands, tmp_path / "out", "r", method=method))
    mask = mosaic.read(0, 0, *shape).mask[0]
    y, x = np.mgrid[:120, :120]
    old_x, old_y = Mosaic.open({"g": f"{tmp_path}/g.fits"}).grid.to_pixel(*mosaic.grid.to_sky(x.ravel(), y.ravel()))
    # Distance of each new pixel's centre to the bad rectangle, in old pixels.
    apart = np.hypot(np.clip(np.abs(old_x - 64.5) - 5, 0, None), np.clip(np.abs(old_y - 52.5) - 3, 0, None))
    apart = apart.reshape(shape)
    assert mask[apart == 0].all()
    inside = (np.minimum(old_x, old_y) > 3) & (np.maximum(old_x, old_y) < 116)
    assert not mask[inside.reshape(shape) & (apart > 2.5)].any()


def test_bands_without_common_sky_are_refused(tmp_path, rng):
    write(tmp_path / "r.fits", rng.normal(size=SHAPE).astype(np.float32))
    far = wcs_header(SHAPE)
    far["CRVAL1"] = 151.0
    write(tmp_path / "g.fits", rng.normal(size=SHAPE).astype(np.float32), header=far)
    with pytest.raises(InputError, match=r"band g: no pixel of .*g.fits falls on those of r, .* no sky in common"):
        regrid({band: tmp_path / f"{band}.fits" for band in "gr"}, tmp_path / "out", "r")
    assert not (tmp_path / "out").exists()
