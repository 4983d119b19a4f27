"""Quantizes weights to 8 and to 4 bits with torchao: perplexity beside bfloat16, saved and loaded again."""

import tempfile

import torch
from contract import arguments, write
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
from transformers import TorchAoConfig
from use import difference, load, perplexity, sequences


KINDS = {
    "8 bits": (Int8WeightOnlyConfig(), 1.05),
    "4 bits, groups of 32": (IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)), 1.5),
}
"""Settings that run on any processor, and the highest ratio of perplexities that is taken for sound."""


def main():
    args = arguments()
    rows = sequences(args.reference)[:4, :256]
    whole = perplexity(load(args.model, torch.bfloat16), rows)
    checks = {}
    for kind, (settings, limit) in KINDS.items():
        model = load(args.model, torch.bfloat16, quantization_config=TorchAoConfig(settings))
        ratio = perplexity(model, rows) / whole
        assert ratio < limit, ratio
        with tempfile.TemporaryDirectory() as saved:
            model.save_pretrained(saved)
            assert difference(load(saved, torch.bfloat16), model, rows[:1]) == 0
        checks[kind] = f"perplexity x {ratio:.3f}"
    write(args.output, {"checks": checks}, "torchao", "torch", "transformers")


if __name__ == "__main__":
    main()
