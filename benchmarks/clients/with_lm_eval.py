"""lm-eval's command line on a local task: the likelihoods that it finds are those of the model."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from contract import arguments, write
from transformers import AutoModelForCausalLM, AutoTokenizer


TASK = """\
task: local
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: "{{{{answers}}}}"
metric_list: [{{metric: acc}}]
"""
QUESTIONS = [
    ("The capital of France is", ["Paris", "a banana"]),
    ("Two and two make", ["four", "twelve"]),
    ("Water is made of hydrogen and", ["oxygen", "cheese"]),
    ("The opposite of hot is", ["cold", "green"]),
    ("A dog is an", ["animal", "integer"]),
    ("The sun rises in the", ["east", "kitchen"]),
]


@torch.inference_mode()
def likelihood(model, tokenizer, question: str, answer: str) -> float:
    """Computes the logarithm of the probability of an answer."""
    start = len(tokenizer(question).input_ids)
    ids = torch.tensor(tokenizer(f"{question} {answer}").input_ids)
    logits = model(ids[None]).logits[0].log_softmax(-1)
    return logits[range(start - 1, len(ids) - 1), ids[start:]].sum().item()


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        file, results = Path(folder, "questions.jsonl"), Path(folder, "results")
        file.write_text("\n".join(json.dumps({"question": q, "answers": a}) for q, a in QUESTIONS))
        Path(folder, "local.yaml").write_text(TASK.format(file=file))
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", "local"]
        command += ["--model_args", f"pretrained={args.model},dtype=float32", "--include_path", folder]
        subprocess.run([*command, "--log_samples", "--output_path", results], check=True, cwd=folder)
        report = json.loads(next(results.rglob("results_*.json")).read_text())
        samples = map(json.loads, next(results.rglob("samples_*.jsonl")).read_text().splitlines())
        found = {
            sample["doc"]["question"]: [float(pair[0]) for pair in sample["filtered_resps"]] for sample in samples
        }

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    wanted = {q: [likelihood(model, tokenizer, q, answer) for answer in answers] for q, answers in QUESTIONS}
    assert all(np.allclose(found[q], wanted[q], atol=1e-3) for q, _ in QUESTIONS), (found, wanted)
    checks = {"likelihoods are the model's": True, "accuracy": report["results"]["local"]["acc,none"]}
    write(args.output, {"checks": checks}, "lm-eval", "transformers")


if __name__ == "__main__":
    main()
