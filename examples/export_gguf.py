"""
Writes an exported Llama as GGUF, for llama.cpp:

    optimum-cli slicegpt export --model sliced --output stock
    python examples/export_gguf.py --model stock --tokenizer-from base.gguf --output sliced.gguf

Slicing keeps the tokenizer, so its keys are copied from any GGUF file of the dense model.
"""

from argparse import ArgumentParser

import torch
from gguf import MODEL_ARCH, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, get_tensor_name_map
from transformers import AutoModelForCausalLM


DTYPES = {"f16": (torch.float16, LlamaFileType.MOSTLY_F16), "f32": (torch.float32, LlamaFileType.ALL_F32)}


def add_configuration(writer, config):
    rope = config.rope_parameters
    if config.model_type != "llama" or rope["rope_type"] != "default":
        raise SystemExit(f"model_type={config.model_type!r}, rope_parameters={rope}: only Llamas with plain rotary.")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    # Without these, llama.cpp divides the embedding's length by the number of heads.
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_tokenizer(writer, path):
    for key, field in GGUFReader(path).fields.items():
        if key.startswith("tokenizer."):
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)


def add_tensors(writer, model, dtype):
    config = model.config
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        module = name.split(".")[-2]
        if module in heads:
            # llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
            halves = tensor.unflatten(0, (heads[module], 2, -1))
            tensor = halves.transpose(1, 2).flatten(0, 2)
        tensor = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.contiguous().numpy())


def main():
    parser = ArgumentParser(description="Write an exported Llama as GGUF, for llama.cpp.")
    parser.add_argument("--model", required=True, help="folder that `optimum-cli slicegpt export` wrote")
    parser.add_argument("--tokenizer-from", required=True, help="GGUF file of the model before slicing")
    parser.add_argument("--output", required=True, help="GGUF file to write")
    parser.add_argument("--dtype", choices=DTYPES, default="f16")
    args = parser.parse_args()

    dtype, file_type = DTYPES[args.dtype]
    writer = GGUFWriter(args.output, "llama")
    writer.add_file_type(file_type)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    add_configuration(writer, model.config)
    add_tokenizer(writer, args.tokenizer_from)
    add_tensors(writer, model, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
