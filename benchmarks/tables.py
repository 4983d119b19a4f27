"""
Writes the tables of README.md and docs/ from `benchmarks/results/*.json`, between `<!-- table: NAME -->` and
`<!-- end -->`.

    python benchmarks/tables.py

A table holds rows of one commit, which the line below it names: see [`common.results`].
"""

import math
import re
from collections.abc import Callable

from common import ROOT, is_dense, results

from optimum_slicegpt import FAMILIES


GIB, DEFAULT = 2**30, "shared + refit + neurons"
PARAMETERS = {"parameters": lambda run: f"{run['parameters'] / 1e6:.1f} M"}
WIDTHS = {"width": "{width}", "neurons": "{neurons}"}
PERPLEXITIES = {"WikiText-2": "{wikitext2:.2f}", "instructions": "{tasks:.1f}", "Python docs": "{python-docs:.1f}"}
PEAK = {"peak memory": "{peak_gib:.2f} GiB"}
FILES = {"valid.txt": "WikiText-2's validation split", "test.txt": "WikiText-2's test split"}
"""What the files are whose names are in the results."""
OUTSIDE_HISTORY = {"9ce2a240dc129ff199a6c1facce01d8822b8cae7"}
"""Commits in the results that this repository does not have."""


def table(columns: dict[str, str | Callable[[dict], str]], rows: list[dict]) -> str:
    """
    Formats rows as a table of Markdown.

    Args:
        columns (`dict`):
            Title -> a format string for the values of a row, or a function that formats the cell of a row. The cell is
            empty if the row lacks one of its values (`KeyError`). A column without any cell is left out.
        rows (`list[dict]`): results.
    """

    def cell(column, row):
        try:
            return column.format_map(row) if isinstance(column, str) else column(row)
        except KeyError:
            return ""

    cells = {title: [cell(column, row) for row in rows] for title, column in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    lines = [cells, ["---"] * len(cells), *zip(*cells.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def add_source(found: dict, columns: dict, rows: list[dict], *facts: str) -> str:
    """Returns a table, and below it facts about its rows, their commit, the versions and the machine."""
    versions, machine = found["versions"], found["machine"]
    source = f"torch {versions['torch']}, transformers {versions['transformers']}"
    source += f", {machine['cores']} cores of {machine['processor']}"
    if not all(map(is_dense, rows)):  # Rows of the dense model may be of another commit.
        # Nobody can check out code that had uncommitted changes, or a commit outside the history.
        unknown = found["uncommitted_changes"] or found["commit"] in OUTSIDE_HISTORY
        commit = "unknown" if unknown else f"`{found['commit'][:7]}`"
        source = f"commit {commit}, {source}"
    caption = "; ".join([*facts, source])
    for name, text in FILES.items():
        caption = caption.replace(name, text)
    return f"{table(columns, rows)}\n\n{caption}."


def describe_texts(found: dict) -> str:
    return f"Calibrated on {found['calibration']}, measured on {found['test']}"


def damage_over(dense: dict, other: dict) -> dict:
    """Returns the column of ln(perplexity / dense perplexity) on WikiText-2, as a share of that of another run."""

    def damage(run):
        return math.log(run["wikitext2"] / dense["wikitext2"])

    return {"damage": lambda run: "" if run is dense else f"{damage(run) / damage(other):.2f}"}


def readme() -> str:
    """The model that people download, what the default makes of it, and the published method."""
    found = results("quality")
    names = {"dense": found["model"], DEFAULT: "default settings", "paper": "SliceGPT as published"}
    wanted = [("dense", None), *((DEFAULT, share) for share in (0.1, 0.2, 0.3)), ("paper", 0.2)]
    tied = {(run["method"], run["sparsity"]): run for run in found["runs"] if run["series"] == "tied"}
    columns = {
        "model": lambda run: names[run["method"]] + (f", {run['sparsity']:.0%} smaller" if run["sparsity"] else ""),
        **PARAMETERS,
        "size on disk": lambda run: f"{run['bytes_on_disk'] / 1e6:,.0f} MB",
        "perplexity, WikiText-2": "{wikitext2:.1f}",
        "perplexity, other texts": lambda run: f"{math.sqrt(run['tasks'] * run['python-docs']):.1f}",
        "tokens per second": "{tokens_per_s:.1f}",
    }
    return add_source(found, columns, [tied[key] for key in wanted if key in tied], describe_texts(found))


def quality() -> str:
    """Every method at one size: that of the paper's method at sparsity 0.25, with a head of its own."""
    found = results("quality")
    rows = [run for run in found["runs"] if run["series"] == "untied" and run["sparsity"] in (None, 0.25)]
    dense, paper = (next(run for run in rows if run["method"] == method) for method in ("dense", "paper"))
    columns = {"method": "{method}"} | PARAMETERS | WIDTHS | PERPLEXITIES | damage_over(dense, paper)
    columns["time"] = lambda run: f"{run['slicing_s'] / paper['slicing_s']:.1f} ×"
    return add_source(found, columns | PEAK, rows, describe_texts(found), f"sliced in {paper['dtype']}")


def sizes() -> str:
    """The default method at every size, and the paper's method at the same size."""
    found = results("quality")
    runs = {(run["series"], run["method"], run["sparsity"]): run for run in found["runs"]}
    rows = [run for run in runs.values() if run["method"] in ("dense", DEFAULT)]
    rows.sort(key=lambda run: (run["series"] == "tied", -run["parameters"]))
    columns = {"head": "{series}"} | PARAMETERS
    columns["change"] = lambda run: f"{run['parameters'] / runs[run['series'], 'dense', None]['parameters'] - 1:+.1%}"
    columns |= WIDTHS | PERPLEXITIES
    for title, form in PERPLEXITIES.items():
        columns[f"paper: {title}"] = lambda run, form=form: form.format_map(
            runs[run["series"], "paper", run["sparsity"]]
        )
    return add_source(found, columns, rows, describe_texts(found))


def slicing() -> str:
    """Time and memory of the paper's method, beside the code of its authors."""
    found = results("slicing")
    rows = [{"name": "dense"} | found["dense"], *found["runs"], {"name": "the authors' code"} | found["authors"]]
    columns = {"run": lambda run: run["name"].removesuffix(", bfloat16")}
    columns |= {"tokens": "{calibration_tokens:,}", "dtype": "{dtype}", "width": "{width}"} | PARAMETERS
    columns |= {"perplexity": "{perplexity:.2f}", "over a float32 forward": "{slicing_over_float32_forward:.2f} ×"}
    columns |= {"over the floor": "{slicing_over_floor:.2f} ×"} | PEAK
    return add_source(found, columns, rows, describe_texts(found))


def recovery() -> str:
    """What a short recovery regains, alone and with a teacher."""
    found = results("recovery")
    runs = {run["name"]: run for run in found["runs"]}
    settings = runs["recovered"]["settings"]
    columns = {"model": "{name}", "sequences": "{sequences}"} | PERPLEXITIES
    columns |= damage_over(runs["dense"], runs["sliced"])
    columns["minutes"] = lambda run: f"{run['minutes']:.0f}" if run["steps"] else ""
    facts = f"Trained on sequences of {settings['seqlen']} tokens of {found['train']}, measured on {found['test']}"
    return add_source(found, columns, found["runs"], facts, f"learning rate {settings['learning_rate']}")


def quantization() -> str:
    """Size and perplexity with weights of 8 bits."""
    found = results("quantization")
    columns = {"model": "{name}", "size on disk": "{saved_mb:.1f} MB", "perplexity": "{perplexity:.2f}"}
    more = (f"sparsity {found['sparsity']}", f"torchao {found['torchao']}")
    return add_source(found, columns, found["runs"], describe_texts(found), *more)


def piqa() -> str:
    """Every checkpoint, and by how much it differs from the first."""
    found = results("piqa")
    columns = {"model": "{name}"} | PARAMETERS
    for key in ("acc", "acc_norm"):
        columns[f"{key}, %"] = lambda run, key=key: f"{100 * run[key]:.1f} ± {100 * run[f'{key}_stderr']:.1f}"
        columns[f"difference of {key}"] = lambda run, key=f"{key}_difference": (
            "" if run is found["runs"][0] else f"{100 * run[key]:+.1f} ± {100 * run[f'{key}_stderr']:.1f}"
        )
    facts = (f"{found['runs'][0]['questions']:,} questions", f"{found['dtype']}", f"lm-eval {found['lm_eval']}")
    return add_source(found, columns, found["runs"], *facts)


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
    found = results("streaming")
    rows = sorted(found["runs"], key=lambda run: run["parameters_dense"])
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
    found = results("scaling")

    def hours(seconds):
        return f"{seconds / 3600:,.0f}" if seconds >= 36000 else f"{seconds / 3600:.2g}"

    columns = {"model": "{model}", "method": "{method}"}
    columns["memory"] = lambda row: f"{sum(row['memory'].values()) / GIB:,.0f} GiB"
    for title, key in {"result": "bytes_written", "beside it": "bytes_beside", "read": "bytes_read"}.items():
        columns[title] = lambda row, key=key: f"{row[key] / GIB:,.0f} GiB"
    columns["hours, H100"] = lambda row: hours(row["seconds"]["H100"])
    columns["hours, CPU"] = lambda row: hours(row["seconds"]["this machine"])
    rates = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {dtype}" for dtype, rate in found["H100_flops_per_s"].items())
    errors = [run["predicted_over_measured"] for run in found["runs"]]
    fit = f"CPU hours are the estimate times {found['taken_over_planned']:.2f}; on {len(errors)} measured runs the "
    fit += f"error was a factor of up to {max(*errors, 1 / min(errors)):.1f}"
    memory = f"`--max-memory` {found['max_memory'] / GIB:.0f} GiB"
    facts = (f"Calibrated on {found['calibration']}", memory, f"an H100 is taken to compute at {rates}", fit)
    return add_source(found, columns, found["costs"], *facts)


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


def drafting() -> str:
    """A sliced model as the draft of its parent, beside the most that its bytes would allow."""
    found = results("drafting")
    parents = {(run["model"], run["client"]): run for run in found["runs"] if is_dense(run)}

    def at_best(run):
        size = run["parameters"] / parents[run["model"], run["client"]]["parameters"]
        return f"{run['tokens_per_step'] / (1 + run['tokens'] * size):.2f} ×"

    columns = {"model": "{model}", "client": "{client}", "draft": lambda run: "" if is_dense(run) else run["name"]}
    columns["proposed"] = lambda run: f"{run['tokens'] or ''}"
    columns |= {"of them accepted": "{accepted:.0%}", "tokens per step": "{tokens_per_step:.2f}"}
    columns |= {"tokens/s": "{tokens_per_s:.1f}", "over the parent alone": "{over_dense:.2f} ×"}
    columns["by bytes"] = lambda run: "" if is_dense(run) else at_best(run)
    facts = f"Drafts calibrated on {found['calibration']}; {found['prompts']} instructions, greedy"
    return add_source(found, columns, found["runs"], facts, f"up to {found['new_tokens']} tokens each")


TABLES = (readme, quality, sizes, slicing, recovery, quantization, piqa, inference, streaming, processes, costs)
TABLES += (equal_bytes, gguf_speed, drafting)
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def fill(text: str) -> str:
    """Returns a page with its tables, and the number of families, written anew."""
    contents = {f"table: {make.__name__}": lambda make=make: f"\n{make()}\n" for make in TABLES}
    for name, content in (contents | {"number of families": lambda: str(len(FAMILIES))}).items():
        pattern = rf"(<!-- {name} -->).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, content=content: match[1] + content() + match[2], text, flags=re.S)
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(fill(path.read_text()))
