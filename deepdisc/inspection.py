"""What a file is and what it holds, in words and in pictures: `deepdisc inspect`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deepdisc.errors import InputError, first_line
from deepdisc.files import read_yaml

if TYPE_CHECKING:
    from deepdisc.training.weights import Weights

_CHECKPOINTS = (".pth", ".pt", ".pkl", ".pyth", ".safetensors")
_TABLES = (".parquet", ".pq", ".ecsv", ".csv")
_STEM = re.compile(r"(?:^|\.)(?:stem\.conv1|patch_embed\.proj)\.weight$")
_BLOCK = re.compile(r"(?:^|\.)(res\d|blocks)\.(\d+)\.")
_BOTTLENECK = re.compile(r"(?:^|\.)res2\.0\.conv3\.weight$")
_SCORES = re.compile(r"(?:^|\.)cls_score\.weight$")


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe a mosaic, catalogue, config, checkpoint, recipe, data set, COCO file or result folder.

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
    if path.suffix == ".json":
        return _coco(path)
    if path.suffix in _TABLES or _is_fits_table(path):
        return _catalogue(path)
    return _mosaic(path)


def draw(path: str | Path, output: str | Path, tiles: int = 4, seed: int = 0) -> Path:
    """Draw a data set as a page with its pictures.

    Args:
        path: a data set's folder, or its dataset.yaml.
        output: folder to write into; must not exist.
        tiles: number of random tiles of each split.
        seed: which tiles.

    Returns:
        The page, report.html.

    Raises:
        InputError: `path` is no data set, or see `data.drawing.draw_dataset`.
    """
    path = Path(path)
    root = path.parent if path.name == "dataset.yaml" else path
    if not (root / "dataset.yaml").is_file():
        kind = inspect(path)["kind"]
        raise InputError(f"--output draws data sets, and {path} is a {kind}; leave --output out to have it described")
    from deepdisc.data.drawing import draw_dataset

    return draw_dataset(root, output, tiles, seed)


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
    is_ours = weights.setting("model") is not None
    return {
        "kind": "checkpoint",
        "program": "deepdisc" if is_ours else weights.origin.program,
        "tensors": len(weights.tensors),
        "parameters": sum(tensor.numel() for tensor in weights.tensors.values()),
        **_network(weights),
        **{key: value for key, value in weights.about.items() if value is not None},
        "config": _config_text(weights),
    }


def _network(weights: Weights) -> dict[str, Any]:
    """What the shapes tell: bands that the first convolution reads, the backbone, and classes without background."""
    from deepdisc.backbones.resnet import BLOCKS_PER_STAGE

    found: dict[str, Any] = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    stem = next((shape for name, shape in shapes.items() if _STEM.search(name) and len(shape) == 4), None)
    if stem:
        found["bands_of_first_convolution"] = stem[1]
    blocks = Counter(stage for stage, _ in sorted({match.groups() for match in map(_BLOCK.search, shapes) if match}))
    counts = tuple(blocks.values())
    if set(blocks) == {"blocks"}:
        found["backbone"] = f"MViT with {counts[0]} blocks"
    elif counts:
        is_bottleneck = any(_BOTTLENECK.search(name) for name in shapes)
        depths = [d for d, known in BLOCKS_PER_STAGE.items() if known == counts and (d >= 50) == is_bottleneck]
        name = f"ResNet-{depths[0]}" if depths else "ResNet"
        found["backbone"] = f"{name} ({', '.join(map(str, counts))} blocks per stage)"
    scores = next((shape for name, shape in shapes.items() if _SCORES.search(name)), None)
    if scores:
        found["classes"] = scores[0] - 1
    return found


def _config_text(weights: Weights) -> Any:
    try:
        return None if weights.config is None else yaml.safe_load(weights.config)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-01
        reason = getattr(error, "problem", None) or first_line(error)
        raise InputError(
            f"config inside {weights.source}: not valid YAML: {reason}; its weights can be read"
        ) from error


def _coco(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {first_line(error)}") from error
    parts = {part: content.get(part) if isinstance(content, Mapping) else None for part in ("images", "annotations")}
    if not all(isinstance(items, list) for items in parts.values()):
        raise InputError(f"{path}: of JSON files only COCO annotations are known, with lists of images and annotations")
    names = {_key(item, "id"): str(_key(item, "name")) for item in _listed(content.get("categories"))}
    objects = Counter(_key(item, "category_id") for item in parts["annotations"])
    return {
        "kind": "COCO annotations",
        "images": len(parts["images"]),
        "annotations": len(parts["annotations"]),
        "categories": {name: objects.pop(number, 0) for number, name in names.items()},
        **({"of_unknown_category": sum(objects.values())} if objects else {}),
    }


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _key(item: Any, name: str) -> str | int | float | None:
    """A value of a JSON object; None where there is none, or no plain value."""
    value = item.get(name) if isinstance(item, Mapping) else None
    return value if isinstance(value, str | int | float) else None


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
