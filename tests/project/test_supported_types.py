"""Each causal language model of transformers is in the table of families, or on the page with a reason."""

import runpy
import warnings

import pytest
from more_families import MORE
from paths import ROOT
from shapes import GPT
from tiny import calibration
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from optimum_slicegpt import FAMILIES, SliceGPTConfig
from optimum_slicegpt.modeling.families import NOT_SLICEABLE, TOWERS


PAGE = runpy.run_path(ROOT / "docs" / "generate_supported_models.py")
OTHERS = [model_type for types in PAGE["OTHERS"] for model_type in types.split()]
SIZES = {name: {"text_config": MORE[text]} for name, text in PAGE["LOADED_AS"].items() if text in MORE}
SIZES |= {"gpt-sw3": GPT | {"n_head": 3}}


def test_every_type_has_one_place():
    places = [*FAMILIES, *NOT_SLICEABLE, *{*PAGE["LOADED_AS"], *TOWERS}, *OTHERS]
    assert len(places) == len(set(places))
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - places:
        warnings.warn(f"This version of transformers has {model_type}: add a row, or say why not.", stacklevel=1)
    assert {*PAGE["LOADED_AS"], *OTHERS} <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


@pytest.mark.parametrize(("model_type", "loaded_as"), PAGE["LOADED_AS"].items())
def test_types_that_load_as_another(model_type, loaded_as):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES[model_type]))
    assert model.config.model_type == loaded_as
    assert set(model.compress(SliceGPTConfig(sparsity=1 / 3, dataset=calibration())).config.slicegpt["widths"]) == {32}
