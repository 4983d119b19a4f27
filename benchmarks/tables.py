"""
Writes the tables of README.md and docs/ from `benchmarks/results/*.json`, between `<!-- table: NAME -->` and
`<!-- end -->`.

    python benchmarks/tables.py

A table holds rows of one commit, which the line below it names: see [`common.results`]. One without results stays as
it is.
"""

import re

from common import ROOT, is_dense, results
from formatting import GIB, PARAMETERS, PEAK, add_source
from quality_tables import piqa, prompts, quality, readme, recovery, sizes

from optimum_slicegpt import FAMILIES


WIDTHS = {"width": "{width}", "neurons": "{neurons}"}
PERPLEXITIES = {"WikiText-2": "{wikitext2:.2f}", "instructions": "{tasks:.1f}", "Python docs": "{python-docs:.1f}"}


def describe_texts(found: dict) -> str:
    return f"Calibrated on {found['calibration']}, measured on {found['test']}"


def slicing() -> str:
    """Time and memory of the paper's method, beside the code of its authors."""
    found = results("slicing")
    rows = [{"name": "dense"} | found["dense"], *found["runs"], {"name": "the authors' code"} | found["authors"]]
    columns = {"run": lambda run: run["name"].removesuffix(", bfloat16")}
    columns |= {"tokens": "{calibration_tokens:,}", "dtype": "{dtype}", "width": "{width}"} | PARAMETERS
    columns |= {"perplexity": "{perplexity:.2f}", "over a float32 forward": "{slicing_over_float32_forward:.2f} ×"}
    columns |= {"over the floor": "{slicing_over_floor:.2f} ×"} | PEAK
    return add_source(found, columns, rows, describe_texts(found))


def quantization() -> str:
    """Size and perplexity with weights of 8 bits."""
    found = results("quantization")
    columns = {"model": "{name}", "size on disk": "{saved_mb:.1f} MB", "perplexity": "{perplexity:.2f}"}
    more = (f"sparsity {found['sparsity']}", f"torchao {found['torchao']}")
    return add_source(found, columns, found["runs"], describe_texts(found), *more)


def inference() -> str:
    """Throughput over that of the dense model, beside what FLOPs alone would make of it."""
    found, rows = results("inference"), []
    for run in found["runs"]:
        speedups = {(each["model"], each["batch_size"]): each for each in run["speedups"]}
        for each in run["speeds"]:
            over = speedups.get((each["model"], each["batch_size"]), {})
            rows.append({"name": f"{run['name']}, {each['model']}", "over": over} | each)
    columns = {"model": "{name}"} | PARAMETERS | {"batch": "{batch_size}"}
    columns |= {"prefill, tokens/s": "{prefill[tokens_per_s]:,.0f}"}
    columns |= {"over dense": "{over[prefill][throughput][median]:.2f} ×"}
    columns |= {"dense FLOPs over its own": "{over[prefill][flops]:.2f} ×"}
    columns |= {"decode, tokens/s": "{decode[tokens_per_s]:,.1f}"}
    columns |= {"decode over dense": "{over[decode][throughput][median]:.2f} ×"}
    run = found["runs"][0]
    facts = f"Random weights in {run['dtype']}, prompts of {run['settings']['seqlen']} tokens"
    return add_source(found, columns, rows, facts, f"medians of {run['settings']['repeats']} repeats")


def streaming() -> str:
    """What slicing from disk to disk takes, beside what was estimated."""
    found = results("streaming", compared=lambda run: (run["size"], run["method"]))
    rows = sorted(found["runs"], key=lambda run: (run["parameters_dense"], run["slicing_s"]))
    columns = {"method": "{method}", "parameters": lambda run: f"{run['parameters_dense'] / 1e6:,.0f} M"}
    for title in ("dense", "sliced"):
        columns[title] = lambda run, key=f"bytes_{title}": f"{run[key] / GIB:.2f} GiB"
    columns |= {"`--max-memory`": "{max_memory}"} | PEAK
    columns["estimated"] = lambda run: f"{sum(run['plan']['memory'].values()) / GIB:.2f} GiB"
    columns |= {"time": "{slicing_s:,.0f} s", "of it reading": "{seconds_by_phase[read]:,.0f} s"}
    columns |= {"writing": "{seconds_by_phase[write]:,.0f} s", "computing, estimated": "{plan[seconds]:,.0f} s"}
    libraries = f"libraries take {max(run['gib_when_imported'] for run in rows):.2f} GiB of the memory"
    return add_source(found, columns, rows, f"Calibrated on {rows[0]['calibration_tokens']} tokens", libraries)


def processes() -> str:
    """What several processes take, against one."""
    found = results("processes")
    columns = {"method": "{method}", "processes": "{processes}", "slicing": "{slicing_s:.0f} s"}
    columns |= {"over one process": "{time_over_one_process:.2f} ×"}
    columns |= {"difference": "{largest_relative_difference_of_weights:.1g}"}
    columns |= {"peak memory of the first": "{peak_gib_of_the_first:.2f} GiB"}
    facts = f"{found['model']}, {found['nsamples']} x {found['seqlen']} tokens of {found['dataset']}"
    return add_source(found, columns, found["runs"], facts)


def costs() -> str:
    """What slicing large models is expected to take, from disk to disk."""
    found = results("costs")

    def hours(seconds):
        return f"{seconds / 3600:,.0f}" if seconds >= 36000 else f"{seconds / 3600:.2g}"

    columns = {"model": "{model}", "method": "{method}"}
    columns["memory"] = lambda row: f"{sum(row['memory'].values()) / GIB:,.0f} GiB"
    for title, key in {"result": "bytes_written", "beside it": "bytes_beside", "read": "bytes_read"}.items():
        columns[title] = lambda row, key=key: f"{row[key] / GIB:,.0f} GiB"
    columns["hours, H100"] = lambda row: hours(row["seconds"])
    rates = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {dtype}" for dtype, rate in found["H100_flops_per_s"].items())
    memory = f"`--max-memory` {found['max_memory'] / GIB:.0f} GiB"
    facts = (f"Calibrated on {found['calibration']}", memory, f"an H100 is taken to compute at {rates}")
    return add_source(found, columns, found["runs"], *facts)


def equal_bytes() -> str:
    """Dense and sliced models in several types of weights, from the largest file to the smallest."""
    found = results("equal_bytes")
    rows = sorted(found["runs"], key=lambda run: (run["model"], -run["bytes"]))

    def is_best(row):
        no_larger = [run for run in rows if run["model"] == row["model"] and run["bytes"] <= row["bytes"]]
        return row["mean_perplexity"] == min(run["mean_perplexity"] for run in no_larger)

    columns = {"model": "{model}, {name}", "type": "{type}"}
    columns["file"] = lambda run: f"{run['bytes'] / 1e6:,.1f} MB"
    columns["tensors of a larger type"] = lambda run: f"{run['fell_back']} of {run['tensors']}"
    columns |= PERPLEXITIES | {"mean": "{mean_perplexity:.2f}"}
    columns["best of this size"] = lambda run: "yes" if is_best(run) else ""
    facts = f"{describe_texts(found)} and as much of the other texts", f"llama-cpp-python {found['llama_cpp']}"
    return add_source(found, columns, rows, *facts)


def gguf_speed() -> str:
    """Speed of these files over the dense model's of the same type, beside what FLOPs or bytes would make of it."""
    found = results("equal_bytes")
    columns = {"model": "{model}, {name}", "type": "{type}"}
    for title, key, cost in (("prompt", "prompt", "FLOPs"), ("writing", "writing", "bytes")):
        columns[f"{title}, tokens/s"] = f"{{{key}[tokens_per_s]:,.1f}}"
        columns[f"{title} over dense"] = f"{{{key}[over_dense]:.2f}} ×"
        columns[f"by {cost}"] = f"{{{key}[expected]:.2f}} ×"
        columns[f"share of that, {title}"] = lambda run, key=key: (
            "" if is_dense(run) else f"{run[key]['over_dense'] / run[key]['expected']:.2f}"
        )
    facts = f"Prompts of 512 tokens, 64 tokens written, medians of {found['turns']} turns"
    return add_source(found, columns, found["runs"], facts, f"llama-cpp-python {found['llama_cpp']}")


TABLES = (readme, quality, sizes, slicing, recovery, quantization, piqa, inference, streaming, processes, costs)
TABLES += (equal_bytes, gguf_speed, prompts)
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def fill(text: str) -> str:
    """Returns a page with the number of families and its tables written anew, those without results left out."""
    makers = {f"table: {make.__name__}": make for make in TABLES} | {"number of families": lambda: str(len(FAMILIES))}

    def replace(match):
        content = makers[match[2]]()
        lines = "\n" if match[2].startswith("table") else ""
        return f"{match[1]}{lines}{content}{lines}<!-- end -->" if content else match[0]

    return re.sub(rf"(<!-- ({'|'.join(makers)}) -->).*?<!-- end -->", replace, text, flags=re.S)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(fill(path.read_text()))
