"""How the command line's arguments are read from text; argparse prints what is wrong with them and exits with 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def number(text: str, kind: type, allowed: str, accept: Callable[[float], bool]) -> float:
    """Read a number of a kind; argparse prints what is allowed."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
    return value


def positive(text: str) -> int:
    """Read a whole number above 0."""
    return number(text, int, "a whole number above 0", lambda value: value > 0)


def natural(text: str) -> int:
    """Read a whole number, 0 or more."""
    return number(text, int, "a whole number, 0 or more", lambda value: value >= 0)


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    return number(text, float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    return number(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def number_or_text(text: str) -> float | str:
    """Read a number, or leave the text as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def names(text: str) -> list[str]:
    """Read "g,r,i": names, each once."""
    found = [part.strip() for part in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names such as g,r,i, each once")
    return found


def shares(text: str) -> dict[str, float]:
    """Read "train=0.9,val=0.1"."""
    items = [[part.strip() for part in item.partition("=")] for item in text.split(",")]
    return {name: fraction(value) for name, _, value in items}


def zero_points(text: str) -> float | str | dict[str, float | str]:
    """Read "22.5", "nJy" or "g=22.5,r=nJy"."""
    if "=" not in text:
        return number_or_text(text)
    bands = [[part.strip() for part in item.partition("=")] for item in text.split(",")]
    return {band: number_or_text(value) for band, _, value in bands}
