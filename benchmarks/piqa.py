"""
Measures PIQA on a model, dense, sliced or recovered, with lm-eval (`pip install optimum-slicegpt[eval]`), for
`benchmarks/quality.py --piqa`.

The folder of the data holds `valid.jsonl` and `valid-labels.lst`. No example is shown before a question. Every model
is compared with the dense one, question by question. SmolLM2-135M takes about a quarter of an hour on a CPU core.
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
from common import ROOT
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel


TASK = "piqa_local"
METRICS = ("acc", "acc_norm")


def measure(model: PreTrainedModel, tokenizer: Any, data: Path, limit: int | None = None, batch_size: int = 8) -> dict:
    """
    Measures a model.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): what answers.
        data (`Path`): folder of PIQA.
        limit (`int`, *optional*): number of questions. All by default.
        batch_size (`int`, defaults to 8): of lm-eval.

    Returns:
        `dict`: shares of right answers with standard errors; `answers`, by metric a string of `1` for each question
        with a right answer and `0` for each other one.
    """
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    tasks = TaskManager(
        include_path=str(ROOT / "examples/tasks"), include_defaults=False, metadata={"piqa": str(data)}
    )
    start = time.perf_counter()
    found = lm_eval.simple_evaluate(harness, tasks=[TASK], task_manager=tasks, limit=limit)
    results, samples = found["results"][TASK], found["samples"][TASK]
    samples.sort(key=lambda sample: sample["doc_id"])
    figures = {"questions": len(samples), "lm_eval": version("lm_eval"), "minutes": (time.perf_counter() - start) / 60}
    for metric in METRICS:
        figures |= {metric: results[f"{metric},none"], f"{metric}_stderr": results[f"{metric}_stderr,none"]}
    return figures | {"answers": {m: "".join(str(int(sample[m])) for sample in samples) for m in METRICS}}
