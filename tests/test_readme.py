"""Every block of the README runs, on a tiny model in place of the one it names; its tables are of the results."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import build


ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """A working folder with a tiny model under the name that the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    build("llama", max_position_embeddings=1024, vocab_size=98).float().save_pretrained(folder / MODEL)
    tiny_tokenizer.save_pretrained(folder / MODEL)
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def test_python_blocks(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_bash_blocks(folder, tmp_path):
    (folder / "sliced").rename(tmp_path / "sliced-by-python")
    bin_folder = str(Path(sys.executable).parent)
    env = os.environ | {
        "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for block in blocks("bash"):
        command = shlex.split(block)
        if " recover " in block:
            command += ["--nsamples", "8", "--seqlen", "64"]
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, timeout=300)
    assert (folder / "recovered" / "model.safetensors").exists()


def test_tables_are_those_of_the_results():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from tables import PAGES, filled

    for page in PAGES:
        text = (ROOT / page).read_text()
        assert filled(text) == text, page
