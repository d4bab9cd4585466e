"""`make demo`: one synthetic field whose truth is known and one real field, from pixels to a scored catalogue.

Runs the commands a user would run, prints each, and writes one page, OUTPUT/index.html, that shows both reports.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from deepdisc.cli import main as deepdisc
from deepdisc.files import write_text

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = Path(os.path.relpath(ROOT / "datasets" / "sdss_sample"))
MODEL = "ugriz_r18"
# A seed that no training sky has used.
HELD_OUT_SEED = 2026

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>deepdisc: demonstration</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }}
  table {{ border-collapse: collapse; }}
  td, th {{ padding: .2em .8em; text-align: right; border-bottom: 1px solid #ccc; }}
  td:first-child, th:first-child {{ text-align: left; }}
  pre {{ white-space: pre-wrap; }}
  iframe {{ width: 100%; height: 900px; border: 1px solid #ccc; }}
</style>
<h1>Pixels in, a photo-z catalogue out</h1>
<p>Model <code>{model}</code>. One command per step; all of it took {seconds:.0f} s.</p>
<table>{table}</table>
{sections}
</html>
"""
SECTION = """<h2>{title}</h2><pre>{commands}</pre>
<p><a href="{name}/scores/report.html">the report alone</a> · catalogue: <code>{name}/catalogue/catalog.parquet</code>,
<code>.fits</code> · <code>segmentation.fits</code> · <code>regions.reg</code></p>
<iframe src="{name}/scores/report.html" title="{title}"></iframe>
"""


def run(*arguments: str | Path) -> str:
    """Run one command of deepdisc, ending the demonstration where it fails; return it as the user would type it."""
    texts = [str(argument) for argument in arguments]
    command = shlex.join(["deepdisc", *texts])
    print(f"\n$ {command}", flush=True)
    code = deepdisc(texts)
    if code:
        sys.exit(code)
    return command


def show(title: str, name: str, field: Path, output: Path, *options: str) -> tuple[str, dict]:
    """Predict and evaluate one field in `output`/`name`; return its part of the page and its metrics.

    Args:
        title: what the field is.
        name: of its folder.
        field: folder with mosaic.yaml and truth.parquet.
        output: folder of the demonstration.
        options: further options of `deepdisc evaluate`.
    """
    mosaic, catalogue, scores = field / "mosaic.yaml", output / name / "catalogue", output / name / "scores"
    commands = [
        run("predict", mosaic, "--model", MODEL, "--output", catalogue),
        run("evaluate", catalogue / "catalog.parquet", field / "truth.parquet", "--mosaic", mosaic, "--output", scores,
            *options),
    ]  # fmt: skip
    section = SECTION.format(title=title, name=name, commands=html.escape("\n".join(commands)))
    return section, json.loads((scores / "metrics.json").read_text())


def table(metrics: dict[str, dict]) -> str:
    """Return the rows of an HTML table: the main figures of each field, with their errors."""
    wanted = [
        ("detection", "n_truth", "objects in the truth"),
        ("detection", "n_pred", "objects found"),
        ("detection", "completeness", "completeness"),
        ("detection", "purity", "purity"),
        ("redshift", "n", "redshifts compared"),
        ("redshift", "bias", "redshift bias"),
        ("redshift", "sigma_nmad", "σ<sub>NMAD</sub>"),
        ("redshift", "eta_15", "outliers, |Δz|/(1+z) &gt; 0.15"),
    ]
    rows = ["<tr><th></th>" + "".join(f"<th>{name}</th>" for name in metrics) + "</tr>"]
    for part, key, label in wanted:
        cells = [figure(values.get(part) or {}, key) for values in metrics.values()]
        rows.append(f"<tr><td>{label}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join(rows)


def figure(values: dict, key: str) -> str:
    """Return "0.912 ± 0.004", "1234", or a dash where the field has no such figure."""
    value, error = values.get(key), values.get(f"{key}_err")
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder, replaced (default: demo)")
    output = parser.parse_args().output
    for name in ("synthetic", "real"):
        shutil.rmtree(output / name, ignore_errors=True)

    start = time.monotonic()
    sky = output / "synthetic" / "sky"
    run("simulate", "--config-file", "configs/sky/demo.py", "--output", sky, "--seed", str(HELD_OUT_SEED))
    synthetic, synthetic_metrics = show(
        "A synthetic field that the model has never seen: the truth is known", "synthetic", sky, output
    )
    real, real_metrics = show(
        "A real field: SDSS, scored against the 20 times deeper Stripe 82 coadd, objects brighter than r = 20.5",
        "real",
        SAMPLE,
        output,
        *("--max-distance-pix", "1", "--band", "r", "--mag-limit", "20.5"),
    )
    page = PAGE.format(
        model=MODEL,
        seconds=time.monotonic() - start,
        table=table({"synthetic": synthetic_metrics, "real (SDSS)": real_metrics}),
        sections=synthetic + real,
    )
    write_text(output / "index.html", page)
    print(f"\nDone. Open {output / 'index.html'} in a browser.")


if __name__ == "__main__":
    main()
