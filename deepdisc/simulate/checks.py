"""Checks that the simulator's settings share: numbers and ranges within limits, named as the config names them."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from deepdisc.errors import InputError

Range = tuple[float, float]
Limits = Mapping[str, tuple[float, float]]


def check_numbers(settings: Any, prefix: str, limits: Limits) -> None:
    """Check that each named number of a settings dataclass lies within its limits; a default of None passes.

    Settings of type int must be whole and are stored as int, those of type bool True or False.

    Args:
        settings: the dataclass.
        prefix: what stands before the name in the config, "sky.lensing".
        limits: name -> (lowest, highest).

    Raises:
        InputError: names the setting, its value and the limits.
    """
    for name, (lowest, highest) in _given(settings, limits):
        value = getattr(settings, name)
        if not is_number(value) or not lowest <= value <= highest:
            raise InputError(f"{prefix}.{name} is {value!r}; it must be within {lowest:g} to {highest:g}")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.type == "int":
            object.__setattr__(settings, field.name, whole(prefix, field.name, value))
        elif field.type == "bool" and not isinstance(value, bool):
            raise InputError(f"{prefix}.{field.name} is {value!r}; it must be True or False")


def whole(prefix: str, name: str, value: Any) -> int:
    """A whole number of a setting.

    Raises:
        InputError: it is none.
    """
    if not is_number(value) or value != math.floor(value):
        raise InputError(f"{prefix}.{name} is {value!r}; it must be a whole number")
    return int(value)


def check_ranges(settings: Any, prefix: str, limits: Limits) -> None:
    """Check ranges (low, high), as `check_numbers`, and store them as tuples of float, also in a frozen dataclass."""
    for name, (lowest, highest) in _given(settings, limits):
        value = pair(prefix, name, getattr(settings, name))
        if not lowest <= value[0] <= value[1] <= highest:
            allowed = f"[low, high] within {lowest:g} to {highest:g}"
            raise InputError(f"{prefix}.{name} is {list(value)}; it must be {allowed}")
        object.__setattr__(settings, name, value)


def _given(settings: Any, limits: Limits) -> list[tuple[str, tuple[float, float]]]:
    """The limits of all settings but those that are None by default and were left so."""
    optional = {field.name for field in dataclasses.fields(settings) if field.default is None}
    return [
        (name, limit) for name, limit in limits.items() if name not in optional or getattr(settings, name) is not None
    ]


def check_kind(settings: Any, prefix: str, name: str, kind: type) -> None:
    """Check that a setting is None or other settings of one kind."""
    value = getattr(settings, name)
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{prefix}.{name} is {value!r}; it must be L({kind.__name__})(...) or None")


def check_choice(settings: Any, prefix: str, name: str, choices: Sequence[str]) -> None:
    """Check that a setting is one of some words."""
    if getattr(settings, name) not in choices:
        raise InputError(f"{prefix}.{name} is {getattr(settings, name)!r}; it must be one of {', '.join(choices)}")


def whole_pair(prefix: str, name: str, value: Any) -> tuple[int, int]:
    """The two whole numbers of a setting.

    Raises:
        InputError: it does not hold two whole numbers.
    """
    first, second = pair(prefix, name, value)
    return whole(prefix, name, first), whole(prefix, name, second)


def pair(prefix: str, name: str, value: Any) -> Range:
    """The two numbers of a setting.

    Raises:
        InputError: it does not hold two numbers.
    """
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(values) != 2 or not all(map(is_number, values)):
        raise InputError(f"{prefix}.{name} is {values}; it needs two numbers")
    return float(values[0]), float(values[1])


def is_number(value: Any) -> bool:
    """Whether a value is a number that is not NaN."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
