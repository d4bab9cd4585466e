"""What must hold for the repository as a whole: README, configs, packaging, and nothing of one machine in any file."""

import argparse
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import deepdisc
from deepdisc import cli
from deepdisc.config import from_yaml, instantiate, load, to_yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py"))
FOLDERS = ("deepdisc", "configs", "tools", "tests", "benchmarks", "datasets", "model_zoo", ".ci")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".html", ".cfg", ""}


def fenced(language):
    """The code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def readme_commands():
    """The commands of the README's bash blocks, without comments; a backslash at the end of a line continues it."""
    blocks = [block.replace("\\\n", " ") for block in fenced("bash")]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


# README ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", readme_commands())
def test_readme_commands_exist(line):
    program, *arguments = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    assert program == "deepdisc"
    args = cli.parse(arguments)
    config = getattr(args, "config_file", None)
    if config is not None:
        load(ROOT / config, args.overrides)


def test_readme_lines_of_fine_tuning_are_keys_of_the_configs():
    table = README.split("### Fine-tuning, one line each")[1].split("###")[0]
    cells = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    lines = [shlex.split(cell)[0] for cell in cells if cell != "key=value"]
    assert len(lines) >= 10
    for name in ("ugriz_r18", "mask_rcnn_r50", "cascade_mvitv2_t"):
        for line in lines:
            if not (name == "cascade_mvitv2_t" and "norm=" in line):  # its norms are LayerNorms
                load(ROOT / f"configs/{name}.py", [line])


@pytest.mark.slow
def test_readme_training_section_runs_from_an_empty_folder(tmp_path, monkeypatch):
    """The commands as they stand, only with smaller fields and two iterations."""
    monkeypatch.chdir(tmp_path)
    smaller = {"sky.shape=[256,256]": "sky.shape=[128,128]", "train.max_iter=300": "train.max_iter=2"}
    section = README.split("## Training a model of your own")[1].split("```")[1]
    commands = [line for line in section.splitlines() if line.startswith("deepdisc ")]
    assert [shlex.split(line)[1] for line in commands] == ["simulate", "prepare", "inspect", "train", "predict"]
    for line in commands:
        arguments = [smaller.get(argument, argument) for argument in shlex.split(line)[1:]]
        assert cli.main(arguments) == 0, line
    assert {path.name for path in (tmp_path / "catalogue").iterdir()} == {
        "catalog.parquet", "catalog.fits", "segmentation.fits", "regions.reg", "run.json"
    }  # fmt: skip
    assert (
        cli.main(["train", "--config", "runs/first/config.yaml", "train.output_dir=runs/again", "train.max_iter=1"])
        == 0
    )
    truth = "sky/field_000/truth.parquet"
    assert cli.main(["evaluate", "catalogue/catalog.parquet", truth, "--segmentation", "--output", "scores"]) == 0
    assert (tmp_path / "scores/metrics.json").is_file() and (tmp_path / "scores/report.html").is_file()


def test_readme_python_runs():
    for block in fenced("python"):
        exec(block, {})


def test_readme_yaml_is_a_mosaic():
    import yaml

    from deepdisc.data.sources import read_source

    for block in fenced("yaml"):
        source = read_source(yaml.safe_load(block))
        assert [band.name for band in source.bands] == ["g", "r"]


def test_readme_names_every_command_and_only_folders_that_exist():
    [commands] = [action for action in cli.make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert "predict" in commands.choices
    assert [command for command in commands.choices if f"`deepdisc {command} --help`" not in README] == []
    for name in re.findall(r"^\| `([a-z_/, `]+)` \|", README.split("## Map of the house")[1], re.MULTILINE):
        for part in re.split(r"[`, ]+", name):
            here = ROOT / part if "/" in part or (ROOT / part).exists() else ROOT / "deepdisc" / part
            assert here.exists() or here.with_suffix(".py").exists(), f"README names {part}"


# configs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_loads_and_comes_back_from_yaml(name):
    cfg = load(ROOT / name)
    assert list(cfg), "a config without any key"
    assert from_yaml(to_yaml(cfg)) == cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_and_sky_of_a_config_can_be_built(name):
    cfg = load(ROOT / name)
    for key in ("model", "sky"):
        if key in cfg:
            assert instantiate(cfg[key]) is not None


# packaging ------------------------------------------------------------------------------------------------------


def requirements(monkeypatch):
    """All requirements of setup.py, extras included."""
    import setuptools

    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    exec(compile((ROOT / "setup.py").read_text(), str(ROOT / "setup.py"), "exec"), {"__file__": str(ROOT / "setup.py")})
    texts = [*given["install_requires"], *(text for extra in given["extras_require"].values() for text in extra)]
    return [Requirement(text) for text in texts]


def test_constraints_lie_within_the_ranges_of_setup(monkeypatch):
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    needed = {requirement.name: requirement for requirement in requirements(monkeypatch)}
    for name, version in pins.items():
        if name in needed:
            assert needed[name].specifier.contains(version), f"{name} {version} is outside {needed[name]}"
    assert {"torch", "torchvision", "numpy", "omegaconf", "pytest", "ruff"} <= set(pins) & set(needed)


def test_every_import_of_the_package_is_a_declared_dependency(monkeypatch):
    known = {requirement.name.lower() for requirement in requirements(monkeypatch)} | {"deepdisc", "distributed"}
    provided_by = importlib.metadata.packages_distributions()
    for path in (ROOT / "deepdisc").rglob("*.py"):
        for module in re.findall(r"^\s*(?:import|from) ([a-zA-Z_]\w*)", path.read_text(), re.MULTILINE):
            if module in sys.stdlib_module_names or module == "deepdisc":
                continue
            names = {name.lower() for name in provided_by.get(module, [module])}
            assert names & known, f"{path.name} imports {module}, which setup.py does not name"


@pytest.mark.slow
def test_a_plain_install_finds_the_shipped_files(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "base", "--build-lib", tmp_path / "lib"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    code = (
        "import deepdisc, deepdisc.config as c, deepdisc.simulate.population as p\n"
        "print(deepdisc.__file__)\nprint(c.shipped('configs'))\nprint(list(c.load('configs/common/resnet_fpn.py')))\n"
        "print(p.Population.load('deep', 'test') is not None)\nprint(c.shipped('model_zoo/models.yaml').is_file())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines[:2] == [str(tmp_path / "lib/deepdisc/__init__.py"), str(tmp_path / "lib/deepdisc/_shipped/configs")]
    assert "model" in lines[2] and lines[3:] == ["True", "True"], result.stderr


def test_public_api_is_what_init_says():
    for name in deepdisc.__all__:
        assert getattr(deepdisc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prdict'"):
        deepdisc.prdict  # noqa: B018
    assert callable(deepdisc.predict) and callable(deepdisc.evaluate)


def test_changelog_has_the_version():
    assert f"\n## {deepdisc.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_scripts_of_the_house_are_valid_and_strict():
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()


# hygiene --------------------------------------------------------------------------------------------------------

PERSONAL = re.compile(r"(?<![\w.~}$*])/(?:work|root|tmp|home|mnt|Users)/\w")


def repository_texts():
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts:
                yield path
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT)


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in repository_texts():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if PERSONAL.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
