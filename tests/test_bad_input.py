"""Wrong input to `deepdisc predict`: one line that names the thing, exit code 2, and nothing left behind."""

import errno
import os

import fitsio
import numpy as np
import pytest

from deepdisc import cli
from deepdisc.config import instantiate, load
from deepdisc.training.weights import export_safetensors

BANDS = ("u", "g", "r", "i", "z")
NARROW = [
    "model.backbone.out_channels=8",
    "model.backbone.bottom_up.stem_out_channels=4",
    "model.backbone.bottom_up.res2_out_channels=4",
    "model.roi_heads.box_head.fc_dim=8",
    "model.roi_heads.mask_head.conv_dim=8",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of the shipped architecture, but narrow and untrained."""
    cfg = load("configs/ugriz_r18.py", NARROW)
    path = tmp_path_factory.mktemp("model") / "narrow.safetensors"
    export_safetensors(instantiate(cfg.model), cfg, path)
    return path


@pytest.fixture
def field(tmp_path):
    """Five band files of noise, as BAND=FILE arguments by band."""
    rng = np.random.default_rng(1)
    paths = {}
    for band in BANDS:
        paths[band] = tmp_path / f"{band}.fits"
        write(paths[band], rng.normal(0, 10, (64, 80)).astype(np.float32))
    return paths


def write(path, pixels, **keywords):
    header = {"BUNIT": "nJy", **keywords}
    fitsio.write(path, pixels, header=[{"name": name, "value": value} for name, value in header.items()], clobber=True)


def predict(field, model, output, *options):
    pairs = [f"{band}={path}" for band, path in field.items()]
    return cli.main(
        ["predict", *pairs, "--model", str(model), "--output", str(output), "--pixel-scale", "0.4", *options]
    )


def check(code, capsys, output, *words):
    error = capsys.readouterr().err
    assert code == 2, error
    lines = [line for line in error.splitlines() if line.startswith("deepdisc: error: ")]
    assert len(lines) == 1 and error.endswith(lines[0] + "\n")
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    assert not list(output.parent.glob(f"*{output.name}*")), "something was left behind"


def test_the_field_is_good_as_it_is(field, model, tmp_path, capsys):
    assert predict(field, model, tmp_path / "out") == 0
    assert (tmp_path / "out" / "catalog.fits").is_file()
    assert predict(field, model, tmp_path / "out") == 2
    assert "already" in capsys.readouterr().err
    assert predict(field, model, tmp_path / "out", "--overwrite") == 0


def make_missing(field):
    field["r"].unlink()


def make_text(field):
    field["r"].write_text("this is no FITS file\n" * 100)


def make_truncated(field):
    data = field["r"].read_bytes()
    field["r"].write_bytes(data[: len(data) - 5760])


def make_empty(field):
    field["r"].write_bytes(b"")


def make_smaller(field):
    write(field["r"], np.ones((60, 80), np.float32))


def make_all_nan(field):
    write(field["r"], np.full((64, 80), np.nan, np.float32))


def make_other_wcs(field):
    for band, pixel in (("g", 40.0), ("r", 43.0)):
        wcs = {
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CRPIX1": pixel,
            "CRPIX2": 30.0,
            "CRVAL1": 10.0,
            "CRVAL2": 0.0,
        }
        scale = {"CD1_1": -0.4 / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.4 / 3600}
        write(field[band], np.ones((64, 80), np.float32), **wcs, **scale)


def make_no_zero_point(field):
    write(field["r"], np.random.default_rng(2).normal(0, 1, (64, 80)).astype(np.float32), BUNIT="adu")


def make_without_band(field):
    del field["r"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (make_missing, ["r.fits"]),
        (make_text, ["r.fits", "FITS"]),
        (make_truncated, ["r.fits", "truncated"]),
        (make_empty, ["r.fits"]),
        (make_smaller, ["64", "60", "regrid"]),
        (make_all_nan, ["r.fits"]),
        (make_other_wcs, ["regrid"]),
        (make_no_zero_point, ["r.fits", "--zero-point"]),
        (make_without_band, ["'r'"]),
    ],
)
def test_bad_pixels(spoil, words, field, model, tmp_path, capsys):
    spoil(field)
    output = tmp_path / "result"
    check(predict(field, model, output), capsys, output, *words)


def test_a_cube_with_the_wrong_number_of_bands(model, tmp_path, capsys):
    write(tmp_path / "cube.fits", np.ones((4, 32, 32), np.float32))
    output = tmp_path / "result"
    options = ["--model", str(model), "--output", str(output), "--pixel-scale", "0.4", "--bands", ",".join(BANDS)]
    check(cli.main(["predict", str(tmp_path / "cube.fits"), *options]), capsys, output, "4", "5")


def test_no_pixel_scale_and_no_wcs(field, model, tmp_path, capsys):
    pairs = [f"{band}={path}" for band, path in field.items()]
    output = tmp_path / "result"
    code = cli.main(["predict", *pairs, "--model", str(model), "--output", str(output)])
    check(code, capsys, output, "--pixel-scale")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nothing.pth", None, ["nothing.pth"]),
        ("ugriz_r81", None, ["ugriz_r81"]),
        ("text.pth", b"no weights", ["text.pth"]),
        ("text.safetensors", b"no weights", ["text.safetensors"]),
    ],
)
def test_bad_models(name, content, words, field, tmp_path, capsys):
    path = tmp_path / name if "." in name else name
    if content is not None:
        path.write_bytes(content)
    output = tmp_path / "result"
    check(predict(field, path, output), capsys, output, *words)


def test_a_checkpoint_of_another_architecture(field, model, tmp_path, capsys):
    """Weights of the narrow model beside the config of a deeper one."""
    import torch

    from deepdisc.config import save
    from deepdisc.training.weights import read_weights

    torch.save({"model": read_weights(model).tensors}, tmp_path / "other.pth")
    save(load("configs/ugriz_r18.py", [*NARROW, "model.backbone.bottom_up.depth=34"]), tmp_path / "config.yaml")
    output = tmp_path / "result"
    check(predict(field, tmp_path / "other.pth", output), capsys, output, "other.pth")


def test_output_that_cannot_be_a_folder(field, model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert predict(field, model, tmp_path / "file" / "out") == 2
    assert "deepdisc: error: " in (error := capsys.readouterr().err) and "file" in error
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk(field, model, tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    output = tmp_path / "result"
    check(predict(field, model, output), capsys, output, "No space left on device")


def test_a_device_that_is_not_there(field, model, tmp_path, capsys):
    output = tmp_path / "result"
    check(predict(field, model, output, "--device", "cuda:99"), capsys, output, "--device cuda:99")
    check(predict(field, model, output, "--device", "toaster"), capsys, output, "--device toaster")


def test_parts_that_cannot_be_read_give_exit_code_3(field, model, tmp_path, capsys, monkeypatch):
    from deepdisc.data.mosaic import Mosaic
    from deepdisc.errors import InputError

    read = Mosaic.read

    def damaged(self, y0, x0, y1, x1):
        if x0 <= 60 < x1:
            raise InputError("r.fits is damaged here")
        return read(self, y0, x0, y1, x1)

    monkeypatch.setattr(Mosaic, "read", damaged)
    assert predict(field, model, tmp_path / "out", "--tile-size", "48", "--overlap", "16") == 3
    assert "r.fits is damaged here" in capsys.readouterr().err
    assert (tmp_path / "out" / "catalog.parquet").is_file()
