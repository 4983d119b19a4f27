"""
Measures a sliced model as the draft of its dense parent: it proposes tokens, of which the parent keeps those that it
would have written itself. Greedy, so the text stays that of the parent (up to ties).

    python benchmarks/drafting.py --dense FOLDER --folder FOLDER --calibration valid.txt --tasks seed_tasks.jsonl \\
        [--llama-cpp FOLDER] [--at 0.3 0.5 0.7] [--tokens 1 2 4 8]

Models are sliced by the default settings into `--folder`, as `sliced-0.3` and so on; what that folder has already is
used. Prompts are the first 12 instructions, by the chat template. Prompt by prompt, the parent alone and every draft
take turns in transformers' assisted generation, where a draft proposes a fixed number of tokens in each step. With
`--llama-cpp` (see [`model_files`]), llama.cpp's draft model is measured on the same prompts, beside llama-bench's
speed of the parent alone. Writes `benchmarks/results/drafting.json`; rows of another model (`--name`) stay in it.
"""

import argparse
import json
import re
import time
from pathlib import Path

from common import RESULTS, environment, write
from model_files import gguf_file, instructions, run, sliced
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt.modeling.decoder import empty_model


def read_prompts(args) -> list[str]:
    """Reads instructions with their inputs, each as a chat that waits for an answer."""
    tokenizer, prompts = AutoTokenizer.from_pretrained(args.dense), []
    for task in instructions(args.tasks, args.prompts):
        content = "\n".join(filter(None, (task["instruction"], task["instances"][0]["input"])))
        chat = [{"role": "user", "content": content}]
        prompts.append(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return prompts


class Transformers:
    """transformers' assisted generation, of a parent and drafts."""

    def __init__(self, models: list[dict], args):
        self.args, self.tokenizer = args, AutoTokenizer.from_pretrained(args.dense)
        self.models = {
            model["name"]: AutoModelForCausalLM.from_pretrained(model["path"], dtype=args.dtype).eval()
            for model in models
        }
        self.models["dense"].register_forward_hook(self.count)
        self.steps = 0

    def count(self, *_):
        self.steps += 1

    def measure(self, prompt: str, name: str, tokens: int) -> dict:
        """Continues a prompt, with a draft that proposes so many tokens unless it is the parent."""
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        draft = None if name == "dense" else self.models[name]
        if draft is not None:
            settings = draft.generation_config
            settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = tokens, "constant"
            settings.assistant_confidence_threshold = 0.0  # Or it would propose fewer where it is unsure.
        self.steps, start = 0, time.perf_counter()
        found = self.models["dense"].generate(
            **ids, assistant_model=draft, do_sample=False, max_new_tokens=self.args.new_tokens
        )
        seconds = time.perf_counter() - start
        written = found[0, ids["input_ids"].shape[1] :].tolist()
        return {"text": written, "written": len(written), "steps": self.steps, "seconds": seconds}


class LlamaCpp:
    """llama.cpp's draft model: the time of the prompt does not count, unlike in transformers."""

    def __init__(self, models: list[dict], args):
        self.args, self.programs = args, args.llama_cpp / "build/bin"
        self.files = {model["name"]: gguf_file(model, args.type, args.folder, args.llama_cpp) for model in models}

    def measure(self, prompt: str, name: str, tokens: int) -> dict:
        """Continues a prompt, with a draft that proposes so many tokens unless it is the parent."""
        dense, length = self.files["dense"], self.args.new_tokens
        if name == "dense":
            output = run(self.programs / "llama-bench", "-m", dense, "-p", 0, "-n", length, "-r", 1, "-o", "json")
            (test,) = json.loads(output[output.index("[\n") :])
            return {"written": length, "steps": length, "seconds": length / test["avg_ts"]}
        draft = ("-md", self.files[name], "--spec-type", "draft-simple", "--spec-draft-n-max", tokens)
        output = run(
            *(self.programs / "llama-speculative-simple", "-m", dense, *draft, "-c", 2048, "-n", length),
            *("--temp", 0, "--no-escape", "-p", prompt),
        )
        written, seconds = re.search(r"decoded +(\d+) tokens in +([\d.]+) seconds", output).groups()
        accepted = int(re.search(r"n_accept += (\d+)", output)[1])
        return {"written": int(written), "steps": int(written) - accepted, "seconds": float(seconds)}


def measure_all(client, models: list[dict], prompts: list[str], args) -> list[dict]:
    """Measures the parent alone, which is the first model, and with each draft."""
    settings = [("dense", 0)] + [(model["name"], tokens) for model in models[1:] for tokens in args.tokens]
    for name, tokens in settings:
        client.measure(prompts[0], name, tokens)  # The first time takes longer.
    found = {setting: [] for setting in settings}
    for prompt in prompts:
        for name, tokens in settings:
            found[name, tokens].append(client.measure(prompt, name, tokens))
    rows, texts = [], [each.get("text") for each in found["dense", 0]]
    for (name, tokens), runs in found.items():
        written, steps, seconds = (sum(each[key] for each in runs) for key in ("written", "steps", "seconds"))
        row = {"name": name, "tokens": tokens, "tokens_per_step": written / steps, "tokens_per_s": written / seconds}
        if name != "dense":
            row["accepted"] = (written - steps) / (steps * tokens)
        if None not in texts:
            row["same_text"] = sum(each["text"] == text for each, text in zip(runs, texts, strict=True))
        rows.append(row | {"over_dense": row["tokens_per_s"] / (rows or [row])[0]["tokens_per_s"]})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="folder of the dense model")
    parser.add_argument("--folder", required=True, type=Path, help="for sliced models and GGUF files")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp, source and build")
    parser.add_argument("--calibration", required=True, help="text file to calibrate on")
    parser.add_argument("--tasks", required=True, help="jsonl file of instructions, as Self-Instruct has them")
    parser.add_argument("--name", help="of the model in results (default: the folder's)")
    parser.add_argument("--at", nargs="+", type=float, default=[0.3, 0.5, 0.7], metavar="R", help="reductions")
    parser.add_argument("--nsamples", type=int, default=32, help="sequences to calibrate on (default: 32)")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 4, 8], help="that a draft proposes in a step")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of transformers (default: float32)")
    parser.add_argument("--type", default="Q8_0", help="of llama.cpp's files (default: Q8_0)")
    args = parser.parse_args()
    args.name = args.name or Path(args.dense).resolve().name
    args.folder.mkdir(parents=True, exist_ok=True)

    models = sliced(args.dense, args.folder, args.at, args.calibration, args.nsamples)
    parameters = {m["name"]: empty_model(AutoConfig.from_pretrained(m["path"])).num_parameters() for m in models}
    clients = {f"transformers, {args.dtype}": Transformers}
    if args.llama_cpp:
        clients[f"llama.cpp, {args.type}"] = LlamaCpp
    path = RESULTS / "drafting.json"
    rows = json.loads(path.read_text())["runs"] if path.exists() else []
    rows = [row for row in rows if row["model"] != args.name]
    about = {
        "calibration": f"{args.nsamples} x 1024 tokens of {Path(args.calibration).name}",
        "prompts": args.prompts,
        "new_tokens": args.new_tokens,
    }
    for name, client in clients.items():
        for row in measure_all(client(models, args), models, read_prompts(args), args):
            of_run = {"model": args.name, "client": name, "commit": environment()["commit"]}
            rows.append(of_run | row | {"parameters": parameters[row["name"]]})
        print(write("drafting", about | {"runs": rows}))


if __name__ == "__main__":
    main()
