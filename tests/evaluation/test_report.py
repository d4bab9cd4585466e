"""The report: what it holds, what it must not hold, and (where a Chromium is installed) what it does in a browser."""

import html
import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest
from browser import browse, needs_browser
from report_sky import BANDS, SmallField, draw_labels, make_prediction, make_truth

from deepdisc.catalog import BOX_COLUMNS
from deepdisc.evaluation import compare, evaluate
from deepdisc.evaluation.printed import measured
from deepdisc.evaluation.report import images
from deepdisc.evaluation.report.field import choose_window, densities, field_data
from deepdisc.evaluation.report.images import Window, binned, pictures
from deepdisc.evaluation.report.outlines import loops, shapes
from deepdisc.evaluation.report.words import interval
from deepdisc.mixture import Mixture

HOSTILE = '</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(metrics, folder) of two catalogues with everything there is, the second with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    truth = make_truth(160, 260)
    truth.loc[0, "class_name"] = HOSTILE
    a, b = with_flux_pdfs(make_prediction(truth), ["r"]), make_prediction(truth, seed=2, lost=5, scatter=0.05)
    a[["g1_err", "g2_err"]] = 0.05
    shape = (260, 260)
    a.to_parquet(folder / "catalog.parquet")
    (folder / "run.json").write_text(json.dumps({"provenance": {"model": f"model {HOSTILE}"}, "objects": len(a)}))
    metrics = compare(
        folder / "catalog.parquet", b, truth, folder / "scores", mosaic=SmallField(truth, 260), names=("ours", HOSTILE),
        segmentations=[draw_labels(a, shape), draw_labels(b, shape)], truth_segmentation=draw_labels(truth, shape),
        replicates=5,
    )  # fmt: skip
    return metrics, folder / "scores"


@pytest.fixture(scope="module")
def page(two):
    return (two[1] / "report.html").read_text(encoding="utf-8")


def held(page, name):
    """A value held in the page as JSON."""
    [text] = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


# ------------------------------------------------------------------------------------------------------------ contents
def test_the_page_loads_nothing_from_elsewhere(page):
    assert not re.search(r"https?:|<link|@import|<iframe|<script[^>]+src|url\((?!#)", page)
    assert page.count("<script>") == 1 and "fetch(" not in page and "XMLHttpRequest" not in page
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"#][^"]*)"', page))


def test_the_page_holds_what_metrics_json_holds(page, two):
    metrics = json.loads((two[1] / "metrics.json").read_text())
    assert held(page, "metrics") == metrics
    assert metrics["comparison"]["other"]["redshift"]["n"] == two[0]["comparison"]["other"]["redshift"]["n"]


def test_summary_names_both_sides_counts_and_exclusions(page, two):
    detection, redshift = two[0]["detection"], two[0]["redshift"]
    for words in (
        "Scored: ours against the truth", f"Of {detection['n_truth']} true objects",
        f"Redshifts of {redshift['n']} matched objects", "Left out: ", "Side by side", "What was left out",
        "without a true", "multiplicative bias m", "Errors: 68 % Wilson intervals",
    ):  # fmt: skip
        assert words in page, words


def test_figures_of_all_parts_follow_the_colours_of_the_page(page):
    captions = " ".join(re.findall(r"<figcaption>(.*?)</figcaption>", page))
    for words in ("Completeness", "Purity", "How well the outlines", "ours: dashed", "Redshifts by r magnitude",
                  "least certain redshifts", "ours: redshift distribution", "Honest densities", "Bias of the fluxes",
                  "Scatter of the colours", "Histograms of the colours", "Redshift densities by r magnitude",
                  "PIT of the true fluxes", "Pulls", "multiplicative bias m", "score threshold moves"):  # fmt: skip
        assert words in captions, words
    # Colours that the style sheet does not know would be unreadable on one of the two screens.
    drawn = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    assert not re.search(r"(?:fill|stroke): #(?:000000|ffffff|1f2937)", drawn) and "var(--ink)" in drawn
    assert not re.search(r"xmlns|<g id=|<metadata|<style", drawn)


def test_figures_are_written_as_files_where_that_is_asked_for(tmp_path):
    truth = make_truth(60, 160)
    evaluate(make_prediction(truth), truth[["x", "y", "mag_r"]], tmp_path, replicates=2, figures=True)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"completeness.png", "flux_bias.png"} <= names and all(name.endswith(".png") for name in names)
    assert len(names) == (tmp_path / "report.html").read_text().count("<svg ")
    assert (tmp_path / "figures.pdf").read_bytes().startswith(b"%PDF")


def test_two_catalogues_are_told_apart_in_words_and_tables(page):
    for words in ("At a purity of", "Redshifts of the same", "a ratio of", "Fluxes of the two against each other",
                  "groups of overlapping outlines", "(false detection)", "not detected"):  # fmt: skip
        assert words in page, words


def test_names_from_files_are_escaped(page):
    assert "<img" not in page and "</script><" not in page.replace("</script>\n", "")
    assert html.escape(HOSTILE) in page  # in the tables
    assert HOSTILE in held(page, "field-data-0")["catalogues"][1]["name"]  # as text, for the view


def test_provenance_has_hashes_and_the_record_beside_the_catalogue(two):
    provenance = json.loads((two[1] / "metrics.json").read_text())["provenance"]
    first = provenance["files"][0]
    assert first["role"] == "predicted catalogue, first" and len(first["sha256"]) == 64
    assert first["bytes"] == (two[1].parent / "catalog.parquet").stat().st_size
    assert [*provenance["predictions"].values()][0]["provenance"]["model"] == f"model {HOSTILE}"
    assert provenance["versions"]["numpy"] == np.__version__ and provenance["options"]["replicates"] == 5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance["time_utc"])


def test_verdicts_and_partners_in_the_view_are_those_of_the_metrics(page, two):
    field = held(page, "field-data-0")
    detection = two[0]["detection"]
    ours, truth = field["catalogues"][0], field["truth"]
    inside = len(ours["x"])
    assert ours["kinds"].count("c") == detection["n_matched"] == truth["kinds"][0].count("t")
    assert truth["kinds"][0].count("m") == detection["n_truth"] - detection["n_matched"]
    assert len(ours["kinds"]) == inside == len(ours["shapes"]) == len(ours["match"]) == len(ours["values"][0])
    for row, partner in enumerate(ours["match"]):
        if partner >= 0:
            assert truth["match"][0][partner] == row
            assert abs(ours["x"][row] - truth["x"][partner]) < 3
    assert field["units"]["flux_r"] == "nJy" and "z_weights" not in ours["columns"]


def with_flux_pdfs(pred, bands, components=5, seed=0):
    """The catalogue with flux densities that end at 0, of these bands."""
    rng = np.random.default_rng(seed)
    for band in bands:
        means = pred.flux_r.to_numpy()[:, None] * rng.normal(1, 0.1, (len(pred), components))
        weights = rng.dirichlet(np.ones(components), len(pred))
        names = [f"flux_{part}_{band}" for part in ("weights", "means", "sigmas")]
        parts = (weights, means, 0.1 * np.abs(means) + 1)
        pred = pred.assign(**{name: list(part.astype(np.float32)) for name, part in zip(names, parts, strict=True)})
        pred[f"flux_lower_{band}"] = 0.0
    return pred


def test_report_of_five_thousand_objects_with_flux_densities_of_nine_bands_is_below_30_mb(tmp_path):
    truth = make_truth(5000, 1500)
    keep = ["id", "x", "y", "class_name", "redshift", "snr", *BOX_COLUMNS]  # no fluxes, no shears: quicker
    pred = with_flux_pdfs(make_prediction(truth), [f"F{100 * k}W" for k in range(1, 10)])
    evaluate(pred, truth[keep], tmp_path, mosaic=SmallField(truth, 1500), replicates=2)
    size = (tmp_path / "report.html").stat().st_size
    assert size < 30e6
    assert len(held((tmp_path / "report.html").read_text(), "field-data-0")["truth"]["x"]) == 5000


def test_without_a_mosaic_the_report_says_so(tmp_path):
    truth = make_truth(60, 160)
    evaluate(make_prediction(truth), truth[["x", "y", "mag_r"]], tmp_path, replicates=2)
    text = (tmp_path / "report.html").read_text()
    assert "No picture: no mosaic was given." in text and 'class="field"' not in text
    assert "the truth has no redshifts" in text


# -------------------------------------------------------------------------------------------------------------- pieces
def test_loops_enclose_their_pixels():
    labels = np.zeros((12, 15), np.int64)
    labels[2:7, 3:9] = 70_000_000_000
    labels[4, 5] = 0  # a hole
    labels[9, 2] = 4  # a single pixel
    found = loops(labels)
    assert set(found) == {4, 70_000_000_000}
    y, x = np.mgrid[:12, :15]
    for label, parts in found.items():
        inside = np.zeros(labels.shape, int)
        for part in parts:
            # From half pixels to sixteenths, for OpenCV's own test of points at the pixels' centres.
            vertices = np.cumsum(np.reshape(part, (-1, 2)), axis=0)
            polygon = ((2 * vertices + 1) * 4).astype(np.int32)
            inside += [[cv2.pointPolygonTest(polygon, (16 * (j + 0.5), 16 * (i + 0.5)), False) >= 0 for j in range(15)]
                       for i in range(12)]  # fmt: skip
        np.testing.assert_array_equal(inside % 2 == 1, labels == label)
    assert x.shape == y.shape


def test_shapes_are_loops_boxes_or_nothing():
    frame = pd.DataFrame({"id": [1, 2], "x_min": [1.0, np.nan], "y_min": 2.0, "x_max": 5.0, "y_max": 6.0})
    window = Window(0, 0, 20, 20)
    assert shapes(frame, None, window) == [[1.0, 2.0, 5.0, 6.0], []]
    labels = np.zeros((20, 20), int)
    labels[3:5, 7:9] = 2
    drawn = shapes(frame, labels, window)
    assert drawn[0] == [1.0, 2.0, 5.0, 6.0] and drawn[1][0][:2] == [14, 6]
    ellipse = pd.DataFrame({"x": [10.0], "y": 10.0, "a_pix": 4.0, "b_pix": 2.0, "theta_deg": 90.0})
    vertices = np.cumsum(np.reshape(shapes(ellipse, None, window)[0][0], (-1, 2)), axis=0)
    assert np.ptp(vertices[:, 0]) == pytest.approx(8, abs=1) and np.ptp(vertices[:, 1]) == pytest.approx(16, abs=1)


def test_averages_leave_masked_pixels_out():
    plane = np.array([[[1.0, 3.0, 5.0], [np.nan, 5.0, np.nan]]], np.float32)
    np.testing.assert_allclose(binned(plane, 2), [[[3.0, 5.0]]])


def test_pictures_keep_to_their_budget_and_lie_where_the_pixels_are(monkeypatch):
    truth = make_truth(100, 300)
    field = SmallField(truth, 300)
    found, rgb = pictures(field, Window(20, 10, 280, 290))
    assert [item["name"] for item in found] == ["colour", *BANDS] and rgb.shape == (290, 280, 3)
    tile = found[2]["tiles"][0]
    assert (tile["x"], tile["y"], tile["width"], tile["height"]) == (20, 300, 280, 290)
    small, _ = pictures(field, Window(20, 10, 280, 290), budget=30_000)
    assert sum(len(t["jpeg"]) for item in small for t in item["tiles"]) * 0.75 < 30_000
    assert all(item["bin"] > 1 for item in small)
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    coarse, rgb = pictures(field, Window(0, 0, 300, 300))
    assert coarse[0]["bin"] == 3 and rgb.shape == (100, 100, 3)


def test_a_crowded_or_large_mosaic_is_shown_in_part(monkeypatch):
    truth = make_truth(400, 400)
    field = SmallField(truth, 400)
    assert choose_window(field, [truth]) == Window(0, 0, 400, 400)
    monkeypatch.setattr("deepdisc.evaluation.report.field.MOST_OBJECTS", 100)
    window = choose_window(field, [truth])
    assert 50 < window.holds(truth.x.to_numpy(), truth.y.to_numpy()).sum() <= 100


def test_densities_of_the_page_are_those_of_the_mixture():
    weights, means, sigmas = np.array([[0.7, 0.3]]), np.array([[0.05, 0.6]]), np.array([[0.1, 0.2]])
    frame = pd.DataFrame({"z_weights": list(weights), "z_means": list(means), "z_sigmas": list(sigmas), "z_lower": 0.0})
    found = densities(frame)
    row = np.reshape(found["rows"][0], (-1, 3))
    z = np.linspace(0, 2, 50)[:, None]
    drawn = (row[:, 0] / row[:, 2] * np.exp(-0.5 * ((z - row[:, 1]) / row[:, 2]) ** 2)).sum(1) / np.sqrt(2 * np.pi)
    expected = Mixture.from_columns(weights, means, sigmas, 0.0)
    for at, value in zip(z[:, 0], drawn, strict=True):
        assert value == pytest.approx(float(expected.prob(np.array([at]))[0]), rel=2e-3, abs=1e-4)
    grid = np.linspace(0, 2, 41)
    gridded = pd.DataFrame({"z_grid": [grid, grid], "z_pdf": [np.full(41, 0.5), np.full(41, np.nan)]})
    found = densities(gridded)["grid"]
    assert found["rows"][1] == [] and found["rows"][0][60] == pytest.approx(0.5)
    assert densities(pd.DataFrame({"x": [1.0]})) is None


def test_numbers_have_the_digits_that_their_errors_justify():
    assert measured(0.031234, 0.0011) == "0.0312 ± 0.0011" and measured(12.3456, 2.1) == "12.3 ± 2.1"
    assert measured(float("nan"), 0.1) == "not measurable" and measured(None) == "not measurable"
    assert measured(0.5, float("nan")) == "0.5"
    assert interval({"m_low": 0.0301, "m_high": 0.0322, "m_err": 0.001}, "m") == "[0.0301, 0.0322]"
    assert interval({"m": 1.0}, "m") == ""


def test_a_field_of_several_pictures_is_not_drawn(two):
    class Setting:
        mosaic = object()
        truth = pd.DataFrame({"field": ["a", "b"]})

    assert field_data([], Setting, [], []).startswith("No picture: the truth covers several fields")


# ------------------------------------------------------------------------------------------------------------- browser
STEPS = """
<script>
(async () => {
  const seen = { errors };
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const root = document.querySelector(".field"), part = (name) => root.querySelector(`[data-part=${name}]`);
  const sky = part("sky"), field = JSON.parse(document.getElementById("field-data-0").textContent);
  const press = (key) => sky.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = (canvas, [r, g, b]) => {
    const data = pixels(canvas);
    let n = 0;
    for (let i = 0; i < data.length; i += 4) n += Math.hypot(data[i] - r, data[i + 1] - g, data[i + 2] - b) < 50;
    return n;
  };
  const inks = { right: [74, 222, 128], false: [248, 113, 113], missed: [253, 224, 71], truth: [56, 189, 248] };
  await pause(400);
  seen.scheme = getComputedStyle(document.body).backgroundColor;
  seen.ink = getComputedStyle(document.querySelector("svg text")).fill;
  for (const [kind, ink] of Object.entries(inks)) {
    const box = root.querySelector(`input[value=${kind}]`);
    const count = async (on) => { if (box.checked !== on) box.click(); await pause(120); return colours(sky, ink); };
    seen[kind] = [await count(false), await count(true)];
  }
  const row = [...field.catalogues[0].kinds].indexOf("c");
  const form = part("find");
  form.elements.id.value = field.catalogues[0].id[row];
  form.requestSubmit();
  await pause(200);
  seen.found = part("status").textContent;
  press("Escape");
  await pause(100);
  seen.closed = root.querySelectorAll(".cutout").length;
  const box = sky.getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
  sky.dispatchEvent(new PointerEvent("pointerdown", at));
  sky.dispatchEvent(new PointerEvent("pointerup", at));
  await pause(300);
  seen.clicked = part("status").textContent;
  seen.cutouts = [...root.querySelectorAll(".cutout")].map((canvas) => new Set(pixels(canvas)).size);
  for (const kind of ["pdf", "sed", "shear"]) seen[kind] = new Set(pixels(root.querySelector("." + kind))).size;
  seen.shears = root.querySelector(".shears").textContent;
  seen.rows = part("card").querySelectorAll("tbody tr").length;
  part("sides").value = "1";
  part("sides").dispatchEvent(new Event("change"));
  press("n");
  await pause(200);
  seen.next = part("status").textContent;
  const all = document.getElementById("all-figures");
  all.querySelector("summary").click();
  await pause(300);
  seen.figures = all.querySelectorAll("tr").length;
  seen.images = document.querySelectorAll("img").length;
  document.title = "done";
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
})();
</script>
"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(page, tmp_path, scheme):
    setting = {"dark": 0, "light": 1}[scheme]
    seen = browse(page, STEPS, tmp_path, f"--blink-settings=preferredColorScheme={setting}")
    assert seen["errors"] == [] and seen["images"] == 0
    dark = ("rgb(17, 24, 39)", "rgb(229, 231, 235)")
    light = ("rgb(255, 255, 255)", "rgb(31, 41, 55)")
    assert (seen["scheme"], seen["ink"]) == (dark if scheme == "dark" else light)
    for kind in ("right", "false", "missed", "truth"):
        off, on = seen[kind]
        assert on > off + 30, (kind, off, on)
    assert seen["found"] == seen["clicked"] and seen["found"].endswith(": right") and seen["closed"] == 0
    assert len(seen["cutouts"]) == 4 and min(seen["cutouts"]) > 20 and seen["rows"] > 10
    assert min(seen["pdf"], seen["sed"], seen["shear"]) > 20
    assert "\u00b1 0.05" in seen["shears"] and "true (cross)" in seen["shears"]
    assert "false" in seen["next"] and seen["figures"] > 1000
