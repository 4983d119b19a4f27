"""Numbers by which a family multiplies what its modules read and put out are in the same places of a sliced model."""

import torch
from exactness import with_float64_norms
from tiny import build, calibration, paper, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig


NUMBERS = (
    *("embedding_multiplier", "lm_head_multiplier"),
    *("layers.0.attention_in_multiplier", "layers.0.attn_out_multiplier", "layers.0.ssm_out_multiplier"),
    *("layers.0.self_attn.key_multiplier", "layers.0.mamba.ssm_in_multiplier", "layers.0.mamba.mup_vector"),
    *("layers.0.feed_forward.gate_multiplier", "layers.0.feed_forward.down_multiplier"),
)


@torch.no_grad()
def test_each_number_is_where_it_was():
    config = paper(sparsity=0, orientation="random", dataset=calibration())
    dense, rotated = build("falcon_h1"), with_float64_norms(build("falcon_h1").compress(config))
    before = dense(tokens()).logits
    for number in NUMBERS:
        owner, _, name = number.rpartition(".")
        for model in (dense, rotated):
            module = model.model.get_submodule(owner)
            setattr(module, name, getattr(module, name) * 1.5)
        after = dense(tokens()).logits
        assert relative_error(after, before) > 1e-4
        assert relative_error(rotated(tokens()).logits, after) < 1e-6
        before = after


@torch.no_grad()
def test_writers_are_fitted_to_what_is_left_of_their_outputs():
    """The biases of both writers of a block become one, which is multiplied as its writer's output is."""
    config = SliceGPTConfig(architecture="sliced", sparsity=0, orientation="random", dataset=calibration())
    fitted = build("falcon_h1").compress(config)
    assert relative_error(fitted(tokens()).logits, build("falcon_h1")(tokens()).logits) < 1e-5
    assert not fitted.model.layers[0].mamba.out_proj.bias.any()


@torch.no_grad()
def test_numbers_that_no_checkpoint_holds_are_of_the_dense_size(tmp_path):
    """Without `mamba_d_ssm`, the state space is as large as the dense model's width says."""
    config = SliceGPTConfig(architecture="sliced", sparsity=0.5, dataset=calibration())
    narrow = build("falcon_h1", torch.float32, mamba_d_ssm=None).compress(config)
    narrow.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert relative_error(loaded(tokens()).logits, narrow(tokens()).logits) < 1e-6
