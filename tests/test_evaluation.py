import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_slicegpt import evaluation
from optimum_slicegpt.calibration import load_batches
from optimum_slicegpt.evaluation import evaluate_perplexity


VOCABULARY = 97


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def tokens(*shape, seed=1):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def losses_of(model, input_ids):
    logits = model.eval()(input_ids=input_ids).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none").double()


def test_equals_a_direct_computation(model, monkeypatch):
    monkeypatch.setattr(evaluation, "_POSITIONS", 4)  # slices of 4, 4 and 2 of the 10 predictions
    input_ids = tokens(5, 11)
    found = evaluate_perplexity(model, [{"input_ids": input_ids[:3]}, {"input_ids": input_ids[3:]}])
    losses = losses_of(model, input_ids)
    assert found.ntokens == 50
    assert found.nll == pytest.approx(losses.mean().item(), rel=1e-6)
    assert found.perplexity == pytest.approx(losses.mean().exp().item(), rel=1e-6)
    assert found.stderr == pytest.approx(losses.mean(1).std().item() / math.sqrt(5), rel=1e-5)


def test_equals_the_loss_of_the_model(model):
    input_ids = tokens(1, 11)
    found = evaluate_perplexity(model, load_batches([{"input_ids": input_ids}]))
    assert found.nll == pytest.approx(model(input_ids=input_ids, labels=input_ids).loss.item(), rel=1e-6)
    assert math.isnan(found.stderr)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    short, long = tokens(1, 7), tokens(1, 11, seed=2)
    padding, ones = torch.full((1, 4), 5), torch.ones_like(short)
    parts = [(padding, torch.zeros_like(padding)), (short, ones)][:: 1 if side == "left" else -1]
    padded, mask = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    together = {
        "input_ids": torch.cat([padded, long]),
        "attention_mask": torch.cat([mask, torch.ones_like(long)]),
    }
    found = evaluate_perplexity(model, [together])
    assert found == evaluate_perplexity(model, [{"input_ids": short}, {"input_ids": long}])
    assert found.ntokens == 16


def test_losses_of_a_low_precision_model_are_float32(model):
    model.to(torch.bfloat16)
    input_ids = tokens(2, 11)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=row[None]).logits for row in input_ids]).float()
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")
    assert evaluate_perplexity(model, [{"input_ids": input_ids}]).nll == pytest.approx(losses.mean().item(), rel=1e-6)


def test_training_mode_is_restored(model):
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    modes = []
    model.lm_head.register_forward_hook(lambda module, args, output: modes.append(module.training))
    evaluate_perplexity(model, [{"input_ids": tokens(1, 4)}])
    assert modes == [False]
    assert [module.training for module in model.modules()] == before


def test_model_moves_only_where_asked(model, monkeypatch):
    moves = []
    monkeypatch.setattr(model, "to", moves.append)
    evaluate_perplexity(model, [{"input_ids": tokens(1, 4)}])
    evaluate_perplexity(model, [{"input_ids": tokens(1, 4)}], device="cpu")
    assert moves == ["cpu"]


def test_hopeless_models_have_infinite_perplexity(model):
    model.lm_head.weight.data.mul_(1e6)
    assert evaluate_perplexity(model, [{"input_ids": tokens(1, 4)}]).perplexity == math.inf


@pytest.mark.parametrize(
    "batch", [{"input_ids": [[1], [2]]}, {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[0, 1], [0, 0]]}]
)
def test_nothing_to_predict(model, batch):
    with pytest.raises(ValueError, match="Nothing to predict: no sequence has 2 unmasked tokens"):
        evaluate_perplexity(model, [batch])


def test_tokens_of_another_vocabulary(model):
    with pytest.raises(ValueError, match=r"ids from 1 to 97 are not all in \[0, 97\)"):
        evaluate_perplexity(model, [{"input_ids": [[1, 97]]}])
