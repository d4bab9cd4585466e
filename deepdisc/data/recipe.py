"""Reading recipes: which fields a data set is made of. datasets/README.md describes every key.

All relative paths of a recipe start from the folder `data`, which is relative to the recipe (default: the recipe's own)
and may be given anew by the user, so that a recipe can be shared while everyone keeps the files elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deepdisc.config import shipped
from deepdisc.data.keys import check_keys, check_positive, from_keys
from deepdisc.data.sources import MosaicSource, located_ebv, source_from_mapping
from deepdisc.data.splits import SPLITS
from deepdisc.data.survey import Survey
from deepdisc.errors import InputError
from deepdisc.files import read_yaml

DEFAULT_CLASSES = ("galaxy", "star")
_KEYS = (
    "name", "survey", "class_names", "bands", "pixel_scale_arcsec", "data", "splits", "fields", "provenance",
)  # fmt: skip
_TRUTH_KEYS = ("truth", "segmentation", "outlines")
_SURVEY_KEYS = (
    "catalogue", "same_object_arcsec", "redshifts", "segmentation", "detect", "fluxes", "match", "problems", "faint",
)  # fmt: skip
_FIELD_KEYS = ("name", "each", "mosaic", "regrid", "ebv", "split", "conditions")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class SplitSettings:
    """How the sky is divided; the key `splits` of a recipe.

    Attributes:
        fractions: share of the sky for each of "train", "val", "test".
        block_pix: side of the blocks that fields are cut into; None: whole fields where there are enough of them.
        block_arcmin: the same on the sky.
        guard_pix: gap between blocks of different splits.
        seed: decides which field or block goes where.
    """

    fractions: dict | None = None
    block_pix: int | None = None
    block_arcmin: float | None = None
    guard_pix: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.block_pix, "splits: block_pix")
        check_positive(self.block_arcmin, "splits: block_arcmin")
        if self.block_pix is not None and self.block_arcmin is not None:
            raise InputError("splits: block_pix and block_arcmin are both given; keep one")
        if self.guard_pix < 0:
            raise InputError(f"splits: guard_pix is {self.guard_pix}; it must not be negative")


@dataclass(frozen=True)
class Entry:
    """One field of a recipe, its paths absolute. Either `truth` and `segmentation` are given, or `survey` is.

    Attributes:
        name: of the field.
        mosaic: what `Mosaic.open` takes.
        regrid: the band whose pixel grid the others are brought to first; None for none.
        ebv: in place of what the mosaic says: a number, a FITS map, {sfd: ...}, {healpix: ...}, or "column".
        split: given by the recipe, or None.
        conditions: kept as provenance.
        truth: catalogue that describes the segmentation map.
        segmentation: FITS map of ids.
        outlines: Parquet table of the whole outlines, overlapped parts included.
        survey: a foreign catalogue, a detection, or both, from which the truth is made.
    """

    name: str
    mosaic: str | MosaicSource
    regrid: str | None
    ebv: Any
    split: str | None
    conditions: Any
    truth: Path | None = None
    segmentation: Path | None = None
    outlines: Path | None = None
    survey: Survey | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read and checked."""

    name: str
    survey: str | None
    class_names: tuple[str, ...]
    bands: tuple[str, ...] | None
    pixel_scale_arcsec: float | None
    splits: SplitSettings
    fields: tuple[Entry, ...]
    provenance: Any


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: "KEY=VALUE" in place of what the file says, such as "data=FOLDER" (from the current folder) or
            "fields.0.detect.threshold=2".

    Raises:
        InputError: missing file, not YAML, unknown or missing key, wrong kind of value, no field, a field twice.
    """
    if not path.is_file() and not path.is_absolute() and shipped(str(path)).is_file():
        path = shipped(str(path))  # as for configs: in the repository or in the installed package
    if not path.is_file():
        raise InputError(f"no recipe at {path}; `deepdisc simulate` writes one, datasets/README.md describes it")
    contents = read_yaml(path, "recipe")
    if not isinstance(contents, dict) or not isinstance(contents.get("fields"), list) or not contents["fields"]:
        raise InputError(f"{path}: a recipe needs a list `fields` of entries with mosaic, truth and segmentation")
    for text in overrides:
        _override(contents, text)
    check_keys(contents, _KEYS, str(path))
    for key in ("class_names", "bands"):
        names = contents.get(key, ["any"])
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise InputError(f"{path}: `{key}` is {names!r}; it is a list of names such as [g, r]")
    folder = _data_folder(contents.get("data", "."), path)
    entries = [
        _read_entry(entry, name, folder, place)
        for i, given in enumerate(contents["fields"])
        for entry, name, place in _expanded(given, i, folder, path)
    ]
    _check_fields(entries, path)
    return Recipe(
        name=str(contents.get("name", path.resolve().parent.name)),
        survey=contents.get("survey"),
        class_names=tuple(contents.get("class_names", DEFAULT_CLASSES)),
        bands=tuple(contents["bands"]) if "bands" in contents else None,
        pixel_scale_arcsec=contents.get("pixel_scale_arcsec"),
        splits=from_keys(SplitSettings, contents.get("splits", {}), f"{path}: splits"),
        fields=tuple(entries),
        provenance=contents.get("provenance"),
    )


def _data_folder(value: Any, path: Path) -> Path:
    if not isinstance(value, str):
        raise InputError(f"{path}: data is {value!r}; it is the folder that the recipe's paths start from")
    folder = path.resolve().parent / os.path.expanduser(value)
    if not folder.is_dir():
        raise InputError(f"{path}: no folder {folder}; say where the data are: data=FOLDER")
    return folder


def _override(contents: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last:
        raise InputError(f"{text!r} is not KEY=VALUE, such as data=FOLDER or splits.seed=3")
    node: Any = contents
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise InputError(f"{text!r}: the recipe has no {part!r} there")
    if key == "data":
        node[last] = str(Path(value).expanduser().resolve())
    elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = yaml.safe_load(value)
    elif isinstance(node, dict):
        node[last] = yaml.safe_load(value)
    else:
        raise InputError(f"{text!r}: the recipe has no {last!r} there")


# --------------------------------------------------------------------------------------------------------- fields
def _expanded(given: Any, index: int, folder: Path, path: Path) -> Iterator[tuple[dict[str, Any], str, str]]:
    """The entries (with names and places) that an entry stands for: itself, or one for each file of `each`."""
    place = f"{path}: fields[{index}]"
    if not isinstance(given, dict):
        raise InputError(f"{place} is not a mapping of mosaic, truth and segmentation")
    pattern = given.get("each")
    if pattern is None:
        yield given, str(given.get("name", f"field_{index:03d}")), place
        return
    if not isinstance(pattern, str):
        raise InputError(f"{place}: each is {pattern!r}; it is a pattern of file names such as stamps/{{id}}.fits")
    rest = {key: value for key, value in given.items() if key != "each"}
    expression = re.compile("".join(
        f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part).replace(r"\*", "[^/]*")
        for i, part in enumerate(_PLACEHOLDER.split(pattern))
    ))  # fmt: skip
    found = sorted(folder.glob(_PLACEHOLDER.sub("*", pattern)))
    for file in found:
        relative = file.relative_to(folder).as_posix()
        match = expression.fullmatch(relative)
        words = {**(match.groupdict() if match else {}), "file": relative, "stem": file.name.partition(".")[0]}
        name = str(rest.get("name", "{stem}"))
        yield _filled(rest, words), _filled(name, words), f"{place} ({relative})"
    if not found:
        raise InputError(f"{place}: no file {pattern} in {folder}; say where the data are: data=FOLDER")


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """A value of the recipe with {word} replaced wherever text has it; other braces stay."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: words.get(match.group(1), match.group(0)), value)
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, words) for key, item in value.items()}
    return value


def _read_entry(entry: Mapping[str, Any], name: str, folder: Path, place: str) -> Entry:
    with_truth = "truth" in entry
    own = _TRUTH_KEYS if with_truth else _SURVEY_KEYS
    check_keys(entry, {*_FIELD_KEYS, *_TRUTH_KEYS, *_SURVEY_KEYS}, place)
    for key in entry:
        if key not in _FIELD_KEYS and key not in own:
            raise InputError(f"{place}: `{key}` and `truth` exclude each other: the truth is complete as it is")
    if entry.get("split") not in (None, *SPLITS):
        raise InputError(f"{place}: split {entry['split']!r} is not one of {', '.join(SPLITS)}")
    if not isinstance(entry.get("regrid"), str | None):
        raise InputError(f"{place}: regrid is {entry['regrid']!r}; it is the band whose pixel grid the others get")
    common = {
        "name": name,
        "mosaic": _mosaic(entry.get("mosaic"), folder, place),
        "regrid": entry.get("regrid"),
        "ebv": entry["ebv"] if entry.get("ebv") == "column" else located_ebv(entry.get("ebv"), str(folder), place),
        "split": entry.get("split"),
        "conditions": entry.get("conditions"),
    }
    if with_truth:
        for key in ("truth", "segmentation"):
            if not isinstance(entry.get(key), str):
                raise InputError(f"{place}: `{key}` is missing; give a path relative to the recipe")
        if common["ebv"] == "column" or common["regrid"]:
            raise InputError(f"{place}: regrid and `ebv: column` are for fields with a catalogue, not with truth")
        paths = {key: folder / entry[key] for key in _TRUTH_KEYS if key in entry}
        return Entry(**common, **paths)
    if not {"catalogue", "segmentation", "detect"} & set(entry):
        raise InputError(
            f"{place}: `truth` is missing; give truth and segmentation, or a catalogue and segmentation or detect"
        )
    settings = {key: entry[key] for key in _SURVEY_KEYS if key in entry}
    return Entry(**common, survey=Survey.read(settings, folder, place))


def _mosaic(value: Any, folder: Path, place: str) -> str | MosaicSource:
    if isinstance(value, Mapping):
        return source_from_mapping(value, str(folder), f"{place}: mosaic")
    if not isinstance(value, str):
        raise InputError(f"{place}: `mosaic` is missing; give a path relative to the recipe, or keys of mosaic.yaml")
    return str(folder / value)


def _check_fields(entries: Sequence[Entry], path: Path) -> None:
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: field {max(names, key=names.count)!r} is listed more than once; give unique names")
    given = [entry.split is not None for entry in entries]
    if any(given) and not all(given):
        raise InputError(f"{path}: field {names[given.index(False)]!r} has no split but others have; give all or none")
