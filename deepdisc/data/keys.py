"""What recipes may say: keys checked against the fields of a dataclass, values against the types of its defaults."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from deepdisc.errors import InputError, nearest

T = TypeVar("T")


def check_keys(found: Iterable[str], known: Iterable[str], place: str) -> None:
    """Refuse a key that is not known.

    Raises:
        InputError: names the key and the nearest one.
    """
    known = list(known)
    for key in found:
        if key not in known:
            close = nearest(str(key), known)
            hint = f"the nearest is {close!r}" if close else f"there are {', '.join(known)}"
            raise InputError(f"{place}: unknown key {key!r}; {hint}")


def from_keys(kind: type[T], content: Any, place: str) -> T:
    """Make a dataclass of a recipe's mapping; numbers must be finite, and choices are for the class to check.

    Raises:
        InputError: not a mapping, an unknown or missing key, or a value of another type than the default.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{place} is {content!r}; it is a mapping of {', '.join(item.name for item in fields(kind))}")
    known = {item.name: item for item in fields(kind) if item.init}
    check_keys(content, known, place)
    for name, item in known.items():
        if name not in content:
            if item.default is MISSING and item.default_factory is MISSING:
                raise InputError(f"{place}: `{name}` is missing")
            continue
        _check_type(content[name], item.type, f"{place}: {name}")
    return kind(**content)


_TYPES = {"bool": bool, "int": int, "float": int | float, "str": str, "dict": Mapping, "list": list}


def _check_type(value: Any, annotation: str, place: str) -> None:
    """Check a value against an annotation such as "float | None"."""
    names = [part.strip().partition("[")[0] for part in str(annotation).split("|")]
    if "Any" in names or (value is None and "None" in names):
        return
    allowed = [_TYPES[name] for name in names if name in _TYPES]
    is_bool = isinstance(value, bool)
    right = any(isinstance(value, kind) and (is_bool == (kind is bool)) for kind in allowed)
    if not right or (isinstance(value, float) and not math.isfinite(value)):
        words = {"float": "a number", "int": "a whole number", "str": "text", "bool": "true or false"}
        wanted = " or ".join(words.get(name, f"a {name}") for name in names if name != "None")
        raise InputError(f"{place} is {value!r}; it must be {wanted}")


def check_choice(value: str, allowed: Iterable[str], place: str) -> None:
    """Refuse a value that is none of those allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise InputError(f"{place} is {value!r}; it is one of {', '.join(allowed)}")


def check_positive(value: float | None, place: str) -> None:
    """Refuse zero and negative numbers."""
    if value is not None and not value > 0:
        raise InputError(f"{place} is {value!r}; it must be a positive number")
