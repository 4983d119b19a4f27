"""Clients that the package does not depend on: TRL, torchao, bitsandbytes, ONNX. Each skips where it is absent."""

import math

import pytest
import torch
from test_roundtrip import sliced
from tiny import relative_error, tokens
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from optimum_slicegpt import evaluate_perplexity


KEPT = [".*_shortcut", "lm_head"]
"""Modules that 8-bit and 4-bit weights cost too much: see docs/ecosystem.md."""


@pytest.fixture
def folder(tmp_path):
    sliced("llama").save_pretrained(tmp_path / "sliced")
    return tmp_path / "sliced"


def perplexity(model):
    return evaluate_perplexity(model, [{"input_ids": tokens(8)}]).perplexity


def weight_types(model):
    """Class names of the weights of linear layers, by what the layers are."""
    names = {"attn_shortcut", "q_proj", "down_proj", "lm_head"}
    found = {name.rpartition(".")[2]: module for name, module in model.named_modules()}
    return {name: type(found[name].weight).__name__ for name in names}


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
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token = "w0"
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
        processing_class=tiny_tokenizer,
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
    assert weight_types(model) == {
        "attn_shortcut": "Parameter",
        "lm_head": "Parameter",
        "q_proj": "Int8Tensor",
        "down_proj": "Int8Tensor",
    }
    assert math.isclose(perplexity(model), perplexity(whole), rel_tol=2e-2)
    model.save_pretrained(tmp_path / "int8")
    assert size(tmp_path / "int8") < size(folder)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert weight_types(loaded) == weight_types(model)
    assert relative_error(loaded(tokens()).logits, model(tokens()).logits) < 1e-5


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
    assert weight_types(model)["q_proj"] == "Int8Tensor"
    assert math.isclose(perplexity(model), before, rel_tol=2e-2)
    assert model.generate(tokens(), max_new_tokens=3, eos_token_id=None).shape == (2, 27)


# bitsandbytes


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "kind", "tolerance"),
    [({"load_in_8bit": True}, "Int8Params", 0.05), ({"load_in_4bit": True}, "Params4bit", 0.3)],
    ids=["8bit", "4bit"],
)
def test_bitsandbytes(settings, kind, tolerance, folder):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    whole = AutoModelForCausalLM.from_pretrained(folder)
    config = BitsAndBytesConfig(llm_int8_skip_modules=KEPT, **settings)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"})
    assert weight_types(model) == {
        "attn_shortcut": "Parameter",
        "lm_head": "Parameter",
        "q_proj": kind,
        "down_proj": kind,
    }
    assert math.isclose(perplexity(model), perplexity(whole), rel_tol=tolerance)


# ONNX


class Logits(torch.nn.Module):
    """A model as ONNX sees it: tokens to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "opt", "phi"])
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript, which torch.onnx exports with, is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = sliced(name)
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
