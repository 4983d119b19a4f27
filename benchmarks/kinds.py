"""
Measures what models lose against the dense model they were made of, on kinds of text.

    python benchmarks/kinds.py --data FOLDER --dense FOLDER --model NAME=FOLDER ... [--split choose [--own FILE]]

`--data` holds `wikitext-2/valid.txt`, `wikitext-2/test.txt` and `seed_tasks.jsonl`, the tasks of Self-Instruct.

Protocol: a kind is one text, tokenised once without special tokens and cut into chunks of 1024 tokens, of which the
first 16 count. In front of a chunk stand the tokens that any text of the model begins with, which Gemma needs. Weights
are in bfloat16. The excess is the mean next-token loss minus that of the dense model, in nats, and its standard error
is paired, chunk by chunk. There are two splits, which share no text:

- `report`: WikiText-2's test split, the first 87 tasks, every fifth topic of Python's documentation from the first,
  and the source of some modules of Python's standard library.
- `choose`, to choose settings on: WikiText-2's validation split beyond the 32 chunks that calibrate, the other tasks,
  every fifth topic from the second, and with `--own` a file of token ids that the model wrote, `(N, T)` in a .pt or a
  .safetensors file.

Prints one line of JSON for each model. Writes nothing.
"""

import argparse
import importlib.util
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from optimum_slicegpt import evaluate_losses
from optimum_slicegpt.data.batches import begun
from optimum_slicegpt.modeling.families import begin_tokens


SPLITS = ("report", "choose")
LENGTH, CHUNKS = 1024, 16
CALIBRATED, TASKS = 32, 87
"""Chunks of WikiText-2's validation split that calibrate, and tasks that are reported."""
MODULES = "textwrap heapq statistics shlex configparser difflib calendar fractions mailbox tarfile zipfile csv cmd"
MODULES = (*MODULES.split(), "pprint", "uuid")
"""Modules whose source is the kind `code`."""


def read_texts(data: Path, split: str = "report") -> dict[str, str]:
    """
    Reads the texts of a split.

    Args:
        data (`Path`): folder of the data sets.
        split (`str`, defaults to `"report"`): one of `SPLITS`.

    Returns:
        `dict[str, str]`: text by kind.
    """
    report = split == "report"
    tasks = [json.loads(line) for line in (data / "seed_tasks.jsonl").read_text().splitlines()]
    tasks = tasks[:TASKS] if report else tasks[TASKS:]
    texts = {
        "wikitext2": (data / "wikitext-2" / ("test.txt" if report else "valid.txt")).read_text(),
        "tasks": "\n\n".join(map(join_task, tasks)),
        "python-docs": "\n\n".join(topics[name] for name in sorted(topics)[0 if report else 1 :: 5]),
    }
    return texts | ({"code": "\n\n".join(map(read_source, MODULES))} if report else {})


def join_task(task: dict) -> str:
    """Joins an instruction with the input and the output of each of its instances."""
    instances = (f"{instance['input']}\n{instance['output']}" for instance in task["instances"])
    return "\n".join((task["instruction"], *instances))


def read_source(module: str) -> str:
    return Path(importlib.util.find_spec(module).origin).read_text()


def cut(text: str, tokenizer: Any, length: int = LENGTH) -> Tensor:
    """Tokenises a text without special tokens, and returns its whole chunks `(N, length)`."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False).input_ids[0]
    return ids[: len(ids) // length * length].view(-1, length)


def read_own(path: Path) -> Tensor:
    """Reads token ids `(N, T)` that a model wrote, from the only tensor of a .pt or .safetensors file."""
    if path.suffix == ".safetensors":
        (ids,) = load_file(path).values()
        return ids.long()
    return torch.load(path)


def read_kinds(
    data: Path,
    tokenizer: Any,
    split: str = "report",
    chunks: int = CHUNKS,
    length: int = LENGTH,
    own: Path | None = None,
) -> dict[str, Tensor]:
    """
    Reads the chunks of every kind.

    Args:
        data (`Path`), split (`str`): as those of [`read_texts`].
        tokenizer (`PreTrainedTokenizerBase`): of the dense model.
        chunks (`int`, defaults to 16): of every kind; a short text has fewer.
        length (`int`, defaults to 1024): tokens in a chunk.
        own (`Path`, *optional*): file of tokens that the model wrote, see [`read_own`]. Its sequences stay whole.

    Returns:
        `dict[str, Tensor]`: ids of shape `(chunks, length)` by kind.
    """
    skipped = {"wikitext2": CALIBRATED} if split == "choose" else {}
    kinds = {}
    for kind, text in read_texts(data, split).items():
        first = skipped.get(kind, 0)
        kinds[kind] = cut(text, tokenizer, length)[first : first + chunks]
    if own is not None:
        ids = read_own(own)
        kinds["own"] = ids[: chunks * length // ids.shape[1]]
    return kinds


def measure(
    model: PreTrainedModel,
    tokenizer: Any,
    data: Path,
    split: str = "report",
    chunks: int = CHUNKS,
    length: int = LENGTH,
    own: Path | None = None,
) -> dict[str, list[float]]:
    """
    Measures the loss of a model on every kind of text, with weights as they are: by the protocol, in bfloat16.

    Args:
        model (`PreTrainedModel`): a causal language model, dense or sliced.
        tokenizer, data, split, chunks, length, own: as those of [`read_kinds`].

    Returns:
        `dict[str, list[float]]`: by kind the mean next-token loss of every chunk, in nats.
    """
    found, begin = {}, begin_tokens(model.config)
    for kind, ids in read_kinds(data, tokenizer, split, chunks, length, own).items():
        losses = evaluate_losses(model, [{"input_ids": ids if kind == "own" else begun(ids, begin)}])
        found[kind] = (losses.sums / losses.counts).tolist()
    return found


def paired_difference(own: Iterable[float], first: Iterable[float]) -> tuple[float, float]:
    """Returns the mean difference of paired values, and its standard error, NaN for one pair."""
    differences = [a - b for a, b in zip(own, first, strict=True)]
    if len(differences) == 1:
        return differences[0], math.nan
    return statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def excess(sliced: dict[str, list[float]], dense: dict[str, list[float]], seen: Iterable[str] = ()) -> dict[str, Any]:
    """
    Compares the losses of a model with those of the dense one.

    Args:
        sliced (`dict[str, list[float]]`), dense (`dict[str, list[float]]`): results of [`measure`] on the same chunks.
        seen (`Iterable[str]`): kinds that the model was calibrated or trained on.

    Returns:
        `dict`: `excess` and `stderr`, the difference and its standard error by kind; `seen`; `mean` with
        `mean_stderr`, and `worst` with `worst_kind`, over the kinds that were not seen; `mean_of_all`, over all kinds.

    Examples:
        >>> dense = {"wikitext2": [3.0, 3.5], "tasks": [2.0, 2.5]}
        >>> found = excess({"wikitext2": [3.5, 4.0], "tasks": [3.0, 3.5]}, dense, seen=["wikitext2"])
        >>> found["excess"], found["mean"], found["mean_of_all"], found["worst_kind"]
        ({'wikitext2': 0.5, 'tasks': 1.0}, 1.0, 0.75, 'tasks')
    """
    pairs = {kind: paired_difference(losses, dense[kind]) for kind, losses in sliced.items()}
    differences = {kind: mean for kind, (mean, _) in pairs.items()}
    unseen = [kind for kind in pairs if kind not in seen]
    worst = max(unseen, key=differences.get)
    return {
        "excess": differences,
        "stderr": {kind: stderr for kind, (_, stderr) in pairs.items()},
        "seen": [kind for kind in pairs if kind in seen],
        "mean": statistics.mean(differences[kind] for kind in unseen),
        "mean_stderr": math.hypot(*(pairs[kind][1] for kind in unseen)) / len(unseen),
        "mean_of_all": statistics.mean(differences.values()),
        "worst": differences[worst],
        "worst_kind": worst,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--dense", required=True, help="folder of the dense model")
    parser.add_argument("--model", required=True, nargs="+", metavar="NAME=PATH", help="models that were made of it")
    parser.add_argument("--split", choices=SPLITS, default="report")
    parser.add_argument("--own", type=Path, help="file of token ids that the dense model wrote")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help=f"of every kind (default: {CHUNKS})")
    parser.add_argument("--length", type=int, default=LENGTH, help=f"tokens in a chunk (default: {LENGTH})")
    parser.add_argument("--dtype", default="bfloat16", help="of weights (default: bfloat16)")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.dense)
    dense = None
    for name, path in (("dense", args.dense), *(model.split("=", 1) for model in args.model)):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype)
        losses = measure(model, tokenizer, args.data, args.split, args.chunks, args.length, args.own)
        dense = dense or losses
        perplexity = {kind: math.exp(statistics.mean(values)) for kind, values in losses.items()}
        found = {} if losses is dense else excess(losses, dense)
        print(json.dumps({"name": name, "parameters": model.num_parameters(), "perplexity": perplexity} | found))


if __name__ == "__main__":
    main()
