"""Where a report's numbers come from: files with hashes, options, versions, command, and what made the catalogue."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deepdisc import __version__
from deepdisc.evaluation.scoring import Outcome
from deepdisc.files import sha256

_PACKAGES = ("numpy", "scipy", "pandas", "pyarrow", "astropy", "torch", "matplotlib")
_PROGRAMS = ("deepdisc", "evaluate.py")


def describe(files: Sequence[tuple[str, object]], options: Mapping[str, object], mosaic=None) -> dict:
    """What a run was given.

    Args:
        files: (role, path, or anything else for what was handed over in memory); None for what was not given.
        options: of the evaluation, by name.
        mosaic: its `metadata` name the bands' files.

    Returns:
        `command` (None from Python), `time_utc`, `versions`, `files` (role, path, bytes, sha256), `options`, and
        `predictions`: the run.json beside each predicted catalogue, by the catalogue's path.
    """
    listed = [(role, item) for role, item in files if item is not None]
    for band, about in getattr(mosaic, "metadata", {}).get("bands", {}).items():
        for part in ("image", "noise", "mask"):
            if isinstance(about.get(part), str):
                listed.append((f"mosaic, {band}, {part}", about[part]))
    return {
        "command": _command(),
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "files": [_file(role, item) for role, item in listed],
        "options": {name: _plain(value) for name, value in options.items()},
        "predictions": {str(item): record for role, item in listed if role.startswith("predicted")
                        if (record := _run_record(item)) is not None},
    }  # fmt: skip


def with_provenance(outcome: Outcome) -> dict:
    """The metrics of a field as metrics.json holds them: with `provenance`, without per-object arrays."""
    return {**_without_arrays(outcome.metrics), "provenance": describe(*outcome.record, outcome.setting.mosaic)}


def _without_arrays(value):
    if isinstance(value, dict):
        return {key: _without_arrays(item) for key, item in value.items() if not isinstance(item, np.ndarray)}
    return value


def versions() -> dict[str, str]:
    """This program, Python, and the packages that numbers depend on."""
    return {
        "deepdisc": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _command() -> str | None:
    name = Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]]) if name in _PROGRAMS else None


def _file(role: str, item: object) -> dict:
    if not isinstance(item, str | os.PathLike):
        return {"role": role, "path": None, "bytes": None, "sha256": None}  # handed over in memory
    path = _path(item)
    if not path.is_file():
        return {"role": role, "path": str(item), "bytes": None, "sha256": None}
    return {"role": role, "path": str(item), "bytes": path.stat().st_size, "sha256": sha256(path)}


def _path(item: str | os.PathLike) -> Path:
    """The file, without the name of an extension (`file.fits[SCI]`)."""
    path = Path(item)
    return path if path.exists() else Path(str(item).partition("[")[0])


def _run_record(item: object) -> dict | None:
    """The run.json beside a catalogue, if it can be read."""
    if not isinstance(item, str | os.PathLike):
        return None
    try:
        record = json.loads((_path(item).parent / "run.json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else str(value)
