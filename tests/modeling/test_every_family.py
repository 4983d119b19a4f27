"""
What tests of every kind check on the families of `tiny.TINY`, in short for each of the others: invariance in bases of
both kinds, streaming, saved files, caches, tied heads, stock classes, LoRA.
"""

import pytest
import torch
from exactness import with_float64_norms
from forking import run_program
from more_families import MORE
from peft import LoraConfig, get_peft_model
from sliced_models import model_of_one_width
from tiny import HIDDEN, aligned, build, calibration, paper, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, compress_checkpoint
from optimum_slicegpt.export import export_stock
from optimum_slicegpt.modeling.decoder import Decoder, empty_model
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.modeling.stock import stock_class


IN_A_FRESH_PROCESS = """
import sys, torch, optimum_slicegpt
from tiny import aligned
from transformers import AutoModelForCausalLM
threads, folder = sys.argv[1:]
torch.set_num_threads(int(threads))
model = aligned(AutoModelForCausalLM.from_pretrained(folder))
torch.save(model(torch.load(folder + "/inputs.pt")).logits.detach(), folder + "/logits.pt")
"""
ROTATIONS = {
    "per_block": paper(sparsity=0, orientation="random"),
    "shared": SliceGPTConfig(architecture="sliced", sparsity=0, orientation="random", refit=False),
}
IN_FLOAT32 = ("recurrent_gemma",)
"""Families with neurons whose mixers of tokens compute in float32, as routers and most state spaces do."""
NARROW = SliceGPTConfig(sparsity=1 / 3, mlp_sparsity=0.4, slice_head=True, architecture="sliced")


def calibrated(config, **changes):
    return SliceGPTConfig.from_dict(config.to_dict() | changes | {"dataset": calibration()})


@torch.no_grad()
@pytest.mark.parametrize("name", MORE)
def test_family(name, tmp_path):
    every_weight_on_the_stream_is_named_once(name)
    rotations_keep_logits(name)
    a_streamed_checkpoint_is_the_one_made_in_memory_and_loads_anywhere(name, tmp_path)
    a_tied_head_stays_tied(name)
    a_stock_class_computes_the_same(name)


def every_weight_on_the_stream_is_named_once(name):
    """No other size of a tiny model equals the hidden size, so each weight that has it touches the stream."""
    decoder = Decoder(build(name, tie_word_embeddings=False))
    weights = [decoder.head, *decoder.tables]
    norms = [decoder.final_norm]
    for block in decoder.blocks():
        weights += [*block.readers().values(), *block.writers().values()]
        norms += [norm for _, norm, _ in block.norms()]
    places = [each.weight.data_ptr() for each in weights]
    places += [norm.weight.data_ptr() for norm in norms if hasattr(norm, "weight")]
    assert len(places) == len(set(places))
    # A norm may span all heads together; a convolution, as a recurrence, as many channels as the stream has; Bloom's
    # tables have a norm.
    elsewhere = ("bias", "q_norm.weight", "conv.conv.weight", "word_embeddings_layernorm.weight")
    elsewhere += ("conv_1d.weight", "recurrent_param")
    assert set(places) >= {
        parameter.data_ptr()
        for key, parameter in decoder.model.named_parameters()
        if HIDDEN in parameter.shape and not key.endswith(elsewhere)
    }


def rotations_keep_logits(name):
    for config in ROTATIONS.values():
        model = with_float64_norms(build(name))
        expected = model(tokens()).logits
        rotated = with_float64_norms(model.compress(calibrated(config)))
        error = relative_error(rotated(tokens()).logits, expected)
        assert error < (1e-6 if Decoder(rotated).family.keeps_neurons or name in IN_FLOAT32 else 1e-10)


def a_streamed_checkpoint_is_the_one_made_in_memory_and_loads_anywhere(name, folder):
    build(name, torch.float32).save_pretrained(folder / "dense")
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense")
    config = calibrated(NARROW, **{"mlp_sparsity": None} if family_of(dense.config).keeps_neurons else {})
    model = dense.compress(config)
    compress_checkpoint(folder / "dense", folder / "streamed", config)
    torch.save(tokens(), folder / "streamed" / "inputs.pt")
    run_program("-c", IN_A_FRESH_PROCESS, torch.get_num_threads(), folder / "streamed")
    assert torch.equal(torch.load(folder / "streamed" / "logits.pt"), aligned(model)(tokens()).logits)
    if model.config._experts_implementation == "grouped_mm":  # which knows no float64
        model.set_experts_implementation("eager")
    generated, ids = model.double().generate(tokens(), max_new_tokens=4, do_sample=False, eos_token_id=None), tokens()
    for _ in range(4):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    assert any("lora_A" in parameter for parameter, _ in adapted.named_parameters())


def a_tied_head_stays_tied(name):
    requires = {key for key, *_ in family_of(build(name).config).requires}
    if "tie_word_embeddings" in requires:
        return
    dense = build(name, tie_word_embeddings=True)
    expected = dense(tokens()).logits
    tied = dense.compress(calibrated(ROTATIONS["per_block"], embeddings="tied"))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert relative_error(tied(tokens()).logits, expected) < 1e-5


def a_stock_class_computes_the_same(name):
    config = build(name).config
    family = family_of(config)
    if family.wide_entry:
        return
    width = next(
        width
        for width in (24, HIDDEN - family.layer_norm)
        if stock_class(family, config, width + family.layer_norm) is not None
    )
    model = model_of_one_width(name, width)
    stock = export_stock(model)
    assert type(stock) is type(build(name)) and stock.config.hidden_size == width + family.layer_norm
    assert relative_error(stock(tokens()).logits, model(tokens()).logits) < 1e-5
    shapes = [
        {key: value.shape for key, value in each.named_parameters()} for each in (stock, empty_model(stock.config))
    ]
    assert shapes[0] == shapes[1]
