"""Configuration: Python files of lazy calls, in the manner of detectron2's LazyConfig, on omegaconf.

A config file is Python that *describes* objects instead of building them::

    from deepdisc.config import L
    from torch.nn import Conv2d
    from .common.resnet_fpn import model        # another config file: a fresh copy at each import

    num_bands = 5
    model.backbone.bottom_up.depth = 18         # a variant is an import and its differences
    stem = L(Conv2d)(in_channels="${num_bands}", out_channels=64, kernel_size=7)   # "${...}" links to a key

`load` collects the file's public plain values, lists, mappings and lazy calls into one DictConfig, in their order;
names with a leading underscore, modules, functions and classes are left out. `instantiate` builds the objects, `save`
writes YAML that `load` reads again. A file elsewhere starts from a shipped one with
``_base = load("configs/common/resnet_fpn.py")``.
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, OmegaConfBaseException

from deepdisc.errors import InputError, first_line, nearest
from deepdisc.files import write_text
from deepdisc.lazy import L, instantiate, join, plain
from deepdisc.overrides import apply_override

__all__ = ["L", "from_yaml", "instantiate", "load", "save", "shipped", "to_yaml"]

# "${len:${bands}}" is the number of bands: one list is stated, its length never has to be.
OmegaConf.register_new_resolver("len", len, replace=True)


def load(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a config file.

    Args:
        path: a .py config or the .yaml that `save` wrote; a name such as "configs/common/resnet_fpn.py" that does not
            exist from here is the one shipped with the package.
        overrides: ``"key=value"`` strings, see `deepdisc.overrides`.

    Raises:
        InputError: file missing or not readable as a config (with its line), an override of an unknown key or of
            another type, a link that leads to nothing.
    """
    path = _find(path)
    if path.suffix in (".yaml", ".yml"):
        cfg = from_yaml(_read(path), str(path))
    elif path.suffix == ".py":
        cfg = _collect(_execute(path, ()), path)
    else:
        raise InputError(f"config {path}: expected a .py or .yaml file")
    for text in overrides:
        apply_override(cfg, text)
    _check_links(cfg, "", str(path))
    return cfg


def save(cfg: DictConfig, path: str | Path) -> None:
    """Write a config as YAML that `load` reads again; links stay links, so that overrides still reach everything."""
    write_text(path, to_yaml(cfg))


def to_yaml(cfg: DictConfig) -> str:
    """Return a config as YAML. A part of a config has its links resolved, since their ends may lie outside it."""
    return OmegaConf.to_yaml(cfg, resolve=cfg._get_parent() is not None)


def from_yaml(text: str, source: str = "config") -> DictConfig:
    """Return the config that `to_yaml` wrote; InputError names `source` and the line."""
    try:
        cfg = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{source}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{source}: not a config: {first_line(error)}") from error
    if not isinstance(cfg, DictConfig):
        raise InputError(f"{source}: a config is a mapping of keys, found {type(cfg).__name__}")
    return cfg


def shipped(name: str) -> Path:
    """Return where a file of `configs`, `model_zoo` or `datasets` lies: in the repository or the installed package."""
    package = Path(__file__).parent
    installed = package / "_shipped"
    return (installed if installed.is_dir() else package.parent) / name


def _find(path: str | Path) -> Path:
    given = Path(path)
    if given.is_file():
        return given.resolve()
    if not given.is_absolute() and shipped(str(given)).is_file():
        return shipped(str(given)).resolve()
    folder = shipped("configs")
    names = sorted(file.relative_to(folder.parent).as_posix() for file in folder.rglob("*.py"))
    close = nearest(str(path), names)
    hint = f'; nearest shipped config: "{close}"' if close else f"; shipped: {', '.join(names)}"
    raise InputError(f"config file {path} does not exist{hint}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read config {path}: {error}") from error


def _execute(path: Path, importers: tuple[Path, ...]) -> dict[str, Any]:
    """Run a config file in a namespace of its own and return that; it is run anew for each import."""
    if path in importers:
        raise InputError(f"config {importers[-1]} imports {path}, which imports it")
    namespace = {
        "__file__": str(path),
        "__name__": f"<config {path.stem}>",
        # An exec'd file takes __import__ from here: relative imports find config files without patching Python.
        "__builtins__": {**vars(builtins), "__import__": _importer(path, (*importers, path))},
    }
    try:
        exec(compile(_read(path), str(path), "exec", dont_inherit=True), namespace)
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: syntax error: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        message = first_line(error) if str(error) else ""
        raise InputError(f"{path}:{lines[-1] if lines else 1}: {type(error).__name__}: {message}") from error
    return namespace


def _importer(path: Path, importers: tuple[Path, ...]) -> Callable[..., Any]:
    """Return the `__import__` of the config file at `path`: a leading dot means another config file."""

    def import_(name: str, globals_: Any = None, locals_: Any = None, names: Any = (), level: int = 0) -> Any:
        if level == 0:
            return builtins.__import__(name, globals_, locals_, names, 0)
        file = path.parents[level - 1].joinpath(*name.split(".")).with_suffix(".py") if name else path.parent
        if not file.is_file():
            dots = "." * level
            hint = "" if name else f": name the file, from {dots}FILE import NAME"
            raise InputError(f"{path}: {dots}{name} is not a config file ({file} does not exist){hint}")
        module = ModuleType(file.stem)
        # As a DictConfig a mapping is changed like a lazy call: `optim.lr = 1e-4`.
        values = {key: OmegaConf.create(value) if type(value) is dict and not key.startswith("_") else value
                  for key, value in _execute(file, importers).items()}  # fmt: skip
        module.__dict__.update(values)
        for wanted in names or ():
            if wanted != "*" and not hasattr(module, wanted):
                close = nearest(wanted, [key for key in vars(module) if not key.startswith("_")])
                raise InputError(f"{path}: {file} has no {wanted!r}" + (f"; nearest: {close!r}" if close else ""))
        return module

    return import_


def _collect(namespace: Mapping[str, Any], path: Path) -> DictConfig:
    kinds = bool | int | float | str | list | tuple | Mapping | DictConfig | ListConfig | None
    try:
        values = {
            name: plain(value, name)
            for name, value in namespace.items()
            if not name.startswith("_") and isinstance(value, kinds)
        }
    except TypeError as error:
        raise InputError(f"{path}: {error}") from error
    return OmegaConf.create(values)


def _check_links(node: DictConfig | ListConfig, key: str, source: str) -> None:
    """Follow every "${...}" once, so that a misspelt one is an error now and not in the middle of a run."""
    for name in list(node) if isinstance(node, DictConfig) else range(len(node)):
        try:
            value = None if OmegaConf.is_missing(node, name) else node[name]
        except InterpolationToMissingValueError:
            value = None  # a link to "???" is resolved once the user has given that value
        except InterpolationResolutionError as error:
            link = OmegaConf.to_container(node, resolve=False)[name]
            raise InputError(f"{source}: {join(key, name)} = {link!r} links to a key that does not exist") from error
        if OmegaConf.is_config(value) and not OmegaConf.is_interpolation(node, name):
            _check_links(value, join(key, name), source)
