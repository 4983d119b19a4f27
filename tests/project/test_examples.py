"""Every example runs, with tiny settings. `tests/test_smollm2.py` runs the demo."""

import json
import os
import subprocess
import sys

import pytest
import torch
from forking import run_program
from hub_server import HubServer
from paths import ROOT
from tiny import build, calibration
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig


LAUNCHER = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


def run(script, *args):
    return run_program(ROOT / "examples" / script, *args)


def run_afresh(script, *args, launcher=(), **settings):
    """Runs a script in a process that shares nothing with others: with a launcher, or another Hub."""
    command = [sys.executable, *launcher, str(ROOT / "examples" / script), *map(str, args)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | settings
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=env).stdout


@pytest.fixture
def sliced(tmp_path, tiny_tokenizer):
    """Returns the folder of a sliced checkpoint that has shortcuts."""
    config = SliceGPTConfig(sparsity=0.3, rotation="per_block", refit=False, dataset=calibration())
    build("llama", vocab_size=98).float().compress(config).save_pretrained(tmp_path / "sliced")
    tiny_tokenizer.save_pretrained(tmp_path / "sliced")
    return tmp_path / "sliced"


def test_compress(cli_files, tmp_path):
    output = run(
        "compress.py", f"--model={cli_files / 'dense'}", f"--output={tmp_path / 'new'}", "--reduction=0.3",
        f"--dataset={cli_files / 'train.txt'}", "--nsamples=8", "--seqlen=32",
    )  # fmt: skip
    dense, sliced = (AutoModelForCausalLM.from_pretrained(path) for path in (cli_files / "dense", tmp_path / "new"))
    assert sliced.num_parameters() == pytest.approx(0.7 * dense.num_parameters(), rel=0.1)
    assert f"became {sliced.num_parameters() / 1e6:.2f} M" in output
    assert (tmp_path / "new" / "tokenizer.json").exists()


def test_push_to_hub(sliced, tmp_path):
    server = HubServer()
    try:
        settings = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_loopback"}
        output = run_afresh("push_to_hub.py", f"--model={sliced}", "--repo=me/small", "--private", **settings)
        files = server.files("me/small")
    finally:
        server.close()
    assert output.startswith(f"published as {server.endpoint}/me/small/commit/")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} < set(files)
    assert files["model.safetensors"] == (sliced / "model.safetensors").read_bytes()


def test_quantize(sliced, cli_files, tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    output = run(
        "quantize.py", f"--model={sliced}", f"--output={tmp_path / 'int8'}", f"--dataset={cli_files / 'test.txt'}",
        "--nsamples=8", "--seqlen=16",
    )  # fmt: skip
    perplexities = [float(line.split()[2]) for line in output.splitlines()[:2]]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=0.05)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert type(loaded.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    assert type(loaded.model.layers[0].attn_shortcut.weight) is torch.nn.Parameter


@pytest.mark.parametrize("launched", [False, True])
def test_recover(launched, tmp_path, tiny_tokenizer):
    model = build("llama", vocab_size=98).float()
    model.save_pretrained(tmp_path / "dense")
    model.compress(SliceGPTConfig(sparsity=0.6, dataset=calibration())).save_pretrained(tmp_path / "sliced")
    tiny_tokenizer.save_pretrained(tmp_path / "sliced")
    (tmp_path / "text.txt").write_text(" ".join(f"w{number % 90}" for number in range(4000)))
    arguments = (
        "recover.py", f"--model={tmp_path / 'sliced'}", f"--output={tmp_path / 'recovered'}",
        f"--teacher={tmp_path / 'dense'}", f"--dataset={tmp_path / 'text.txt'}", "--nsamples=64", "--seqlen=32",
    )  # fmt: skip
    output = run_afresh(*arguments, launcher=LAUNCHER) if launched else run(*arguments)
    before, after = (float(line.rpartition(" ")[2]) for line in output.splitlines())
    assert after < 0.99 * before, output
    assert (tmp_path / "recovered" / "model.safetensors").exists()


@pytest.mark.parametrize("piqa", [False, True])
def test_measure(piqa, sliced, cli_files, tmp_path):
    if piqa:
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    questions = [json.dumps({"goal": f"w{i}", "sol1": f"w{i + 1} w7", "sol2": f"w{i + 2}"}) for i in range(4)]
    (tmp_path / "valid.jsonl").write_text("\n".join(questions))
    (tmp_path / "valid-labels.lst").write_text("0\n1\n1\n0\n")
    output = run(
        "measure.py", f"--dense={cli_files / 'dense'}", f"--sliced={sliced}", "--nsamples=4",
        f"--dataset={cli_files / 'test.txt'}", "--seqlen=32", *[f"--piqa={tmp_path}", "--limit=3"] * piqa,
    )  # fmt: skip
    lines = output.splitlines()
    assert sum("perplexity" in line for line in lines) == 2
    assert sum(" PIQA 0." in line or " PIQA 1." in line for line in lines) == 2 * piqa
    assert lines[-1].startswith("loss of the sliced over the dense one: ") and "±" in lines[-1]
