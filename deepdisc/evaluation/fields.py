"""Several fields in one report: each is scored against its own truth, and nothing is summed over them.

A real field and a simulated one differ in what their truths are worth, so that their figures stay apart. A list of
fields is a YAML file:

    names: [deepdisc, SEP]                # what to call the catalogues; one name for one catalogue
    band: r                               # options of all fields: those of `compare`
    fields:
      SDSS, run 94:
        catalogues: [sdss/catalog.parquet, sdss/sep.parquet]      # one or two, paths relative to this file
        truth: sdss/truth.parquet
        mosaic: sdss/mosaic.yaml
        mag_limit: 20.5                   # options of this field
      simulated:
        catalogues: [sim/catalog.parquet, sim/sep.parquet]
        truth: sim/truth.parquet
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from deepdisc.errors import InputError, first_line, nearest
from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.evaluate import Task
from deepdisc.evaluation.scoring import Outcome
from deepdisc.files import write_json

_OPTIONS = (
    "match_by", "iou_threshold", "max_distance_pix", "max_distance_arcsec", "band", "mag_limit", "fwhm_pix", "resample",
)  # fmt: skip
_LISTS = ("catalogues", "columns", "pdfs", "segmentations")
_FILES = ("truth", "mosaic", "truth_segmentation")
_EACH = ("catalogues", "truth", "mosaic", "columns", "pdfs", "segmentations", "truth_segmentation", *_OPTIONS)


def read_fields(path: str | os.PathLike) -> dict[str, dict]:
    """The fields of a YAML file: name -> settings with full paths, the options of all fields filled in.

    Raises:
        InputError: no such file, not a list of fields, an unknown or missing setting, fields with different numbers of
            catalogues.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as a list of fields in YAML: {first_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("fields"), dict) or not content["fields"]:
        raise InputError(f"{path} lists no fields; write `fields:` with a name and the settings of each below it")
    common = {name: value for name, value in content.items() if name != "fields"}
    _check_names(common, ("names", "columns", *_OPTIONS), f"{path}")
    fields = {}
    for name, given in content["fields"].items():
        where = f"{path}, field {name!r}"
        if not isinstance(given, dict):
            raise InputError(
                f"{where}: {given!r} is no list of settings; write catalogues: [...] and truth: ... below it"
            )
        _check_names(given, _EACH, where)
        settings = {**{key: value for key, value in common.items() if key != "names"}, **given}
        fields[str(name)] = _checked(settings, path.parent, where)
    names = _names(common.get("names"), {name: len(field["catalogues"]) for name, field in fields.items()}, path)
    return {name: {**settings, "names": names} for name, settings in fields.items()}


def _check_names(given: Mapping, allowed: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in allowed:
            guess = nearest(str(name), allowed)
            hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(allowed)}"
            raise InputError(f"{where}: there is no setting {name!r}; {hint}")


def _checked(settings: dict, folder: Path, where: str) -> dict:
    """Lists where lists are due, and paths from the folder of the file."""
    for name in ("catalogues", "truth"):
        if not settings.get(name):
            raise InputError(f"{where} has no {name}; give {'one or two files' if name != 'truth' else 'a file'}")
    for name in _LISTS:
        if name in settings and not isinstance(settings[name], list):
            settings[name] = [settings[name]]
    if len(settings["catalogues"]) > 2:
        raise InputError(f"{where} has {len(settings['catalogues'])} catalogues; one is scored, or two are compared")

    def full(item):
        return item if item is None else str(folder / str(item))

    for name in ("catalogues", "pdfs", "segmentations"):
        settings[name] = [full(item) for item in settings.get(name, [])]
    return settings | {name: full(settings[name]) for name in _FILES if name in settings}


def _names(given, numbers: Mapping[str, int], path: Path) -> tuple[str, ...]:
    first = next(iter(numbers))
    for name, number in numbers.items():
        if number != numbers[first]:
            raise InputError(
                f"{path}: field {first!r} has {numbers[first]} catalogues and field {name!r} has {number}; the report "
                "shows the same programs on all fields"
            )
    if given is None:
        return ("this catalogue", "the other")[: numbers[first]]
    given = [given] if isinstance(given, str) else list(given)
    if len(given) != numbers[first]:
        raise InputError(
            f"{path}: names are {given}, but each field has {numbers[first]} catalogues; give one for each"
        )
    return tuple(map(str, given))


def compare_fields(
    fields: Mapping[str, Mapping],
    output: str | os.PathLike | None = None,
    *,
    replicates: int = 200,
    seed: int = 0,
    figures: bool = False,
) -> dict:
    """Score one or two programs' catalogues on several fields, each against its own truth.

    Args:
        fields: name -> settings as `read_fields` gives them: `catalogues` (one or two), `truth`, `names`; optionally
            `mosaic` (opened), `columns`, `pdfs`, `segmentations`, `truth_segmentation` and other keywords of
            `evaluate`.
        output: folder for `metrics.json` and one `report.html` in which the reader chooses the field.
        replicates: bootstrap resamplings.
        seed: of the resampling.
        figures: also write the figures as `figures/<field>/*.png` and figures.pdf.

    Returns:
        `names`, `fields`: name -> the metrics of the field as `evaluate` or `compare` gives them.

    Raises:
        InputError: as `evaluate`, with the field's name.
    """
    outcomes: dict[str, Outcome] = {}
    for name, settings in fields.items():
        rest = dict(settings)
        preds, truth, called = (rest.pop(key) for key in ("catalogues", "truth", "names"))
        task = Task(
            preds, truth, called, rest.pop("columns", None), rest.pop("pdfs", ()), rest.pop("segmentations", ()), rest
        )
        try:
            outcomes[name] = task.run(Resampling(replicates, seed))
        except InputError as error:
            raise InputError(f"field {name!r}: {error}") from error
    names = next(iter(outcomes.values())).names
    metrics = {"names": list(names), "fields": {name: outcome.metrics for name, outcome in outcomes.items()}}
    if output is not None:
        from deepdisc.evaluation import report  # matplotlib is slow to import and not always wanted

        written = {name: report.with_provenance(outcome) for name, outcome in outcomes.items()}
        report.write_report(Path(output), outcomes, {**metrics, "fields": written}, figure_files=figures)
        write_json(Path(output) / "metrics.json", {**metrics, "fields": written})
    return metrics
