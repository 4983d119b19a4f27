"""What a user gets from `pip install`: in an environment of its own, which borrows the dependencies from this one."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from paths import ROOT
from sharing import make_once


REGISTER = "optimum/commands/register/register_slicegpt.py"


def run(*command, cwd):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = make_once(tmp_path_factory, "wheel", build_wheel)
    (wheel,) = folder.glob("optimum_slicegpt-*-py3-none-any.whl")
    return wheel


def build_wheel(folder):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)


def test_the_wheel_holds_every_module_every_template_and_nothing_else(wheel):
    folders = "optimum_slicegpt", "optimum"
    files = [path for name in folders for kind in ("*.py", "templates/*") for path in (ROOT / name).rglob(kind)]
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
    # which would hide every other plugin
    assert not [name for name in packed if name.startswith("optimum/") and name.endswith("__init__.py")]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_optimum_cli_finds_the_command(kind, wheel, tmp_path):
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    site_packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    # Comes last on the path, and its own .pth files, such as an editable install of this package, are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation"]
    run(*pip, *([wheel] if kind == "wheel" else ["-e", ROOT]), cwd=tmp_path)

    modules = "optimum_slicegpt", "optimum.commands.register.register_slicegpt"
    where = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name in {modules}), sep='\\n')"
    home = site_packages if kind == "wheel" else ROOT
    found = run(python, "-c", where, cwd=tmp_path).splitlines()
    assert found == [str(home / "optimum_slicegpt" / "__init__.py"), str(home / REGISTER)]

    optimum_cli = Path(sysconfig.get_path("scripts")) / "optimum-cli"
    assert "{compress,write,inspect,recover,eval,benchmark,export}" in run(
        python, optimum_cli, "slicegpt", "--help", cwd=tmp_path
    )
    assert "--sparsity" in run(python, optimum_cli, "slicegpt", "compress", "--help", cwd=tmp_path)


SLICES_TOKENS = """
import sys, torch, transformers, optimum_slicegpt
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
model = LlamaForCausalLM(LlamaConfig(**sizes))
batch = {"input_ids": torch.arange(64).view(2, 32)}
model.compress(optimum_slicegpt.SliceGPTConfig(sparsity=0.25, round_to=1, dataset=[batch]))
print(*sorted(sys.modules.keys() & {"datasets", "pandas", "pyarrow", "matplotlib", "transformers.trainer"}))
"""


def test_slicing_tokens_imports_no_library_of_texts_training_or_pictures():
    assert run(sys.executable, "-c", SLICES_TOKENS, cwd=ROOT).split() == []
