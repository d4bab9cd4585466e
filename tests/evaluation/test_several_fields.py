"""Several fields in one report: what the list of fields must say, what the report shows of each."""

import json
import re

import pytest
import yaml
from browser import browse, needs_browser
from report_sky import SmallField, make_prediction, make_truth

from deepdisc import cli
from deepdisc.errors import InputError
from deepdisc.evaluation import compare, compare_fields, read_fields

NAMES = ("ours", "theirs")


def field(n, side, seed):
    truth = make_truth(n, side, seed)
    keep = ["id", "x", "y", "x_min", "y_min", "x_max", "y_max", "mag_r", "snr", "flags"]
    a, b = (
        make_prediction(truth, seed)[[*keep[:7], "score"]],
        make_prediction(truth, seed + 1, lost=5)[[*keep[:7], "score"]],
    )
    return {"catalogues": [a, b], "truth": truth[keep], "mosaic": SmallField(truth, side), "names": NAMES}


@pytest.fixture(scope="module")
def two_fields(tmp_path_factory):
    """(settings, metrics, folder) of two fields that were scored together."""
    folder = tmp_path_factory.mktemp("fields")
    fields = {"SDSS & co, <real>": field(80, 200, 7), "simulated": field(60, 160, 9)}
    return fields, compare_fields(fields, folder, replicates=5, figures=True), folder


def test_each_field_is_scored_as_if_it_were_alone(two_fields):
    fields, metrics, _ = two_fields
    assert metrics["names"] == list(NAMES) and list(metrics["fields"]) == list(fields)
    for name, settings in fields.items():
        rest = {key: value for key, value in settings.items() if key not in ("catalogues", "truth")}
        alone = compare(*settings["catalogues"], settings["truth"], replicates=5, **rest)
        assert metrics["fields"][name]["comparison"]["table"] == alone["comparison"]["table"]


def test_the_page_holds_all_fields_and_a_table_of_them(two_fields):
    _, _, folder = two_fields
    page = (folder / "report.html").read_text()
    assert page.count('<section class="of-field"') == 2 and page.count('type="radio"') == 2
    assert "SDSS &amp; co, &lt;real&gt;" in page and "<real>" not in page
    assert page.count("completeness at equal purity") >= 4  # in the table of all fields, and in each field
    assert page.index("Show the field") < page.index("The field</h2>")
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(set(ids) - {"metrics"}) == len([name for name in ids if name != "metrics"])
    [text] = re.findall(r'<script type="application/json" id="metrics">(.*?)</script>', page, re.DOTALL)
    assert json.loads(text) == json.loads((folder / "metrics.json").read_text())
    names = {path.relative_to(folder / "figures").as_posix() for path in (folder / "figures").rglob("*.png")}
    assert {"1_sdss_co_real/completeness.png", "2_simulated/completeness.png"} <= names


STEPS = """
<script>
(async () => {
  const seen = { errors }, pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const look = () => [...document.querySelectorAll(".of-field")].map((section) => {
    const canvas = section.querySelector("[data-part=sky]");
    return [section.hidden, canvas.clientWidth > 100, section.querySelectorAll("[data-part=layers] label").length];
  });
  await pause(400);
  seen.before = look();
  document.querySelectorAll("input[name=field]")[1].click();
  await pause(400);
  seen.after = look();
  const root = document.querySelectorAll(".field")[1];
  root.querySelector("[data-action=next]").click();
  await pause(300);
  seen.status = root.querySelector("[data-part=status]").textContent;
  const canvas = root.querySelector("[data-part=sky]");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  seen.drawn = new Set(data).size;
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
})();
</script>
"""


@needs_browser
def test_the_reader_chooses_the_field(two_fields, tmp_path):
    seen = browse((two_fields[2] / "report.html").read_text(), STEPS, tmp_path)
    assert seen["errors"] == []
    assert seen["before"] == [[False, True, 5], [True, False, 0]]  # the second is not even made
    assert seen["after"] == [[True, False, 5], [False, True, 5]]
    assert seen["status"].endswith("false: no true object") and seen["drawn"] > 50


# ------------------------------------------------------------------------------------------------------------ the list
def written(tmp_path, **content):
    path = tmp_path / "fields.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_paths_are_those_of_the_file_and_options_of_a_field_come_first(tmp_path):
    one = {
        "catalogues": ["a.fits", "b.fits"],
        "truth": "t.parquet",
        "mosaic": "m.yaml",
        "band": "g",
        "columns": ["", "sep"],
    }
    two = {"catalogues": ["/x/a.fits", "b.fits"], "truth": "t2.parquet", "mag_limit": 20.5}
    fields = read_fields(written(tmp_path, names=list(NAMES), band="r", fields={"one": one, "two": two}))
    assert fields["one"]["catalogues"] == [str(tmp_path / "a.fits"), str(tmp_path / "b.fits")]
    assert fields["one"]["band"] == "g" and fields["two"]["band"] == "r" and fields["two"]["mag_limit"] == 20.5
    assert fields["two"]["catalogues"][0] == "/x/a.fits" and fields["one"]["mosaic"] == str(tmp_path / "m.yaml")
    assert fields["one"]["names"] == NAMES and fields["one"]["columns"] == ["", "sep"]


GOOD = {"catalogues": ["a", "b"], "truth": "t"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"field": {"one": GOOD}}, "lists no fields; write `fields:`"),
        ({"fields": {"one": GOOD}, "bnad": "r"}, "there is no setting 'bnad'; did you mean 'band'"),
        ({"fields": {"one": GOOD | {"max_distance": 1}}}, "field 'one': there is no setting 'max_distance'"),
        ({"fields": {"one": {"catalogues": ["a"]}}}, "field 'one' has no truth; give a file"),
        ({"fields": {"one": {"truth": "t"}}}, "field 'one' has no catalogues; give one or two files"),
        ({"fields": {"one": "a.fits"}}, "'a.fits' is no list of settings"),
        ({"fields": {"one": GOOD | {"catalogues": ["a", "b", "c"]}}}, "has 3 catalogues; one is scored, or two"),
        ({"fields": {"one": GOOD, "two": GOOD | {"catalogues": "a"}}}, "'one' has 2 catalogues and field 'two' has 1"),
        ({"fields": {"one": GOOD}, "names": ["x"]}, "but each field has 2 catalogues; give one for each"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_told(tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read_fields(written(tmp_path, **content))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_takes_a_list_of_fields(tmp_path, capsys):
    names = []
    for k, settings in enumerate((field(60, 160, 3), field(60, 160, 5))):
        for part, frame in zip("abt", (*settings["catalogues"], settings["truth"]), strict=True):
            frame.to_csv(tmp_path / f"{part}{k}.csv", index=False)
        names.append({"catalogues": [f"a{k}.csv", f"b{k}.csv"], "truth": f"t{k}.csv", "max_distance_pix": 1.5})
    path = written(tmp_path, names=list(NAMES), fields={"first": names[0], "second": names[1]})
    out = tmp_path / "scores"
    assert cli.main(["compare", str(path), "--output", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.index("| first") < told.index("| second") and told.count("completeness at equal purity ") >= 2
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["fields"]["second"]["detection"]["match_limit"] == 1.5
    assert metrics["fields"]["first"]["provenance"]["files"][0]["path"] == str(tmp_path / "a0.csv")

    assert cli.main(["compare", str(path), "--band", "r", "--output", str(out)]) == 2
    assert "write there: band" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "a0.csv"), str(tmp_path / "t0.csv"), "--output", str(out)]) == 2
    assert "needs A, B and TRUTH" in capsys.readouterr().err
    (tmp_path / "t1.csv").unlink()
    assert cli.main(["compare", str(path), "--output", str(out)]) == 2
    assert "field 'second': no catalogue at" in capsys.readouterr().err


def test_one_catalogue_on_several_fields(tmp_path):
    fields = {}
    for name, seed in (("first", 3), ("second", 5)):
        settings = field(60, 160, seed)
        fields[name] = {"catalogues": settings["catalogues"][:1], "truth": settings["truth"], "names": ("ours",)}
    metrics = compare_fields(fields, tmp_path, replicates=2)
    assert "comparison" not in metrics["fields"]["first"]
    page = (tmp_path / "report.html").read_text()
    assert "completeness, S/N &gt; 10" in page and "No picture: no mosaic was given." in page
