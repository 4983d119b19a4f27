"""How large the parts of a model are, before and after slicing."""

import pytest
import torch
from tiny import ENDS, build, calibration, paper

from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.planning.sizes import PARTS, most_inputs, parameters_by_part


@pytest.mark.parametrize(("name", "tied"), ENDS)
def test_parts_add_up(name, tied):
    dense = build(name, torch.float32, tie_word_embeddings=tied)
    before, total = parameters_by_part(Decoder(dense)), dense.num_parameters()
    sliced = dense.compress(paper(sparsity=1 / 3, slice_head=True, dataset=calibration(1), embeddings="auto"))
    record = sliced.config.slicegpt["parameters_by_part"]
    assert record == {"before": before, "after": parameters_by_part(Decoder(sliced))}
    assert tuple(before) == tuple(record["after"]) == PARTS
    assert sum(before.values()) == total == sliced.config.slicegpt["parameters_before"]
    assert sum(record["after"].values()) == sliced.num_parameters()
    assert (before["head"] < dense.config.vocab_size * 48) == tied and before["shortcuts"] == 0
    shortcuts = [each for key, each in sliced.named_parameters() if "shortcut" in key]
    assert record["after"]["shortcuts"] == sum(each.numel() for each in shortcuts) > 0
    assert before["attention"] > record["after"]["attention"]
    assert before["mlp"] > record["after"]["mlp"] or family_of(dense.config).single


def test_the_largest_regression_is_of_an_mlp_unless_that_is_of_experts():
    llama, mixtral = build("llama"), build("mixtral")
    assert most_inputs(Decoder(llama)) == llama.config.intermediate_size
    heads = mixtral.config.num_attention_heads * mixtral.model.layers[0].self_attn.head_dim
    assert most_inputs(Decoder(mixtral)) == heads < mixtral.config.intermediate_size
