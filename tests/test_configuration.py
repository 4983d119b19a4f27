import copy
import json
from pathlib import Path

import pytest
import torch

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.configuration import DEFAULT_REDUCTION


@pytest.mark.parametrize(
    "config",
    [
        SliceGPTConfig(),
        SliceGPTConfig(sparsity=0.3, dataset=["a.txt", "b.txt"], seed=None, dtype=torch.bfloat16, device="cuda:1"),
        SliceGPTConfig(
            widths=(8, 16), rotation="per_block", orientation="random", tokenizer="some/name", slice_head=True
        ),
        SliceGPTConfig(parameter_reduction=0.25, mlp_sparsity=0.5, rotation="shared", refit=True, metric="fisher"),
    ],
)
def test_json_round_trip(config):
    assert SliceGPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults():
    config = SliceGPTConfig()
    assert (config.parameter_reduction, config.sparsity, config.widths) == (DEFAULT_REDUCTION, None, None)
    assert config.dataset == "auto"
    assert config.quant_method == "slicegpt"
    assert (config.rotation, config.refit, config.metric, config.mlp_sparsity) == ("shared", True, "none", None)


def test_a_reduction_leaves_sparsity_and_widths_open():
    for reduction in (0, 0.25):
        config = SliceGPTConfig(parameter_reduction=reduction)
        assert (config.sparsity, config.widths) == (None, None)


def test_shared_axes_take_widths_that_are_all_the_same():
    assert SliceGPTConfig(widths=[8, 8], rotation="shared").widths == [8, 8]


def test_what_json_cannot_hold_stays_out_of_the_dict(tmp_path):
    tokenizer = object()
    config = SliceGPTConfig(dataset=iter([]), tokenizer=tokenizer)
    assert (config.to_dict()["dataset"], config.to_dict()["tokenizer"]) == (None, None)
    assert SliceGPTConfig(tokenizer=Path("some/name")).to_dict()["tokenizer"] == "some/name"
    assert SliceGPTConfig(dataset=tmp_path / "a.txt").to_dict()["dataset"] == str(tmp_path / "a.txt")
    assert SliceGPTConfig(dataset=[tmp_path / "a.txt"]).to_dict()["dataset"] == [str(tmp_path / "a.txt")]
    assert "SliceGPTConfig" in repr(config)


def test_deepcopy_keeps_data_and_tokenizer_by_reference():
    stream, tokenizer = (batch for batch in []), object()
    config = SliceGPTConfig(widths=[8], dataset=stream, tokenizer=tokenizer)
    twin = copy.deepcopy(config)
    assert twin.dataset is stream and twin.tokenizer is tokenizer
    assert twin.widths == [8] and twin.widths is not config.widths


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sparsity": 1}, r"sparsity=1; .* in \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity=-0.1; .* in \[0, 1\)"),
        ({"sparsity": float("nan")}, r"sparsity=nan; .* in \[0, 1\)"),
        ({"sparsity": "0.3"}, r"sparsity='0.3'; .* in \[0, 1\)"),
        ({"sparsity": 0.3, "widths": [8]}, "Both sparsity=0.3 and widths are given"),
        (
            {"parameter_reduction": 0.2, "sparsity": 0.3},
            "Both parameter_reduction=0.2 and sparsity are given; each says how much to delete, so leave one out",
        ),
        ({"parameter_reduction": 0.2, "widths": [8]}, "Both parameter_reduction=0.2 and widths are given"),
        ({"max_loss": 0.1, "parameter_reduction": 0.2}, "Both parameter_reduction=0.2 and max_loss are given"),
        ({"fit_memory": "6GB", "max_loss": 0.1}, "Both max_loss=0.1 and fit_memory are given"),
        ({"fit_memory": "much"}, "'much' is no size; give a number with a unit, such as 512MiB"),
        ({"context": 64}, "context=64; give a positive number of tokens, with fit_memory, or leave it out"),
        ({"fit_memory": "6GB", "context": 0}, "context=0; give a positive number of tokens"),
        ({"max_loss": 0}, "max_loss=0; give nats per token that the model may lose, more than 0"),
        (
            {"parameter_reduction": 1},
            r"parameter_reduction=1; give the share of parameters to delete, in \[0, 1\)",
        ),
        ({"parameter_reduction": -0.1}, r"parameter_reduction=-0.1; give the share"),
        ({"parameter_reduction": "0.3"}, r"parameter_reduction='0.3'; give the share"),
        ({"parameter_reduction": 20}, r"parameter_reduction=20; give the share .*; 20 percent are 0.2\."),
        ({"sparsity": "12.5%"}, r"sparsity='12.5%'; give the share .*; 12.5 percent are 0.125\."),
        (
            {"mlp_sparsity": 0.3, "refit": False},
            "mlp_sparsity=0.3 with refit=False: .*; leave mlp_sparsity out or use refit=True",
        ),
        ({"widths": [8, 16]}, r"widths=\[8, 16\]; with rotation='shared' .*; use rotation='per_block'"),
        ({"mlp_sparsity": 1.0}, r"mlp_sparsity=1.0; give the share of neurons to delete, in \[0, 1\)"),
        ({"mlp_sparsity": float("nan")}, r"mlp_sparsity=nan; give the share"),
        ({"widths": [8, 16], "rotation": "shared"}, r"widths=\[8, 16\]; with rotation='shared' all sites"),
        ({"rotation": "none"}, "rotation='none'; choose one of per_block, shared"),
        ({"schedule": "none"}, "schedule='none'; choose one of uniform, energy"),
        ({"schedule": "energy", "refit": False}, "schedule='energy' shares out the neurons .* use refit=True with"),
        ({"schedule": "energy", "sparsity": 0.2}, "schedule='energy' shares out the neurons .*, and none are"),
        ({"schedule": "energy", "mlp_sparsity": 0}, "schedule='energy' shares out the neurons .*, and none are"),
        ({"schedule": "energy", "rotation": "per_block"}, "schedule='energy' with .*; use rotation='shared'"),
        ({"metric": "l2"}, "metric='l2'; choose one of none, fisher"),
        ({"widths": 0}, "widths=0; give one positive integer per site"),
        ({"widths": []}, r"widths=\[\]; give one positive integer per site"),
        ({"widths": [8, 0]}, r"widths=\[8, 0\]; give one positive integer per site"),
        ({"widths": [8, 2.5]}, r"widths=\[8, 2.5\]; give one positive integer per site"),
        ({"architecture": "dense"}, "architecture='dense'; choose one of auto, stock, sliced"),
        (
            {"architecture": "stock", "rotation": "per_block"},
            "architecture='stock' with rotation='per_block': no stock class has linear layers .*; leave either out",
        ),
        (
            {"architecture": "stock", "schedule": "energy"},
            "architecture='stock' with schedule='energy': no stock class has MLPs that differ in size; leave either",
        ),
        (
            {"architecture": "stock", "embeddings": "tied"},
            "architecture='stock' with embeddings='tied': no stock class has projections .*; leave either out",
        ),
        ({"refit": "no"}, "refit='no'; give True or False"),
        ({"slice_head": None}, "slice_head=None; give True or False"),
        ({"fit_memory": 6.5}, "6.5 is no size; give a number with a unit"),
        ({"round_to": 0}, "round_to=0; give a positive integer"),
        ({"round_neurons_to": 1.5}, "round_neurons_to=1.5; give a positive integer"),
        ({"nsamples": 0}, "nsamples=0; give a positive integer"),
        ({"seqlen": -1}, "seqlen=-1; give a positive integer"),
        ({"batch_size": 1.5}, "batch_size=1.5; give a positive integer"),
        ({"own_tokens": -1}, "own_tokens=-1; give a number of tokens, 0 for none, or None for half of them"),
        ({"own_tokens": 0.5}, "own_tokens=0.5; give a number of tokens"),
        ({"seed": -1}, "seed=-1; give a non-negative integer, or None"),
        ({"orientation": "up"}, "orientation='up'; choose one of pca, random"),
        ({"embeddings": "both"}, "embeddings='both'; choose one of auto, narrow, tied, sliced"),
        ({"dtype": "int8"}, "dtype='int8'; choose one of auto, float16, bfloat16, float32, float64"),
        ({"device": "gpu0"}, "device='gpu0' is not a torch device"),
        ({"quant_method": "gptq"}, "quant_method='gptq'; a SliceGPTConfig holds 'slicegpt'"),
    ],
)
def test_values_that_cannot_be_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SliceGPTConfig(**kwargs)


def test_unknown_keys_are_refused_with_the_nearest_name():
    with pytest.raises(
        TypeError, match="no key 'sparsty'. Did you mean 'sparsity'. Keys: quant_method, sparsity, widths"
    ):
        SliceGPTConfig(sparsty=0.3)
    with pytest.raises(TypeError, match="no key 'zzz'. Keys: quant_method, sparsity"):
        SliceGPTConfig.from_dict({"zzz": 1})


def test_sparsity_may_be_positional():
    assert SliceGPTConfig(0.3).sparsity == 0.3
