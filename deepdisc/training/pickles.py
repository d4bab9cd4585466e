"""Pickles of strangers: only arrays, tensors and plain containers are built, anything else is refused.

A pickle is a program. Of the callables that it may name only those below exist here, and they are our own: not even
NumPy's own readers of pickled arrays are called, which trust what they are given.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepdisc.errors import InputError

_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|\?)")  # what torch has, too


class _Dtype:
    """Type of an array: numbers only, no objects, no records."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = True):
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _TYPE.fullmatch(code):
            raise pickle.UnpicklingError(
                f"it holds an array of type {code!r}, only numbers are allowed (of 64 bits at most)"
            )
        self.code, self.order = code.lstrip("<>=|"), "="

    def __setstate__(self, state: Any) -> None:
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise pickle.UnpicklingError("it holds an array of records, only numbers are allowed")
        order = order.decode("ascii") if isinstance(order, bytes) else order
        self.order = {"<": "<", ">": ">"}.get(order, "=")

    def read(self, raw: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
        """The array of these bytes, in the machine's byte order."""
        if isinstance(raw, str):  # written by Python 2
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError(f"it holds an array made of a {type(raw).__name__}, only numbers are allowed")
        dtype = np.dtype(self.order + self.code)
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"it holds {len(raw)} bytes for an array {tuple(shape)} of {dtype}")
        return np.frombuffer(raw, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="))


class _Array:
    """An array while it is read: created empty, then given its state."""

    __slots__ = ("value",)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = dtype.read(raw, shape, "F" if is_fortran else "C")


class _Dict(dict):
    """An OrderedDict; what a pickle would set on it besides its items is passed over."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Call:
    """A function that a pickle may call and not change."""

    __slots__ = ("function",)

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.value = dtype.read(raw, shape, "F" if order == "F" else "C")
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


_EMPTY_ARRAY = _Call(lambda *arguments: _Array())
_SCALAR = _Call(lambda dtype, raw: dtype.read(raw, (), "C").item())
_FROM_BUFFER = _Call(_from_buffer)
_EMPTY_BYTES = _Call(lambda: b"")  # how old pickles write them
# numpy.core is what NumPy 1 wrote
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _EMPTY_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _EMPTY_ARRAY,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("collections", "OrderedDict"): _Dict,
    ("_codecs", "encode"): _Call(_encode),
    ("builtins", "bytes"): _EMPTY_BYTES,
    ("__builtin__", "bytes"): _EMPTY_BYTES,
}


# The one in Python: a file numbers its parts, and the one in C fills a table up to the highest number, say 2^32.
class _PlainUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(_refused(f"{module}.{name}"))
        return _ALLOWED[module, name]


def _refused(name: str) -> str:
    return f"it would call {name}, and a weight file may hold only numbers, text, lists and mappings"


def load_pickle(path: Path) -> Any:
    """Read a plain pickle (detectron2's and Detectron's .pkl): nested dicts, lists, numbers, text and NumPy arrays.

    Raises:
        InputError: truncated, no pickle, or one that would do anything else; nothing of it was executed.
    """
    try:
        with open(path, "rb") as handle:
            return _plain(_PlainUnpickler(handle, encoding="latin1").load())
    except Exception as error:  # an unpickler stumbles over foreign bytes with any kind of exception
        raise InputError(f"{path}: cannot be read as a .pkl of weights: {_reason(error)}") from error


def load_torch(path: Path) -> Any:
    """Read what torch.save wrote (.pth, old and new format) onto the CPU; NumPy numbers and arrays are allowed in it.

    Raises:
        InputError: as for `load_pickle`.
    """
    _check_inflation(path)
    torchs = {"collections", "_codecs"}  # torch has its own readers of these
    readers = [(value, f"{module}.{name}") for (module, name), value in _ALLOWED.items() if module not in torchs]
    try:
        with torch.serialization.safe_globals(readers):
            return _plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # as above
        raise InputError(f"{path}: cannot be read as a checkpoint: {_reason(error)}") from error


def _check_inflation(path: Path) -> None:
    """Refuse a compressed archive: torch stores its members as they are, and would inflate any amount of zeros."""
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
    except (OSError, zipfile.BadZipFile, NotImplementedError):  # an older format, or damaged: torch's reader tells
        return
    size = path.stat().st_size
    if inflated > 1.05 * size + 2**20:
        raise InputError(
            f"{path}: cannot be read as a checkpoint: its {size} bytes would become {inflated}, and weights are not "
            "compressed; save it with torch.save"
        )


def _reason(error: Exception) -> str:
    """Why a file is refused, in our words: torch's advise to switch the protection off."""
    named = re.search(r"(?:Unsupported global: GLOBAL |unsupported GLOBAL |Unsupported class )([\w.]+)", str(error))
    if named:
        return _refused(named[1])
    own = re.search(r"^it (?:holds|encodes|changes|would call) .+", str(error), re.MULTILINE)
    return own[0] if own else f"it is truncated, or of another kind ({type(error).__name__})"


def _plain(node: Any, done: dict[int, Any] | None = None) -> Any:
    """The same with NumPy arrays in place of their readers.

    `done` has the finished parts by id: what the file holds once is copied once, however often it occurs.
    """
    done = {} if done is None else done
    if isinstance(node, _Array):
        return node.value
    if id(node) in done:
        return done[id(node)]
    if isinstance(node, dict):
        done[id(node)] = found = {}
        found.update((key, _plain(value, done)) for key, value in node.items())
        return found
    if type(node) is list:
        done[id(node)] = found = []
        found.extend(_plain(value, done) for value in node)
        return found
    if type(node) is tuple:
        return done.setdefault(id(node), tuple(_plain(value, done) for value in node))
    return node
