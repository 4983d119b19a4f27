"""
Measures files of a model and of what slicing makes of it through llama.cpp, each in several types of weights: bytes,
perplexity on three kinds of text, and speed. So smaller weights and fewer weights can be compared at equal bytes.

    python benchmarks/equal_bytes.py --dense FOLDER --folder FOLDER --llama-cpp FOLDER --calibration valid.txt \\
        --test test.txt --tasks seed_tasks.jsonl [--at 0.1 0.2 0.3]

Models are sliced by the default settings into `--folder`, as `sliced-0.1` and so on, and converted and quantized
there; what that folder has already is used. [`model_files`] says what `--llama-cpp` holds.

Protocol: perplexity is llama-perplexity's, on 8 chunks of 512 tokens of each text, of which it counts the second
halves. Texts are the file `--test`, the first 87 instructions with their answers, and every fifth topic of Python's
documentation. Speed is llama-bench's: a prompt of 512 tokens, and 64 tokens that are written. Of every type the models
take turns, and ratios are those of a turn. Writes `benchmarks/results/equal_bytes.json` after every measurement; rows
of another model (`--name`) stay in that file.
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from pydoc_data.topics import topics

from common import RESULTS, environment, write
from model_files import describe, gguf_file, instructions, run, sliced
from transformers import AutoConfig

from optimum_slicegpt.modeling.decoder import Decoder, empty_model
from optimum_slicegpt.planning.sizes import flops_per_token


TYPES = ("f16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
SPEEDS = ("prompt", "writing")
PROMPT = 512
"""Tokens of the prompt whose speed is measured."""


def read_texts(args) -> dict[str, str]:
    """Reads the texts, by the names that tables know them by."""
    tasks = [
        "\n".join(filter(None, (task["instruction"], example["input"], example["output"])))
        for task in instructions(args.tasks, 87)
        for example in task["instances"]
    ]
    return {
        "wikitext2": Path(args.test).read_text(),
        "tasks": "\n\n".join(tasks),
        "python-docs": "\n\n".join(topics[name] for name in sorted(topics)[::5]),
    }


def perplexity(file: Path, text: Path, args) -> float:
    """Measures the perplexity of a GGUF file on a text."""
    program = args.llama_cpp / "build/bin/llama-perplexity"
    output = run(program, "-m", file, "-f", text, "-c", 512, "--chunks", args.chunks)
    return float(re.search(r"Final estimate: PPL = ([\d.]+)", output)[1])


def speed(file: Path, args) -> dict[str, float]:
    """Measures the tokens per second of a GGUF file once, after a run to warm up."""
    program = args.llama_cpp / "build/bin/llama-bench"
    output = run(program, "-m", file, "-p", PROMPT, "-n", 64, "-r", 1, "-o", "json")
    # What the program says of its machine may come before the JSON.
    tests = json.loads(output[output.index("[\n") :])
    return {name: test["avg_ts"] for name, test in zip(SPEEDS, tests, strict=True)}


def shape(folder: Path) -> dict:
    """
    Counts the parameters of a model, and the operations that a prompt takes in it: products with matrices, the head's
    for the last token alone, and attention scores.
    """
    config = AutoConfig.from_pretrained(folder)
    model = empty_model(config)
    head = 2 * config.vocab_size * config.hidden_size
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scores = 2 * PROMPT**2 * config.num_attention_heads * head_dim * config.num_hidden_layers
    return {
        "architecture": config.architectures[0],
        "parameters": model.num_parameters(),
        "width": config.hidden_size,
        "neurons": config.intermediate_size,
        "prompt_flops": PROMPT * (flops_per_token(Decoder(model)) - head) + head + scores,
    }


def add_ratios(rows: list[dict]) -> None:
    """
    Adds to rows of one type their speed over that of the dense model, the first: the median of the turns.

    Beside it stands what it would be if prompts took time for operations alone, and writing for reading weights.
    """
    dense = rows[0]
    for row in rows:
        for name, cost in zip(SPEEDS, ("prompt_flops", "bytes_read"), strict=True):
            ratios = [a / b for a, b in zip(row[name]["turns"], dense[name]["turns"], strict=True)]
            row[name]["tokens_per_s"] = statistics.median(row[name]["turns"])
            row[name]["over_dense"] = statistics.median(ratios)
            row[name]["expected"] = dense[cost] / row[cost]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="folder of the dense model")
    parser.add_argument("--folder", required=True, type=Path, help="for sliced models and GGUF files")
    parser.add_argument("--llama-cpp", required=True, type=Path, help="folder of llama.cpp, source and build")
    parser.add_argument("--calibration", required=True, help="text file to calibrate on")
    parser.add_argument("--test", required=True, help="text file of the same kind to measure on")
    parser.add_argument("--tasks", required=True, help="jsonl file of instructions, as Self-Instruct has them")
    parser.add_argument("--name", help="of the model in results (default: the folder's)")
    parser.add_argument("--at", nargs="+", type=float, default=[0.1, 0.2, 0.3], metavar="R", help="reductions")
    parser.add_argument("--nsamples", type=int, default=32, help="sequences to calibrate on (default: 32)")
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--chunks", type=int, default=8, help="of every text (default: 8)")
    parser.add_argument("--turns", type=int, default=3, help="of measuring speed (default: 3)")
    parser.add_argument("--speed-alone", action="store_true", help="measure the speed of the last run's files again")
    args = parser.parse_args()
    args.name = args.name or Path(args.dense).resolve().name
    args.folder.mkdir(parents=True, exist_ok=True)

    texts = {}
    for name, text in read_texts(args).items():
        texts[name] = args.folder / f"{name}.txt"
        texts[name].write_text(text)
    path = RESULTS / "equal_bytes.json"
    earlier = json.loads(path.read_text())["runs"] if path.exists() else []
    others = [row for row in earlier if row["model"] != args.name]
    rows = [row for row in earlier if row["model"] == args.name] if args.speed_alone else []

    def save():
        about = {
            "llama_cpp": (args.llama_cpp / "version").read_text().strip(),
            "calibration": f"{args.nsamples} x 1024 tokens of {Path(args.calibration).name}",
            "test": f"{args.chunks} x 512 tokens of {Path(args.test).name}",
            "turns": args.turns,
        }
        return write("equal_bytes", about | {"runs": others + rows})

    models = sliced(args.dense, args.folder, args.at, args.calibration, args.nsamples)
    for kind in args.types:
        of_kind = [row for row in rows if row["type"] == kind]
        for model in [] if args.speed_alone else models:
            file = gguf_file(model, kind, args.folder, args.llama_cpp)
            row = {"model": args.name, "name": model["name"], "reduction": model["reduction"], "type": kind}
            row |= {"commit": environment()["commit"]} | shape(model["path"]) | describe(file)
            row |= {name: perplexity(file, text, args) for name, text in texts.items()}
            row["mean_perplexity"] = statistics.geometric_mean(row[name] for name in texts)
            of_kind.append(row)
            rows.append(row)
            save()
        for row in of_kind:
            row |= {name: {"turns": []} for name in SPEEDS}
        for _ in range(args.turns):
            for model, row in zip(models, of_kind, strict=True):
                found = speed(gguf_file(model, kind, args.folder, args.llama_cpp), args)
                for name in SPEEDS:
                    row[name]["turns"].append(found[name])
        add_ratios(of_kind)
        print(save())


if __name__ == "__main__":
    main()
