"""
Measures PIQA on checkpoints, dense, sliced or recovered, with lm-eval (`pip install optimum-slicegpt[eval]`).

    python benchmarks/piqa.py --data FOLDER --model dense=PATH sliced=PATH ... [--limit N]

FOLDER holds `valid.jsonl` and `valid-labels.lst`. No example is shown before a question. Every checkpoint is compared
with the first, question by question. A checkpoint of SmolLM2-135M takes about a quarter of an hour on a CPU core.
Writes `benchmarks/results/piqa.json` after each.
"""

import argparse
import math
import statistics
import time
from importlib.metadata import version

import lm_eval
from common import ROOT, write
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

import optimum_slicegpt  # noqa: F401  registers the sliced classes


TASK = "piqa_local"
METRICS = ("acc", "acc_norm")


def measure(path: str, args) -> tuple[dict, dict]:
    """Measures a checkpoint, and returns its results and for every metric the values of each question."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype)
    harness = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(path), batch_size=args.batch_size)
    tasks = TaskManager(
        include_path=str(ROOT / "examples/tasks"), include_defaults=False, metadata={"piqa": args.data}
    )
    start = time.perf_counter()
    found = lm_eval.simple_evaluate(harness, tasks=[TASK], task_manager=tasks, limit=args.limit)
    results, samples = found["results"][TASK], found["samples"][TASK]
    samples.sort(key=lambda sample: sample["doc_id"])
    figures = {"parameters": model.num_parameters(), "questions": len(samples)}
    for metric in METRICS:
        figures |= {metric: results[f"{metric},none"], f"{metric}_stderr": results[f"{metric}_stderr,none"]}
    figures["minutes"] = (time.perf_counter() - start) / 60
    return figures, {metric: [sample[metric] for sample in samples] for metric in METRICS}


def paired_difference(own: list[float], first: list[float]) -> tuple[float, float]:
    """Returns the mean difference and its standard error."""
    differences = [a - b for a, b in zip(own, first, strict=True)]
    return statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of PIQA")
    parser.add_argument("--model", required=True, nargs="+", metavar="NAME=PATH", help="checkpoints, the dense first")
    parser.add_argument("--limit", type=int, help="number of questions (default: all)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()

    about = {"task": "PIQA, validation set", "limit": args.limit, "dtype": args.dtype, "lm_eval": version("lm_eval")}
    runs, answers = [], []
    for name, path in (model.split("=", 1) for model in args.model):
        figures, answered = measure(path, args)
        answers.append(answered)
        for metric in METRICS:
            difference, stderr = paired_difference(answered[metric], answers[0][metric])
            figures |= {f"{metric}_difference": difference, f"{metric}_difference_stderr": stderr}
        runs.append({"name": name} | figures)
        print(write("piqa", about | {"runs": runs}))


if __name__ == "__main__":
    main()
