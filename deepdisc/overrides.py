"""Overrides from the command line: ``key=value`` strings put into a config, with names and types checked
(part of `deepdisc.config`).

A value is read as a Python literal or else as YAML, so ``1e-4``, ``[g, r]``, ``null``, ``true`` and
``${num_bands}`` all mean what they say; nothing is evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from deepdisc.errors import InputError, first_line, nearest
from deepdisc.lazy import TARGET, is_lazy_call, join, locate, parameters

_ABSENT = object()


def apply_override(cfg: DictConfig, text: str) -> None:
    """Put one ``key=value`` into `cfg`, in place.

    Args:
        cfg: a whole config.
        text: for instance ``"optim.lr=1e-4"`` or ``"model.anchor_sizes.0=[8, 16]"``.

    Raises:
        InputError: no "=", a key that does not exist (the nearest one is named) or a value of another type. A key
            that a lazy call does not hold yet may be added when its callable has that parameter.
    """
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise InputError(f"override {text!r} is not of the form key=value")
    *parents, name = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parents):
        node = _child(cfg, node, ".".join(parents[:depth]), part, key)
    parent = ".".join(parents)
    current = _current(cfg, node, parent, name, key)
    _assign(node, parent, name, current, _parse(value, current, key))


def _child(cfg: DictConfig, node: Any, parent: str, part: str, key: str) -> Any:
    """Return the container `part` of `node`; InputError when it does not exist or holds no keys."""
    child = _get(node, part, join(parent, part))
    if child is _ABSENT:
        raise InputError(_unknown(cfg, key))
    if not isinstance(child, DictConfig | ListConfig):
        raise InputError(f"{key}: {join(parent, part)} is {child!r}, which has no keys inside")
    return child


def _current(cfg: DictConfig, node: Any, parent: str, name: str, key: str) -> Any:
    """Return the value that `name` has now, or the default of that parameter of a lazy call."""
    current = _get(node, name, key)
    if current is not _ABSENT:
        return current
    if is_lazy_call(node):
        known = parameters(locate(node[TARGET], parent))
        if known is None:
            return None
        if name in known:
            default = known[name].default
            return default if isinstance(default, bool | int | float | str | list | tuple) else None
    elif parent and _takes_any_key(node):
        return None
    raise InputError(_unknown(cfg, key, node, parent))


def _takes_any_key(node: Any) -> bool:
    """Whether it is an empty mapping, whose keys are the user's own (names of modules, say)."""
    return isinstance(node, DictConfig) and len(node) == 0


def _get(node: DictConfig | ListConfig, name: str, key: str) -> Any:
    """Return the item, None for one that has no value yet ("???"), _ABSENT when there is no such item."""
    try:
        if isinstance(node, ListConfig):
            if not name.isdecimal() or int(name) >= len(node):
                return _ABSENT
            return None if OmegaConf.is_missing(node, int(name)) else node[int(name)]
        names = {str(item): item for item in node}
        if name not in names:
            return _ABSENT
        return None if OmegaConf.is_missing(node, names[name]) else node[names[name]]
    except InterpolationToMissingValueError:
        return None
    except OmegaConfBaseException as error:
        raise InputError(f"{key}: {first_line(error)}") from error


def _parse(text: str, current: Any, key: str) -> Any:
    """Read the value given for `key`; where text is expected a number stays text."""
    text = text.strip()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"{key}: cannot read the value {text!r}; quote it") from error
    if isinstance(current, str) and isinstance(value, bool | int | float):
        return text
    return list(value) if isinstance(value, tuple) else value


def _assign(node: Any, parent: str, name: str, current: Any, value: Any) -> None:
    """Check `value` against `current` and store it; a mapping given for a mapping is merged key by key."""
    key = join(parent, name)
    if isinstance(current, DictConfig) and isinstance(value, dict) and not _takes_any_key(current):
        for item, inner in value.items():
            inner_current = _current(current._get_root(), current, key, str(item), join(key, item))
            _assign(current, key, str(item), inner_current, inner)
        return
    is_link = isinstance(value, str) and "${" in value
    nullable = value is None and _default_is_none(node, parent, name)
    if not (is_link or nullable or current is None):
        value = _checked(value, current, key)
    if isinstance(node, ListConfig):
        node[int(name)] = value
    else:
        node[{str(item): item for item in node}.get(name, name)] = value


def _default_is_none(node: Any, parent: str, name: str) -> bool:
    if not is_lazy_call(node):
        return False
    known = parameters(locate(node[TARGET], parent)) or {}
    return name in known and known[name].default is None


def _checked(value: Any, current: Any, key: str) -> Any:
    """Return `value` as the type of `current`; InputError says what was expected and what was given."""
    expected = _kind(current)
    given = _kind(value)
    if expected == "float" and given == "int":
        return float(value)
    if expected == "int" and given == "float" and value.is_integer():
        return int(value)
    if expected != given:
        shown = "null" if value is None else f"{given} {_short(value)}"
        raise InputError(f"{key} expects {expected} (now {_short(current)}), but {shown} was given")
    if expected == "list":
        kinds = {_kind(item).replace("int", "float") for item in current}
        if len(kinds) == 1:
            for index, item in enumerate(value):
                if _kind(item).replace("int", "float") not in kinds:
                    was = f"a list of {_kind(current[0])} (now {_short(current)})"
                    raise InputError(f"{key} expects {was}, but item {index} is {_kind(item)} {_short(item)}")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple | ListConfig):
        return "list"
    if isinstance(value, dict | DictConfig):
        return "mapping"
    return "null" if value is None else type(value).__name__


def _short(value: Any) -> str:
    text = repr(OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown(cfg: DictConfig, key: str, node: Any = None, parent: str = "") -> str:
    """Say that `key` does not exist and which one was probably meant."""
    keys = list(_keys(cfg))
    last = key.rsplit(".", 1)[-1]
    if is_lazy_call(node):
        keys += [join(parent, name) for name in parameters(locate(node[TARGET], parent)) or {}]
    siblings = [item for item in keys if item.rpartition(".")[0] == key.rpartition(".")[0]]
    same_name = [item for item in keys if item.rsplit(".", 1)[-1] == last]
    close = nearest(key, siblings) if nearest(last, [item.rsplit(".", 1)[-1] for item in siblings]) else None
    close = close or nearest(key, same_name) or (same_name[0] if same_name else None) or nearest(key, keys)
    hint = f"nearest existing key: {close!r}" if close else f"top-level keys: {', '.join(map(str, cfg))}"
    return f"unknown key {key!r}; {hint}"


def _keys(node: Any, key: str = "") -> Iterator[str]:
    """Yield the key of every item of the config."""
    items = node.items_ex(resolve=False) if isinstance(node, DictConfig) else enumerate(node._iter_ex(resolve=False))
    for name, value in items:
        yield join(key, name)
        if OmegaConf.is_config(value) and not OmegaConf.is_missing(node, name) and value._value() is not None:
            if not OmegaConf.is_interpolation(node, name):
                yield from _keys(value, join(key, name))
