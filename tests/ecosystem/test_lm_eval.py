"""lm-eval on sliced models, with the local PIQA task of `examples/tasks`."""

import json
import subprocess
import sys

import pytest
import tiny
import torch
from paths import ROOT
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig


lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install optimum-slicegpt[eval]")
TASKS = ROOT / "examples" / "tasks"
QUESTIONS = 10


@pytest.fixture(scope="module")
def piqa(tmp_path_factory):
    """Writes PIQA in the words of the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("piqa")
    texts = [" ".join(f"w{token}" for token in row) for row in tiny.tokens(3 * QUESTIONS, 5).tolist()]
    rows = [dict(zip(("goal", "sol1", "sol2"), texts[i::QUESTIONS], strict=True)) for i in range(QUESTIONS)]
    (folder / "valid.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "valid-labels.lst").write_text("".join(f"{i % 3 % 2}\n" for i in range(QUESTIONS)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("lm_eval") / "sliced"
    model = tiny.build("llama", torch.float32, vocab_size=98)
    model.compress(SliceGPTConfig(sparsity=0.3, dataset=tiny.calibration())).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def task_manager(**metadata):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)


@torch.no_grad()
def expected_accuracy(folder, tokenizer, piqa):
    """Computes for each question whether the model finds the right solution likelier."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    right = []
    labels = (piqa / "valid-labels.lst").read_text().split()
    for line, label in zip((piqa / "valid.jsonl").read_text().splitlines(), labels, strict=True):
        row = json.loads(line)
        context = f"Question: {row['goal']}\nAnswer:"
        skipped = len(tokenizer(context).input_ids)
        likelihoods = []
        for choice in (row["sol1"], row["sol2"]):
            ids = torch.tensor(tokenizer(f"{context} {choice}").input_ids)
            logits = model(ids[None]).logits[0].log_softmax(-1)
            likelihoods.append(sum(logits[i - 1, ids[i]].item() for i in range(skipped, len(ids))))
        right.append(float((likelihoods[1] > likelihoods[0]) == bool(int(label))))
    return right


def test_a_sliced_model_in_memory(folder, tiny_tokenizer, piqa):
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    found = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=4),
        tasks=["piqa_local"],
        task_manager=task_manager(piqa=str(piqa)),
    )
    right = [sample["acc"] for sample in found["samples"]["piqa_local"]]
    assert right == expected_accuracy(folder, tiny_tokenizer, piqa)
    assert 0 < sum(right) < QUESTIONS
    results = found["results"]["piqa_local"]
    assert results["acc,none"] == sum(right) / QUESTIONS
    assert results["acc_stderr,none"] > 0 and results["acc_norm_stderr,none"] > 0


def test_a_saved_folder_on_the_command_line(folder, tiny_tokenizer, piqa, tmp_path):
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder},trust_remote_code=True", "--tasks", "piqa_local"]
    command += ["--include_path", str(TASKS), "--metadata", json.dumps({"piqa": str(piqa)})]
    done = subprocess.run([*command, "--output_path", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.rglob("results_*.json")
    results = json.loads(report.read_text())["results"]["piqa_local"]
    assert results["acc,none"] == sum(expected_accuracy(folder, tiny_tokenizer, piqa)) / QUESTIONS


def load_task(**metadata):
    return task_manager(**metadata).load(["piqa_local"])


def test_the_data_are_somewhere(tmp_path):
    with pytest.raises(ValueError, match="Where is PIQA"):
        load_task()
    with pytest.raises(FileNotFoundError, match=r"valid\.jsonl"):
        load_task(piqa=str(tmp_path))
