"""What a file is and what it holds: `deepdisc inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deepdisc.errors import InputError
from deepdisc.files import read_yaml

_CHECKPOINTS = (".pth", ".pt", ".pkl", ".pyth", ".safetensors")
_TABLES = (".parquet", ".pq", ".ecsv", ".csv")


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe a mosaic, catalogue, config, checkpoint, recipe, data set or result folder.

    Returns:
        Plain values, first of all `kind`.

    Raises:
        InputError: there is nothing at `path`, or nothing that this program knows.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"nothing at {path}")
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".py":
        return _config(path)
    if path.suffix in (".yaml", ".yml"):
        return _yaml(path)
    if path.suffix in _CHECKPOINTS:
        return _checkpoint(path)
    if path.suffix in _TABLES or _is_fits_table(path):
        return _catalogue(path)
    return _mosaic(path)


def _folder(path: Path) -> dict[str, Any]:
    for name in ("dataset.yaml", "mosaic.yaml", "recipe.yaml", "catalog.parquet", "model_best.pth", "model_final.pth"):
        if (path / name).is_file():
            return inspect(path / name)
    raise InputError(f"{path}: neither a mosaic, nor a data set, nor the output of a prediction or a training")


def _config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from deepdisc.config import load

    return {"kind": "config", **OmegaConf.to_container(load(path), resolve=False)}


def _yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "file")
    content = content if isinstance(content, Mapping) else {}
    if isinstance(content.get("bands"), Mapping):
        return _mosaic(path)
    if path.name == "dataset.yaml":
        return {"kind": "data set", **content}
    if "fields" in content:
        return {"kind": "recipe", **content}
    return _config(path)


def _mosaic(path: Path) -> dict[str, Any]:
    from deepdisc.data.mosaic import Mosaic

    with Mosaic.open(path) as mosaic:
        return {"kind": "mosaic", **mosaic.metadata}


def _checkpoint(path: Path) -> dict[str, Any]:
    from deepdisc.training.weights import read_weights

    weights = read_weights(path)
    return {
        "kind": "checkpoint",
        "program": weights.origin.program,
        "tensors": len(weights.tensors),
        "parameters": sum(tensor.numel() for tensor in weights.tensors.values()),
        **{key: value for key, value in weights.about.items() if value is not None},
        "config": None if weights.config is None else yaml.safe_load(weights.config),
    }


def _is_fits_table(path: Path) -> bool:
    """True for a FITS file whose only data are tables; tile-compressed images are images."""
    import fitsio

    try:
        with fitsio.FITS(path) as fits:
            kinds = {hdu.get_exttype() for hdu in fits if hdu.has_data()}
    except OSError:
        return False  # the mosaic reader says what is wrong with it
    return bool(kinds) and kinds <= {"BINARY_TBL", "ASCII_TBL"}


def _catalogue(path: Path) -> dict[str, Any]:
    from deepdisc import catalog

    frame = catalog.read(path)
    return {
        "kind": "catalogue",
        "rows": len(frame),
        **catalog.metadata(path),
        "columns": {name: _column(frame[name]) for name in frame.columns},
    }


def _column(values: Any) -> str:
    """Describe a column in one line: type, unit, range or first value, meaning."""
    from deepdisc.catalog import describe

    known = describe(values.name)
    text = str(values.dtype) + (f" [{known.unit}]" if known and known.unit else "")
    if values.dtype.kind in "fiu" and values.notna().any():
        text += f", {values.min():g} to {values.max():g}"
        missing = int(values.isna().sum())
        text += f", {missing} missing" if missing else ""
    return text + (f": {known.description}" if known else "")
