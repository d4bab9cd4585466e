"""What is raised when the user's input is wrong, and how its message is made helpful."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class InputError(Exception):
    """The user's input is wrong: the command line prints the message as one line and exits with code 2.

    The message names the file or argument, the value, what is allowed and what to do.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option that resembles `name` most, or None when nothing does."""
    options = list(options)
    match = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if match:
        return match[0]
    by_lower = {option.lower(): option for option in options}
    match = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[match[0]] if match else None


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        InputError: the module is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise InputError(
            f'this needs the package {module.split(".")[0]!r}, which is not installed: pip install "deepdisc[{extra}]"'
        ) from error
