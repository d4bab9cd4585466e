"""The command line: what it parses, which function it calls, which exit code comes out."""

import os
import signal
import subprocess
import sys
import types

import pytest

from deepdisc import cli
from deepdisc.errors import InputError

COMMANDS = (
    "simulate", "prepare", "train", "predict", "evaluate", "compare", "match", "models", "export", "regrid", "inspect",
)  # fmt: skip


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_needs_neither_torch_nor_numpy_nor_astropy():
    code = (
        "import sys, deepdisc\nfrom deepdisc.cli import main\n"
        f"for command in ({', '.join(repr(c) for c in COMMANDS)}): assert main([command, '--help']) == 0\n"
        "print('loaded:', [m for m in ('torch', 'numpy', 'astropy', 'pandas', 'galsim') if m in sys.modules])"
    )
    assert run_python(code).endswith("loaded: []\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_parses(command, capsys):
    import shlex

    assert cli.main([command, "--help"]) == 0
    examples = capsys.readouterr().out.split("example:\n")[1].strip().splitlines()
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "deepdisc"
        assert cli.parse(arguments).run.__name__ == f"run_{command}"


def test_version(capsys):
    import deepdisc

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"deepdisc {deepdisc.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["predct"], "invalid choice: 'predct'"),
        (["predict", "m.yaml", "--output", "x"], "required: --model"),
        (
            ["predict", "m.yaml", "--output", "x", "--model", "m", "--tile-size", "0"],
            "'0' is not a whole number above 0",
        ),
        (["predict", "m.yaml", "--output", "x", "--model", "m", "--overlap", "-1"], "'-1' is not a whole number"),
        (
            ["predict", "m.yaml", "--output", "x", "--model", "m", "--score-threshold", "2"],
            "'2' is not a number from 0 to",
        ),
        (["predict", "m.yaml", "--output", "x", "--model", "m", "--pixel-scale", "nan"], "'nan' is not a number above"),
        (["predict", "m.yaml", "--output", "x", "--model", "m", "a=1", "--what"], "unrecognized arguments: --what"),
        (
            ["simulate", "--config-file", "configs/sky/demo.py", "--output", "x", "lr"],
            "'lr' is not of the form key=value",
        ),
        (["models", "lst"], "invalid choice: 'lst'"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_why(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_overrides_may_stand_anywhere():
    args = cli.parse(["train", "a=1", "--config", "x.py", "b=2", "--num-gpus", "0", "c.d=[1,2]", "--resume"])
    assert args.overrides == ["a=1", "b=2", "c.d=[1,2]"]
    assert (args.config_file, args.num_gpus, args.resume, args.eval_only) == ("x.py", 0, True, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [("31.4", 31.4), ("nJy", "nJy"), ("g=22.5, r=nJy", {"g": 22.5, "r": "nJy"}), ("g=-1e0", {"g": -1.0})],
)
def test_zero_points_are_numbers_or_units_for_all_bands_or_by_band(text, value):
    assert cli.parse(["predict", "m", "--model", "m", "--output", "o", "--zero-point", text]).zero_point == value


def test_band_files_may_stand_on_both_sides_of_the_flags():
    args = cli.parse(["predict", "g=g.fits", "--model", "m", "r=r.fits", "--output", "o", "--weight", "g=w.fits"])
    assert (args.mosaic, args.weight, args.mask) == (["g=g.fits", "r=r.fits"], ["g=w.fits"], None)


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (InputError("file x\n  is missing"), 2, "deepdisc: error: file x is missing\n"),
        (KeyboardInterrupt(), 130, "deepdisc: interrupted\n"),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops"),
        (ZeroDivisionError("oops"), 1, "please report it"),
    ],
)
def test_exit_codes(raised, code, message, monkeypatch, capsys):
    def fail(args):
        raise raised

    monkeypatch.setattr("deepdisc.commands.fields.run_inspect", fail)
    assert cli.main(["inspect", "x"]) == code
    error = capsys.readouterr().err
    assert message in error
    assert ("Traceback" in error) == (code == 1)


def test_a_wrong_flag_is_one_line(capsys):
    assert cli.main(["predict", "m.yaml", "--model", "x", "--output", "y", "--tile-size", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deepdisc: error: argument --tile-size") and error.count("\n") == 1


def test_sigterm_ends_like_ctrl_c_and_the_handler_is_restored(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("deepdisc.commands.fields.run_inspect", lambda args: signal.raise_signal(signal.SIGTERM))
    assert cli.main(["inspect", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) is before


def test_a_wrong_config_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert cli.main(["train", "--config-file", str(tmp_path / "none.py")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deepdisc: error: config file ") and error.count("\n") == 1


def test_the_module_and_the_tools_are_the_same_program(repository):
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    for tool, command in [
        ("train_net", "train"),
        ("predict_field", "predict"),
        ("prepare_dataset", "prepare"),
        ("evaluate", "evaluate"),
    ]:
        result = subprocess.run(
            [sys.executable, repository / "tools" / f"{tool}.py", "--help"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.startswith(f"usage: deepdisc {command}")


def test_prepare_passes_its_split(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr("deepdisc.data.prepare.prepare", lambda *args, **options: calls.append(options) or args[1])
    base = ["prepare", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "d"), "--seed", "4"]
    assert cli.main([*base, "--split", "train=0.96, val=0.04"]) == 0
    cut = {"tile_size": 512, "fractions": {"train": 0.96, "val": 0.04}, "seed": 4}
    assert calls == [cut | {"overrides": []}]
    assert cli.main([*base, "--split", "train=much"]) == 2
    assert "a number from 0 to 1" in capsys.readouterr().err


@pytest.fixture
def predict_with_stubs(monkeypatch, tmp_path):
    """Run `predict` on one band without WCS, with a model of 0.4 arcsec/px that finds nothing; returns the model."""
    import fitsio
    import numpy as np
    from omegaconf import OmegaConf

    from deepdisc.inference.predict import Prediction

    fitsio.write(tmp_path / "r.fits", np.ones((8, 8), np.float32), header={"BUNIT": "nJy"})
    predictor = types.SimpleNamespace(test_score_thresh=0.5)
    model = types.SimpleNamespace(roi_heads=types.SimpleNamespace(final_predictor=predictor), to=lambda device: model)
    cfg = OmegaConf.create({"bands": ["r"], "class_names": ["galaxy"], "pixel_scale_arcsec": 0.4})
    monkeypatch.setattr("deepdisc.model_zoo.load_model", lambda name: (model, cfg))
    monkeypatch.setattr("deepdisc.model_zoo.weights_path", lambda name: tmp_path / "r.fits")
    result = Prediction(tmp_path / "catalog.parquet", 0, [])
    monkeypatch.setattr("deepdisc.inference.predict.predict", lambda *args, **options: result)

    def run(*options):
        base = ["predict", f"r={tmp_path / 'r.fits'}", "--model", "stub", "--output", str(tmp_path / "out")]
        assert cli.main([*base, *options]) == 0
        return model

    return run


@pytest.mark.parametrize(("scale", "warns"), [("0.4", False), ("0.59", False), ("0.61", True), ("0.26", True)])
def test_predict_warns_of_a_missing_wcs_and_of_another_pixel_scale(predict_with_stubs, capsys, scale, warns):
    predict_with_stubs("--pixel-scale", scale)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "no WCS: the catalogue has no sky positions (ra and dec are NaN)"
    assert len(lines) == 1 + warns
    assert not warns or (f"{scale} arcsec/px" in lines[1] and "trained at 0.4" in lines[1])


@pytest.mark.parametrize(("options", "threshold"), [((), 0.5), (("0.7",), 0.7), (("0.1",), 0.1), (("0",), 0.0)])
def test_predict_sets_the_score_threshold_of_the_model(predict_with_stubs, options, threshold):
    model = predict_with_stubs("--pixel-scale", "0.4", *(f"--score-threshold={value}" for value in options))
    assert model.roi_heads.final_predictor.test_score_thresh == threshold


def test_simulate_passes_config_output_and_seed(monkeypatch, tmp_path, capsys):
    calls = []
    fake = types.ModuleType("deepdisc.simulate")
    fake.simulate = lambda cfg, output, **options: calls.append((cfg, output, options)) or [output / "mosaic.yaml"]
    monkeypatch.setitem(sys.modules, "deepdisc.simulate", fake)
    config = tmp_path / "sky.py"
    config.write_text("sky = dict(fields=1)\n")
    arguments = ["simulate", "--config-file", str(config), "--output", str(tmp_path), "--seed", "3", "sky.fields=2"]
    assert cli.main(arguments) == 0 == cli.main([*arguments, "--no-report"])
    (cfg, output, options), (_, _, others) = calls
    assert (cfg.sky.fields, output, options["seed"]) == (2, tmp_path, 3)
    assert options["report"] and not others["report"]
    assert capsys.readouterr().out == f"{tmp_path / 'mosaic.yaml'}\n" * 2
    assert cli.main([*arguments, "--no-report", "--compare", "other.parquet"]) == 2


def test_train_takes_a_model_by_name(tmp_path, monkeypatch, capsys):
    import deepdisc.training

    seen = {}
    monkeypatch.setattr(deepdisc.training, "train", lambda cfg, **_: seen.setdefault("cfg", cfg))
    arguments = ["train", "--config-file", "configs/ugriz_r18.py", f"data.path={tmp_path}"]
    assert cli.main([*arguments, "train.init_checkpoint=ugriz_r18"]) == 0
    assert seen["cfg"].train.init_checkpoint.endswith("model_zoo/ugriz_r18.safetensors")
    assert cli.main([*arguments, "train.init_checkpoint=ugriz_r81"]) == 2
    assert "the nearest is 'ugriz_r18'" in capsys.readouterr().err
