"""A head that shares the embedding's matrix goes on sharing it, with a projection on either side."""

from dataclasses import replace

import pytest
import torch
from more_families import MORE
from peft import LoraConfig, get_peft_model
from tiny import ENDS, HIDDEN, TINY, VOCAB, aligned, build, calibration, paper, relative_error, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from optimum_slicegpt import FAMILIES, SlicePlan


TIEABLE = [
    name for name, tied in ENDS if tied and "tie_word_embeddings" in AutoConfig.for_model(name.split("-")[0]).to_dict()
]

EAGER = {"experts_implementation": "eager"}  # The grouped matrix product knows no float64.


def sliced(name="llama", dtype=torch.float64, embeddings="tied", **kwargs):
    config = paper(**{"sparsity": 0.3, "dataset": calibration(), "embeddings": embeddings} | kwargs)
    return build(name, dtype, tie_word_embeddings=True).compress(config)


def shares_one_matrix(model):
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return head.data_ptr() == table.data_ptr() and head.shape == (VOCAB, HIDDEN)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in TIEABLE if not FAMILIES[name.split("-")[0]].wide_entry])
def test_tied_and_sliced_are_the_same_function_that_survives_saving_and_loading(name, tmp_path):
    dense = build(name, tie_word_embeddings=True)
    config = paper(sparsity=0.3, embeddings="tied", dataset=calibration())
    plan = SlicePlan.from_config(config, dense.config)
    count = plan.num_parameters(dense)
    tied, untied = dense.compress(config), sliced(name, embeddings="sliced")
    assert shares_one_matrix(tied) and not untied.config.tie_word_embeddings
    assert tied.config.hidden_size == HIDDEN
    assert plan.embeddings == "tied" and tied.num_parameters() == count
    ids = tokens(length=6)
    expected = tied(ids).logits
    # GPT-2's first site may only be sliced where a projection follows it.
    if tied.config.widths == untied.config.widths:
        assert relative_error(expected, untied(ids).logits) < 1e-6

    tied.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **EAGER)
    assert shares_one_matrix(loaded)
    torch.testing.assert_close(loaded(ids).logits, expected)
    generated = loaded.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert generated.shape == (2, 11)
    base = AutoModel.from_pretrained(tmp_path, **EAGER)
    assert base(ids).last_hidden_state.shape[-1] == base.config.hidden_size == HIDDEN


@torch.no_grad()
@pytest.mark.parametrize("name", TIEABLE)
def test_rotation_keeps_logits(name):
    expected = build(name, tie_word_embeddings=True)(tokens()).logits
    rotated = sliced(name, sparsity=0, orientation="random")
    assert relative_error(rotated(tokens()).logits, expected) < (1e-5 if name in MORE or name not in TINY else 1e-6)


def test_the_tie_survives_resizing_and_retying():
    model = sliced()
    model.tie_weights()
    assert shares_one_matrix(model)
    model.resize_token_embeddings(VOCAB + 6)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head is table and head.shape == (VOCAB + 6, HIDDEN)
    assert model(tokens()).logits.shape[-1] == VOCAB + 6


def test_the_tie_survives_lora():
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    adapted = get_peft_model(sliced(dtype=torch.float32), settings)
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert any("embedding_projection" in name for name in names) and any("norm.projection" in name for name in names)
    assert shares_one_matrix(adapted.merge_and_unload())


def test_auto_takes_the_smaller():
    few, many = build("llama", tie_word_embeddings=True), build("llama", tie_word_embeddings=True, vocab_size=997)
    for model, tied in ((few, False), (many, True)):
        counts = {}
        for embeddings in ("auto", "tied", "sliced"):
            plan = SlicePlan.from_config(paper(sparsity=0.3, embeddings=embeddings), model.config)
            counts[embeddings] = plan.num_parameters(model)
        assert counts["auto"] == min(counts.values()) == counts["tied" if tied else "sliced"]


@torch.no_grad()
def test_a_head_of_its_own_may_keep_its_width(tmp_path):
    model, config = build("llama", tie_word_embeddings=False), paper(sparsity=0.3, dataset=calibration())
    assert SlicePlan.from_config(config, model.config).embeddings == "sliced"
    with pytest.raises(ValueError, match="embeddings='narrow', but this model's head has a matrix of its own"):
        SlicePlan.from_config(replace(config, rotation="shared", embeddings="narrow"), model.config)
    narrow = build("llama", tie_word_embeddings=False).compress(config)
    head, config = model.lm_head.weight, replace(config, embeddings="tied")
    count = SlicePlan.from_config(config, model.config).num_parameters(model)
    wide = model.compress(config)
    assert wide.lm_head.weight.data_ptr() == head.data_ptr() and not wide.config.tie_word_embeddings
    assert wide.num_parameters() == count
    assert relative_error(wide(tokens()).logits, narrow(tokens()).logits) < 1e-6
    wide.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens()).logits, aligned(wide)(tokens()).logits)


def test_the_record_says_which():
    assert sliced().config.slicegpt["embeddings"] == "tied"
    assert sliced(embeddings="sliced").config.slicegpt["embeddings"] == "sliced"
