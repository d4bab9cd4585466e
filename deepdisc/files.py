"""Writing files so that nothing half-written is ever left behind; reading YAML with errors that say where."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from deepdisc.errors import InputError, first_line

# The C loader where there is one: provenance of hundreds of fields takes the Python loader seconds.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def write_failure(path: Path, error: OSError) -> InputError:
    """Describe a failed write as the user's error: which path, why, what to do."""
    reason = error.strerror or str(error)
    return InputError(f"cannot write {path}: {reason}; free some space or choose another output")


def refuse_to_overwrite(paths: Iterable[str | os.PathLike]) -> None:
    """Check that none of the files or folders to be written exists.

    Raises:
        InputError: one does; names it.
    """
    for path in paths:
        if os.path.lexists(path):
            raise InputError(f"{path} exists already and is not overwritten; choose another --output")


def refuse_unwritable(folder: str | os.PathLike) -> None:
    """Check, before work begins, that a folder can be written into; it need not exist yet.

    Raises:
        InputError: what stands in its place is no folder, or not ours to write to.
    """
    there = Path(folder).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise InputError(f"cannot write into {folder}: {there} is no folder; choose another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into {folder}: {there} is not writable; choose another output")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As `atomic_path` for a folder, which is yielded empty; `path` must not exist.

    Raises:
        InputError: `path` exists, or an OSError that concerns writing.
    """
    path = Path(path)
    refuse_to_overwrite([path])
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial.{path.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` on success, delete it on any failure.

    Raises:
        InputError: the folder is not writable or the disk is full (any OSError that concerns writing).
    """
    path = Path(path)
    # The suffix is kept because astropy and fitsio choose their format by it; ".fits.gz" counts as one suffix.
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
        raise write_failure(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_yaml(path: str | os.PathLike, what: str) -> Any:
    """Read a YAML file (UTF-8) of plain values.

    Args:
        path: of the file.
        what: it should be, for the message: "recipe".

    Raises:
        InputError: it cannot be read, is no text, or no YAML; names the line.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _YAML_LOADER)
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror or error}; check its path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file ({error.reason} at byte {error.start}); give YAML") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{path}{where}: not valid YAML: {problem}; correct it there") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity become null, which every JSON reader accepts."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Nested values as JSON takes them: NaN and infinity become None, arrays lists, paths text."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def sha256(path: str | os.PathLike) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
