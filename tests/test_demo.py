"""`tools/demo.py`: the commands it runs are real ones, and its page shows what they measured."""

import importlib.util
import json
from pathlib import Path

import pytest

from deepdisc import cli

METRICS = {
    "detection": {"n_truth": 321, "n_pred": 300, "completeness": 0.9125, "completeness_err": 0.0042, "purity": 0.5},
    "redshift": {"n": 0, "bias": None, "bias_err": None},
}


@pytest.fixture
def demo(repository):
    spec = importlib.util.spec_from_file_location("demo", repository / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo_runs_commands_that_parse_and_shows_their_figures(demo, repository, tmp_path, monkeypatch):
    ran = []

    def pretend(arguments):
        args = cli.parse(arguments)
        ran.append(arguments)
        if arguments[0] == "evaluate":
            args.output.mkdir(parents=True)
            (args.output / "metrics.json").write_text(json.dumps(METRICS))
        return 0

    monkeypatch.setattr(demo, "deepdisc", pretend)
    monkeypatch.setattr("sys.argv", ["demo.py", "--output", str(tmp_path / "demo")])
    demo.main()
    assert [arguments[0] for arguments in ran] == ["simulate", "predict", "evaluate", "predict", "evaluate"]
    assert (repository / "configs/sky/demo.py").is_file()
    for path in (ran[3][1], ran[4][2]):  # the real field's mosaic and truth
        assert Path(path).resolve().is_file(), path
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("0.912 ± 0.004") == 2 and page.count("<td>321</td>") == 2 and "<td>–</td>" in page
    assert 'src="synthetic/scores/report.html"' in page and 'src="real/scores/report.html"' in page


def test_demo_stops_with_the_code_of_a_command_that_fails(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "deepdisc", lambda arguments: 2)
    monkeypatch.setattr("sys.argv", ["demo.py", "--output", str(tmp_path / "demo")])
    with pytest.raises(SystemExit) as caught:
        demo.main()
    assert caught.value.code == 2
