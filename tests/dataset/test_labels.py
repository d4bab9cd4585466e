"""Labels and PSFs of a data set: several columns, missing values, ranges, flags, frames."""

import shutil

import blob_sky
import fitsio
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from deepdisc.data.dataset import NoiseAugmentation, TileDataset
from deepdisc.data.prepare import prepare
from deepdisc.errors import InputError
from deepdisc.psf import moffat_psf

LABELS = {"redshift": "redshift", "flux": "flux_{band}", "pair": ["flux_r", "redshift"], "number": "id"}
TILE = 64


def wcs():
    """North up, East left, then turned by 30 degrees."""
    found = WCS(naxis=2)
    found.wcs.ctype, found.wcs.crval, found.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [64.5, 48.5]
    angle, scale = np.radians(30), 0.2 / 3600
    found.wcs.cd = scale * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return found


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A data set with fluxes in two bands (some missing), shears, flags, a WCS, and a PSF in 2 x 1 cells in g only."""
    folder = tmp_path_factory.mktemp("rich")
    entry = blob_sky.write_field(folder / "field", shape=(96, 128), count=30, seed=3)
    entry["split"] = "train"
    truth = pd.read_parquet(folder / "field" / "truth.parquet")
    truth["flux_g"] = np.where(truth.id % 3 == 0, np.nan, truth.flux_r * np.exp(-truth.redshift.fillna(0.5)))
    truth["g1"], truth["g2"] = 0.05, -0.02
    truth.loc[truth.id % 4 == 0, ["g1", "g2"]] = np.nan
    truth["flags"] = np.where(truth.id % 2, 16, 32).astype(np.int32)  # BLENDED, SATURATED
    truth["neighbours"] = (truth.id % 2 == 0).astype(np.int32)
    truth.to_parquet(folder / "field" / "truth.parquet")
    for band in blob_sky.BANDS:
        with fitsio.FITS(str(folder / "field" / f"{band}.fits"), "rw") as file:
            file[0].write_keys([{"name": key, "value": value} for key, value in wcs().to_header().items()])
    cube = np.stack([moffat_psf(2.5), moffat_psf(4.0)])
    table = fits.BinTableHDU(np.array([(31.5, 47.5), (95.5, 47.5)], [("X", "f8"), ("Y", "f8")]), name="POSITIONS")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(cube, name="g"), table]).writeto(folder / "field" / "psf.fits")
    path = folder / "field" / "mosaic.yaml"
    mosaic = yaml.safe_load(path.read_text())
    mosaic["bands"]["g"]["psf"] = "psf.fits[g]"
    path.write_text(yaml.safe_dump(mosaic))
    return prepare(blob_sky.write_recipe(folder, [entry]), folder / "data", tile_size=128)


def rows_of(rich, objects):
    """The truth's rows of some labelled objects."""
    truth = pd.read_parquet(rich / "truth.parquet").set_index("id")
    return truth.loc[objects.gt_number.long().tolist()]


def test_labels_of_several_columns_have_one_value_per_column(rich):
    sample = TileDataset(rich, "train", labels=LABELS)[0]
    objects = sample["instances"]
    rows = rows_of(rich, objects)
    assert (
        objects.gt_flux.shape == objects.gt_pair.shape == (len(objects), 2) and objects.gt_flux.dtype == torch.float32
    )
    np.testing.assert_allclose(objects.gt_flux, rows[["flux_g", "flux_r"]], rtol=1e-6)
    np.testing.assert_allclose(objects.gt_pair, rows[["flux_r", "redshift"]], rtol=1e-6)
    for name in ("redshift", "flux", "pair"):
        known = objects.get(f"gt_has_{name}")
        assert known.dtype == torch.bool and torch.equal(known, objects.get(f"gt_{name}").isfinite())
    assert not objects.gt_has_flux.all() and objects.gt_has_flux[:, 1].all() and objects.gt_has_redshift.ndim == 1


def test_fluxes_follow_the_order_of_the_bands(rich):
    objects = TileDataset(rich, "train", bands=["r", "g"], labels=LABELS)[0]["instances"]
    np.testing.assert_allclose(objects.gt_flux, rows_of(rich, objects)[["flux_r", "flux_g"]], rtol=1e-6)
    one = TileDataset(rich, "train", bands=["r"], labels=LABELS)[0]["instances"]
    assert one.gt_flux.shape == one.gt_has_flux.shape == (len(one), 1)


def test_empty_samples_have_labels_of_the_same_form(rich, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(rich, root)
    truth = pd.read_parquet(root / "truth.parquet")
    truth[:0].to_parquet(root / "truth.parquet")
    shear = {"shear": ("g1", "g2")}
    objects = TileDataset(root, "train", labels=LABELS, spin2=shear)[0]["instances"]
    assert objects.gt_flux.shape == objects.gt_has_flux.shape == (0, 2) == objects.gt_shear.shape
    assert objects.gt_has_shear.shape == objects.gt_flags.shape == (0,)


def test_shears_are_turned_from_the_sky_to_the_pixel_axes(rich):
    data = TileDataset(rich, "train", labels=LABELS, spin2={"shear": ("g1", "g2"), "other": ["g2", "g1"]})
    objects = data[0]["instances"]
    known = torch.tensor(rows_of(rich, objects)["g1"].notna().tolist())
    assert torch.equal(objects.gt_has_shear, known) and 0 < known.sum() < len(objects)
    assert objects.gt_shear[~known].isnan().all() and torch.equal(objects.gt_has_other, objects.gt_has_shear)
    # East is counter-clockwise of North: from +x, the stretched axis is at North's angle plus its position angle.
    north = np.arctan2(*wcs().world_to_pixel_values([[150.0, 2.0 + 1e-4]])[0][::-1] - np.array([47.5, 63.5]))
    turned = (0.05 - 0.02j) * np.exp(2j * north)
    np.testing.assert_allclose(objects.gt_shear[known], [[turned.real, turned.imag]] * int(known.sum()), atol=1e-4)


def test_without_a_wcs_the_shear_is_unknown(dataset, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    truth = pd.read_parquet(root / "truth.parquet")
    truth.assign(g1=0.1, g2=0.0).to_parquet(root / "truth.parquet")
    assert not TileDataset(root, "val", spin2={"shear": ("g1", "g2")})[0]["instances"].gt_has_shear.any()


def test_flags_say_what_is_blended_and_what_the_window_cuts(rich):
    data = TileDataset(rich, "train", crop_size=32, labels=LABELS)
    cut = 0
    for sample in (data[i] for i in range(len(data))):
        objects, (y0, x0, _, _) = sample["instances"], sample["window"]
        rows = rows_of(rich, objects)
        assert objects.gt_flags.dtype == torch.int64
        assert (objects.gt_flags & 16 > 0).tolist() == (rows.neighbours > 0).tolist()
        assert (objects.gt_flags & 32 > 0).tolist() == (rows["flags"] & 32 > 0).tolist()
        height, width = sample["image"].shape[1:]
        outside = (rows.x_min < x0) | (rows.y_min < y0) | (rows.x_max > x0 + width) | (rows.y_max > y0 + height)
        assert (objects.gt_flags & 1 > 0).tolist() == outside.tolist()
        cut += outside.sum()
    assert cut > 3


def test_without_neighbours_the_stored_flags_count(rich, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(rich, root)
    truth = pd.read_parquet(root / "truth.parquet")
    truth.drop(columns="neighbours").to_parquet(root / "truth.parquet")
    objects = TileDataset(root, "train", labels=LABELS)[0]["instances"]
    assert (objects.gt_flags & 16 > 0).tolist() == (objects.gt_number % 2 == 1).tolist()


def test_a_label_out_of_its_range_is_refused_when_the_data_set_is_opened(rich):
    truth = pd.read_parquet(rich / "truth.parquet")
    row = truth.loc[truth.redshift.idxmax()]
    high, limit = float(row.redshift), float(row.redshift) - 1e-3
    message = (
        f"redshift of object {row.id} in tile 0 is {high:g}, outside of the range 0 to {limit:g} of label 'redshift'"
    )
    with pytest.raises(InputError, match=message):
        TileDataset(rich, "train", ranges={"redshift": (0, limit)})
    with pytest.raises(InputError, match="flux_g of object .*outside of the range 0 to 600 of label 'flux'"):
        TileDataset(rich, "train", labels=LABELS, ranges={"flux": (0, 600)})
    with pytest.raises(InputError, match="g2 of object .* is -0.02, outside of the range 0 to 1 of label 'shear'"):
        TileDataset(rich, "train", spin2={"shear": ("g1", "g2")}, ranges={"shear": (0, 1)})
    TileDataset(rich, "train", labels=LABELS, ranges={"redshift": (0, high), "flux": (-1e9, float("inf"))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": {"flux": (0, 1)}}, "ranges: 'flux' is no label; the labels are redshift"),
        ({"ranges": {"redshift": (2, 1)}}, "ranges: redshift is \\(2, 1\\); give its lowest and highest value"),
        ({"labels": {"flux": "flx_{band}"}}, "no column 'flx_g'; the nearest is 'flux_g'"),
        ({"spin2": {"shear": ("g1", "g3")}}, "no column 'g3'; the nearest is 'g"),
    ],
)
def test_labels_that_cannot_be_are_named(rich, options, message):
    with pytest.raises(InputError, match=message):
        TileDataset(rich, "train", **options)


def test_a_noisier_sample_keeps_its_fluxes(rich):
    noise = NoiseAugmentation(probability=1.0, max_factor=3.0, label_snr=0.0)
    plain, noisy = (
        TileDataset(rich, "train", augment=True, labels=LABELS, noise=one)[(0, 4)]["instances"] for one in (None, noise)
    )
    assert torch.equal(plain.gt_flux.nan_to_num(-1), noisy.gt_flux.nan_to_num(-1))
    assert torch.equal(plain.gt_has_flux, noisy.gt_has_flux)


# ---------------------------------------------------------------------------------------------------------- PSF
def test_a_window_has_the_psf_of_its_place(rich):
    data = TileDataset(rich, "train", crop_size=TILE)
    seen = {sample["window"][1]: sample["psf"] for sample in (data[i] for i in range(len(data)))}
    assert set(seen) == {0, 64} and seen[0].shape == (2, 25, 25) and seen[0].dtype == torch.float32
    np.testing.assert_allclose(seen[64][0], moffat_psf(4.0), atol=1e-6)
    assert not seen[0][1].any(), "r has none"


def test_bands_are_chosen_in_the_psf_too(rich):
    both, swapped, one = (TileDataset(rich, "train", bands=bands)[0]["psf"] for bands in (None, "rg", ["r"]))
    assert torch.equal(both.flip(0), swapped) and torch.equal(one, both[1:])


def test_an_unknown_psf_is_zero(dataset):
    sample = TileDataset(dataset, "train", crop_size=64, augment=True)[0]
    assert sample["psf"].shape == (2, 25, 25) and not sample["psf"].any()


def test_labels_that_a_data_set_does_not_have_are_told_and_done_without(rich, caplog):
    labels, ranges = {"redshift": "redshift", "mass": "logmass"}, {"mass": (0, 15)}
    dataset = TileDataset(rich, "train", labels=labels, spin2={"shape": ("q1", "q2")}, ranges=ranges)
    assert "no column logmass: no object has the label 'mass'" in caplog.text
    assert "no column q1 or q2: no object has the label 'shape'" in caplog.text
    instances = dataset[0]["instances"]
    assert instances.has("gt_redshift") and not instances.has("gt_mass") and not instances.has("gt_has_shape")
