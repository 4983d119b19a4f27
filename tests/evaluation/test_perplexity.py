import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from pretend_gpu import pretend_gpu
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_slicegpt.data.batches import load_batches
from optimum_slicegpt.evaluation import losses as losses_module
from optimum_slicegpt.evaluation.perplexity import Losses, evaluate_losses, evaluate_perplexity


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
    monkeypatch.setattr(losses_module, "POSITIONS", 4)  # slices of 4, 4 and 2 of the 10 predictions
    input_ids = tokens(5, 11)
    found = evaluate_perplexity(model, [{"input_ids": input_ids[:3]}, {"input_ids": input_ids[3:]}])
    losses = losses_of(model, input_ids)
    assert found.ntokens == 50
    assert found.nll == pytest.approx(losses.mean().item(), rel=1e-6)
    assert found.perplexity == pytest.approx(losses.mean().exp().item(), rel=1e-6)
    assert found.stderr == pytest.approx(losses.mean(1).std().item() / math.sqrt(5), rel=1e-5)


@torch.no_grad()
def losses_one_by_one(model, sequence, seqlen, stride):
    """Computes the loss of each token but the first in a forward of its own, from its context in its first window."""
    losses = []
    for position in range(1, len(sequence)):
        window = max(0, -(-(position + 1 - seqlen) // stride))
        context = sequence[window * stride : position]
        logits = model.eval()(input_ids=context[None]).logits[0, -1]
        losses.append((window, F.cross_entropy(logits, sequence[position]).double()))
    return losses


def test_equals_the_loss_of_the_model(model):
    input_ids = tokens(1, 11)
    found = evaluate_perplexity(model, load_batches([{"input_ids": input_ids}]))
    assert found.nll == pytest.approx(model(input_ids=input_ids, labels=input_ids).loss.item(), rel=1e-6)
    assert math.isnan(found.stderr)


@pytest.mark.parametrize(
    ("length", "seqlen", "stride"),
    [
        (26, 8, 6),  # the last window is as long as the others
        (29, 8, 3),
        (28, 8, 7),  # the last window predicts all but its first token
        (27, 8, 5),  # ... one token more than the window before it holds
        (20, 5, 1),
        (8, 8, 4),  # one window
        (6, 8, 4),
        (2, 8, 4),
    ],
)
def test_strided_windows_equal_a_prediction_at_a_time(model, length, seqlen, stride):
    sequence = tokens(length)
    expected = losses_one_by_one(model, sequence, seqlen, stride)
    windows = 1 + max(window for window, _ in expected)
    for batch_size in (1, 3):
        found = evaluate_losses(model, [{"input_ids": sequence}], seqlen=seqlen, stride=stride, batch_size=batch_size)
        sums = [sum(loss for number, loss in expected if number == window) for window in range(windows)]
        torch.testing.assert_close(found.sums, torch.stack(sums), rtol=1e-6, atol=0)
        assert found.counts.tolist() == [sum(number == window for number, _ in expected) for window in range(windows)]
        assert found.perplexity().ntokens == length - 1


def test_every_sequence_has_windows_of_its_own(model):
    long, short = tokens(1, 11), tokens(1, 5, seed=2)
    found = evaluate_losses(model, [{"input_ids": long}, {"input_ids": short}], seqlen=6, stride=4)
    alone = [evaluate_losses(model, [{"input_ids": ids}], seqlen=6, stride=4) for ids in (long, short)]
    assert found.counts.tolist() == [5, 4, 1, 4]
    assert torch.equal(found.sums, torch.cat([losses.sums for losses in alone]))


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


def mixed_lengths():
    masks = torch.ones(4, 12, dtype=torch.int64)
    masks[1, 7:] = masks[2, :9] = masks[3, ::2] = 0
    return [{"input_ids": tokens(4, 12), "attention_mask": masks}, {"input_ids": tokens(2, 5, seed=2)}]


@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_batch_size_changes_nothing(model, batch_size):
    expected = evaluate_losses(model, mixed_lengths())
    found = evaluate_losses(model, mixed_lengths(), batch_size=batch_size)
    assert found.counts.tolist() == expected.counts.tolist() == [11, 6, 2, 5, 4, 4]
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", tiny.TINY)
def test_padding_changes_nothing_in_any_family(name):
    model = tiny.build(name, torch.float32)
    expected = evaluate_losses(model, mixed_lengths())
    found = evaluate_losses(model, mixed_lengths(), batch_size=6)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=0)


def test_batches_are_forwards_of_sequences_of_like_lengths(model):
    shapes = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    evaluate_perplexity(model, mixed_lengths(), batch_size=2)
    assert [tuple(shape) for shape in shapes] == [(2, 12), (2, 6), (2, 5)]


def test_difference_is_paired(model):
    batches = [{"input_ids": tokens(9, 11)}]
    ours = evaluate_losses(model, batches)
    for parameter in model.parameters():
        parameter.data *= 0.9
    other = evaluate_losses(model, batches)
    found = ours.difference(other)
    by_sequence = (ours.sums - other.sums) / 10
    assert found.nll == pytest.approx(by_sequence.mean().item(), rel=1e-12)
    assert found.stderr == pytest.approx(by_sequence.std().item() / 3, rel=1e-12)
    assert found.perplexity_ratio == pytest.approx(ours.perplexity().perplexity / other.perplexity().perplexity)
    assert found.stderr < ours.perplexity().stderr
    same = ours.difference(ours)
    assert (same.nll, same.stderr, same.perplexity_ratio) == (0, 0, 1)


def test_difference_of_sequences_that_differ():
    ours, other = (Losses(torch.ones(len(counts)), torch.tensor(counts)) for counts in ([3.0, 4.0], [3.0, 5.0]))
    with pytest.raises(ValueError, match=r"different sequences \(2 of 7 and 2 of 8 predictions\) cannot be paired"):
        ours.difference(other)


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


def test_a_model_is_where_it_was_afterwards():
    """This one computes a buffer anew in each forward."""
    model, batches = tiny.build("phi3-longrope", torch.float32), [{"input_ids": tokens(1, 4)}]
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    with pretend_gpu() as gpu:
        found = evaluate_perplexity(model, batches, device="cuda")
        assert {each.device.type for each in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert gpu.peak > 0
    assert found == evaluate_perplexity(model, batches)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()} == before
    assert not any(each.is_inference() for each in (*model.parameters(), *model.buffers()))


def test_a_model_larger_than_the_device_goes_there_layer_by_layer():
    model = tiny.build("llama", torch.float32, num_hidden_layers=12)
    size, batches = sum(each.nbytes for each in model.parameters()), [{"input_ids": tokens(1, 4)}]
    expected = evaluate_perplexity(model, batches)
    with pretend_gpu(memory=size) as gpu:
        found = evaluate_perplexity(model, batches, device="cuda")
        assert {each.device.type for each in model.parameters()} == {"cpu"}
    assert found == expected
    assert 0 < gpu.peak < size / 2
    assert not any("forward" in vars(module) for module in model.modules())


def test_hopeless_models_have_infinite_perplexity(model):
    model.lm_head.weight.data.mul_(1e6)
    assert evaluate_perplexity(model, [{"input_ids": tokens(1, 4)}]).perplexity == math.inf


@pytest.mark.parametrize(
    "batch", [{"input_ids": [[1], [2]]}, {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[0, 1], [0, 0]]}]
)
def test_nothing_to_predict(model, batch):
    with pytest.raises(ValueError, match="Nothing to predict: no sequence has 2 unmasked tokens"):
        evaluate_perplexity(model, [batch])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"stride": 4}, "seqlen=None and stride=4: windows need both"),
        ({"seqlen": 4}, "seqlen=4 and stride=None: windows need both"),
        ({"seqlen": 4, "stride": 4}, "stride=4 must be at least 1 and less than seqlen=4"),
        ({"seqlen": 4, "stride": 0}, "stride=0 must be at least 1"),
    ],
)
def test_sizes_out_of_range(model, sizes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_perplexity(model, [{"input_ids": tokens(1, 8)}], **sizes)


def test_tokens_of_another_vocabulary(model):
    with pytest.raises(ValueError, match=r"ids from 1 to 97 are not all in \[0, 97\)"):
        evaluate_perplexity(model, [{"input_ids": [[1, 97]]}])
