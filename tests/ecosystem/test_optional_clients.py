"""Clients that the package does not depend on: TRL, torchao, bitsandbytes, ONNX. Each skips where it is absent."""

import copy
import math

import pytest
import torch
from sliced_models import model_of_kind
from tiny import build, calibration, paper, relative_error, tokens
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from optimum_slicegpt import evaluate_perplexity


KEPT = [".*_shortcut", ".*projection", "lm_head"]
"""What is better left in full precision, see docs/ecosystem.md."""


@pytest.fixture
def folder(tmp_path):
    model_of_kind("llama").save_pretrained(tmp_path / "sliced")
    return tmp_path / "sliced"


def perplexity(model):
    return evaluate_perplexity(model, [{"input_ids": tokens(8)}]).perplexity


def quantized(model):
    """Returns the kinds of linear layers whose weights are no ordinary parameters."""
    layers = {name.rpartition(".")[2]: layer for name, layer in model.named_modules() if hasattr(layer, "in_features")}
    return {name for name, layer in layers.items() if type(layer.weight) is not torch.nn.Parameter}


PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def size(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


# TRL


@pytest.mark.parametrize("lora", [False, True])
def test_trl_sft_trainer(lora, folder, tmp_path, tiny_tokenizer):
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset
    from peft import LoraConfig

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(98)  # the tokenizer's beginning
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token = "w0"
    rows = [{"text": " ".join(f"w{token}" for token in row)} for row in tokens(16, 12).tolist()]
    arguments = trl.SFTConfig(
        tmp_path / "out",
        max_steps=10,
        learning_rate=2e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        max_length=16,
    )
    run = trl.SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if lora else None,
    )
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    run.save_model(tmp_path / "tuned")
    if not lora:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
        assert relative_error(loaded(tokens()).logits, run.model.eval()(tokens()).logits) < 1e-5


# torchao


@torch.no_grad()
def test_torchao_int8_weights_through_from_pretrained(folder, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    whole = AutoModelForCausalLM.from_pretrained(folder)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=KEPT)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    assert quantized(model) == PROJECTIONS
    assert math.isclose(perplexity(model), perplexity(whole), rel_tol=2e-2)
    model.save_pretrained(tmp_path / "int8")
    assert size(tmp_path / "int8") < size(folder)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert quantized(loaded) == PROJECTIONS
    assert relative_error(loaded(tokens()).logits, model(tokens()).logits) < 1e-5


def test_torchao_keeps_the_projections_of_a_tied_model(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model_of_kind("tied").save_pretrained(tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=KEPT)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert model.model.norm.projection is not None and quantized(model) == PROJECTIONS


@torch.no_grad()
def test_torchao_int8_weights_in_place(folder):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = perplexity(model)
    quantization.quantize_(
        model,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and not name.endswith(("shortcut", "head")),
    )
    assert quantized(model) == PROJECTIONS
    assert math.isclose(perplexity(model), before, rel_tol=2e-2)
    assert model.generate(tokens(), max_new_tokens=3, eos_token_id=None).shape == (2, 27)


# bitsandbytes


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    # On some CPUs its 4-bit layers want sizes in multiples of 64.
    sizes = {"hidden_size": 192, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8}
    whole = build("llama", torch.float32, **sizes)
    whole.compress(paper(widths=[128] * 5, dataset=calibration(12))).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=KEPT)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    assert quantized(model) == PROJECTIONS
    assert math.isclose(perplexity(model), perplexity(whole), rel_tol={8: 0.05, 4: 0.5}[bits])


# ONNX


class Logits(torch.nn.Module):
    """A model as ONNX sees it: tokens to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "tied", "opt"])
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript, which torch.onnx exports with, is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = model_of_kind(name)
    torch.onnx.export(
        Logits(model),
        (tokens(),),
        tmp_path / "model.onnx",
        dynamo=True,
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": {0: "batch", 1: "length"}},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for ids in (tokens(), tokens(3, 11)):
        (logits,) = session.run(None, {"input_ids": ids.numpy()})
        assert relative_error(torch.from_numpy(logits), model(ids).logits) < 1e-5
