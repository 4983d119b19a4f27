"""A sliced model among the tools around it: compilers, caches, task heads, accelerate, pipelines."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, infer_auto_device_map
from sliced_models import model_of_kind, stock_model
from tiny import HIDDEN, VOCAB, build, calibration, paper, relative_error, tokens
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
    pipeline,
)


KINDS = ["llama", "tied", "opt", "phi", "gpt2", "mixtral"]
"""Sequential; with a tied head; LayerNorms and learned positions; parallel; transposed weights; experts."""


@pytest.fixture
def folder(tmp_path):
    """Returns the folder of a sliced llama."""
    model_of_kind("llama").save_pretrained(tmp_path / "sliced")
    return tmp_path / "sliced"


# Compilers


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_compiles_to_one_graph_for_every_length(name):
    torch.compiler.reset()
    model, counter = model_of_kind(name), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for length in (24, 17, 9):
        ids = tokens(length=length)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    assert counter.frame_count == 1


def test_compiled_training_gives_the_same_gradients():
    torch.compiler.reset()
    model = model_of_kind("llama").train()
    model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(tokens(), labels=tokens(), use_cache=False).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@torch.no_grad()
def test_compiled_generation_compiles_no_more_often_than_the_dense_model():
    def compilations(model):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("eager")
        kwargs = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "cache_implementation": "static"}
        expected = model.generate(tokens(length=6), **kwargs)
        model.forward = torch.compile(model.forward, fullgraph=True, backend=counter)
        assert torch.equal(model.generate(tokens(length=6), **kwargs), expected)
        return counter.frame_count

    assert compilations(model_of_kind("llama")) == compilations(build("llama", torch.float32))


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_export_with_free_sizes(name):
    model = model_of_kind(name)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=64)
    kwargs = {"input_ids": tokens(), "use_cache": False}
    shapes = {"input_ids": {0: batch, 1: length}, "use_cache": None}
    program = torch.export.export(model, (), kwargs, dynamic_shapes=shapes, strict=False)
    ids = tokens(3, 11)
    actual = program.module()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(actual, model(ids).logits, rtol=1e-4, atol=1e-5)


# Generation

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", KINDS)
def test_padded_batch_generates_what_its_prompts_generate_alone(name, cache):
    model = model_of_kind(name, torch.float64)
    prompts = [tokens(1, length, seed=length) for length in (9, 5, 7)]
    padded = torch.zeros(3, 9, dtype=torch.long)
    for row, prompt in zip(padded, prompts, strict=True):
        row[-prompt.shape[1] :] = prompt
    kwargs = GREEDY | ({"cache_implementation": "static"} if cache == "static" else {})
    together = model.generate(padded, attention_mask=(padded != 0).long(), **kwargs)
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **kwargs)
        assert torch.equal(row[-8:], alone[0, -8:])


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_prompt_in_chunks_and_kept_logits(name):
    model, ids = model_of_kind(name, torch.float64), tokens()
    expected = model(ids).logits
    first = model(ids[:, :10], use_cache=True)
    second = model(ids[:, 10:], past_key_values=first.past_key_values)
    assert relative_error(torch.cat([first.logits, second.logits], 1), expected) < 1e-6
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, expected[:, -3:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([4, 9])).logits, expected[:, [4, 9]])


@torch.no_grad()
def test_other_ways_to_generate():
    model, ids = model_of_kind("llama", torch.float64), tokens(1, 6)
    greedy = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, assistant_model=model_of_kind("llama", torch.float64), **GREEDY), greedy)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=2, **GREEDY), greedy)
    beams = model.generate(ids, num_beams=4, **GREEDY)

    def log_probability(sequence):
        return -model(sequence, labels=sequence.where(torch.arange(14) >= 6, -100)).loss

    assert log_probability(beams) >= log_probability(greedy)
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeddings, **GREEDY), greedy[:, 6:])


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_attention_implementations_agree(name, tmp_path):
    model = model_of_kind(name)
    model.save_pretrained(tmp_path)
    expected = model(tokens()).logits
    for implementation in ("eager", "sdpa"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation)
        assert relative_error(loaded(tokens()).logits, expected) < 1e-5
    model.set_attn_implementation("eager")
    seen = model(tokens(), output_attentions=True).attentions
    assert [each.shape[::2] for each in seen] == [(2, 24)] * 2 and all(torch.isfinite(each).all() for each in seen)


def test_pipeline(folder, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(VOCAB + 1)  # the tokenizer's beginning
    model.generation_config = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer.__class__(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<s>", pad_token="w0", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    generate = pipeline("text-generation", model=str(folder), return_full_text=False)
    prompts = ["w5 w7 w9", "w11"]
    together = [result[0]["generated_text"] for result in generate(prompts, batch_size=2)]
    assert together == [generate(prompt)[0]["generated_text"] for prompt in prompts]
    expected = model.generate(torch.tensor([[97, 5, 7, 9]]))[0, 4:]
    assert tokenizer(together[0], add_special_tokens=False)["input_ids"] == expected.tolist()


# Task heads


@pytest.mark.parametrize(
    ("name", "auto_class", "shape"),
    [
        *((name, AutoModelForSequenceClassification, (2, 3)) for name in KINDS),
        *((name, AutoModelForTokenClassification, (2, 24, 3)) for name in KINDS if name != "opt"),  # which has none
    ],
)
def test_classification_heads(name, auto_class, shape, tmp_path):
    causal = model_of_kind(name)
    causal.save_pretrained(tmp_path / "causal")
    model = auto_class.from_pretrained(tmp_path / "causal", num_labels=3, pad_token_id=0).eval()
    assert type(model).__name__.startswith("Sliced")
    (head,) = (child for child in model.children() if isinstance(child, torch.nn.Linear))
    assert head.in_features == model.config.hidden_size == model.base_model(tokens()).last_hidden_state.shape[-1]
    for key, value in causal.base_model.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[key], value), key
    labels = torch.ones(shape[:-1], dtype=torch.long)
    outputs = model(tokens(), labels=labels)
    assert outputs.logits.shape == shape
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path / "classifier")
    loaded = auto_class.from_pretrained(tmp_path / "classifier").eval()
    assert relative_error(loaded(tokens()).logits, outputs.logits) < 1e-5


def test_a_stock_model_is_classified_by_its_own_class(tmp_path):
    causal = stock_model()
    causal.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, pad_token_id=0)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert model.config.slicegpt == causal.config.slicegpt
    for key, value in causal.base_model.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[key], value), key


# Accelerate


@torch.no_grad()
@pytest.mark.parametrize("placement", ["cpu", "layers_on_disk", "ends_on_disk", "auto"])
def test_device_maps(folder, tmp_path, placement):
    whole = AutoModelForCausalLM.from_pretrained(folder)
    parts = [*(name for name, _ in whole.model.named_children() if name != "layers"), "layers.0", "layers.1"]
    parts = [*(f"model.{name}" for name in parts), *(name for name, _ in whole.named_children() if name != "model")]
    kwargs = {
        "cpu": {"device_map": {"": "cpu"}},
        "layers_on_disk": {"device_map": {part: "disk" if "layers" in part else "cpu" for part in parts}},
        "ends_on_disk": {"device_map": {part: "cpu" if "layers" in part else "disk" for part in parts}},
        "auto": {"device_map": "auto", "max_memory": {"cpu": "80KB"}},
    }[placement]
    model = AutoModelForCausalLM.from_pretrained(folder, offload_folder=tmp_path / "offload", **kwargs)
    torch.testing.assert_close(model(tokens()).logits, whole(tokens()).logits)
    if placement != "cpu":
        assert set(model.hf_device_map.values()) == {"cpu", "disk"}


def test_no_layer_is_split():
    model = model_of_kind("llama")
    size = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    device_map = infer_auto_device_map(
        model, {0: 3 * size // 2, 1: 3 * size // 2, "cpu": 10**9}, model._no_split_modules
    )
    assert {"model.layers.0", "model.layers.1"} <= set(device_map)


@torch.no_grad()
def test_offloading_a_model_in_memory(tmp_path):
    expected = model_of_kind("llama")(tokens()).logits
    torch.testing.assert_close(cpu_offload(model_of_kind("llama"), "cpu")(tokens()).logits, expected)
    model = disk_offload(model_of_kind("llama"), tmp_path, "cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    torch.testing.assert_close(model(tokens()).logits, expected)


# Half precision


def rounded(name):
    return build(name, torch.float32).compress(paper(sparsity=0.3, dataset=calibration()))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision(name, dtype, tolerance, tmp_path):
    # The experts' grouped matrix product wants widths in multiples of 8 then, which the rounding of `paper` gives.
    model = rounded(name) if name == "mixtral" else model_of_kind(name)
    expected = model(tokens()).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    logits = loaded(tokens()).logits
    assert logits.dtype == dtype and relative_error(logits.float(), expected) < tolerance
    assert loaded.generate(tokens(), max_new_tokens=3, eos_token_id=None).shape == (2, 27)
    assert relative_error(model.to(dtype)(tokens()).logits.float(), expected) < tolerance


def test_saved_in_half_precision(tmp_path):
    model = model_of_kind("llama").half()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float16 and loaded.config.original_hidden_size == HIDDEN
    assert relative_error(loaded(tokens()).logits.float(), model(tokens()).logits.float()) < 5e-3
