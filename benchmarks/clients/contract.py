"""
What the scripts of clients share: arguments, the reference, measurements and the file of results. Needs numpy alone.

A reference is an `.npz` with `prompt_N` (token ids), `last_N` (logits at their last positions) and `greedy` (the
tokens that follow), `text` and `logits` (at all of its positions), and `test`, the sequences for perplexity.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np


WRITTEN = 32
"""Tokens that are written to measure the speed of writing."""


def arguments(**more) -> argparse.Namespace:
    """Reads the arguments of a script: those of the contract, and flags of its own with their defaults."""
    parser = argparse.ArgumentParser()
    for name in ("model", "reference", "output"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default)
    return parser.parse_args()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def measure(
    reference_file: str,
    logits: Callable[[list[int]], np.ndarray],
    generate: Callable[[list[int], int], Sequence[int]],
    normalised: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> dict:
    """
    Measures a model in a client as the contract wants it.

    Args:
        reference_file (`str`): the reference.
        logits (`Callable`):
            Takes token ids; returns logits at all positions, `(T, vocabulary)`. Those that the client keeps to itself
            are NaN.
        generate (`Callable`):
            Takes token ids and a number; returns so many tokens, each the likeliest, whether or not it ends the text.
        normalised (`bool`): the logits are logarithms of probabilities, and are compared with such.
        clock (`Callable`): returns the seconds of all processors that the client has used.
    """
    reference = np.load(reference_file)
    prompts = [reference[f"prompt_{i}"].tolist() for i in range(len(reference["greedy"]))]
    wanted = [reference[f"last_{i}"] for i in range(len(prompts))] + [reference["logits"]]
    greedy = [list(map(int, generate(prompt, reference["greedy"].shape[1]))) for prompt in prompts]
    found = [logits(prompt)[-1] for prompt in prompts] + [logits(reference["text"].tolist())]
    form = log_softmax if normalised else np.asarray
    difference = max(np.nanmax(abs(a - form(b))) for a, b in zip(found, wanted, strict=True))

    losses = []
    for row in reference["test"].tolist():
        scores = logits(row)[:-1]
        scores = scores if normalised else log_softmax(scores)
        losses.append(-scores[range(len(scores)), row[1:]].mean(dtype=np.float64))

    def seconds(prompt, tokens):
        start = clock()
        generate(prompt, tokens)
        return clock() - start

    long, short = reference["test"][0].tolist(), prompts[0]
    return {
        "greedy": greedy,
        "logits": float(difference),
        "perplexity": float(np.exp(np.mean(losses))),
        "prompt_tokens_per_cpu_second": len(long) / seconds(long, 1),
        "generated_tokens_per_cpu_second": WRITTEN / (seconds(short, WRITTEN + 1) - seconds(short, 1)),
    }


def versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


def write(file: str, found: dict, *packages: str) -> None:
    """Writes the results of a script, with the versions of the packages that it measured."""
    Path(file).write_text(json.dumps({"versions": versions(*packages)} | found, indent=1) + "\n")
