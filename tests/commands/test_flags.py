import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import help_of, run
from optimum.commands.slicegpt import arguments
from paths import ROOT

from optimum_slicegpt import SliceGPTConfig, configuration, registration, validation


FIELDS = {
    "sparsity": ([0.3], 0.3),
    "widths": ([32, 32, 32, 32, 32], [32, 32, 32, 32, 32]),
    "parameter_reduction": ([0.25], 0.25),
    "max_loss": ([0.1], 0.1),
    "fit_memory": (["100kB"], "100kB"),
    "context": ([64, "--fit-memory", "100kB"], 64),
    "mlp_sparsity": ([0.3], 0.3),
    "rotation": (["shared"], "shared"),
    "refit": ([], True),
    "refine": (["20"], 20),
    "metric": (["fisher"], "fisher"),
    "schedule": (["energy"], "energy"),
    "architecture": (["stock"], "stock"),
    "round_to": ([4], 4),
    "round_neurons_to": ([16], 16),
    "slice_head": ([], True),
    "embeddings": (["sliced"], "sliced"),
    "orientation": (["random"], "random"),
    "dataset": (["python-docs"], "python-docs"),
    "text_column": (["question"], "question"),
    "nsamples": ([3], 3),
    "seqlen": ([16], 16),
    "own_tokens": ([0], 0),
    "batch_size": ([2], 2),
    "seed": ([7], 7),
    "tokenizer": (["dense"], "dense"),
    "device": (["cpu"], "cpu"),
    "dtype": (["float64"], "float64"),
    "offload_activations": ([], True),
}
"""Field of `SliceGPTConfig` -> values on the command line, value of the field."""


@pytest.fixture
def config_of(cli_files, tmp_path, monkeypatch):
    """Returns a function that makes the `SliceGPTConfig` of a command line."""
    configs = []

    def quantizer(config):
        configs.append(config)
        raise ValueError("seen")

    monkeypatch.setattr(registration, "SliceGPTQuantizer", quantizer)
    monkeypatch.chdir(cli_files)

    def config_of(*arguments):
        with pytest.raises(SystemExit):
            run("compress", "--model", "dense", "--output", tmp_path / "sliced", *arguments)
        return configs.pop()

    return config_of


@pytest.mark.parametrize("name", [field.name for field in fields(SliceGPTConfig) if field.name != "quant_method"])
def test_every_field_has_a_flag(config_of, name):
    values, expected = FIELDS[name]
    config = config_of("--" + name.replace("_", "-"), *values)
    memory = {"fit_memory": "100kB"} if name == "context" else {}
    assert config.to_dict() == SliceGPTConfig(**memory | {name: expected}).to_dict()


def test_fields_without_a_flag_keep_their_defaults(config_of):
    assert config_of().to_dict() == SliceGPTConfig().to_dict()


def test_no_refit(config_of):
    assert config_of("--no-refit").refit is False


def test_a_limit_in_percent(config_of):
    assert config_of("--max-perplexity-increase", "10%").max_loss == pytest.approx(math.log(1.1))


def test_no_seed(config_of):
    assert config_of("--seed", "none").seed is None


def test_several_datasets_are_paths(config_of):
    assert config_of("--dataset", "train.txt", "more.txt").dataset == [Path("train.txt"), Path("more.txt")]


def test_help_and_choices_agree_with_the_configuration():
    printed = re.sub(r"\s+", " ", help_of("compress"))
    for field in fields(SliceGPTConfig):
        if field.name != "quant_method" and type(field.default) in (int, str):
            flag = "--" + field.name.replace("_", "-")
            assert re.search(rf" {flag} [^-].*?\(default: {field.default}[,)]", printed), flag
    assert f"(default: {configuration.DEFAULT_REDUCTION})" in printed
    assert arguments.DTYPES == validation.DTYPES
    assert arguments.ORIENTATIONS == configuration.ORIENTATIONS
    assert arguments.ROTATIONS == configuration.ROTATIONS
    assert arguments.SCHEDULES == configuration.SCHEDULES
    assert arguments.METRICS == configuration.METRICS
    assert arguments.ARCHITECTURES == configuration.ARCHITECTURES
    assert arguments.EMBEDDINGS == configuration.EMBEDDINGS


def test_parsers_import_nothing_heavy():
    code = (
        "import sys; from optimum.commands.register import register_slicegpt; "
        "print({'torch', 'transformers', 'datasets', 'optimum_slicegpt'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
