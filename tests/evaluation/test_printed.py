"""What the commands print: one short line for each figure and each band, that fits a terminal."""

import pytest
from report_sky import make_prediction, make_truth

from deepdisc import cli
from deepdisc.evaluation import compare, evaluate
from deepdisc.evaluation.printed import comparison_text, evaluation_text, format_cell, format_difference

BANDS = [f"F{k}W" for k in (90, 115, 150, 200, 277, 335, 356, 410, 444)]


@pytest.fixture(scope="module")
def nine_bands():
    truth = make_truth(150, 240)
    preds = [make_prediction(truth, seed) for seed in (1, 2)]
    for frame in (truth, *preds):
        for band in BANDS:
            frame[f"flux_{band}"] = frame["flux_r"]
            if frame is not truth:
                frame[f"fluxerr_{band}"] = frame["fluxerr_r"]
    drop = [f"{part}_{band}" for part in ("flux", "fluxerr", "mag") for band in "gri"]
    return [frame.drop(columns=drop, errors="ignore") for frame in (*preds, truth)]


def test_one_line_for_each_figure_and_each_band(nine_bands):
    text = evaluation_text(evaluate(nine_bands[0], nine_bands[2], replicates=3))
    lines = text.splitlines()
    assert len(lines) < 50 and max(map(len, lines)) <= 120
    for words in ("completeness ", "purity ", "redshift sigma_NMAD", "redshift PDFs, CRPS", "shear m "):
        assert sum(line.startswith(f"| {words}") for line in lines) == 1, words
    for band in BANDS:
        assert sum(line.startswith(f"| {band} ") for line in lines) == 1
    assert sum(line.startswith("| F90W-F115W ") for line in lines) == 1


def test_two_catalogues_side_by_side(nine_bands):
    text = comparison_text(compare(*nine_bands, names=("A", "B"), replicates=3)["comparison"])
    lines = text.splitlines()
    assert len(lines) < 60 and lines[0].startswith("| ") and "| A " in lines[0]
    [band] = [line for line in lines if line.startswith("| F277W ")]
    assert band.count("|") == 8 and band.count("±") == 6  # bias, scatter, width of pulls, of both
    assert "shear, rms residual" in text and lines[-1].startswith("At equal purity: ")


def test_cells_have_the_digits_that_their_errors_justify():
    assert format_cell({"value": 0.91234, "err": 0.0041, "n": 1234}) == "0.9123 ± 0.0041 (n = 1,234)"
    assert format_cell({"value": float("nan"), "err": float("nan"), "n": 0}) == "not measurable (n = 0)"
    ratio = {"kind": "ratio", "value": 0.95, "low": 0.9, "high": 1.01, "significant": False}
    assert format_difference(ratio) == "0.950x [0.900, 1.010]" and format_difference(None) == ""


def test_the_command_prints_the_table_and_writes_the_figures(nine_bands, tmp_path, capsys):
    for name, frame in zip("abt", nine_bands, strict=True):
        frame[["id", "x", "y"]].to_csv(tmp_path / f"{name}.csv", index=False)
    files = [str(tmp_path / f"{name}.csv") for name in "abt"]
    assert cli.main(["evaluate", files[0], files[2], "--figures", "--output", str(tmp_path / "scores")]) == 0
    told = capsys.readouterr().out
    assert "| completeness " in told and told.rstrip().endswith("report.html")
    assert (tmp_path / "scores" / "figures.pdf").is_file()
