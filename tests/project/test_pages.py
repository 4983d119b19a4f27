"""
Every block of code on every page runs, on a tiny model in place of the one that it names, or says why it does not.

The blocks of a page run in order, in one process: they share a folder, and blocks of Python their names.
"""

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import command_line
import pytest
from paths import ROOT
from tiny import build, calibration

from optimum_slicegpt import SliceGPTConfig


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

BLOCK = re.compile(
    r"^(?: *<!-- (?P<mark>(?:needs|not run): [^\n]+) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    flags=re.M | re.S,
)
RUN, SHOWN = {"python", "bash", "console"}, {"text", "json", "bibtex"}
NEVER_HERE = {"hub", "gpu"}

SMALLER = {
    "benchmark": "--batch-size 1 --seqlen 16 --new-tokens 2 --repeats 2",
    "compress": "--nsamples 8",
    "--stride": "--stride 16",
    "measure.py": "--nsamples 2 --seqlen 32",
    "recover": "--nsamples 8 --max-steps 2",
    "write": "--tokens 64",
    "recover.py": "--nsamples 8 --seqlen 32",
}
"""Command, script or flag on it -> settings with which it is quick, and which suit a model with 32 positions."""


def blocks(page):
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def missing(block) -> bool:
    """Tells whether a block says that it needs something which is not here."""
    kind, _, what = (block["mark"] or "").partition(": ")
    name = re.split(r"\W", what)[0]
    return kind == "not run" or (kind == "needs" and (name in NEVER_HERE or importlib.util.find_spec(name) is None))


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_tokenizer):
    """Saves a tiny model with the heads and the tied embeddings of the model on the pages, and that model sliced."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 16}
    sizes |= {"vocab_size": 98, "max_position_embeddings": 32, "tie_word_embeddings": True}
    model = build("llama", **sizes).float()
    for name in (MODEL, "sliced"):
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
        if name == MODEL:
            model.compress(SliceGPTConfig(sparsity=0.25, dataset=calibration(), refit=False))
    return folder


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    """Returns the working folder of a page."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, folder, monkeypatch):
    names = {"__name__": page.stem}
    for block in blocks(page):
        assert block["language"] in RUN | SHOWN, f"{page.name}: a block of {block['language'] or 'no language'}"
        if block["language"] in SHOWN or missing(block):
            continue
        code = re.sub(rf"^{block['indent']}", "", block["code"], flags=re.M)
        line = page.read_text(encoding="utf-8").count("\n", 0, block.start("code"))
        if block["language"] == "python":
            exec(compile("\n" * line + code, page.name, "exec"), names)
            continue
        if block["language"] == "console":
            code = "\n".join(line.removeprefix("$ ") for line in code.splitlines() if line.startswith("$ "))
        for command in code.replace("\\\n", " ").splitlines():
            run(shlex.split(command, comments=True), monkeypatch)


def test_the_notebook_runs_from_top_to_bottom(folder, capsys):
    """It has no results of its own, which would be those of some other version."""
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    names = {"__name__": "quickstart"}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("%pip"):
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile(source, "quickstart.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"^[\d,]+ parameters before, [\d,]+ after$", printed, flags=re.M)
    assert re.search(r"^self: [\d.]+ dense, [\d.]+ sliced$", printed, flags=re.M)
    assert re.search(rf"^{MODEL}: [\d.]+\nsliced: [\d.]+$", printed, flags=re.M)


def test_every_fence_is_a_block():
    """The expression above finds every fence."""
    for page in PAGES:
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), flags=re.M)
        assert len(fences) == 2 * len(blocks(page)), page.name


def test_python_and_the_shell_write_to_folders_of_their_own():
    """Whoever runs both is not told that the output is there already."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        saved = re.findall(r'model\.save_pretrained\("(.+?)"\)', text)
        written = re.findall(r"slicegpt compress [^`]*?--output (\S+)", text)
        assert set(saved).isdisjoint(written), page.name


def run(command, monkeypatch):
    """Runs a line of shell, as far as pages use it."""
    if not command:
        return
    output = command[command.index("--output") + 1] if "--output" in command else None
    if output and Path(output).exists():
        shutil.rmtree(output)  # readers follow one of the ways to make it
    smaller = [setting for word in command for setting in SMALLER.get(Path(word).name, "").split()]
    match command:
        case ["optimum-cli", "slicegpt", *arguments]:
            command_line.run(*arguments, *smaller)
        case ["python", script, *arguments] if script.startswith("examples/"):
            script = ROOT / script
            monkeypatch.syspath_prepend(script.parent)
            monkeypatch.setattr(sys, "argv", [str(script), *arguments, *smaller])
            runpy.run_path(str(script), run_name="__main__")
        case _:
            raise AssertionError(f"no way to run {shlex.join(command)!r}")
