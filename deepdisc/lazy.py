"""Lazy calls: a callable and its arguments written down as data, built later (part of `deepdisc.config`).

Legend: *lazy call* = mapping with ``_target_`` (dotted name of a callable) and keyword arguments for it;
*key* = dotted path of a node from the root of its config (``model.backbone.bottom_up``).
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, MissingMandatoryValue

from deepdisc.errors import InputError, first_line, nearest

TARGET = "_target_"


class L:
    """Write down a call: ``L(Conv2d)(in_channels=3, out_channels=8, kernel_size=1)`` gives a DictConfig.

    Args:
        target: a class or function that can be imported by name, or that dotted name.

    Raises:
        TypeError: the callable has no importable name (a lambda, a function of the config file itself).
    """

    def __init__(self, target: Callable | str):
        self.name = target if isinstance(target, str) else dotted_name(target)

    def __call__(self, **arguments: Any) -> DictConfig:
        return DictConfig({TARGET: self.name, **{name: plain(value, name) for name, value in arguments.items()}})


def dotted_name(target: Callable) -> str:
    """Return the name under which `target` can be imported again; TypeError when there is none."""
    name = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', None)}"
    try:
        found = pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError):
        found = None
    if found != target:
        raise TypeError(f"L({target!r}) cannot be imported by name; define it in a module and pass that, or its name")
    return name


def plain(value: Any, name: str) -> Any:
    """Return `value` as what YAML can hold: scalars, lists, mappings and configs; TypeError names the argument."""
    if value is None or isinstance(value, bool | int | float | str | DictConfig | ListConfig):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}.{index}") for index, item in enumerate(value)]
    raise TypeError(
        f"{name} is a {type(value).__name__}, a config holds only numbers, text, lists, mappings and lazy calls: "
        f"write L(...)(...) for an object"
    )


def instantiate(cfg: Any, **extra: Any) -> Any:
    """Build what a config describes, from the inside out.

    Args:
        cfg: a lazy call -> its result; a mapping or list -> a dict or list with its lazy calls built; else itself.
        **extra: further keyword arguments for `cfg`, which must then be a lazy call; they win over its own.

    Raises:
        InputError: an unknown target or keyword, a missing argument, a link to nothing, or an InputError of the
            callable; the message starts with the key. Other exceptions of a callable get the key as a note.
    """
    key = cfg._get_full_key(None) if isinstance(cfg, DictConfig | ListConfig) else ""
    if extra and not is_lazy_call(cfg):
        raise InputError(f"{key or 'config'}: arguments {sorted(extra)} given, but there is no {TARGET} to call")
    return _build(cfg, key, extra)


def is_lazy_call(node: Any) -> bool:
    """True for a mapping that names a callable."""
    return isinstance(node, Mapping) and TARGET in node


def join(key: str, name: Any) -> str:
    """Return the key of the item `name` inside `key`."""
    return f"{key}.{name}" if key else str(name)


def locate(name: Any, key: str) -> Callable:
    """Import the callable of the lazy call at `key`; InputError when there is none of that name."""
    try:
        target = pkgutil.resolve_name(name)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise InputError(f"{join(key, TARGET)}: cannot import {name!r}: {error}") from error
    if not callable(target):
        raise InputError(f"{join(key, TARGET)}: {name!r} is a {type(target).__name__}, which cannot be called")
    return target


def parameters(target: Callable) -> dict[str, inspect.Parameter] | None:
    """Return the parameters that can be given by name; None when any name may be (``**kwargs``, no signature)."""
    try:
        found = inspect.signature(target).parameters
    except ValueError:  # some builtins have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values()):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in found.items() if parameter.kind in by_name}


def _build(node: Any, key: str, extra: Mapping[str, Any]) -> Any:
    if isinstance(node, Mapping):
        names = [name for name in node if name != TARGET and name not in extra]
        target = None
        if TARGET in node:
            target = locate(_item(node, TARGET, key), key)
            _check_arguments(target, [*names, *extra], key)
        values = {name: _build(_item(node, name, key), join(key, name), {}) for name in names}
        return values if target is None else _call(target, {**values, **extra}, key)
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return [_build(_item(node, index, key), join(key, index), {}) for index in range(len(node))]
    return node


def _item(node: Any, name: Any, key: str) -> Any:
    try:
        return node[name]
    except MissingMandatoryValue as error:
        raise InputError(f"{join(key, name)} has no value; give {join(key, name)}=...") from error
    except InterpolationToMissingValueError as error:
        missing = first_line(error).rpartition(": ")[2]
        raise InputError(f"{join(key, name)} needs {missing}, which has no value; give {missing}=...") from error
    except InterpolationResolutionError as error:
        link = OmegaConf.to_container(node, resolve=False)[name]
        raise InputError(f"{join(key, name)} = {link!r} is a link that leads to nothing") from error


def _check_arguments(target: Callable, names: Iterable[str], key: str) -> None:
    known = parameters(target)
    label, names = f"{target.__module__}.{getattr(target, '__qualname__', target)}", set(names)
    if known is not None:
        for name in sorted(names - set(known), key=str):
            close = nearest(str(name), known)
            hint = f"; nearest: {close!r}" if close else f"; it has {', '.join(known) or 'none'}"
            raise InputError(f"{join(key, name)}: {label} has no parameter {str(name)!r}{hint}")
        missing = [name for name, parameter in known.items() if parameter.default is parameter.empty]
        missing = [name for name in missing if name not in names]
        if missing:
            raise InputError(f"{key or 'config'}: {label} needs {', '.join(missing)}; give {join(key, missing[0])}=...")


def _call(target: Callable, arguments: dict[str, Any], key: str) -> Any:
    try:
        return target(**arguments)
    except InputError as error:
        raise InputError(f"{key}: {error}" if key else str(error)) from error
    except Exception as error:
        error.add_note(f"while building {key or 'the config'} = {dotted_name(target)}(...)")
        raise
