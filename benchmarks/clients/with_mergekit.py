"""Merges the model with a neighbour by mergekit, linearly and along a sphere: the result is an ordinary checkpoint."""

import tempfile
from pathlib import Path

import torch
from contract import arguments, write
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from transformers import AutoTokenizer
from use import is_tied, load


def recipe(method: str, *folders: str) -> MergeConfiguration:
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in folders]
    own = {"base_model": str(folders[0]), "parameters": {"t": 0.5}} if method == "slerp" else {}
    return MergeConfiguration.model_validate({"merge_method": method, "models": models, "dtype": "float32"} | own)


@torch.no_grad()
def main():
    args = arguments()
    torch.manual_seed(0)
    model, other = load(args.model), load(args.model)
    for parameter in other.parameters():
        parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    checks = {}
    with tempfile.TemporaryDirectory() as folder:
        neighbour = Path(folder) / "neighbour"
        other.save_pretrained(neighbour)
        tokenizer.save_pretrained(neighbour)
        for method in ("linear", "slerp"):
            saved = Path(folder) / method
            run_merge(recipe(method, args.model, neighbour), str(saved), MergeOptions())
            loaded = load(saved)
            assert type(loaded) is type(model) and is_tied(loaded) == is_tied(model)
            assert AutoTokenizer.from_pretrained(saved).get_vocab() == tokenizer.get_vocab()
            ends = zip(model.parameters(), other.parameters(), strict=True)
            means = [(one + two) / 2 for one, two in ends]
            off = max((a - b).abs().max().item() for a, b in zip(loaded.parameters(), means, strict=True))
            assert off < {"linear": 1e-5, "slerp": 0.1}[method], off
            checks[method] = f"within {off:.0e} of the mean of the weights"
    write(args.output, {"checks": checks}, "mergekit", "torch", "transformers")


if __name__ == "__main__":
    main()
