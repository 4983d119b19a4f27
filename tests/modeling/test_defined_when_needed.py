"""Classes of sliced models are defined when someone needs them, family by family."""

import pickle

import pytest
from forking import run_program
from sliced_models import tapering_model
from transformers import CONFIG_MAPPING

from optimum_slicegpt.modeling import configuration_sliced, modeling_sliced


BROKEN = """
import sys
sys.modules["transformers.models.olmo.modeling_olmo"] = None  # as if a library that it imports were absent
from tiny import TINY
from transformers import AutoConfig, AutoModelForCausalLM
AutoModelForCausalLM.from_config(AutoConfig.for_model("sliced_llama", **TINY["llama"]))
try:
    AutoConfig.for_model("sliced_olmo")
except ImportError:
    print("refused")
"""
UNPICKLED = """
import pickle, sys
from pathlib import Path
import optimum_slicegpt
from tiny import tokens
print(pickle.loads(Path(sys.argv[1]).read_bytes())(tokens()).logits.shape)
"""


def test_an_error_in_the_code_of_one_family_leaves_the_others_alone():
    assert run_program("-c", BROKEN) == "refused\n"


def test_a_process_that_has_defined_nothing_unpickles_a_model(tmp_path):
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(tapering_model("qwen3_moe")))
    assert run_program("-c", UNPICKLED, tmp_path / "model.pickle") == "torch.Size([2, 24, 97])\n"


def test_the_mapping_of_transformers_has_the_class_itself_once_it_is_defined():
    config_class = modeling_sliced.define("qwen3")
    assert CONFIG_MAPPING["sliced_qwen3"] is config_class is configuration_sliced.SlicedQwen3Config
    assert modeling_sliced.SlicedQwen3ForCausalLM.config_class is config_class


@pytest.mark.parametrize("module", [configuration_sliced, modeling_sliced])
@pytest.mark.parametrize("name", ["SlicedBertConfig", "SlicedLlamaForNothing", "__path__"])
def test_modules_have_no_other_classes(module, name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(module, name)
