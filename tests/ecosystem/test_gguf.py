"""examples/export_gguf.py, read back by `gguf`, by transformers and, where it is installed, by llama.cpp."""

import importlib.util
import subprocess

import pytest
import torch
from forking import run_program
from paths import ROOT
from sliced_models import model_of_one_width
from tiny import VOCAB, aligned, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt.export import export_stock


gguf = pytest.importorskip("gguf")
SCRIPT = ROOT / "examples" / "export_gguf.py"


def tokenizer_file(path):
    """Writes what stands for the GGUF file of the dense model: the script reads only the tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(VOCAB - 3))]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * VOCAB)
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * (VOCAB - 3)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def written(folder, *options, overrides=None):
    """Returns a sliced Llama, and its GGUF file."""
    model = model_of_one_width("llama", 28, torch.float32, overrides)
    export_stock(model).save_pretrained(folder / "stock")
    paths = [f"--model={folder / 'stock'}", f"--output={folder / 'sliced.gguf'}"]
    paths += [f"--tokenizer-from={tokenizer_file(folder / 'base.gguf')}"]
    run_program(SCRIPT, *paths, *options)
    return model, folder / "sliced.gguf"


def test_what_is_in_the_file(tmp_path):
    _, file = written(tmp_path)
    reader, base = gguf.GGUFReader(file), gguf.GGUFReader(tmp_path / "base.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_F16,
        "llama.vocab_size": VOCAB,
        "llama.context_length": 64,
        "llama.embedding_length": 28,
        "llama.block_count": 2,
        "llama.feed_forward_length": 24,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
    }
    assert {key: value for key, value in fields.items() if key.split(".")[0] in ("general", "llama")} == expected
    for key, field in base.fields.items():
        if key.startswith("tokenizer."):
            assert fields[key] == field.contents() and reader.fields[key].types == field.types

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 2 * 9
    assert tensors["output.weight"].data.shape == tensors["token_embd.weight"].data.shape == (VOCAB, 28)
    assert tensors["blk.1.ffn_down.weight"].data.shape == (28, 24)
    assert {tensor.tensor_type.name for name, tensor in tensors.items() if "norm" in name} == {"F32"}
    assert {tensor.tensor_type.name for name, tensor in tensors.items() if "norm" not in name} == {"F16"}


@torch.no_grad()
def test_transformers_reads_it(tmp_path):
    model, file = written(tmp_path, "--dtype=f32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    assert type(loaded).__name__ == "LlamaForCausalLM" and loaded.config.head_dim == 8
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in stock.state_dict().items())
    assert relative_error(aligned(loaded)(tokens()).logits, model(tokens()).logits) < 1e-5


def test_rotary_embeddings_that_it_cannot_write(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(subprocess.CalledProcessError) as failure:
        written(tmp_path, overrides={"rope_parameters": rope})
    assert "only Llamas with plain rotary" in failure.value.stderr


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs the package llama-cpp-python")
def test_llama_cpp_generates_the_same(tmp_path):
    from llama_cpp import Llama

    model, file = written(tmp_path, "--dtype=f32")
    llama = Llama(str(file), n_ctx=64, verbose=False)
    for prompt in tokens(4, 8):
        greedy = llama.generate(prompt.tolist(), temp=0.0)
        found = [next(greedy) for _ in range(24)]
        expected = model.generate(prompt[None], max_new_tokens=24, do_sample=False, eos_token_id=None)
        assert found == expected[0, 8:].tolist()
