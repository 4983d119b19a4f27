"""`optimum-cli slicegpt inspect --report` and `--figures`: their files, and what they refuse."""

import re
import sys
from importlib import import_module

import pytest
from command_line import fails, measuring, run
from matplotlib.image import imread

from optimum_slicegpt.commands import inspect
from optimum_slicegpt.reports.figures import DPI, WIDTH_INCHES
from optimum_slicegpt.storage.files import is_result


def test_figures_are_files(cli_files, sliced, tmp_path, capsys):
    run("inspect", *measuring(cli_files), "--figures", tmp_path / "dense")
    assert f"Saved in {tmp_path / 'dense'}" in capsys.readouterr().out
    run("inspect", "--model", sliced, "--figures", tmp_path / "figures", "--report", tmp_path / "report.html")
    assert is_result(tmp_path / "dense") and is_result(tmp_path / "figures")  # so --overwrite takes them
    assert capsys.readouterr().out.endswith(f"Saved in {tmp_path}/report.html\nSaved in {tmp_path}/figures\n")
    names = {path.name for folder in ("dense", "figures") for path in (tmp_path / folder).iterdir()}
    dense = {"spectrum.png", "energy_by_width.png", "energy_by_sparsity.png", "cost.png"}
    assert names == dense | {"parameters.png", "slicegpt.png"}
    picture = imread(tmp_path / "figures" / "slicegpt.png")
    assert picture.shape[1] == round(WIDTH_INCHES * DPI) and picture[0, 0].min() == 1


def test_the_energy_is_on_the_console(cli_files, capsys):
    run("inspect", *measuring(cli_files), "--sparsity", 0.5)
    _, header, dense, per_block, shared = capsys.readouterr().out.splitlines()
    assert header.endswith("energy kept   least") and dense.endswith("-       -")
    assert re.search(r"\d\d\.\d\d% +\d\d\.\d\d%$", per_block) and re.search(r"\d\d\.\d\d% +\d\d\.\d\d%$", shared)


def test_outputs_that_are_there_are_refused_untouched(cli_files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspect, "load_model", lambda *args: pytest.fail("a model was loaded"))
    kept = tmp_path / "kept.html"
    kept.write_text("mine")
    message = "kept.html' is there already; give a place that is absent or empty, or --overwrite."
    assert message in fails(capsys, "inspect", *measuring(cli_files), "--report", kept)
    message = "is there already; give a place that is absent or empty"
    assert message in fails(capsys, "inspect", *measuring(cli_files), "--figures", tmp_path)
    assert list(tmp_path.iterdir()) == [kept] and kept.read_text() == "mine"


def test_nothing_is_left_of_a_report_that_fails(cli_files, tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("optimum_slicegpt.reports.page.Page.save_pictures", interrupted)
    with pytest.raises(SystemExit) as exit:
        run("inspect", "--model", cli_files / "dense", "--report", tmp_path / "a.html", "--figures", tmp_path / "b")
    assert exit.value.code == 130
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize("what, package", [("Pictures", "matplotlib"), ("Reports", "jinja2")])
def test_reports_say_what_to_install(what, package, cli_files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    imported = [f"optimum_slicegpt.reports.{name}" for name in ("report", "page", "figures")]
    for name in [*imported, "optimum_slicegpt.commands.inspect"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    message = f'error: {what} need {package}: pip install "optimum-slicegpt[report]"'
    report = tmp_path / "report.html"
    assert fails(capsys, "inspect", "--model", cli_files / "dense", "--report", report) == message
    assert not report.exists() and "optimum_slicegpt.commands.inspect" not in sys.modules
    with pytest.raises(ImportError, match=re.escape(message.removeprefix("error: "))):
        import_module("optimum_slicegpt.reports.report")
    run("inspect", *measuring(cli_files))  # needs none
    assert "energy kept" in capsys.readouterr().out


def test_data_where_there_is_too_little_to_measure(cli_files, sliced, capsys):
    for flags in (measuring(cli_files), ["--sparsity", 0.2], ["--round-to", 8, "--parameter-reduction", 0.2]):
        found = fails(capsys, "inspect", *flags, "--model", sliced)
        assert f"asks about a dense model, and {sliced} is sliced; give the model that it was made from, or" in found
    message = "device='cuda:99' is not available here"
    assert message in fails(capsys, "inspect", *measuring(cli_files), "--device", "cuda:99")
    message = "32 calibration tokens for a hidden size of 48: fewer tokens than dimensions"
    assert message in fails(capsys, "inspect", *measuring(cli_files), "--nsamples", 2)
