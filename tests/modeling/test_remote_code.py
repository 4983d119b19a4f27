"""A saved folder brings its own code: an installation without this package loads it, and so does everyone else."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from command_line import fails, run
from paths import ROOT, TRAVELLING
from sharing import make_once
from tiny import aligned, build, calibration, paper, tokens
from transformers import AutoModelForCausalLM


OTHERS = {"caches.py", "checks.py", "contexts.py", "decoder.py", "stock.py", "towers.py", "wholes.py"}
"""Files beside them that stay."""
CASES = {"llama": True, "gpt2": True, "qwen3_moe": False}
"""Tiny model -> whether its head is tied to its embeddings."""

WITHOUT_THE_PACKAGE = """
import importlib.util, sys, torch
assert importlib.util.find_spec("optimum_slicegpt") is None
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

root, *names = sys.argv[1:]
inputs = torch.load(root + "/inputs.pt")
for name in names:
    folder = f"{root}/{name}/model"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as `tiny.aligned` does
    torch.save(model(inputs).logits.detach(), folder + "/../logits.pt")
    assert model.generate(inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs.shape[1] + 3
    body = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert body(inputs).last_hidden_state.shape[:2] == inputs.shape
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules")

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(inputs, labels=inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(folder + "/../again")
"""


def make_python_without_the_package(folder):
    """Makes a virtual environment that has torch, transformers and what they need, and not this package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    there = Path(sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder}))
    # A link to each installed package but ours: a path to all of them would bring the editable install along.
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "slicegpt" not in entry.name and not (there / entry.name).exists():
            (there / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def load_without_us(root):
    """Saves a sliced model for each case, and has one process without the package load, train and save them."""
    torch.save(tokens(), root / "inputs.pt")
    for name, tied in CASES.items():
        config = paper(sparsity=0.3, slice_head=True, dataset=calibration(), embeddings="tied" if tied else "auto")
        model = build(name, torch.float32, tie_word_embeddings=tied).compress(config)
        model.save_pretrained(root / name / "model")

    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HOME": str(root / "home"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    python = make_python_without_the_package(root / "clean")
    command = [python, "-c", WITHOUT_THE_PACKAGE, root, *CASES]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def loaded_without_us(tmp_path_factory):
    return make_once(tmp_path_factory, "remote-code", load_without_us)


@pytest.mark.parametrize(("name", "tied"), CASES.items())
def test_loads_generates_trains_and_saves_without_us(name, tied, tmp_path, loaded_without_us):
    shutil.copytree(loaded_without_us / name, tmp_path, dirs_exist_ok=True)
    assert TRAVELLING == {path.name for path in (tmp_path / "model").glob("*.py")}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.config.tie_word_embeddings == tied
    expected = aligned(loaded)(tokens()).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)

    # What it saved is whole again: files, map, weights.
    assert TRAVELLING == {path.name for path in (tmp_path / "again").glob("*.py")}
    maps = [json.loads((tmp_path / each / "config.json").read_text())["auto_map"] for each in ("model", "again")]
    assert maps[0] == maps[1]
    shutil.rmtree(tmp_path / "model")
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(tokens()).logits).all()


def test_local_code_wins(tmp_path):
    model = build("llama", torch.float32).compress(paper(sparsity=0.3, dataset=calibration()))
    model.save_pretrained(tmp_path)
    (tmp_path / "modeling_sliced.py").write_text("raise RuntimeError('this must not run')")
    for trust in (None, False, True):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)
        assert type(loaded) is type(model)


def test_the_files_import_torch_and_transformers_only():
    folder = ROOT / "optimum_slicegpt" / "modeling"
    assert TRAVELLING | OTHERS == {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    for path in folder.glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                root, *parts = line.split()[1].split(".")
                assert root in {"", "torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names, line
                assert path.name not in TRAVELLING or root or {f"{part}.py" for part in parts} <= TRAVELLING, line


@pytest.mark.parametrize("more", [[], ["--stream"]])
@pytest.mark.parametrize("model_type", ["llama", "hostile"])
def test_code_beside_a_dense_model_is_not_run_unasked(model_type, more, cli_files, tmp_path, capsys):
    folder, ran = tmp_path / "dense", tmp_path / "ran"
    shutil.copytree(cli_files / "dense", folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    config["auto_map"] = {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hostile.py").write_text(f"open({str(ran)!r}, 'w').close()")
    arguments = ["compress", "--model", folder, "--output", tmp_path / "new", "--dataset", cli_files / "train.txt"]
    arguments += ["--nsamples", 4, "--seqlen", 16, *more]
    if model_type == "llama":  # which transformers has code of its own for
        run(*arguments)
    else:
        assert "trust" in fails(capsys, *arguments)
    assert (tmp_path / "new").exists() == (model_type == "llama") and not ran.exists()
