"""Wrong command lines: the flag that was meant, a line or two, within a moment, and nothing is written."""

import itertools
import re
import sys

import pytest
from command_line import help_of, parse, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register.register_slicegpt import SliceGPTCommand
from optimum.commands.slicegpt import arguments, places

from optimum_slicegpt import __main__
from optimum_slicegpt.data import texts


def refused(capsys, *line):
    """Returns the status and what is printed where a line is refused before the package is imported."""
    with pytest.raises(SystemExit) as exit:
        run(*line)
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err and len(printed.err.splitlines()) <= 2
    assert exit.value.code == (2 if "All flags: " in printed.err else 1)
    return printed.err


@pytest.fixture(scope="module")
def parser():
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    SliceGPTCommand(root.subparsers)
    return root.parser


@pytest.fixture
def light(monkeypatch):
    """Fails where a command begins to work."""
    monkeypatch.setattr(arguments, "import_module", lambda name: pytest.fail(f"{name} was imported"))


# Flags


@pytest.mark.parametrize(
    "line, message",
    [
        ("compress --sparcity 0.2", "error: unknown flag --sparcity; did you mean --sparsity?"),
        (
            "compress --parameter_reduction 0.2",
            "unknown flag --parameter_reduction; did you mean --parameter-",
        ),
        ("compress --param 0.2", "unknown flag --param; did you mean --parameter-reduction?"),
        ("compress --sparcity=0.2", "unknown flag --sparcity; did you mean --sparsity?"),
        ("recover --learning-rat 1", "unknown flag --learning-rat; did you mean --learning-rate?"),
        ("FULL stray", "unknown value stray"),
        (
            "compres",
            "'compres' is none of compress, write, inspect, recover, eval, benchmark, export; did you mean",
        ),
        ("compress --model m", "the following arguments are required: --output"),
        (
            "compress --model m --output o --rotation perblock",
            "--rotation: 'perblock' is none of per_block, shared; did",
        ),
        (
            "compress --model m --output o --sparsity 20",
            "--sparsity: '20' is more than all; 20 percent are 20% or 0.2",
        ),
        ("FULL --sparsity 1", "--sparsity: '1' is no share in [0, 1), such as 0.2 or 20%"),
        ("FULL --sparsity -20%", "--sparsity: expected one argument"),
        ("FULL --sparsity many", "--sparsity: 'many' is not a share, such as 0.2 or 20%"),
        ("FULL --sparsity nan", "--sparsity: 'nan' is not a share"),
        ("FULL --nsamples 0", "--nsamples: '0' is no whole number of at least 1"),
        ("FULL --nsamples 1.5", "--nsamples: '1.5' is no whole number of at least 1"),
        ("FULL --seed first", "--seed: 'first' is not a whole number"),
        ("FULL --sparsity 0.1 --widths 8", "--widths: not allowed with argument --sparsity"),
        ("inspect --model m --report x.png", "--report: 'x.png' is no name of an HTML file, such as report.html"),
        ("eval --model m --quiet --verbose", "--verbose: not allowed with argument --quiet"),
    ],
)
def test_flags(line, message, light, capsys):
    printed = refused(capsys, *line.replace("FULL", "compress --model m --output o").split())
    assert message in printed and "All flags: optimum-cli slicegpt" in printed


@pytest.mark.parametrize(
    "given, expected", [("0.2", 0.2), ("20%", 0.2), ("20 %", 0.2), ("12.5%", 0.125), ("0", 0.0), ("0%", 0.0)]
)
def test_shares(given, expected):
    args = parse("compress", "--model", "m", "--output", "o", "--parameter-reduction", given)
    assert args.parameter_reduction == expected


def test_one_width_is_that_of_all_sites():
    assert parse("compress", "--model", "m", "--output", "o", "--widths", 8).widths == 8
    assert parse("compress", "--model", "m", "--output", "o", "--widths", 8, 9).widths == [8, 9]


@pytest.mark.parametrize("command", [[], *([command.name] for command in SliceGPTCommand.SUBCOMMANDS)], ids=str)
def test_every_command_tells_its_version(command, light, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*command, "--version")
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("optimum-slicegpt 0.")


def test_names_of_datasets_are_those_of_the_package():
    assert set(places.NAMES) == set(texts.NAMES) and set(places.FILES) == set(texts._EXTENSIONS)


# Places


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns the present folder, with a model, a text and a file in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("model/config.json", "texts/a.txt", "text.txt", "full/kept.txt", "page.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"model_type": "llama"}')
    for name, content in {"wrong/typeless": "{}", "wrong/broken": "{"}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(content)
    return tmp_path


COMPRESS = "compress --output new --model"


@pytest.mark.parametrize(
    "line, message",
    [
        (f"{COMPRESS} model/config.json", "--model model/config.json is a file; give the folder that it is in"),
        (f"{COMPRESS} .", "--model . holds no model: there is no config.json. Perhaps one of model."),
        (
            f"{COMPRESS} texts",
            "--model texts holds no model: there is no config.json. Give the folder",
        ),
        (f"{COMPRESS} wrong/typeless", "--model wrong/typeless holds no model: its config.json has no model_type."),
        (f"{COMPRESS} wrong/broken", "--model wrong/broken holds no model: its config.json is no JSON. Expecting"),
        (f"{COMPRESS} ./modle", "There is no folder --model ./modle"),
        (f"{COMPRESS} modle", "--model modle is no folder here and not in the Hub's cache, .*; did you mean model?"),
        (
            f"{COMPRESS} me/modle",
            "--model me/modle is no folder here and not in the Hub's cache, and the Hub",
        ),
        (
            f"{COMPRESS} model --dataset texts",
            "--dataset texts is a folder; give the files in it, such as",
        ),
        (
            f"{COMPRESS} model --dataset text.tx",
            "--dataset text.tx: no dataset has that name, .*; did you mean text.t",
        ),
        (f"{COMPRESS} model --dataset python tx", "--dataset tx: no dataset has that name, and no such file is there"),
        (
            f"{COMPRESS} model --eval-dataset wikitext3",
            "--eval-dataset wikitext3: no dataset .* mean wikitext2?",
        ),
        ("compress --model model --output full", "'full' is there already; give a place that is absent or empty"),
        (
            "compress --model model --output text.txt/new",
            "--output text.txt/new would be inside of .*text.txt, wh",
        ),
        ("eval --model model --baseline no/such/model", "There is no folder --baseline no/such/model."),
        ("inspect --model model --report page.html", "Output 'page.html' is there already"),
        (
            f"{COMPRESS} model --overwrite --output ./model",
            "--output model is --model, which would be overwritten; wr",
        ),
    ],
)
def test_places(line, message, folder, light, capsys):
    before = sorted(folder.rglob("*"))
    printed = refused(capsys, *line.split())
    assert re.search(message.replace("?", r"\?"), printed), printed
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "line, message",
    [
        (f"{COMPRESS} model --resume", "--resume is for --stream; give both, or neither"),
        (f"{COMPRESS} model --max-memory 1GiB", "--max-memory is for --stream; give both, or neither"),
        (f"{COMPRESS} model --host-memory 64GB", "--host-memory is for --plan; give both, or neither"),
        (f"{COMPRESS} model --stream --push-to-hub me/it", "--push-to-hub needs the whole model in memory; use hf up"),
        (f"{COMPRESS} model --stream --eval-dataset python-docs", "--eval-dataset needs the whole model in memory"),
        (f"{COMPRESS} model --stream --recover", "--recover needs the whole model in memory; use optimum-cli"),
        (f"{COMPRESS} model --stream --parameter-reduction 0.1 0.2", "--stream is for one size; give one"),
        (f"{COMPRESS} model --recover --parameter-reduction 0.1 0.2", "--recover is for one size; give one"),
        (f"{COMPRESS} model --push-to-hub a/b --parameter-reduction 0.1 0.2", "--push-to-hub is for one size; give"),
        (f"{COMPRESS} model --refuse-above 1 --parameter-reduction 0.1 0.2", "--refuse-above is for one size; give"),
        ("inspect --model model --nsamples 4 --seqlen 8", "--nsamples, --seqlen without --dataset: there is nothing"),
    ],
)
def test_flags_that_contradict_each_other(line, message, folder, light, capsys):
    assert message in refused(capsys, *line.split())


def test_folders_that_cannot_be_written_to(folder, light, capsys, monkeypatch):
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)
    assert "is read-only for you, or full; write elsewhere" in refused(capsys, *COMPRESS.split(), "model")


def test_a_hub_that_does_not_answer_is_asked_once(folder, light, capsys, monkeypatch):
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(places, "hub_answers", lambda: bool(asked.append(1)))
    assert "the Hub cannot be asked" in refused(capsys, *COMPRESS.split(), "me/model")
    assert asked == [1] and constants.HF_HUB_OFFLINE is True


# Anything


COMMANDS = [command.name for command in SliceGPTCommand.SUBCOMMANDS]
FLAGS = sorted(set(re.findall(r"--[a-z0-9-]+", " ".join(map(help_of, COMMANDS)))) - {"--help", "--version"})
VALUES = (
    "0 1 -1 0.2 20% 20 nan inf 1e9 0x10 none auto per_block python wikitext3 float16 '' %s -x = --= 5GB 7XB".split()
)
PLACES = (
    "text.txt text.tx model model/ model/config.json ./modle . .. / ~ full full/kept.txt texts texts/a.txt rel/../new "
    "text.txt/new me/model me/mo:del a/b/c /proc/new /dev/null new"
).split() + ["\0", "a b", "é" * 300, "…/ü"]
FLAG, VALUE = st.sampled_from(FLAGS), st.sampled_from([*VALUES, *PLACES])
WORDS = st.one_of(
    st.tuples(FLAG, VALUE),
    st.tuples(FLAG),
    st.tuples(VALUE),
    st.tuples(FLAG.map(lambda flag: flag[:-1])),  # A letter is missing.
    st.tuples(st.builds("{}={}".format, FLAG, VALUE)),
    st.tuples(st.text(max_size=4)),
)
BEGINNINGS = [*([name] for name in [*COMMANDS, "slice"]), *([name, "--model", "model"] for name in COMMANDS)]
BEGINNINGS += [[*beginning, "--output", "new"] for beginning in BEGINNINGS if "--model" in beginning]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(beginning=st.sampled_from(BEGINNINGS), words=st.lists(WORDS, max_size=3))
def test_any_wrong_line(beginning, words, folder, parser, capsys, monkeypatch):
    reached = []
    monkeypatch.setattr(arguments, "import_module", lambda name: reached.append(name) or exit(1))
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as end:
        args = parser.parse_args(["slicegpt", *beginning, *itertools.chain(*words)])
        args.func(args).run()
    printed = capsys.readouterr()
    assert end.value.code in (1, 2) or printed.out.startswith("usage: ")
    assert reached or printed.err.startswith("error: ") or not end.value.code
    assert len(printed.err.splitlines()) <= 12 and "Traceback" not in printed.err
    assert sorted(folder.rglob("*")) == before


def test_the_package_is_a_program(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["optimum_slicegpt", "compress", "--sparcity", "0.2"])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown flag --sparcity; did you mean --sparsity?")
