"""
Measures how well the norms behind the blocks of a sliced model divide, and what their errors cost.

    python benchmarks/divisors.py --data FOLDER --dense FOLDER --name NAME --model NAME=FOLDER ...

Protocol: on the first `--chunks` chunks of 1024 tokens of WikiText-2's test split, in float32, each such norm of the
sliced model is compared with the dense model's on the same token. `bias` and `error` are the mean and the root mean
square of log(r'/r), r' and r what the two divide by; the tokens that every text begins with do not count. `cost` is
the next-token loss that goes, in nats, where this norm alone divides by r instead, and in the last row where all do.
It is negative where the sliced model, whose stream is another one, does worse with r. Writes
`benchmarks/results/divisors.json`; rows of other models stay in that file.
"""

import argparse
import json
from pathlib import Path

import torch
from common import RESULTS, write
from kinds import read_kinds
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from optimum_slicegpt.data.batches import begun
from optimum_slicegpt.linalg.moments import root_mean_square
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import begin_tokens
from optimum_slicegpt.modeling.weights import eps_of


class Divisors:
    """What the norms behind the blocks of a model divide by, which may be that of another model."""

    def __init__(self, model: PreTrainedModel):
        self.model, decoder = model, Decoder(model)
        norms = [block.post_norm for block in decoder.blocks() if block.post_norm is not None]
        self.norms = dict(zip(decoder.post_norm_names, norms, strict=True))
        self.eps = {name: eps_of(norm, decoder.family) for name, norm in self.norms.items()}

    @torch.no_grad()
    def run(self, ids: Tensor, instead: dict[str, Tensor] | None = None) -> tuple[float, dict[str, Tensor]]:
        """
        Runs the model.

        Args:
            ids (`torch.Tensor` of shape `(1, T)`): tokens.
            instead (`dict[str, torch.Tensor]`, *optional*): what some norms are to divide by, `(1, T, 1)`.

        Returns:
            `tuple`: the mean next-token loss, and by norm what it divided by of itself.
        """
        found, instead = {}, instead or {}

        def divide(name):
            def hook(norm, inputs, output):
                found[name] = root_mean_square(inputs[0], self.eps[name])
                return output * found[name] / instead[name] if name in instead else None

            return hook

        hooks = [norm.register_forward_hook(divide(name)) for name, norm in self.norms.items()]
        loss = self.model(input_ids=ids, labels=ids).loss.item()
        for hook in hooks:
            hook.remove()
        return loss, found


def compare(dense: Divisors, sliced: Divisors, chunks: Tensor, begin: int) -> list[dict]:
    """Returns a row for each norm behind a block, and one for all of them."""
    logs, costs = {name: [] for name in dense.norms}, {name: [] for name in [*dense.norms, "all"]}
    for chunk in chunks.split(1):
        _, right = dense.run(chunk)
        loss, found = sliced.run(chunk)
        for name, divisors in right.items():
            logs[name].append((found[name] / divisors).log()[0, begin:, 0])
            costs[name].append(loss - sliced.run(chunk, {name: divisors})[0])
        costs["all"].append(loss - sliced.run(chunk, right)[0])
    rows = []
    for name in dense.norms:
        errors = torch.cat(logs[name])
        found = {
            "bias": errors.mean(),
            "error": errors.square().mean().sqrt(),
            "cost": torch.tensor(costs[name]).mean(),
        }
        rows.append({"norm": name} | {key: value.item() for key, value in found.items()})
    return [*rows, {"norm": "all", "cost": torch.tensor(costs["all"]).mean().item()}]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="as kinds.py has it")
    parser.add_argument("--dense", required=True, help="folder of the dense model")
    parser.add_argument("--name", required=True, help="of the dense model in results")
    parser.add_argument(
        "--model", required=True, nargs="+", metavar="NAME=FOLDER", help="sliced models of stock class"
    )
    parser.add_argument("--chunks", type=int, default=2)
    args = parser.parse_args()

    def load(folder):
        return Divisors(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())

    dense, tokenizer = load(args.dense), AutoTokenizer.from_pretrained(args.dense)
    begin = begin_tokens(dense.model.config)
    chunks = begun(read_kinds(args.data, tokenizer, chunks=args.chunks)["wikitext2"], begin)
    path = RESULTS / "divisors.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in runs if run["model"] != args.name]
    for each in args.model:
        name, folder = each.split("=", 1)
        rows = compare(dense, load(folder), chunks, len(begin))
        runs.append({"model": args.name, "name": name, "chunks": args.chunks, "norms": rows})
        print(write("divisors", {"runs": runs}))


if __name__ == "__main__":
    main()
